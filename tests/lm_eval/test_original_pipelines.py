"""The n-gram protocols of others against their own pipelines: lmplz and KenLM's module, called as their code does.

What is asked of the two programs is a fact of ARAE's and of Fang et al.'s published code: the options of lmplz, lines
of the vocabulary first, `score(sentence, bos=True, eos=False)`, and words alone in the denominator.
"""

import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from textebm.lm_eval import fppl, read_sentences, rppl

pytest.importorskip("kenlm", reason="KenLM's Python module is not installed: pip install 'textebm[kenlm]'")

FALLBACK = ("--discount_fallback", "0.5", "1", "1.5")
"""Texts are small here; where the closed form holds it changes nothing."""


@pytest.fixture
def perplexity(lmplz: Path, tmp_path: Path) -> Callable[..., float]:
    """Of a text under a model of another, as those projects compute it."""
    import kenlm

    def compute(training: list[str], scored: list[str], *options: str) -> float:
        text, arpa = tmp_path / "text", tmp_path / "model.arpa"
        text.write_text("".join(f"{line}\n" for line in training), encoding="utf-8")
        command = [lmplz, "-o", "5", *options, *FALLBACK, "-S", "64M", "-T", f"{tmp_path}/", "--text", text]
        subprocess.run([*map(str, command), "--arpa", str(arpa)], check=True, capture_output=True)
        config = kenlm.Config()
        config.show_progress = False
        model = kenlm.Model(str(arpa), config)
        total = sum(model.score(line, bos=True, eos=False) for line in scored)
        return float(10 ** -(total / sum(len(line.split()) for line in scored)))

    return compute


@pytest.fixture
def ptb(shared_data: Path) -> dict[str, list[str]]:
    """Real text, its validation split in the place of samples."""
    splits = {"train": "train", "test": "test", "samples": "valid"}
    return {name: list(read_sentences(shared_data / "ptb" / f"ptb.{split}.txt.xz")) for name, split in splits.items()}


@pytest.fixture
def texts(make_text: Callable[..., list[str]]) -> dict[str, list[str]]:
    """Train, test and samples with an unknown word in each."""
    made = {name: make_text(seed, sentences=400) for seed, name in enumerate(("train", "test", "samples"))}
    return {name: [(line or "w1").replace("w5", "<unk>") for line in text] for name, text in made.items()}


def check_arae(texts: dict[str, list[str]], perplexity: Callable[..., float]) -> None:
    """Its unknown word is spelt <oov>, which lmplz takes for a word like any other."""
    as_theirs = {name: [line.replace("<unk>", "<oov>") for line in text] for name, text in texts.items()}
    words = {word for line in as_theirs["train"] for word in line.split()}
    known = {
        name: [" ".join(w if w in words else "<oov>" for w in line.split()) for line in text]
        for name, text in as_theirs.items()
    }
    generated = [*sorted(words), *known["samples"]]
    settings = {"protocol": "arae-ngram", "resamples": 1}
    forward = fppl(texts["samples"], texts["train"], **settings)
    assert forward.score == pytest.approx(perplexity(known["train"], generated), rel=1e-5)
    reverse = rppl(texts["samples"], texts["test"], texts["train"], **settings)
    assert reverse.score == pytest.approx(perplexity(generated, known["test"]), rel=1e-5)


def check_fang2019(texts: dict[str, list[str]], perplexity: Callable[..., float]) -> None:
    words = {word for line in texts["train"] for word in line.split()}
    settings = {"protocol": "fang2019", "resamples": 1}
    skip = "--skip_symbols"
    forward = fppl(texts["samples"], texts["train"], **settings)
    assert forward.score == pytest.approx(perplexity(texts["train"], texts["samples"], skip), rel=1e-5)
    known = [" ".join(w if w in words else "<unk>" for w in line.split()) for line in texts["samples"]]
    reverse = rppl(texts["samples"], texts["test"], texts["train"], **settings)
    generated = [*sorted(words), *known]
    assert reverse.score == pytest.approx(perplexity(generated, texts["train"], skip), rel=1e-5)


@pytest.mark.parametrize("check", [check_arae, check_fang2019])
def test_agree_on_small_texts(check: Callable[..., None], texts, perplexity) -> None:
    check(texts, perplexity)


@pytest.mark.slow
@pytest.mark.realdata
@pytest.mark.parametrize("check", [check_arae, check_fang2019])
def test_agree_on_ptb(check: Callable[..., None], ptb, perplexity) -> None:
    check(ptb, perplexity)
