"""The n-gram judge as a generator draws from its own distribution."""

from collections import Counter
from collections.abc import Callable

import numpy as np
import pytest

from textebm.errors import UsageError
from textebm.lm_eval import NgramJudge, Vocabulary

TEXT = ["a b", "a c", "b", "a b c", "c", "", "b a", "<unk> a"] * 3


@pytest.fixture(scope="module")
def judge() -> NgramJudge:
    return NgramJudge.train(TEXT, Vocabulary(["a", "b", "c", "d", "e"]), order=3, query="built-in")


def test_whole_sentences_come_as_often_as_the_judge_says(judge: NgramJudge) -> None:
    """Of 200,000 sentences: every one of up to two words, and all others together, within 4.5 standard deviations."""
    n = 200_000
    counts = Counter(judge.sample(n, seed=0))
    words = ["a", "b", "c", "d", "e", "<unk>"]
    short = ["", *words, *(f"{x} {y}" for x in words for y in words)]
    expected = np.exp(judge.score(short).log_probs)
    observed = np.array([counts[sentence] for sentence in short]) / n
    expected, observed = (np.append(p, 1 - p.sum()) for p in (expected, observed))
    deviations = (observed - expected) / np.sqrt(expected * (1 - expected) / n)
    assert np.abs(deviations).max() < 4.5
    assert counts["d"] > 0 < counts["<unk> a"]  # one of two words that training never had, and the unknown one


@pytest.mark.timeout(60)
def test_where_every_word_was_seen_the_share_of_the_unknown_one_is_nobodys() -> None:
    """And it ends, where a context was followed by every word, so that nothing but that share is left over."""
    text = ["a", "b", "<unk>", "", "a b", "b a"] * 2
    judge = NgramJudge.train(text, Vocabulary(["a", "b"]), order=2, query="built-in")
    n = 100_000
    counts = Counter(judge.sample(n, seed=0))
    short = ["", "a", "b", "<unk>", "a b", "b a", "a a"]
    expected = np.exp(judge.score(short).log_probs)
    for sentence, probability in zip(short, expected, strict=True):
        assert counts[sentence] / n == pytest.approx(probability, rel=0.25)
        assert counts[sentence] / n > probability * 0.97  # every word has a little of what the share was


@pytest.mark.parametrize("order", [2, 5])
def test_their_perplexity_is_the_judges_own_entropy(order: int, make_text: Callable[..., list[str]]) -> None:
    """The mean −log p of sentences from p estimates its entropy: two halves agree, and other text is worse."""
    text = make_text(0, sentences=300)
    judge = NgramJudge.train(text, Vocabulary.from_sentences(text), order=order, query="built-in")
    halves = [judge.score(judge.sample(4000, seed)).perplexity for seed in (0, 1)]
    assert halves[0] == pytest.approx(halves[1], rel=0.05)
    reversed_text = [" ".join(reversed(sentence.split())) for sentence in judge.sample(4000, 2)]
    assert judge.score(reversed_text).perplexity > 1.05 * halves[0]


def test_seeded_and_in_constant_pieces(judge: NgramJudge, monkeypatch: pytest.MonkeyPatch) -> None:
    assert list(judge.sample(50, seed=1)) == list(judge.sample(50, seed=1)) != list(judge.sample(50, seed=2))
    monkeypatch.setattr("textebm.lm_eval.sampling.SENTENCES_AT_ONCE", 7)
    assert len(list(judge.sample(50))) == 50


def test_kenlms_module_cannot_be_drawn_from() -> None:
    pytest.importorskip("kenlm")
    with pytest.raises(UsageError, match="built-in"):
        next(NgramJudge.train(TEXT, Vocabulary(["a"]), order=2, query="kenlm").sample(1))
