"""The built-in estimator: an example computed by hand, lmplz's own models, and the file format."""

import math
import subprocess
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from textebm.errors import JudgeError
from textebm.lm_eval.arpa import NgramModel
from textebm.lm_eval.kneser_ney import _closed_form, estimate

BY_HAND = ["a b", "a c", "b"]
UNIGRAMS = {"a": 0.5 / 6 + 0.1, "b": 1 / 6 + 0.1, "</s>": 1 / 6 + 0.1, "c": 0.5 / 6 + 0.1, "<unk>": 0.1}
"""Adjusted counts 1, 2, 2, 1 of 6; discounts 0.5 and 1; what they leave, 3 of 6, is divided between 5 words."""
BIGRAMS = {
    "<s> a": 1 / 3 + 1.5 / 3 * UNIGRAMS["a"],  # 2 of 3, discounted by 1; "<s>" leaves 1 + 0.5 of 3
    "<s> b": 0.5 / 3 + 1.5 / 3 * UNIGRAMS["b"],
    "a b": 0.5 / 2 + 1 / 2 * UNIGRAMS["b"],
    "a c": 0.5 / 2 + 1 / 2 * UNIGRAMS["c"],
    "b </s>": 1 / 2 + 1 / 2 * UNIGRAMS["</s>"],
    "c </s>": 0.5 / 1 + 0.5 / 1 * UNIGRAMS["</s>"],
}
BACKOFFS = {"<s>": 1.5 / 3, "a": 1 / 2, "b": 1 / 2, "c": 0.5, "</s>": 1, "<unk>": 1}


def as_dictionary(model: NgramModel) -> dict[str, tuple[float, float]]:
    """n-gram -> (log10 p, log10 back-off), read from the file that the model writes of itself."""
    texts = list(model.words)
    entries: dict[str, tuple[float, float]] = {}
    for n, grams in enumerate(model.orders, start=1):
        if n > 1:
            prefix, word = np.divmod(grams.keys, len(model.words))
            texts = [f"{texts[p]} {model.words[w]}" for p, w in zip(prefix, word, strict=True)]
        values = zip(grams.log10_probs.tolist(), grams.log10_backoffs.tolist(), strict=True)
        entries.update(zip(texts, values, strict=True))
    return entries


def lmplz_says(lmplz: Path, text: list[str], order: int, pad: int, folder: Path) -> tuple[NgramModel, list[int]]:
    command = [lmplz, "-o", order, "-S", "64M", "-T", f"{folder}/", "--vocab_pad", pad, "--discount_fallback"]
    lines = "".join(f"{sentence}\n" for sentence in text)
    done = subprocess.run([*map(str, command)], input=lines, capture_output=True, text=True, check=True)
    (folder / "lmplz.arpa").write_text(done.stdout)
    failed = [line.split("order ")[1].split(":")[0] for line in done.stderr.splitlines() if "Substituting" in line]
    return NgramModel.read(folder / "lmplz.arpa"), [int(n) + 1 for n in failed]


def assert_same(ours: NgramModel, theirs: NgramModel, tolerance: float = 1e-6) -> None:
    mine, other = as_dictionary(ours), as_dictionary(theirs)
    assert mine.keys() == other.keys()
    difference = np.abs(np.array([mine[k] for k in other]) - np.array([*other.values()]))
    assert difference.max() < tolerance


class TestByHand:
    def test_probabilities_and_backoffs(self) -> None:
        model, failed = estimate([s.split() for s in BY_HAND], order=2)
        assert failed == [1, 2]
        entries = as_dictionary(model)
        assert entries.pop("<s>")[0] == 0
        assert entries.keys() | {"<s>"} == UNIGRAMS.keys() | BIGRAMS.keys() | {"<s>"}
        for gram, (log10_prob, log10_backoff) in entries.items():
            assert 10**log10_prob == pytest.approx((UNIGRAMS | BIGRAMS)[gram], rel=1e-6), gram
            assert 10**log10_backoff == pytest.approx(BACKOFFS.get(gram, 1), rel=1e-6), gram

    def test_padding_divides_the_same_mass_between_more_words(self) -> None:
        model, _ = estimate([s.split() for s in BY_HAND], order=2, vocabulary_pad=50)
        entries = as_dictionary(model)
        assert 10 ** entries["<unk>"][0] == pytest.approx(0.5 / 50, rel=1e-6)
        assert 10 ** entries["a"][0] == pytest.approx(0.5 / 6 + 0.5 / 50, rel=1e-6)

    def test_discounts(self) -> None:
        """Chen and Goodman's equation 26 with n1..n4 = 4, 2, 1, 1: Y = 1/2."""
        assert _closed_form(np.array([9, 4, 2, 1, 1, 7])) == pytest.approx([0.5, 1.25, 1.0])
        assert _closed_form(np.array([9, 4, 2, 0, 1, 7])) is None  # no n-gram with count 3
        assert _closed_form(np.array([9, 4, 1, 9, 1, 7])) is None  # the discount of 2 would be negative


class TestLikeLmplz:
    def test_golden_model(self, golden: Path) -> None:
        text = [line.split() for line in (golden / "train.txt").read_text().splitlines()]
        spelt = [[word.replace("<unk>", "_<unk>") for word in sentence] for sentence in text]
        pad = len({word for sentence in text for word in sentence}) + 3
        model, failed = estimate(spelt, 4, pad)
        assert failed == []
        assert_same(model, NgramModel.read(golden / "lmplz-order4.arpa"))

    @pytest.mark.parametrize("seed", range(12))
    def test_random_text(self, seed: int, lmplz: Path, tmp_path: Path, make_text: Callable[..., list[str]]) -> None:
        """Small texts, where every quirk shows; half of them so small that some discounts fall back."""
        text = make_text(seed, sentences=(2, 15, 80, 300)[seed % 4], words=(4, 30, 100)[seed % 3])
        order, pad = (2, 3, 5)[seed % 3], (0, 200)[seed % 2]
        theirs, failed_there = lmplz_says(lmplz, text, order, pad, tmp_path)
        ours, failed_here = estimate([s.split() for s in text], order, pad)
        assert failed_here == failed_there
        assert_same(ours, theirs)

    @pytest.mark.parametrize("text", [["a"], [""], ["a a a a a a"], ["a", "a", "a"], ["a b c d e f g"]])
    def test_degenerate_text(self, text: list[str], lmplz: Path, tmp_path: Path) -> None:
        theirs, failed_there = lmplz_says(lmplz, text, 4, 0, tmp_path)
        ours, failed_here = estimate([s.split() for s in text], 4)
        assert failed_here == failed_there
        assert_same(ours, theirs)


class TestModel:
    def test_spelling_does_not_matter(self, make_text: Callable[..., list[str]]) -> None:
        text = make_text(3, sentences=200)
        names = {f"w{n}": f"v{97 - n}" for n in range(100)}
        renamed = [[names[word] for word in sentence.split()] for sentence in text]
        ours, theirs = (as_dictionary(estimate(s, 3)[0]) for s in ([t.split() for t in text], renamed))
        assert {" ".join(names.get(w, w) for w in gram.split()): v for gram, v in ours.items()} == theirs

    def test_file_round_trip_is_exact(self, tmp_path: Path, make_text: Callable[..., list[str]]) -> None:
        model, _ = estimate([s.split() for s in make_text(5)], 4)
        model.write(tmp_path / "a.arpa")
        again = NgramModel.read(tmp_path / "a.arpa")
        assert again.words == model.words
        for ours, read in zip(model.orders, again.orders, strict=True):
            assert np.array_equal(ours.keys, read.keys)
            assert np.array_equal(ours.log10_probs, read.log10_probs)
            assert np.array_equal(ours.log10_backoffs, read.log10_backoffs)

    def test_queries_back_off_as_the_definition_says(self, make_text: Callable[..., list[str]]) -> None:
        """Against the plain recursion p(w|h) = p(hw), or backoff(h) p(w|h without its first word)."""
        model, _ = estimate([s.split() for s in make_text(7)], 3, 40)
        entries = as_dictionary(model)

        def log10_prob(word: str, context: list[str]) -> float:
            gram = " ".join([*context, word])
            if gram in entries:
                return entries[gram][0]
            if not context:
                return entries["<unk>"][0]
            backoff = entries.get(" ".join(context), (math.nan, 0.0))[1]
            return backoff + log10_prob(word, context[1:])

        number = {word: n for n, word in enumerate(model.words)}
        sentences = [f"<s> {s} new {s} </s>".split() for s in make_text(8)]
        ids = np.array([number.get(word, 0) for s in sentences for word in s])
        got = model.token_log10_probs(ids)
        wanted = [log10_prob(s[i], s[max(0, i - 2) : i]) for s in sentences for i in range(len(s))]
        assert np.abs(got - wanted)[ids != 1].max() < 1e-6

    def test_no_text(self) -> None:
        with pytest.raises(JudgeError, match="no sentence"):
            estimate([], 3)


class TestBrokenFile:
    @pytest.mark.parametrize(
        ("damage", "said"),
        [
            (lambda text: "hello\n" + text, "first line"),
            (lambda text: text[: len(text) // 2], "ARPA"),
            (lambda text: text.replace("ngram 2", "ngram 3", 1), "ngram 3"),
            (lambda text: text.replace("the boat\t", "the ship\t", 1), "ship"),
            (lambda text: text.replace("<s> the boat\t", "boat <s> the\t", 1), "prefix of a 3-gram"),
        ],
    )
    def test_is_an_error(self, golden: Path, tmp_path: Path, damage: Callable[[str], str], said: str) -> None:
        path = tmp_path / "broken.arpa"
        path.write_text(damage((golden / "lmplz-order4.arpa").read_text()))
        with pytest.raises(JudgeError, match="not a whole ARPA file") as caught:
            NgramModel.read(path)
        assert said in str(caught.value)
