"""Uncertainty of a perplexity: the percentile bootstrap over sentences (Efron and Tibshirani 1993, chapter 13)."""

import numpy as np

from textebm.lm_eval.perplexity import SentenceScores, perplexity

DRAWS_AT_ONCE = 2_000_000
"""Bounds the memory: sentences drawn in one go."""


def interval(
    scores: SentenceScores, *, resamples: int = 1000, level: float = 0.95, seed: int = 0
) -> tuple[float, float]:
    """Bootstrap interval of the perplexity: sentences are drawn with replacement, with their words.

    It holds the judge fixed, so it says how far the score depends on which sentences were scored, and nothing about
    how it depends on the text that the judge was trained on.

    Args:
        scores: of each sentence.
        resamples: number of resampled texts.
        level: share of the resampled perplexities inside the interval.
        seed: of the draws; the same seed gives the same interval.

    Returns:
        Lower and upper end.
    """
    random = np.random.default_rng(seed)
    n = len(scores.tokens)
    rows = max(1, DRAWS_AT_ONCE // n)
    drawn = []
    for start in range(0, resamples, rows):
        chosen = random.integers(n, size=(min(rows, resamples - start), n))
        drawn.append(perplexity(scores.log_probs[chosen], scores.tokens[chosen]))
    low, high = np.quantile(np.concatenate(drawn), [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)
