"""Side figures, on an example counted by hand."""

import pytest

from textebm.lm_eval.corpus import Vocabulary
from textebm.lm_eval.diversity import SideFigures, fingerprints, side_figures

VOCABULARY = Vocabulary(["a", "b"])
SENTENCES = ["a b", "a b", "", "a <unk> x", ""]


def test_by_hand() -> None:
    assert side_figures(iter(SENTENCES), VOCABULARY, fingerprints(["a b", "b"])) == SideFigures(
        sentences=5,
        words=7,
        mean_length=7 / 5,
        longest=3,
        out_of_vocabulary=1,  # x
        unknown_rate=2 / 7,  # <unk> and x
        duplicate_rate=pytest.approx(2 / 5),  # the second "a b" and the second empty one
        empty_rate=2 / 5,
        copied_rate=2 / 5,
    )


def test_an_empty_sentence_is_no_copy() -> None:
    assert side_figures(["", "a"], VOCABULARY, fingerprints(["", "b"])).copied_rate == 0


def test_the_training_split_is_not_compared_with_itself() -> None:
    assert side_figures(["a"], VOCABULARY).copied_rate is None


def test_only_empty_sentences() -> None:
    figures = side_figures(["", ""], VOCABULARY, fingerprints([]))
    assert (figures.unknown_rate, figures.empty_rate, figures.duplicate_rate) == (0, 1, 0.5)
