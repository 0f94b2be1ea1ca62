"""Precision, recall, density and coverage against their definitions, and on sets whose figures are known."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from textebm.errors import UsageError
from textebm.image_eval.manifold import Overlap, neighbour_distances, overlap

Array = NDArray[np.float64]


def by_definition(generated: Array, real: Array, k: int, k_density: int) -> Overlap:
    """One pair at a time."""

    def radius(vectors: Array, i: int, k: int) -> float:
        return sorted(float(np.linalg.norm(vectors[i] - vectors[j])) for j in range(len(vectors)) if j != i)[k - 1]

    def inside(x: Array, vectors: Array, k: int) -> list[bool]:
        return [bool(np.linalg.norm(x - v) <= radius(vectors, i, k)) for i, v in enumerate(vectors)]

    balls = [inside(g, real, k_density) for g in generated]
    return Overlap(
        precision=float(np.mean([any(inside(g, real, k)) for g in generated])),
        recall=float(np.mean([any(inside(r, generated, k)) for r in real])),
        density=float(np.sum(balls)) / (k_density * len(generated)),
        coverage=float(np.mean(np.any(balls, axis=0))),
    )


@given(st.integers(0, 2**32 - 1), st.integers(7, 12), st.integers(7, 12), st.integers(1, 4), st.integers(1, 5))
def test_by_definition(seed: int, m: int, n: int, rows: int, k: int) -> None:
    source = np.random.default_rng(seed)
    generated, real = source.normal(size=(m, 3)) * 1.5 + 0.5, source.normal(size=(n, 3))
    found = overlap(generated, real, neighbours=k, density_neighbours=6 - k, rows_at_once=rows)
    expected = by_definition(generated, real, k, 6 - k)
    for name in ("precision", "recall", "density", "coverage"):
        assert getattr(found, name) == pytest.approx(getattr(expected, name), abs=1e-12)


@pytest.fixture
def cloud() -> Array:
    return np.random.default_rng(0).normal(size=(300, 3))


def test_the_same_images(cloud: Array) -> None:
    """Each lies in its own ball and, on average, in k others: density (k + 1) / k."""
    found = overlap(cloud, cloud)
    assert (found.precision, found.recall, found.coverage) == (1, 1, 1)
    assert found.density == pytest.approx((5 + 1) / 5, rel=1e-12)


def test_the_same_distribution(cloud: Array) -> None:
    found = overlap(np.random.default_rng(1).normal(size=(300, 3)), cloud)
    assert found.density == pytest.approx(1, abs=0.15)
    assert found.coverage > 0.9
    assert min(found.precision, found.recall) > 0.7


def test_far_away(cloud: Array) -> None:
    assert overlap(cloud + 100, cloud) == Overlap(0, 0, 0, 0)


def test_few_kinds_cost_recall(cloud: Array) -> None:
    half = cloud[cloud[:, 0] > 0]
    found = overlap(half[:100] + 1e-3, cloud)
    assert found.precision == 1
    assert found.recall < 0.6


def test_bad_images_cost_precision(cloud: Array) -> None:
    found = overlap(np.concatenate([cloud + 1e-3, cloud[:100] + 50]), cloud)
    assert found.precision == pytest.approx(300 / 400)
    assert found.recall == 1


def test_neighbours_on_a_line() -> None:
    line = np.array([[0.0], [1.0], [3.0], [7.0]])
    first, second = neighbour_distances(line, (1, 2), rows_at_once=3)
    assert first.tolist() == [1, 1, 4, 16]
    assert second.tolist() == [9, 4, 9, 36]


def test_too_few(cloud: Array) -> None:
    with pytest.raises(UsageError, match="5th nearest neighbour needs at least 6 images"):
        overlap(cloud[:5], cloud)
