"""Uncertainty of a perplexity: the percentile bootstrap over sentences (Efron and Tibshirani 1993, chapters 13 and 16).

All of it holds the judge fixed, so it says how far a score depends on which sentences were scored, and nothing about
how it depends on the text or the seed that the judge was trained with.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from textebm.lm_eval.perplexity import SentenceScores, perplexity_of_sums

DRAWS_AT_ONCE = 2_000_000
"""Bounds the memory: sentences drawn in one go."""

LEVEL = 0.95


def interval(
    scores: SentenceScores | Sequence[SentenceScores], *, resamples: int = 1000, level: float = LEVEL, seed: int = 0
) -> tuple[float, float]:
    """Bootstrap interval of the perplexity: sentences are drawn with replacement, with their words.

    Args:
        scores: of each sentence; or such from several judges of the same sentences, whose mean perplexity is meant.
        resamples: number of resampled texts.
        level: share of the resampled perplexities inside the interval.
        seed: of the draws; the same seed gives the same interval.

    Returns:
        Lower and upper end.
    """
    runs = [scores] if isinstance(scores, SentenceScores) else list(scores)
    return ends(_mean_resampled(runs, resamples, seed), level)


def mean_interval(
    values: NDArray[np.float64], *, resamples: int = 1000, level: float = LEVEL, seed: int = 0
) -> tuple[float, float]:
    """Bootstrap interval of a mean over sentences.

    Args:
        values: one a sentence.
        resamples: number of resampled texts.
        level: share of the resampled means inside the interval.
        seed: of the draws; the same sentences are drawn as by `interval`.

    Returns:
        Lower and upper end.
    """
    sums = np.zeros(resamples)
    for rows, chosen in _draws(len(values), resamples, seed):
        sums[rows] += values[chosen].sum(axis=-1)
    return ends(sums / len(values), level)


@dataclass(frozen=True)
class Difference:
    """By how much the perplexity of one text differs from that of another.

    Args:
        difference: first minus second; negative where the first is more probable.
        interval: bootstrap interval of the difference.
        p_value: two-sided; how often, were the two equal, a difference of this size would be met.
        method: `paired-bootstrap` where both are scores of the same sentences, which are then drawn together;
            `independent-bootstrap` where they are scores of different sentences.
    """

    difference: float
    interval: tuple[float, float]
    p_value: float
    method: Literal["paired-bootstrap", "independent-bootstrap"]


def difference(
    first: Sequence[SentenceScores],
    second: Sequence[SentenceScores],
    *,
    paired: bool,
    resamples: int = 1000,
    level: float = LEVEL,
    seed: int = 0,
) -> Difference:
    """The difference of two perplexities, and how sure it is.

    Args:
        first, second: scores of each sentence by each judge of a text; a text's perplexity is the mean over its judges,
            who all see the same resamples.
        paired: whether both score the same sentences in the same order (two judges of one test split); a resample
            then takes the same sentences for both, so that what makes a sentence hard for either cancels.
        resamples: number of resampled texts.
        level: share of the resampled differences inside the interval.
        seed: of the draws.

    The p-value is that of a test which centres the resampled differences at 0 (Efron and Tibshirani 1993, section
    16.4): (1 + how many are at least as far from 0 as the observed one) / (1 + resamples).
    """
    if paired and len(first[0].tokens) != len(second[0].tokens):
        raise ValueError("paired scores are of the same sentences")
    observed = float(np.mean([run.perplexity for run in first]) - np.mean([run.perplexity for run in second]))
    drawn = _mean_resampled(first, resamples, seed) - _mean_resampled(second, resamples, seed if paired else seed + 1)
    at_least = int((np.abs(drawn - np.nanmean(drawn)) >= abs(observed)).sum())
    method: Literal["paired-bootstrap", "independent-bootstrap"] = (
        "paired-bootstrap" if paired else "independent-bootstrap"
    )
    return Difference(observed, ends(drawn, level), (1 + at_least) / (1 + resamples), method)


def ends(drawn: NDArray[np.float64], level: float = LEVEL) -> tuple[float, float]:
    """The percentile interval of resampled figures; those that are not a number are left out."""
    low, high = np.nanquantile(drawn, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def _mean_resampled(runs: Sequence[SentenceScores], resamples: int, seed: int) -> NDArray[np.float64]:
    """Mean perplexity over the runs, of each resampled text; shape (resamples,)."""
    return np.mean(resampled(runs, resamples, seed), axis=0)  # type: ignore[no-any-return]


def resampled(runs: Sequence[SentenceScores], resamples: int, seed: int | Sequence[int]) -> NDArray[np.float64]:
    """Perplexity of each resampled text under each run, for the same draws; shape (runs, resamples)."""
    log_probs = np.zeros((len(runs), resamples))
    tokens = np.zeros((len(runs), resamples))
    for rows, chosen in _draws(len(runs[0].tokens), resamples, seed):
        for number, run in enumerate(runs):
            log_probs[number, rows] += run.log_probs[chosen].sum(axis=-1)
            tokens[number, rows] += run.tokens[chosen].sum(axis=-1)
    with np.errstate(invalid="ignore"):  # where an end is no token, a resample may hold no token at all: 0 / 0
        return perplexity_of_sums(log_probs, tokens)


def _draws(sentences: int, resamples: int, seed: int | Sequence[int]) -> Iterator[tuple[slice, NDArray[np.int64]]]:
    """Which resamples, and the sentences drawn for them: at most `DRAWS_AT_ONCE`, a part of one resample at least."""
    random = np.random.default_rng(seed)
    rows = max(1, DRAWS_AT_ONCE // sentences)
    for start in range(0, resamples, rows):
        stop = min(start + rows, resamples)
        for begin in range(0, sentences, DRAWS_AT_ONCE):
            width = min(DRAWS_AT_ONCE, sentences - begin)
            yield slice(start, stop), random.integers(sentences, size=(stop - start, width))
