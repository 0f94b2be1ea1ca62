"""A plain LSTM language model by the commands that every model knows."""

import json
import math
import shutil
from pathlib import Path

import pytest

from textebm import evaluation, generation, plots
from textebm.cli import main
from textebm.data.text import encode

METHOD = ("--method", "lstm-lm")


@pytest.fixture(scope="module")
def run(tiny_config: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run. Read it, or copy it; never change it."""
    folder = tmp_path_factory.mktemp("language-model") / "run"
    words = ("train", "--config", tiny_config, *METHOD, "--run-dir", folder, "--device", "cpu")
    assert main([str(word) for word in words]) == 0
    return folder


def lines_of(run: Path, kind: str) -> list[dict]:
    return [line for line in plots.read_log(run) if line["kind"] == kind]


class TestTrain:
    def test_validation_is_one_perplexity(self, run: Path) -> None:
        valid = lines_of(run, "valid")
        latent = ("posterior", "prior", "gaussian", "reconstruction", "active")
        assert not [key for line in valid for key in line if key.startswith(latent)]
        for line in valid:
            assert line["perplexity"] == pytest.approx(math.exp(line["nll"] * line["sentences"] / line["words"]))
        assert valid[-1]["perplexity"] < valid[0]["perplexity"] - 2
        assert [line["best"] for line in valid] == [True, True, True]

    def test_it_is_said(self, command, tiny_config: Path, tmp_path: Path) -> None:
        done = command("train", "--config", tiny_config, *METHOD, "--run-dir", "run", "--max-steps", 3)
        assert f"valid perplexity {lines_of(tmp_path / 'run', 'valid')[0]['perplexity']:.1f} (best" in done.err
        assert "posterior" not in done.err

    def test_the_perplexity_is_that_of_the_saved_model(self, run: Path, corpus_folder: Path) -> None:
        """So what is saved is loaded again: the figure of the log is computed anew from the folder, word by word."""
        model, tokenizer = generation.load(run / "checkpoints" / "step-30")
        sentences = (corpus_folder / "valid.txt").read_text(encoding="utf-8").splitlines()
        text = encode(sentences, tokenizer)
        line = lines_of(run, "valid")[-1]
        rows = evaluation.spread(len(text), line["sentences"])
        x = text.batch(rows)
        z = model.prior.origin.expand(len(rows), -1)
        nll = -model.condition(x, path="plain").log_prob(z).mean().item()
        assert line["nll"] == pytest.approx(nll, rel=1e-5)

    def test_an_interrupted_run_goes_on_as_if_nothing_had_happened(
        self, run: Path, command, tiny_config: Path, tmp_path: Path
    ) -> None:
        done = command("train", "--config", tiny_config, *METHOD, "--run-dir", "cut", "--max-steps", 14)
        assert done.code == 0
        done = command("train", "--resume", "cut")
        assert done.code == 0, done.err
        for file in ("model.safetensors", "optimiser.safetensors"):
            assert (tmp_path / "cut/checkpoints/step-30" / file).read_bytes() == (
                run / "checkpoints/step-30" / file
            ).read_bytes()

    @pytest.mark.parametrize("key", ["prior", "inference"])
    def test_one_without_the_other_is_refused(self, key: str, command, tiny_config: Path) -> None:
        done = command("train", "--config", tiny_config, f"--{key}.kind", "none", "--run-dir", "run")
        assert done.code == 2
        assert "a plain language model has none of both" in " ".join(done.err.replace("│", " ").split())


class TestCommands:
    def test_generate(self, run: Path, command) -> None:
        first, again = (command("generate", "--model", run, "-n", 20) for _ in range(2))
        assert first.code == 0, first.err
        assert first.out == again.out
        assert len(set(first.lines)) > 10
        assert command("generate", "--model", run, "-n", 2, "--decoding", "beam").code == 0
        as_json = command("generate", "--model", run, "-n", 2, "--format", "jsonl")
        assert [json.loads(line)["energy"] for line in as_json.lines] == [0, 0]

    @pytest.mark.parametrize("metric", ["fppl", "rppl"])
    def test_fppl_and_rppl(self, metric: str, run: Path, command, tmp_path: Path) -> None:
        copy = shutil.copytree(run, tmp_path / "copy")  # samples are cached in the run
        done = command(metric, "--model", copy, "-n", 200, "--resamples", 20)
        assert done.code == 0, done.err
        assert 1 < json.loads(done.out)["score"] < 100

    def test_evaluate(self, run: Path, command, tmp_path: Path) -> None:
        copy = shutil.copytree(run, tmp_path / "copy")
        done = command("evaluate", "--model", copy, "-n", 200, "--resamples", 20, "--no-limits", "--format", "json")
        assert done.code == 0, done.err
        assert "latents" not in json.dumps(json.loads(done.out))  # there is no z to be used

    def test_plot_has_one_panel(self, run: Path, command, tmp_path: Path) -> None:
        pytest.importorskip("matplotlib")
        done = command("plot", run, "--output", "curves.svg")
        assert done.code == 0, done.err
        assert (tmp_path / "curves.svg").read_text(encoding="utf-8").count('id="axes_') == 1

    def test_reconstruct_and_interpolate_say_that_there_is_nothing_to_infer(
        self, run: Path, corpus_folder: Path, command
    ) -> None:
        for words in (("reconstruct", corpus_folder / "test.txt"), ("interpolate", "the dog", "a wolf")):
            done = command(*words, "--model", run)
            assert done.code == 2
            assert "it has no z to infer from a sentence" in done.err
            assert done.out == ""
