"""Whole training runs by the real program: the fast way of computing and the plain one go the same way."""

import json
from pathlib import Path

import pytest
import torch

from textebm.hardware import native_precision
from textebm.model import recurrent

FIGURES = ("log_prob", "posterior_energy", "prior_energy", "posterior_norm", "gradient_norm", "energy_gradient_norm")
# Words enough to sample from, and weights large enough for z to matter from the first step on.
SIZES = ("--data", "demo", "--vocab-size", 300, "--generator.init-range", 0.4)
RUN = (*SIZES, "--evaluation.samples", 0, "--evaluation.active-unit-sentences", 0, "--max-steps", 40)


def trajectory(folder: Path) -> list[dict[str, float]]:
    """What a run logged: a line every 20 steps."""
    lines = map(json.loads, (folder / "log.jsonl").read_text(encoding="utf-8").splitlines())
    return [{name: line[name] for name in FIGURES} for line in lines if line["kind"] == "train"]


def run(command, config: Path, folder: Path, *words: object) -> list[dict[str, float]]:
    done = command("train", "--config", config, "--run-dir", folder, *RUN, *words)
    assert done.code == 0, done.err
    return trajectory(folder)


def residuals(one: list[dict[str, float]], other: list[dict[str, float]]) -> list[float]:
    """Relative differences of every figure, with their signs."""
    pairs = [(a[name], b[name]) for a, b in zip(one, other, strict=True) for name in FIGURES]
    return [(a - b) / max(abs(b), 0.1) for a, b in pairs]


@pytest.mark.parametrize(
    ("settings", "largest", "mean"),
    [
        ((), 1e-3, 2e-4),
        (("--generator.cell", "gru", "--generator.dropout", 0.3), 1e-3, 2e-4),
        (("--inference.sampled-softmax", 10), 1e-3, 2e-4),
        pytest.param(
            *(("--precision", "bf16"), 0.1, 0.03),  # both round, in different places, and steps amplify it
            marks=pytest.mark.skipif(
                native_precision(torch.device("cpu")) != "bf16", reason="torch's LSTM has no bf16 on this CPU"
            ),
        ),
    ],
)
def test_fast_and_plain_go_the_same_way(command, tiny_config, tmp_path, monkeypatch, settings, largest, mean):
    """The largest difference shows an error; the mean, with signs, shows a drift to one side."""
    taken = set()  # what is logged may agree to the last digit, though the ways differ
    for kind in (recurrent.FastText, recurrent.PlainText):
        prepare = kind._prepare
        monkeypatch.setattr(
            kind, "_prepare", lambda text, prepare=prepare: taken.add(type(text).__name__) or prepare(text)
        )
    fast = run(command, tiny_config, tmp_path / "fast", *settings)
    assert taken == {"FastText"}
    plain = run(command, tiny_config, tmp_path / "plain", "--computation", "plain", *settings)
    found = residuals(fast, plain)
    assert len(fast) == 2
    assert taken == {"FastText", "PlainText"}
    assert max(map(abs, found)) < largest
    assert abs(sum(found) / len(found)) < mean


def test_the_comparison_can_tell_runs_apart(command, tiny_config, tmp_path):
    ours = run(command, tiny_config, tmp_path / "ours")
    other = run(command, tiny_config, tmp_path / "other", "--inference.step-size", 0.32)
    assert max(map(abs, residuals(ours, other))) > 1e-2


def test_a_sampled_softmax_changes_the_chain(command, tiny_config, tmp_path):
    exact = run(command, tiny_config, tmp_path / "exact")
    sampled = run(command, tiny_config, tmp_path / "sampled", "--inference.sampled-softmax", 5)
    assert exact != sampled


OPTIONS = {
    "outputs": ("--prior.outputs", 3),
    "spectral-norm": ("--prior.spectral-norm", "True"),
    "persistent": ("--prior.persistent", 45, "--prior.restart", 0.2),
    "ema": ("--optimiser.ema", 0.9),
    "ratio": ("--prior.kind", "ratio", "--prior.stages", 2, "--prior.stage-steps", 8),
    "rms": ("--inference.preconditioner", "rms"),
    "several": (
        "--prior.spectral-norm",
        "True",
        "--prior.persistent",
        20,
        "--optimiser.ema",
        0.8,
        "--prior.outputs",
        2,
    ),
}
SHORT = ("--generator.init-range", 0.4, "--evaluation.samples", 0, "--evaluation.active-unit-sentences", 0)


def short_run(command, config: Path, folder: Path, *words: object) -> Path:
    """A run of two epochs of 10 steps on the small corpus; its last checkpoint."""
    done = command("train", "--config", config, "--run-dir", folder, *SHORT, *words)
    assert done.code == 0, done.err
    return folder / "checkpoints" / json.loads((folder / "checkpoints" / "last.json").read_text())["folder"]


def read(checkpoint: Path, name: str) -> bytes | None:
    path = checkpoint / f"{name}.safetensors"
    return path.read_bytes() if path.exists() else None


@pytest.mark.parametrize("option", OPTIONS)
def test_each_option_changes_the_run_and_is_resumed_as_if_never_stopped(command, tiny_config, tmp_path, option):
    """Stopped in the middle of an epoch; equal to the last bit: weights, averages, chains, norms."""
    words = OPTIONS[option]
    whole = short_run(command, tiny_config, tmp_path / "whole", *words, "--max-steps", 20)
    short_run(command, tiny_config, tmp_path / "parts", *words, "--max-steps", 14)
    again = command("train", "--run-dir", tmp_path / "parts", "--resume", "auto", "--max-steps", 20)
    assert again.code == 0, again.err
    parts = tmp_path / "parts" / "checkpoints" / whole.name
    for name in ("model", "learner", "optimiser"):
        assert read(parts, name) == read(whole, name), name
    assert (read(whole, "learner") is not None) == (option in {"persistent", "ema", "several"})
    other = short_run(command, tiny_config, tmp_path / "other", "--max-steps", 20)
    assert read(other, "model") != read(whole, "model")
    assert (read(other, "optimiser") == read(whole, "optimiser")) == (option == "ema")  # which changes no step


@pytest.mark.parametrize("option", ["rms", "several"])
def test_fast_and_plain_go_the_same_way_with_options(command, tiny_config, tmp_path, option):
    words = (*OPTIONS[option], "--max-steps", 20)
    short_run(command, tiny_config, tmp_path / "fast", *words)
    short_run(command, tiny_config, tmp_path / "plain", *words, "--computation", "plain")
    found = residuals(*(trajectory(tmp_path / name) for name in ("fast", "plain")))
    assert max(map(abs, found)) < 2e-3


def test_a_lost_state_of_the_learner_is_said(command, tiny_config, tmp_path):
    kept = short_run(command, tiny_config, tmp_path / "run", "--optimiser.ema", 0.9, "--max-steps", 2)
    (kept / "learner.safetensors").unlink()
    done = command("train", "--run-dir", tmp_path / "run", "--resume", "auto", "--max-steps", 4)
    assert done.code == 1
    assert "learner.safetensors" in done.err


@pytest.mark.parametrize(("kind", "sampled"), [("short-run", 5), ("amortised", 0)])
def test_the_log_names_a_sampled_softmax_where_a_chain_has_it(command, tiny_config, tmp_path, kind, sampled):
    words = ("--inference.kind", kind, "--inference.sampled-softmax", 5, "--max-steps", 1)
    done = command("train", "--config", tiny_config, "--run-dir", tmp_path / "run", "--device", "cpu", *words)
    assert done.code == 0, done.err
    begun = json.loads((tmp_path / "run" / "log.jsonl").read_text(encoding="utf-8").splitlines()[0])
    assert begun["sampled_softmax"] == sampled
    assert ("training chains over 5 sampled words" in " ".join(done.err.split())) == (sampled > 0)


@pytest.mark.parametrize("words", [("--batch-tokens", 200, "--inference.sampled-softmax", 9), ("--precision", "fp16")])
def test_resumed_as_if_never_stopped(command, tiny_config, tmp_path, words):
    whole = run(command, tiny_config, tmp_path / "whole", *words)
    folder = tmp_path / "parts"
    first = command("train", "--config", tiny_config, "--run-dir", folder, *RUN[:-2], *words, "--max-steps", 20)
    assert first.code == 0, first.err
    again = command("train", "--run-dir", folder, "--resume", "auto", *RUN[-2:])
    assert again.code == 0, again.err
    assert trajectory(folder)[-1] == whole[-1]


def test_apex_that_is_not_there(command, tiny_config, tmp_path):
    done = command("train", "--config", tiny_config, "--run-dir", tmp_path / "run", "--optimizer", "apex")
    assert done.code == 2
    assert "NVIDIA Apex is not installed" in done.err
