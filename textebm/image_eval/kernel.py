"""KID: squared maximum mean discrepancy of two sets of features under a polynomial kernel (Bińkowski et al. 2018).

Its estimate has no bias, whatever the number of images, where a Fréchet distance is too large for few images.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from textebm.errors import UsageError

Features = NDArray[np.floating]
Array = NDArray[np.float64]
Rows = NDArray[np.int64]

SUBSETS = 100
SUBSET_SIZE = 1000
"""As in the published code of the paper, and in what came after it."""
KEPT = 100_000_000
"""Kernel values that are computed once and kept for all subsets, where all of them are no more: 800 MB."""


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


def polynomial_kernel(first: Features, second: Features) -> Array:
    """k(x, y) = (x·y / features + 1)³; shape (rows of the first, rows of the second)."""
    products = first.astype(np.float64) @ second.astype(np.float64).T
    kernel: Array = (products / first.shape[1] + 1) ** 3
    return kernel


def squared_mmd(first: Array, second: Array, between: Array) -> float:
    """Unbiased estimate of the squared MMD: mean kernel within either set, no vector with itself, less twice the mean
    kernel between them (Gretton et al. 2012, lemma 6).

    Args:
        first, second: kernel of either set with itself.
        between: kernel of the first with the second.
    """
    return _mean_off_diagonal(first) + _mean_off_diagonal(second) - 2 * float(between.mean())


def _mean_off_diagonal(kernel: Array) -> float:
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
    subsets = 1 if size == larger else subsets
    every = len(first) ** 2 + len(second) ** 2 + len(first) * len(second)
    once = every <= min(KEPT, 3 * subsets * size**2)
    pairs = ((first, first), (second, second), (first, second))
    within_first, within_second, between = (_kernel_of_rows(*pair, once=once) for pair in pairs)
    random = np.random.default_rng(seed)
    found = []
    for _ in range(subsets):
        a, b = (random.choice(len(side), size, replace=False) for side in (first, second))
        found.append(squared_mmd(within_first(a, a), within_second(b, b), between(a, b)))
    sd = float(np.std(found, ddof=1)) if len(found) > 1 else None
    return KernelDistance(float(np.mean(found)), sd, len(found), size)


def _kernel_of_rows(first: Features, second: Features, *, once: bool) -> Callable[[Rows, Rows], Array]:
    """What gives the kernel between rows of two sets: out of all of it, computed once, or anew."""
    if not once:
        return lambda a, b: polynomial_kernel(first[a], second[b])
    kernel = polynomial_kernel(first, second)
    return lambda a, b: kernel[np.ix_(a, b)]
