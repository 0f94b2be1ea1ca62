"""How well scores tell positive samples from negative ones: areas under curves, exact, and how sure they are.

Ties are broken by nobody: samples of one score come in together, as one step of the curve.
"""

from collections.abc import Callable, Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from textebm.model.random import stream

Counts = NDArray[np.int64]
"""How often each sample counts; in a resample 0, 1, 2, ..."""


class Ranking:
    """Samples in the order of their scores, highest first.

    Args:
        scores: (samples,) of each sample; a high one says positive.
        positive: (samples,) whether each is.

    Raises:
        ValueError: a score is not finite, or no sample is positive, or none is negative.
    """

    def __init__(self, scores: NDArray[np.float64], positive: NDArray[np.bool_]) -> None:
        if not np.isfinite(scores).all():
            raise ValueError("scores that are to be ranked are finite")
        if positive.all() or not positive.any():
            raise ValueError("a ranking needs positive and negative samples")
        self.positive = positive
        self._order = np.argsort(-scores, kind="stable")
        ranked = scores[self._order]
        self._sorted = positive[self._order].astype(np.int64)
        self._ends = np.append(np.flatnonzero(ranked[1:] != ranked[:-1]), len(ranked) - 1)
        self.thresholds = ranked[self._ends]
        """(steps,) the different scores, falling."""

    def _above(self, counts: Counts | None) -> tuple[Counts, Counts]:
        """(steps,) positive samples, and all, at each threshold or above it."""
        if counts is None:
            return self._sorted.cumsum()[self._ends], self._ends + 1
        each = counts[self._order]
        return (each * self._sorted).cumsum()[self._ends], each.cumsum()[self._ends]

    def average_precision(self, counts: Counts | None = None) -> float:
        """Area under the precision–recall curve: Σ (R_k − R_{k−1}) P_k over thresholds, without interpolation.

        The definition of scikit-learn's `average_precision_score`.

        Args:
            counts: (samples,) how often each sample counts; None: once.
        """
        found, every = self._above(counts)
        return float(np.sum(np.diff(found, prepend=0) * found / np.maximum(every, 1)) / found[-1])

    def auroc(self, counts: Counts | None = None) -> float:
        """Area under the ROC curve: the share of pairs whose positive sample scores higher, a tie being half a pair.

        Args:
            counts: (samples,) how often each sample counts; None: once.
        """
        found, every = self._above(counts)
        others = every - found
        below = others[-1] - (others + np.concatenate([[0], others[:-1]])) / 2
        return float(np.sum(np.diff(found, prepend=0) * below) / (found[-1] * others[-1]))

    def precision_recall(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """(steps,) precision and recall at each threshold."""
        found, every = self._above(None)
        return found / every, found / found[-1]


def lowest_average_precision(positive: NDArray[np.bool_]) -> float:
    """Average precision of the worst order there is, every negative sample before every positive one."""
    scores = np.empty(len(positive))
    scores[np.argsort(positive, kind="stable")] = -np.arange(len(positive))  # no ties: a tie would do better
    return Ranking(scores, positive).average_precision()


def resampled(
    rankings: Sequence[Ranking], measure: Callable[[Ranking, Counts], float], resamples: int, seed: int, number: int = 0
) -> NDArray[np.float64]:
    """Bootstrap: the mean of a measure over several rankings of the same samples, for each resampled set of samples.

    Positive and negative samples are drawn with replacement among themselves, as many as there are: the base rate is a
    fact of the set, and no accident.

    Args:
        rankings: of the same samples, by several models.
        measure: of one ranking and counts.
        resamples: number of resampled sets.
        seed: of the draws.
        number: of these samples, where the same seed draws for others too.

    Returns:
        (resamples,)
    """
    source, positive = stream(seed, "bootstrap", number), rankings[0].positive
    groups = [np.flatnonzero(positive), np.flatnonzero(~positive)]
    found = np.empty(resamples)
    for row in range(resamples):
        counts = np.zeros(len(positive), dtype=np.int64)
        for members in groups:
            drawn = torch.randint(len(members), (len(members),), generator=source).numpy()
            counts[members] = np.bincount(drawn, minlength=len(members))
        found[row] = np.mean([measure(ranking, counts) for ranking in rankings])
    return found
