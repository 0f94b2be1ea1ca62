"""Fréchet distance of two Gaussians, fitted to features of images: the FID's formula, whatever the features.

FID (Heusel et al. 2017) fits a Gaussian to the features of real images and one to those of generated images, and takes
the Fréchet distance of the two (Dowson and Landau 1982), which is their squared 2-Wasserstein distance:

    ‖μ₁ − μ₂‖² + tr Σ₁ + tr Σ₂ − 2 tr (Σ₁Σ₂)^½

Everything is in float64: the distance is a small difference of large traces.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from textebm.errors import UsageError

Array = NDArray[np.float64]

Z_95 = 1.959963984540054
"""The standard normal's 97.5 % quantile."""


@dataclass(frozen=True)
class Gaussian:
    """A Gaussian, and from how many vectors it was estimated.

    Args:
        mean: shape (features,).
        covariance: unbiased estimate (divided by count − 1); shape (features, features).
        count: number of vectors.
    """

    mean: Array
    covariance: Array
    count: int

    @property
    def is_singular(self) -> bool:
        """Whether the covariance must be singular, since it was estimated from no more vectors than it has rows."""
        return self.count <= len(self.mean)


class Moments:
    """Mean and covariance of vectors that come in batches of any size (Chan et al. 1979, pairwise updates).

    Args:
        size: entries of a vector.
    """

    def __init__(self, size: int) -> None:
        self._count = 0
        self._mean = np.zeros(size)
        self._scatter = np.zeros((size, size))

    def add(self, vectors: NDArray[np.floating]) -> None:
        """Take in a batch; shape (batch, size)."""
        if not len(vectors):
            return
        batch = np.asarray(vectors, dtype=np.float64)
        mean = batch.mean(axis=0)
        centred = batch - mean
        shift = mean - self._mean
        total = self._count + len(batch)
        self._scatter += centred.T @ centred + np.outer(shift, shift) * (self._count * len(batch) / total)
        self._mean += shift * (len(batch) / total)
        self._count = total

    def gaussian(self) -> Gaussian:
        """The Gaussian of everything that was taken in.

        Raises:
            UsageError: that is fewer than two vectors, which have no covariance.
        """
        if self._count < 2:
            raise UsageError(f"a covariance needs at least 2 images, and there are {self._count}")
        return Gaussian(self._mean.copy(), self._scatter / (self._count - 1), self._count)


def fit(features: NDArray[np.floating], rows_at_once: int = 4096) -> Gaussian:
    """The Gaussian of all rows; shape (images, features)."""
    moments = Moments(features.shape[1])
    for begin in range(0, len(features), rows_at_once):
        moments.add(features[begin : begin + rows_at_once])
    return moments.gaussian()


@dataclass(frozen=True)
class Factor:
    """A covariance's range: its eigenvectors and the roots of its eigenvalues, those that are not zero.

    Args:
        vectors: orthonormal columns; shape (features, rank).
        roots: shape (rank,).
    """

    vectors: Array
    roots: Array

    @classmethod
    def of(cls, covariance: Array) -> "Factor":
        """Eigenvalues below rounding are left out, so that singular covariances do no harm."""
        values, vectors = np.linalg.eigh(covariance)
        kept = values > max(values[-1], 0.0) * len(values) * np.finfo(np.float64).eps
        return cls(vectors[:, kept], np.sqrt(values[kept]))


def frechet_distance(first: Gaussian, second: Gaussian) -> float:
    """Fréchet distance of two Gaussians: 0 where they are equal, symmetric, unchanged by rotations of the space.

    tr (Σ₁Σ₂)^½ is the sum of the singular values of Σ₁^½ Σ₂^½. They are computed of this product, not as roots of
    eigenvalues of Σ₁Σ₂, whose rounding errors a root would magnify where a covariance is singular.

    Raises:
        UsageError: the two have different numbers of features, or an entry that is not finite.
    """
    return Comparison.of(first, second).distance


@dataclass(frozen=True)
class Comparison:
    """The distance of two Gaussians, and what its derivative needs.

    Args:
        distance: the Fréchet distance.
        first, second: the Gaussians.
        factor: of the first covariance.
        left: left singular vectors of Σ₁^½ Σ₂^½ in the basis of `factor`; shape (rank, values).
        values: its singular values; shape (values,).
    """

    distance: float
    first: Gaussian
    second: Gaussian
    factor: Factor
    left: Array
    values: Array

    @classmethod
    def of(cls, first: Gaussian, second: Gaussian) -> "Comparison":
        """Compare two Gaussians; see `frechet_distance`."""
        if first.mean.shape != second.mean.shape:
            raise UsageError(f"features of {len(first.mean)} and of {len(second.mean)} numbers do not compare")
        for side in (first, second):
            if not (np.isfinite(side.mean).all() and np.isfinite(side.covariance).all()):
                raise UsageError("a mean or a covariance of features is not finite")
        factor, other = Factor.of(first.covariance), Factor.of(second.covariance)
        product = factor.roots[:, None] * (factor.vectors.T @ other.vectors) * other.roots
        left, values, _ = np.linalg.svd(product, full_matrices=False)
        shift = first.mean - second.mean
        traces = np.trace(first.covariance) + np.trace(second.covariance)
        distance = float(shift @ shift + traces - 2 * values.sum())
        return cls(max(distance, 0.0), first, second, factor, left, values)

    def influence(self, features: NDArray[np.floating], rows_at_once: int = 4096) -> Array:
        """By how much each vector of the first sample pulls the distance up: the influence function at that sample.

        With d = x − μ₁, and T = Σ₁^−½ (Σ₁^½Σ₂Σ₁^½)^½ Σ₁^−½ the optimal transport map from the first Gaussian to the
        second, the derivative of the distance in the weight of x is 2 (μ₁ − μ₂)·d + dᵀ(I − T)d, less its mean.

        Args:
            features: what the first Gaussian was fitted to; shape (images, features).
            rows_at_once: bounds the memory.

        Returns:
            Shape (images,); its mean is 0.
        """
        whitening = self.factor.vectors / self.factor.roots
        transport = whitening @ (self.left * np.sqrt(self.values))  # x ↦ its coordinates under T^½
        direction = 2 * (self.first.mean - self.second.mean)
        pulls = np.empty(len(features))
        for begin in range(0, len(features), rows_at_once):
            centred = features[begin : begin + rows_at_once].astype(np.float64) - self.first.mean
            quadratic = (centred**2).sum(axis=1) - ((centred @ transport) ** 2).sum(axis=1)
            pulls[begin : begin + rows_at_once] = centred @ direction + quadratic
        return pulls - pulls.mean()

    def standard_error(self, features: NDArray[np.floating]) -> float:
        """Standard error of the distance over samples of the first side's size, the second side held fixed.

        It is the infinitesimal jackknife (Efron and Tibshirani 1993, chapter 22): the root of Σᵢ Lᵢ² / n² over the
        influences L. It says nothing of the bias, which depends on n.
        """
        return float(np.sqrt((self.influence(features) ** 2).sum()) / len(features))
