"""The typed configuration: what ships is valid, what is written is read again, what is wrong is named."""

import dataclasses
import functools
import json
import re
from importlib import resources
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from textebm.config import (
    Config,
    GeneratorConfig,
    InferenceConfig,
    OptimiserConfig,
    PriorConfig,
    flat,
    from_dict,
    load_config,
    method_names,
    preset_names,
    to_dict,
)
from textebm.data.image_cards import image_card_names, load_image_card
from textebm.data.registry import card_names
from textebm.errors import ConfigError, UsageError

positive = st.floats(min_value=1e-6, max_value=1e6)
natural = st.integers(min_value=1, max_value=10_000)
schedules = st.one_of(positive, st.lists(positive, min_size=1, max_size=5).map(tuple))
temperatures = st.one_of(
    st.floats(0, 10), st.lists(st.floats(min_value=0, max_value=10), min_size=1, max_size=5).map(tuple)
)

configs = st.builds(
    Config,
    data=st.text(min_size=1),
    data_dir=st.none() | st.text(),
    vocab_size=st.integers(5, 10**6),
    max_length=st.none() | natural,
    overlong=st.sampled_from(["drop", "cut"]),
    prior=st.builds(
        PriorConfig,
        kind=st.sampled_from(["ebm", "gaussian"]),
        sigma=positive,
        steps=st.integers(0, 1000),
        step_size=schedules,
        temperature=temperatures,
    ),
    generator=st.builds(
        GeneratorConfig, z_to_cell=st.booleans(), dropout=st.floats(0, 1, exclude_max=True), init_range=positive
    ),
    inference=st.builds(InferenceConfig, steps=natural, step_size=schedules, temperature=temperatures),
    optimiser=st.builds(OptimiserConfig, lr=positive, betas=st.tuples(st.floats(0, 0.999), st.floats(0, 0.999))),
    seed=st.integers(0, 2**40),
    precision=st.sampled_from(["auto", "fp32", "bf16", "fp16"]),
)


def preset_text(name: str) -> str:
    return (resources.files("textebm.configs") / f"{name}.yaml").read_text(encoding="utf-8")


def nested(key: str, value: object) -> dict[str, Any]:
    """{"a": {"b": value}} of the key a.b."""
    for part in reversed(key.split(".")):
        value = {part: value}
    assert isinstance(value, dict)
    return value


def leaves(values: dict[str, Any], where: str = "") -> list[str]:
    """The dotted keys of a nested mapping."""
    found = []
    for key, value in values.items():
        found += leaves(value, f"{where}{key}.") if isinstance(value, dict) else [f"{where}{key}"]
    return found


def _as_in_flat(group: dict[str, Any]) -> dict[str, Any]:
    """Lists and nothing become JSON."""
    return {key: json.dumps(value) if isinstance(value, list | None) else value for key, value in group.items()}


class TestRoundTrip:
    @given(configs)
    def test_what_is_written_to_json_is_read_as_it_was(self, config: Config) -> None:
        assert from_dict(json.loads(json.dumps(to_dict(config)))) == config

    @given(configs)
    def test_yaml_too(self, config: Config) -> None:
        assert from_dict(yaml.safe_load(yaml.safe_dump(to_dict(config)))) == config

    @given(configs)
    def test_keys_that_are_not_named_keep_the_values_of_the_base(self, base: Config) -> None:
        changed = from_dict({"seed": 7, "prior": {"steps": 3}}, base=base)
        wanted = dataclasses.replace(base, seed=7, prior=dataclasses.replace(base.prior, steps=3))
        assert changed == wanted

    def test_a_run_of_text_from_before_there_were_images_is_read(self) -> None:
        written = to_dict(load_config("ptb"))
        del written["images"], written["encoder"]["width"]
        del written["generator"]["kind"], written["generator"]["convolution"]
        assert from_dict(written) == load_config("ptb")

    @given(configs)
    def test_flat_names_every_setting_with_its_value(self, config: Config) -> None:
        nested: dict[str, Any] = {}
        for name, value in flat(config).items():
            *groups, last = name.split(".")
            place = functools.reduce(lambda part, group: part.setdefault(group, {}), groups, nested)
            place[last] = value
        plain = json.loads(json.dumps(to_dict(config)), object_hook=_as_in_flat)
        assert nested == plain

    def test_an_empty_mapping_is_the_defaults(self) -> None:
        assert from_dict({}) == Config()


class TestPresets:
    def test_the_presets_of_the_field_ship(self) -> None:
        assert {"demo", "ptb", "ptb-small", "snli", "snli-small", "yahoo"} <= set(preset_names())
        assert {"svhn", "cifar10", "celeba64", "celeba128", "mnist", "mnist-small"} <= set(preset_names())

    @pytest.mark.parametrize("name", preset_names())
    def test_each_parses_and_names_a_corpus_that_has_a_card(self, name: str) -> None:
        config = load_config(name)
        assert config.data in (card_names() if config.generator.kind == "recurrent" else image_card_names())

    @pytest.mark.parametrize("name", preset_names())
    def test_each_of_its_values_is_in_the_configuration(self, name: str) -> None:
        written = yaml.safe_load(preset_text(name))
        config = to_dict(load_config(name))
        for key in leaves(written):
            expected: Any = written
            found: Any = config
            for part in key.split("."):
                expected, found = expected[part], found[part]
            assert found == expected, key

    @pytest.mark.parametrize("name", preset_names())
    def test_a_generator_of_images_makes_them_in_the_size_of_the_data(self, name: str) -> None:
        config = load_config(name)
        if config.generator.kind == "convolutional":
            assert config.images.size in (None, config.generator.convolution.side)
            assert config.generator.convolution.side == load_image_card(config.data).size

    @pytest.mark.parametrize("name", preset_names())
    def test_each_value_says_who_published_it_or_that_it_is_our_choice(self, name: str) -> None:
        text = preset_text(name)
        header = " ".join(line.removeprefix("# ") for line in text.splitlines() if line.startswith("#"))
        by_default = "Every value is our choice unless it says otherwise" in header
        assert by_default or "Each value says who published it, or that it is our choice" in header
        for line in text.splitlines():
            key, _, rest = line.partition(":")
            value, _, said = rest.partition("#")
            if line.startswith("#") or not value.strip() or key == "data":
                continue  # a heading, or what the preset is for
            if not by_default or "published" in said:
                assert re.search(r"published \([A-Z]|published: |our choice", said), line

    @pytest.mark.parametrize("name", preset_names())
    def test_the_command_line_knows_every_setting(self, name: str, command) -> None:
        done = command("train", "--config", name, "--print-config")
        assert done.code == 0
        assert json.loads(done.out) == to_dict(load_config(name))

    def test_temperatures_below_1_are_in_the_name(self) -> None:
        """A preset that changes the published algorithm says so in its name."""
        for name in preset_names():
            inference = load_config(name).inference
            known = inference.temperature if isinstance(inference.temperature, tuple) else (inference.temperature,)
            assert min(known) == 1.0 or "tempered" in name, name


class TestMethods:
    @pytest.mark.parametrize("method", method_names())
    @pytest.mark.parametrize("name", preset_names())
    def test_each_fits_each_preset_and_the_command_line_knows_it(self, name: str, method: str, command) -> None:
        """But for the language model without z, of which there is none of images."""
        done = command("train", "--config", name, "--method", method, "--print-config")
        if method == "lstm-lm" and load_config(name).generator.kind == "convolutional":
            assert done.code == 2
            assert "only text has a language model without z" in " ".join(done.err.split())
            return
        assert done.code == 0, done.err
        assert json.loads(done.out) == to_dict(load_config(name, method))

    def test_temperatures_below_1_are_in_the_name(self) -> None:
        for method in method_names():
            inference = load_config("ptb", method).inference
            known = inference.temperature if isinstance(inference.temperature, tuple) else (inference.temperature,)
            assert min(known) == 1.0 or "tempered" in method, method

    def test_a_method_changes_what_it_names_and_nothing_else(self) -> None:
        plain, twin = load_config("ptb-small"), load_config("ptb-small", "sri")
        assert twin.prior.kind == "gaussian"
        assert dataclasses.replace(twin, prior=plain.prior) == plain
        assert dataclasses.replace(twin.prior, kind="ebm") == plain.prior

    def test_a_longer_step_of_images_comes_with_a_twin(self) -> None:
        for name in ("mnist-small", "cifar10-small", "celeba64"):
            plain, longer, twin = (load_config(name, method) for method in ("lebm", "lebm-long-step", "sri-long-step"))
            assert longer.inference.step_size == 2 * plain.inference.step_size  # type: ignore[operator]
            assert dataclasses.replace(longer, inference=plain.inference) == plain
            assert dataclasses.replace(twin, prior=longer.prior) == longer
            assert (longer.prior.kind, twin.prior.kind) == ("ebm", "gaussian")

    def test_the_paper_is_the_default(self) -> None:
        for name in preset_names():
            assert load_config(name, "lebm") == load_config(name)

    def test_a_single_setting_wins_over_the_method(self, command) -> None:
        done = command("train", "--config", "ptb", "--method", "sri", "--prior.kind", "ebm", "--print-config")
        assert json.loads(done.out) == to_dict(load_config("ptb"))

    def test_an_unknown_one_is_refused_with_the_known_ones(self, command) -> None:
        done = command("train", "--config", "demo", "--method", "vea", "--print-config")
        assert done.code == 2
        assert "no method 'vea'" in done.err
        assert "sri" in done.err


def test_help_shows_every_setting_with_its_line_of_help(command) -> None:
    done = command("train", "--help")
    assert done.code == 0
    for key in leaves(to_dict(Config())):
        option = f"--{key.replace('_', '-')}"
        assert re.search(rf"{re.escape(option)}\b", done.out), option
    assert "K1: Langevin steps of the posterior chain" in " ".join(done.out.replace("│", " ").split())


class TestErrors:
    @pytest.mark.parametrize(
        ("values", "key", "nearest"),
        [
            ({"epoch": 3}, "epoch", "epochs"),
            ({"prior": {"step": 3}}, "prior.step", "steps"),
            ({"inference": {"stepsize": 0.1}}, "inference.stepsize", "step_size"),
            ({"optimizer": {}}, "optimizer", "optimiser"),
            ({"generator": {"dropuot": 0.1}}, "generator.dropuot", "dropout"),
        ],
    )
    def test_an_unknown_key_is_named_with_the_nearest(self, values: dict[str, Any], key: str, nearest: str) -> None:
        with pytest.raises(ConfigError, match=rf"{re.escape(repr(key))}.*nearest known key is '{nearest}'"):
            from_dict(values)

    def test_a_key_like_no_other_is_answered_with_all_of_them(self) -> None:
        with pytest.raises(ConfigError, match=r"known keys: data, data_dir, .*precision"):
            from_dict({"zzz": 1})

    @pytest.mark.parametrize(
        ("key", "value"),
        [
            ("epochs", "three"),
            ("epochs", 3.0),
            ("epochs", True),
            ("epochs", None),
            ("data", 7),
            ("generator.z_to_cell", 1),
            ("generator.z_to_cell", "False"),
            ("prior.kind", "gausian"),
            ("prior.sigma", "wide"),
            ("prior.sigma", True),
            ("prior.step_size", [0.1, "x"]),
            ("prior.step_size", {}),
            ("prior.spectral_norm", "yes"),
            ("inference.preconditioner", "adam"),
            ("optimiser.betas", [0.9]),
            ("optimiser.betas", 0.9),
            ("prior", 3),
            ("prior", None),
            ("max_length", "long"),
        ],
    )
    def test_a_value_of_the_wrong_type_names_its_key(self, key: str, value: object) -> None:
        with pytest.raises(ConfigError, match=rf"^{re.escape(key)} "):
            from_dict(nested(key, value))

    @pytest.mark.parametrize(
        ("key", "value"),
        [
            ("prior.latent_dim", 0),
            ("prior.sigma", 0.0),
            ("prior.sigma", float("nan")),
            ("prior.width", 0),
            ("prior.depth", -1),
            ("prior.steps", -1),
            ("prior.step_size", 0.0),
            ("prior.step_size", []),
            ("prior.step_size", [0.1, -0.1]),
            ("prior.temperature", -0.1),
            ("prior.outputs", 0),
            ("prior.persistent", -1),
            ("prior.restart", 1.5),
            ("prior.stages", 0),
            ("prior.stage_steps", 0),
            ("optimiser.ema", 1.0),
            ("optimiser.ema", -0.1),
            ("generator.embedding_dim", 0),
            ("generator.convolution.width", 0),
            ("generator.convolution.start", 0),
            ("generator.convolution.multiples", []),
            ("generator.convolution.multiples", [8, 0]),
            ("generator.convolution.sigma", 0.0),
            ("encoder.width", 0),
            ("images.size", 0),
            ("images.max_images", 0),
            ("generator.hidden_dim", 0),
            ("generator.dropout", 1.0),
            ("generator.dropout", -0.1),
            ("generator.init_range", 0.0),
            ("generator.word_dropout", 1.1),
            ("encoder.embedding_dim", 0),
            ("encoder.hidden_dim", -1),
            ("encoder.dropout", 1.0),
            ("encoder.init_range", 0.0),
            ("bound.kl_weight", -1.0),
            ("bound.kl_start", -0.1),
            ("bound.kl_annealing", 0.0),
            ("bound.kl_annealing", 1.5),
            ("bound.kl_cycles", 0),
            ("bound.free_bits", -1.0),
            ("bound.autoencoder", 1.0),
            ("bound.aggressive_updates", -1),
            ("optimiser.encoder_lr", 0.0),
            ("optimiser.encoder_clip", -1.0),
            ("inference.steps", 0),
            ("inference.step_size", [0.1, 0.0]),
            ("inference.temperature", [1.0, -1.0]),
            ("inference.annealing_start", 1.5),
            ("inference.annealing_steps", -1),
            ("optimiser.lr", 0.0),
            ("optimiser.energy_lr", -1.0),
            ("optimiser.clip", -1.0),
            ("optimiser.energy_clip", -1.0),
            ("optimiser.energy_weight_decay", -1.0),
            ("optimiser.betas", [0.9, 1.0]),
            ("optimiser.decay", 0.0),
            ("optimiser.decay", 1.1),
            ("optimiser.warmup_steps", -1),
            ("evaluation.sentences", -1),
            ("evaluation.samples", -1),
            ("evaluation.active_unit_sentences", -1),
            ("evaluation.active_unit_chains", 1),
            ("vocab_size", 4),
            ("max_length", 0),
            ("batch_size", 0),
            ("epochs", 0),
            ("seed", -1),
        ],
    )
    def test_a_value_out_of_range_names_its_key_and_what_is_wanted(self, key: str, value: object) -> None:
        with pytest.raises(ConfigError, match=rf"^{re.escape(key)} is .*: it must be "):
            from_dict(nested(key, value))

    def test_z_must_reach_the_generator(self) -> None:
        with pytest.raises(ConfigError, match="z never reaches the generator"):
            GeneratorConfig(z_to_state=False, z_to_cell=False, z_to_input=False)

    def test_a_gru_has_no_cell(self) -> None:
        with pytest.raises(ConfigError, match="GRU"):
            GeneratorConfig(cell="gru", z_to_cell=True)

    def test_a_configuration_error_is_wrong_usage(self) -> None:
        assert issubclass(ConfigError, UsageError)
        assert ConfigError.exit_code == 2


class TestFiles:
    def test_numbers_that_yaml_reads_as_strings_are_numbers(self, tmp_path) -> None:
        path = tmp_path / "c.yaml"
        path.write_text("optimiser: {lr: 1e-3}\nprior: {step_size: [4e-1, 1]}\n")
        config = load_config(str(path))
        assert config.optimiser.lr == 1e-3
        assert config.prior.step_size == (0.4, 1.0)

    def test_json_and_a_folder_with_config_json(self, tmp_path) -> None:
        config = Config(seed=5, prior=PriorConfig(step_size=(0.5, 0.25)))
        (tmp_path / "config.json").write_text(json.dumps(to_dict(config)))
        assert load_config(str(tmp_path / "config.json")) == config
        assert load_config(str(tmp_path)) == config

    @pytest.mark.parametrize(
        ("content", "said"),
        [
            (b"prior: {steps: [", "not valid YAML"),
            (b"when: 2026-13-45", "not valid YAML"),
            (b"\xff\xfe\x00", "cannot be read"),
            (b"- a\n- b\n", "must be a mapping"),
            (b"just words", "must be a mapping"),
            (b"epohcs: 3", "'epochs'"),
            (b"1: 2", "unknown configuration key '1'"),
        ],
    )
    def test_a_file_that_is_wrong_is_named(self, tmp_path, content: bytes, said: str) -> None:
        path = tmp_path / "wrong.yaml"
        path.write_bytes(content)
        with pytest.raises(ConfigError, match=re.escape(said)) as raised:
            load_config(str(path))
        assert "wrong.yaml" in str(raised.value)

    def test_an_empty_file_is_the_defaults(self, tmp_path) -> None:
        (tmp_path / "empty.yaml").write_text("# nothing\n")
        assert load_config(str(tmp_path / "empty.yaml")) == Config()

    def test_no_preset_and_no_file_lists_the_presets(self) -> None:
        with pytest.raises(ConfigError, match="presets: celeba128, celeba64"):
            load_config("nowhere")
