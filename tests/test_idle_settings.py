"""Settings that do nothing: named where somebody changed them, and not elsewhere."""

from pathlib import Path

import pytest

from textebm.config import Config, flat, from_dict, load_config, to_dict
from textebm.idle_settings import RULES, idle_settings


def changed(config: Config, name: str, value: object) -> Config:
    described = to_dict(config)
    *path, last = name.split(".")
    inside = described
    for part in path:
        inside = inside[part]
    assert last in inside
    inside[last] = value
    return from_dict(described)


@pytest.mark.parametrize(
    ("method", "name", "value", "why"),
    [
        ("vae", "inference.sampled_softmax", 100, "inference.kind amortised has no posterior chain"),
        ("sri", "prior.spectral_norm", True, "prior.kind gaussian has no energy"),
        ("sri", "optimiser.energy_lr", 0.5, "prior.kind gaussian has no energy"),
        ("lebm", "prior.restart", 0.5, "prior.persistent is 0"),
        ("lebm", "prior.stage_steps", 7, "prior.kind is ebm, not ratio"),
        ("lebm", "encoder.hidden_dim", 7, "inference.kind short-run has no encoder"),
        ("lebm", "optimiser.sampler_lr", 0.5, "inference.kind short-run has no learned sampler"),
        ("lebm", "images.max_images", 7, "the model is one of text"),
        ("lstm-lm", "inference.steps", 7, "inference.kind none has no posterior chain"),
    ],
)
def test_what_does_nothing_is_named_with_the_reason(method: str, name: str, value: object, why: str) -> None:
    before = load_config("demo", method)
    assert idle_settings(changed(before, name, value), before) == {name: why}
    assert idle_settings(before, before) == {}


@pytest.mark.parametrize(
    ("method", "name", "value"),
    [
        ("lebm", "inference.sampled_softmax", 100),
        ("lebm", "prior.spectral_norm", True),
        ("vae", "encoder.hidden_dim", 7),
        ("vae", "bound.kl_weight", 0.5),
        ("damc", "sampler.updates", 2),
        ("sri", "prior.latent_dim", 7),
        ("sri", "prior.sigma", 2.0),
        ("lebm", "epochs", 1),
    ],
)
def test_what_does_something_is_not(method: str, name: str, value: object) -> None:
    before = load_config("demo", method)
    assert idle_settings(changed(before, name, value), before) == {}


def test_text_says_nothing_to_a_model_of_images() -> None:
    before = load_config("mnist-small")
    assert idle_settings(changed(before, "vocab_size", 7), before) == {"vocab_size": "the model is one of images"}
    assert idle_settings(changed(before, "generator.convolution.width", 7), before) == {}


def test_every_rule_is_of_settings_that_there_are() -> None:
    known = flat(Config())
    for beginnings, _, _ in RULES:
        for beginning in beginnings:
            assert any(name.startswith(beginning) for name in known), beginning


def test_training_warns(tiny_config: Path, command) -> None:
    words = ("--method", "sri", "--prior.width", 9, "--max-steps", 1, "--run-dir", "run")
    done = command("train", "--config", tiny_config, *words)
    assert done.code == 0, done.err
    assert "warning: --prior.width does nothing here: prior.kind gaussian has no energy" in " ".join(done.err.split())
    again = command("train", "--config", tiny_config, "--method", "sri", "--max-steps", 1, "--run-dir", "other")
    assert "does nothing" not in again.err
