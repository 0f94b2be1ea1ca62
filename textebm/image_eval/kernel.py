"""KID: squared maximum mean discrepancy of two sets of features under a polynomial kernel (Bińkowski et al. 2018).

Its estimate has no bias, whatever the number of images, where a Fréchet distance is too large for few images.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from textebm.errors import UsageError

Features = NDArray[np.floating]

SUBSETS = 100
SUBSET_SIZE = 1000
"""As in the published code of the paper, and in what came after it."""


@dataclass(frozen=True)
class KernelDistance:
    """KID over random subsets.

    Args:
        mean: over the subsets; it can be negative where the two sets hardly differ.
        sd: standard deviation over the subsets, which is what the literature prints behind ±; None of one subset.
        subsets: how many.
        size: images of either side in each.
    """

    mean: float
    sd: float | None
    subsets: int
    size: int


def polynomial_kernel(first: Features, second: Features) -> NDArray[np.float64]:
    """k(x, y) = (x·y / features + 1)³; shape (rows of the first, rows of the second)."""
    products = first.astype(np.float64) @ second.astype(np.float64).T
    kernel: NDArray[np.float64] = (products / first.shape[1] + 1) ** 3
    return kernel


def squared_mmd(first: Features, second: Features) -> float:
    """Unbiased estimate of the squared MMD: mean kernel within either set, no vector with itself, less twice the mean
    kernel between them (Gretton et al. 2012, lemma 6)."""
    return _mean_off_diagonal(first) + _mean_off_diagonal(second) - 2 * float(polynomial_kernel(first, second).mean())


def _mean_off_diagonal(features: Features) -> float:
    kernel = polynomial_kernel(features, features)
    return float((kernel.sum() - np.trace(kernel)) / (len(kernel) * (len(kernel) - 1)))


def kernel_distance(
    first: Features, second: Features, *, subsets: int = SUBSETS, size: int = SUBSET_SIZE, seed: int = 0
) -> KernelDistance:
    """KID of two sets of features, over random subsets of both.

    Args:
        first, second: shape (images, features).
        subsets: how many subsets are drawn, each without replacement.
        size: images of either side in each; as many as the smaller side has, where that is less. Where that is all of
            both sides, there is one subset.
        seed: of the draws.

    Raises:
        UsageError: a side has fewer than two images.
    """
    smaller, larger = sorted([len(first), len(second)])
    if smaller < 2:
        raise UsageError(f"KID needs at least 2 images on either side, and one side has {smaller}")
    size = min(size, smaller)
    random = np.random.default_rng(seed)
    found = []
    for _ in range(1 if size == larger else subsets):
        a, b = (side[random.choice(len(side), size, replace=False)] for side in (first, second))
        found.append(squared_mmd(a, b))
    sd = float(np.std(found, ddof=1)) if len(found) > 1 else None
    return KernelDistance(float(np.mean(found)), sd, len(found), size)
