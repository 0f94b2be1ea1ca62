"""What perplexity does not see, on examples counted by hand."""

import tracemalloc
from collections import Counter
from collections.abc import Iterator
from unittest import mock

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sacrebleu.metrics.bleu import BLEU

from textebm.lm_eval import diversity
from textebm.lm_eval.corpus import Vocabulary, sha256_of
from textebm.lm_eval.diversity import (
    ORDERS,
    NgramSets,
    SideFigures,
    distinct_n,
    fingerprints,
    self_bleu,
    subsample,
    survey,
    total_variation,
    wasserstein,
)

VOCABULARY = Vocabulary(["a", "b"])
SENTENCES = ["a b", "a b", "", "a <unk> x", ""]


def test_by_hand() -> None:
    assert survey(iter(SENTENCES), VOCABULARY, fingerprints(["a b", "b"])).figures == SideFigures(
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
    assert survey(["", "a"], VOCABULARY, fingerprints(["", "b"])).figures.copied_rate == 0


def test_the_training_split_is_not_compared_with_itself() -> None:
    assert survey(["a"], VOCABULARY).figures.copied_rate is None


def test_only_empty_sentences() -> None:
    figures = survey(["", ""], VOCABULARY, fingerprints([])).figures
    assert (figures.unknown_rate, figures.empty_rate, figures.duplicate_rate) == (0, 1, 0.5)


class TestSurvey:
    def test_digest_and_lengths(self) -> None:
        found = survey(SENTENCES, VOCABULARY)
        assert found.sha256 == sha256_of(SENTENCES)
        assert found.lengths.tolist() == [2, 0, 2, 1]
        assert (
            found.fingerprints.tolist() == fingerprints(SENTENCES).tolist() == sorted({hash(s) for s in SENTENCES if s})
        )

    def test_counts_do_not_depend_on_how_many_hashes_are_looked_up_at_once(self, monkeypatch) -> None:
        text = [f"a {n % 70}" for n in range(200)]
        known = fingerprints(f"a {n}" for n in range(30))
        whole = survey(text, VOCABULARY, known).figures
        monkeypatch.setattr(diversity, "HASHES_AT_ONCE", 7)
        assert survey(text, VOCABULARY, known).figures == whole
        assert whole.copied_rate == sum(n % 70 < 30 for n in range(200)) / 200
        assert whole.duplicate_rate == pytest.approx(130 / 200)

    def test_memory_is_a_few_bytes_a_sentence(self) -> None:
        def text(sentences: int) -> Iterator[str]:
            return (f"a b {n}" for n in range(sentences))

        known = fingerprints(text(100))
        peaks = []
        for sentences in (20_000, 100_000):
            tracemalloc.start()
            try:
                survey(text(sentences), VOCABULARY, known)
                peaks.append(tracemalloc.get_traced_memory()[1])
            finally:
                tracemalloc.stop()
        assert (peaks[1] - peaks[0]) / 80_000 < 40


class TestSubsample:
    def test_is_seeded_and_without_replacement(self) -> None:
        text = [str(n) for n in range(1000)]
        chosen = subsample(iter(text), 50, seed=1)
        assert len(set(chosen)) == 50 and set(chosen) <= set(text)
        assert chosen == subsample(text, 50, seed=1) != subsample(text, 50, seed=2)
        assert subsample(text[:7], 50) == text[:7]

    def test_every_sentence_is_as_likely(self) -> None:
        """Of 20 sentences 5 are drawn 4,000 times: each 1,000 times, ± 27 (one standard deviation)."""
        counts = Counter(s for seed in range(4000) for s in subsample(map(str, range(20)), 5, seed))
        assert len(counts) == 20
        assert all(880 < count < 1120 for count in counts.values())


class TestNgrams:
    def test_distinct_by_hand(self) -> None:
        """Bigrams: a b, b a, a b; b a; trigrams: a b a, b a b; one 4-gram. None reaches over the end of a sentence."""
        found = distinct_n(["a b a b", "b a", "c"])
        assert found == {1: 3 / 7, 2: 2 / 4, 3: 1.0, 4: 1.0}
        assert distinct_n(["a", ""]) == {1: 1.0, 2: 0.0, 3: 0.0, 4: 0.0}

    def test_novelty_by_hand(self) -> None:
        known = NgramSets.of(["a b c", "c a"])
        assert known.novelty(["a b", "b c", "a c", "d"]) == pytest.approx({1: 1 / 7, 2: 1 / 3, 3: 0, 4: 0})
        assert known.novelty(["a b c", "c a"]) == {1: 0.0, 2: 0.0, 3: 0.0, 4: 0.0}
        assert known.novelty(["c b a"]) == {1: 0.0, 2: 1.0, 3: 1.0, 4: 0.0}  # the order of words counts

    @given(st.lists(st.lists(st.sampled_from("abcd"), max_size=7).map(" ".join), max_size=30), st.integers(1, 5))
    def test_agree_with_tuples_of_words(self, text: list[str], at_once: int) -> None:
        with mock.patch.object(diversity, "SENTENCES_AT_ONCE", at_once):
            found = NgramSets.of(text)
        for n in ORDERS:
            grams = [tuple(w[i : i + n]) for w in map(str.split, text) for i in range(len(w) - n + 1)]
            assert (len(found.distinct[n]), found.total[n]) == (len(set(grams)), len(grams))


class TestSelfBleu:
    def test_limits(self) -> None:
        assert self_bleu(["a b c d e"] * 3) == pytest.approx(100)
        assert self_bleu(["a b c d e", "f g h i j", "k l m n o"]) < 5
        assert self_bleu(["a b c", ""]) is None

    def test_is_sacrebleus_with_the_others_as_references(self) -> None:
        text = ["the cat sat on a mat", "the dog sat on the mat", "a cat sat on the old mat today"]
        streams = [[text[1], text[2], text[0]], [text[2], text[0], text[1]]]
        expected = BLEU(tokenize="none", force=True).corpus_score(text, streams).score
        assert self_bleu(text) == pytest.approx(expected)
        assert 5 < expected < 95


class TestLengths:
    def test_by_hand(self) -> None:
        """Half of the sentences have 1 word more: half a word a sentence, and half of the mass is elsewhere."""
        assert wasserstein(np.array([0, 2]), np.array([0, 1, 1])) == pytest.approx(0.5)
        assert total_variation(np.array([0, 2]), np.array([0, 1, 1])) == pytest.approx(0.5)

    def test_against_scipy(self) -> None:
        scipy_stats = pytest.importorskip("scipy.stats")
        source = np.random.default_rng(0)
        a, b = source.poisson(9, 500), source.poisson(11, 300)
        lengths = np.bincount(a), np.bincount(b)
        assert wasserstein(*lengths) == pytest.approx(scipy_stats.wasserstein_distance(a, b))
        assert wasserstein(lengths[0], lengths[0]) == total_variation(lengths[1], lengths[1]) == 0
        assert total_variation(np.array([3]), np.array([0, 5])) == 1
