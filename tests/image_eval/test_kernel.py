"""KID against the sums that define it."""

from itertools import product

import numpy as np
import pytest
from numpy.typing import NDArray

from textebm.errors import UsageError
from textebm.image_eval import kernel
from textebm.image_eval.kernel import kernel_distance

Array = NDArray[np.float64]


def by_the_sums(first: Array, second: Array) -> float:
    """The unbiased estimate, pair by pair."""

    def k(x: Array, y: Array) -> float:
        return float((sum(a * b for a, b in zip(x, y, strict=True)) / len(x) + 1) ** 3)

    m, n = len(first), len(second)
    within = sum(k(first[i], first[j]) for i, j in product(range(m), repeat=2) if i != j) / (m * (m - 1))
    within += sum(k(second[i], second[j]) for i, j in product(range(n), repeat=2) if i != j) / (n * (n - 1))
    return within - 2 * sum(k(x, y) for x, y in product(first, second)) / (m * n)


@pytest.fixture
def two() -> tuple[Array, Array]:
    source = np.random.default_rng(0)
    return source.normal(size=(15, 4)), source.normal(size=(15, 4)) + 0.5


def test_of_everything_it_is_the_sums(two: tuple[Array, Array]) -> None:
    found = kernel_distance(*two)
    assert found.mean == pytest.approx(by_the_sums(*two), rel=1e-12)
    assert (found.sd, found.subsets, found.size) == (None, 1, 15)


def test_over_subsets(two: tuple[Array, Array]) -> None:
    """The same draws, each by the sums; the standard deviation is that of the subsets."""
    found = kernel_distance(*two, subsets=6, size=8, seed=3)
    source = np.random.default_rng(3)
    each = [by_the_sums(*(side[source.choice(15, 8, replace=False)] for side in two)) for _ in range(6)]
    assert found.mean == pytest.approx(np.mean(each), rel=1e-12)
    assert found.sd == pytest.approx(np.std(each, ddof=1), rel=1e-12)


def test_whether_kernels_are_kept_does_not_matter(two: tuple[Array, Array], monkeypatch: pytest.MonkeyPatch) -> None:
    kept = kernel_distance(*two, subsets=9, size=8)
    monkeypatch.setattr(kernel, "KEPT", 0)
    anew = kernel_distance(*two, subsets=9, size=8)
    assert kept.mean == pytest.approx(anew.mean, rel=1e-12)
    assert kept.sd == pytest.approx(anew.sd, rel=1e-12)


def test_no_bias() -> None:
    """Of few vectors of one distribution it is 0 on average, where a Fréchet distance is not."""
    source = np.random.default_rng(1)
    found = [kernel_distance(*source.normal(size=(2, 10, 3))).mean for _ in range(2000)]
    assert abs(np.mean(found)) < 4 * np.std(found) / np.sqrt(len(found))
    assert min(found) < 0


def test_sides_of_different_sizes(two: tuple[Array, Array]) -> None:
    found = kernel_distance(two[0], np.concatenate(two), subsets=4)
    assert (found.size, found.subsets) == (15, 4)
    assert found.sd is not None and found.sd > 0


def test_the_seed_draws(two: tuple[Array, Array]) -> None:
    assert kernel_distance(*two, size=8) == kernel_distance(*two, size=8)
    assert kernel_distance(*two, size=8) != kernel_distance(*two, size=8, seed=1)


def test_one_image_is_too_few(two: tuple[Array, Array]) -> None:
    with pytest.raises(UsageError, match="one side has 1"):
        kernel_distance(two[0][:1], two[1])
