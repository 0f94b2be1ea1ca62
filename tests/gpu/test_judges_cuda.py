"""The LSTM judge on a CUDA device: it learns, scores as on the CPU, goes on exactly, and is not slow."""

import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from textebm.lm_eval.corpus import Vocabulary
from textebm.lm_eval.large_softmax import LargeSoftmax
from textebm.lm_eval.neural import LstmJudge
from textebm.lm_eval.recipes import RECIPES

pytestmark = pytest.mark.gpu

WORDS = [f"w{n}" for n in range(50)]
TINY = RECIPES["tiny"]
STREAM = replace(RECIPES["dgmvae"], embedding=8, hidden=12, batch=4, span=6, epochs=3, lr=3.0, nonmonotone=1)


@pytest.fixture(scope="module")
def text() -> list[str]:
    random = np.random.default_rng(0)
    return [" ".join(random.choice(WORDS, int(random.integers(0, 12)))) for _ in range(400)]


@pytest.mark.parametrize("recipe", [TINY, replace(TINY, batching="padded"), STREAM])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_scores_are_those_of_the_cpu(recipe, precision, text: list[str], tmp_path: Path) -> None:
    """One judge, trained on the GPU and kept, read on either device."""
    options = {"precision": precision, "cache": tmp_path}
    first = LstmJudge.train(text, Vocabulary(WORDS), recipe, device="cuda", **options)
    on_cpu = LstmJudge.train(text, Vocabulary(WORDS), recipe, device="cpu", **options)
    assert first.curve == on_cpu.curve
    assert first.curve[-1]["valid_perplexity"] < 60
    assert np.allclose(first.score(text).log_probs, on_cpu.score(text).log_probs, rtol=1e-5)
    assert len(list(first.sample(10))) == 10


def test_scores_do_not_depend_on_batches(text: list[str]) -> None:
    judge = LstmJudge.train(text, Vocabulary(WORDS), TINY, device="cuda")
    scores = [judge.score(text, batch_size=size).log_probs for size in (1, 7, 64)]
    assert np.allclose(scores[0], scores[1], rtol=1e-6, atol=0)
    assert np.allclose(scores[0], scores[2], rtol=1e-6, atol=0)


def test_training_goes_on_where_it_was_interrupted(text: list[str], tmp_path: Path) -> None:
    whole = LstmJudge.train(text, Vocabulary(WORDS), TINY, device="cuda", precision="fp32")
    for epochs in (1, None):
        resumed = LstmJudge.train(
            text, Vocabulary(WORDS), TINY, device="cuda", precision="fp32", cache=tmp_path, max_epochs=epochs
        )
    assert np.allclose(whole.score(text).log_probs, resumed.score(text).log_probs, rtol=1e-4)


def test_gradients_of_the_softmax_are_those_of_the_cpu() -> None:
    random = torch.Generator().manual_seed(0)
    hidden, weight = torch.randn(40, 16, generator=random), torch.randn(100, 16, generator=random)
    targets = torch.randint(100, (40,), generator=random)
    cpu = LargeSoftmax("fp32").gradients(hidden, weight, None, targets, 1.0)
    gpu = LargeSoftmax("fp32").gradients(hidden.cuda(), weight.cuda(), None, targets.cuda(), 1.0)
    assert float(gpu.log_prob) == pytest.approx(float(cpu.log_prob), rel=1e-5)
    assert torch.allclose(gpu.hidden.cpu(), cpu.hidden, atol=1e-4)
    assert torch.allclose(gpu.weight.cpu(), cpu.weight, atol=1e-4)


@pytest.mark.slow
def test_training_is_not_slower_than_cudnn_and_cross_entropy(root: Path, tmp_path: Path) -> None:
    """The benchmark's own figures, with room for noise."""
    import json
    import subprocess

    words = ["--device", "cuda", "--only", "lstm-train", "--repeats", "5", "--output", str(tmp_path / "out.json")]
    subprocess.run([sys.executable, root / "benchmarks" / "judges.py", *words], check=True, capture_output=True)
    rows = json.loads((tmp_path / "out.json").read_text())
    assert max(row["ratio"] for row in rows) > 0.9
