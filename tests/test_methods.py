"""Every way to infer z through the real program: training, its log, exact resumption, what the model is used for."""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from textebm import checkpoint, evaluation
from textebm.cli import main
from textebm.config import load_config
from textebm.data.registry import resolve
from textebm.generation import load
from textebm.materials.text import load_splits
from textebm.model.inference import METHODS
from textebm.model.learner import Learner

STEPS, EPOCH = 30, 10  # of the tiny configuration
MASKS = ("--generator.dropout", 0.1, "--generator.word-dropout", 0.2, "--encoder.dropout", 0.1)
QUICK = ("--evaluation.active-unit-sentences", 0, "--evaluation.samples", 0)
GAUSSIAN = ("--prior.kind", "gaussian")
KINDS: dict[str, tuple[object, ...]] = {kind: ("--inference.kind", kind, *MASKS) for kind in METHODS if kind != "none"}
"""Every kind, with whatever is random in its training."""
PHASED: dict[str, tuple[object, ...]] = {
    "cyclical": (*KINDS["amortised"], "--bound.kl-schedule", "cyclical", "--bound.kl-cycles", 2),
    "pre-trained": (*KINDS["amortised"], *GAUSSIAN, "--bound.autoencoder", 0.44, "--bound.free-bits", 1.5),
    "aggressive": (*KINDS["amortised"], *GAUSSIAN, "--bound.aggressive-updates", 4),
}


class Trained:
    """A finished run."""

    def __init__(self, name: str, words: tuple[object, ...], folder: Path) -> None:
        self.name, self.words, self.folder = name, words, folder
        self.method = METHODS[name if name in METHODS else "amortised"]

    def log(self, kind: str) -> list[dict[str, Any]]:
        return log_of(self.folder, kind)


def log_of(folder: Path, kind: str) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in (folder / "log.jsonl").read_text(encoding="utf-8").splitlines()]
    return [{key: value for key, value in line.items() if key != "seconds"} for line in lines if line["kind"] == kind]


def whole_epochs(folder: Path) -> list[dict[str, Any]]:
    """The validations at the end of each epoch; which was the best depends on those in between."""
    lines = [line for line in log_of(folder, "valid") if line["step"] % EPOCH == 0]
    return [{key: value for key, value in line.items() if key != "best"} for line in lines]


@pytest.fixture(scope="module", params=KINDS | PHASED)
def trained(request: pytest.FixtureRequest, tiny_config: Path, tmp_path_factory: pytest.TempPathFactory) -> Trained:
    """A run of each, trained by the real program."""
    folder, words = tmp_path_factory.mktemp("methods") / "run", (KINDS | PHASED)[request.param]
    arguments = ("train", "--config", tiny_config, "--run-dir", folder, "--device", "cpu", *words)
    assert main([str(word) for word in arguments]) == 0
    return Trained(request.param, words, folder)


class TestRun:
    def test_the_log_says_what_was_learned(self, trained: Trained) -> None:
        train, valid = trained.log("train"), trained.log("valid")
        assert [line["step"] for line in valid] == [EPOCH, 2 * EPOCH, STEPS]
        of_train = {"kl", "kl_weight", "encoder_loss", "encoder_gradient_norm"}
        has_bound = trained.method.has_encoder and "gaussian" in trained.words
        for lines, figures, there in (
            (train, of_train, trained.method.has_encoder),
            (valid, {"negative_elbo"}, has_bound),
        ):
            for line in lines:
                assert (figures <= line.keys()) == there
                assert figures.isdisjoint(line) != there
                assert all(math.isfinite(v) for v in line.values() if isinstance(v, float))
        of_sampler = {"sampler_loss", "sampler_gradient_norm"}
        assert {of_sampler <= line.keys() for line in train} == {trained.method.has_sampler}
        if not trained.method.has_chain:
            assert all(line["posterior_displacement"] == 0 for line in train + valid)
        known = trained.method.has_encoder and not trained.method.has_chain
        assert {line["density"] for line in valid} == {"encoder" if known else "fitted-gaussian"}
        assert {"kl" in line for line in valid} == {"gaussian" in trained.words}  # elsewhere it needs log Z
        assert valid[-1]["reconstruction_nll"] < valid[0]["reconstruction_nll"]

    def test_it_resumes_as_if_never_stopped(
        self, trained: Trained, tiny_config: Path, command, tmp_path: Path, step: int = 13
    ) -> None:
        """Weights, optimisers and chains bit by bit, and every validation of a whole epoch.

        It stops within an epoch; a pre-training as an autoencoder has just ended there.
        """
        parts = tmp_path / "parts"
        done = command("train", "--config", tiny_config, "--run-dir", parts, *trained.words, "--max-steps", step)
        assert done.code == 0, done.err
        if trained.method.is_persistent:  # what a crash leaves: chains that went on after the last checkpoint
            np.load(parts / "chains.npy", mmap_mode="r+")[:] = 0
        done = command("train", "--run-dir", parts, "--resume", "auto")
        assert done.code == 0, done.err
        folders = [checkpoint.pointed_at(run, "last") for run in (parts, trained.folder)]
        names = [sorted(path.name for path in folder.iterdir()) for folder in folders if folder is not None]
        assert names[0] == names[1]
        assert ("chains.npy" in names[0]) == trained.method.is_persistent
        for name in set(names[0]) - {"run.json"}:
            assert (folders[0] / name).read_bytes() == (folders[1] / name).read_bytes(), name  # type: ignore[operator]
        ours, theirs = (whole_epochs(run) for run in (parts, trained.folder))
        assert ours == theirs
        assert log_of(parts, "phase") == trained.log("phase")

    def test_its_model_writes_reconstructs_and_interpolates(
        self, trained: Trained, corpus_folder: Path, command, tmp_path: Path
    ) -> None:
        (tmp_path / "two.txt").write_text("the dog sees a king\nno old ship follows the wolf today\n")
        for words in (
            ("generate", "-n", 5),
            ("reconstruct", "two.txt"),
            ("interpolate", "the dog sees a king", "a child fears every river", "--points", 4),
        ):
            done = command(*words, "--model", trained.folder)
            assert done.code == 0, done.err
            assert len(done.lines) == {"generate": 5, "reconstruct": 2, "interpolate": 4}[str(words[0])]
        done = command("fppl", "--model", trained.folder, "-n", 60, "--resamples", 20)
        assert done.code == 0, done.err
        assert json.loads(done.out)["score"] > 1

    def test_validation_is_the_models_own_inference(self, trained: Trained) -> None:
        """The bound from its two parts; the persistent chains of training have no part in it."""
        folder = checkpoint.pointed_at(trained.folder, "last")
        assert folder is not None
        model, tokenizer = load(folder)
        config, _ = checkpoint.read_run(folder)
        text = load_splits(resolve(config.data), config, tokenizer).valid
        measured = evaluation.validate(model, text, config.seed, config.evaluation.sentences)
        logged = trained.log("valid")[-1]
        for name, value in measured.to_dict().items():
            if name == "kl":  # the log has that of `density`
                continue
            assert value == pytest.approx(logged[name], rel=1e-6), name
        if isinstance(measured, evaluation.EncoderValidation) and not trained.method.has_chain:
            assert measured.negative_elbo == pytest.approx(measured.reconstruction_nll + measured.kl)


@pytest.mark.parametrize("kind", KINDS)
def test_fast_and_plain_go_the_same_way(kind: str, tiny_config: Path, command, tmp_path: Path) -> None:
    figures = {}
    for computation in ("fast", "plain"):
        words = ("--computation", computation, "--max-steps", EPOCH, *QUICK, *KINDS[kind])
        done = command("train", "--config", tiny_config, "--run-dir", computation, *words)
        assert done.code == 0, done.err
        figures[computation] = log_of(tmp_path / computation, "train")
    for one, other in zip(figures["fast"], figures["plain"], strict=True):
        for name in one.keys() - {"kind"}:
            assert one[name] == pytest.approx(other[name], rel=1e-3, abs=1e-3), name


class TestPhases:
    def test_the_generator_starts_anew_after_the_pre_training(
        self, tiny_config: Path, command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        resets, reset = [], Learner.reset_generator

        def watched(learner: Learner, number: int) -> None:
            resets.append(number)
            reset(learner, number)

        monkeypatch.setattr(Learner, "reset_generator", watched)
        done = command("train", "--config", tiny_config, "--run-dir", "run", *PHASED["pre-trained"])
        assert done.code == 0, done.err
        assert resets == [13]
        weights = [(line["step"], line["kl_weight"]) for line in log_of(tmp_path / "run", "train")]
        assert weights == [(10, 0.0), (20, pytest.approx(0.7)), (30, 1.0)]  # the mean of steps 10 to 19 has 3 of them
        assert log_of(tmp_path / "run", "valid")[1]["best"]  # whatever the autoencoder reconstructed

    def test_aggressive_updates_end_when_the_mutual_information_falls(
        self, tiny_config: Path, command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        known, updates, alone = iter([0.5, 0.4]), [], Learner.encoder_step

        def watched(learner: Learner, x: Any, number: int, update: int, samples: int) -> Any:
            updates.append((number, update))
            return alone(learner, x, number, update, samples)

        monkeypatch.setattr(Learner, "encoder_step", watched)
        monkeypatch.setattr(evaluation, "mutual_information", lambda *_: next(known))
        done = command("train", "--config", tiny_config, "--run-dir", "run", *PHASED["aggressive"])
        assert done.code == 0, done.err
        assert {number for number, _ in updates} == set(range(2 * EPOCH))
        assert {update for _, update in updates} == set(range(1, 5))
        phases = log_of(tmp_path / "run", "phase")
        assert [(line["mutual_information"], line["aggressive"]) for line in phases] == [(0.5, True), (0.4, False)]


class TestRefused:
    @pytest.mark.parametrize(
        ("words", "said"),
        [
            (
                ("--bound.free-bits", 8),
                "bound.free_bits is 8.0: it must be 0.0, its default, with inference.kind = short-run",
            ),
            (("--bound.kl-schedule", "linear"), "bound.kl_schedule is 'linear'"),
            (("--inference.kind", "amortised-langevin", "--bound.autoencoder", 0.5), "bound.autoencoder is 0.5"),
            (("--evaluation.select-by", "negative_elbo"), "evaluation.select_by is 'negative_elbo'"),
            (
                ("--inference.kind", "amortised", "--evaluation.select-by", "negative_elbo"),
                "with inference.kind = amortised and prior.kind = ebm",
            ),
        ],
    )
    def test_what_has_no_meaning_is_said(
        self, words: tuple[object, ...], said: str, tiny_config: Path, command, tmp_path: Path
    ) -> None:
        done = command("train", "--config", tiny_config, "--run-dir", "run", *words)
        assert done.code == 2
        assert said in " ".join(done.err.split())
        assert not (tmp_path / "run").exists()

    def test_chains_that_a_checkpoint_lacks(self, tiny_config: Path, command, tmp_path: Path) -> None:
        words = ("--run-dir", "run", *KINDS["persistent"], "--max-steps", 3)
        assert command("train", "--config", tiny_config, *words).code == 0
        (tmp_path / "run" / "checkpoints" / "step-3" / "chains.npy").unlink()
        done = command("train", "--run-dir", "run", "--resume", "auto")
        assert done.code == 1
        assert "chains.npy is missing" in done.err


def test_the_rows_of_the_comparison() -> None:
    """Each method's overlay makes what its name says."""
    rows = {
        "sri": ("gaussian", "short-run"),
        "lebm": ("ebm", "short-run"),
        "vae": ("gaussian", "amortised"),
        "vae-cyclical": ("gaussian", "amortised"),
        "fb-vae": ("gaussian", "amortised"),
        "lagging-vae": ("gaussian", "amortised"),
        "lebm-amortised": ("ebm", "amortised"),
        "lebm-amortised-langevin": ("ebm", "amortised-langevin"),
        "abp": ("gaussian", "persistent"),
        "lebm-persistent": ("ebm", "persistent"),
        "damc": ("ebm", "diffusion-langevin"),
    }
    for method, (prior, kind) in rows.items():
        config = load_config("ptb-small", method)
        assert (config.prior.kind, config.inference.kind) == (prior, kind), method
