"""Precision and recall, density and coverage: whether generated images look real, and whether all real kinds are there.

A set of features stands for the region that the balls around its members cover, each ball reaching to its member's k-th
nearest neighbour in the set.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from textebm.errors import UsageError

Features = NDArray[np.floating]
Array = NDArray[np.float64]

NEIGHBOURS = 3
"""Of precision and recall, as Kynkäänniemi et al. (2019) have it."""
DENSITY_NEIGHBOURS = 5
"""Of density and coverage, as Naeem et al. (2020) have it."""


@dataclass(frozen=True)
class Overlap:
    """How two sets of images lie over one another; more is better.

    Args:
        precision: share of the generated images inside the real region (Kynkäänniemi et al. 2019).
        recall: share of the real images inside the generated region.
        density: real balls that a generated image lies in, over how many it would be at the real density; it may exceed
            1 (Naeem et al. 2020).
        coverage: share of the real balls that hold a generated image.
    """

    precision: float
    recall: float
    density: float
    coverage: float


def overlap(
    generated: Features,
    real: Features,
    *,
    neighbours: int = NEIGHBOURS,
    density_neighbours: int = DENSITY_NEIGHBOURS,
    rows_at_once: int = 1000,
) -> Overlap:
    """Precision, recall, density and coverage.

    Args:
        generated, real: shape (images, features).
        neighbours: k of precision and recall.
        density_neighbours: k of density and coverage.
        rows_at_once: bounds the memory.

    Raises:
        UsageError: a side has no k-th neighbour.
    """
    most = max(neighbours, density_neighbours)
    if min(len(generated), len(real)) <= most:
        raise UsageError(f"a {most}th nearest neighbour needs at least {most + 1} images on either side")
    generated, real = np.asarray(generated, dtype=np.float64), np.asarray(real, dtype=np.float64)
    real_radii, density_radii = neighbour_distances(real, (neighbours, density_neighbours), rows_at_once)
    (generated_radii,) = neighbour_distances(generated, (neighbours,), rows_at_once)
    precise, balls = 0, 0
    recalled, covered = np.zeros(len(real), dtype=bool), np.zeros(len(real), dtype=bool)
    for begin in range(0, len(generated), rows_at_once):
        rows = slice(begin, begin + rows_at_once)
        distances = squared_distances(generated[rows], real)  # (rows, real)
        precise += int((distances <= real_radii).any(axis=1).sum())
        recalled |= (distances <= generated_radii[rows, None]).any(axis=0)
        inside = distances <= density_radii
        balls += int(inside.sum())
        covered |= inside.any(axis=0)
    return Overlap(
        precision=precise / len(generated),
        recall=float(recalled.mean()),
        density=balls / (density_neighbours * len(generated)),
        coverage=float(covered.mean()),
    )


def neighbour_distances(features: Features, neighbours: tuple[int, ...], rows_at_once: int = 1000) -> list[Array]:
    """Squared distance of each vector to its k-th nearest other one, for each k asked for; each of shape (images,)."""
    features = np.asarray(features, dtype=np.float64)
    found = [np.empty(len(features)) for _ in neighbours]
    places = [k - 1 for k in neighbours]
    for begin in range(0, len(features), rows_at_once):
        rows = slice(begin, begin + rows_at_once)
        distances = squared_distances(features[rows], features)
        itself = np.arange(len(distances))
        distances[itself, begin + itself] = np.inf
        nearest = np.partition(distances, places, axis=1)
        for radii, place in zip(found, places, strict=True):
            radii[rows] = nearest[:, place]
    return found


def squared_distances(first: Features, second: Features) -> Array:
    """Squared Euclidean distances; shape (rows of the first, rows of the second)."""
    a, b = np.asarray(first, dtype=np.float64), np.asarray(second, dtype=np.float64)
    distances: Array = (a**2).sum(axis=1)[:, None] + (b**2).sum(axis=1) - 2 * (a @ b.T)
    return np.maximum(distances, 0.0, out=distances)
