"""The Fréchet distance of Gaussians: closed forms, laws, and the interval against repeated samples."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from textebm.errors import UsageError
from textebm.image_eval.frechet import GROUPS, T_95, Gaussian, Moments, fit, frechet_distance, standard_error

Array = NDArray[np.float64]


def random_gaussian(seed: int, size: int = 6, rank: int | None = None) -> Gaussian:
    source = np.random.default_rng(seed)
    factor = source.normal(size=(size, rank or size))
    return Gaussian(source.normal(size=size), factor @ factor.T, 100)


def random_rotation(seed: int, size: int) -> Array:
    return np.linalg.qr(np.random.default_rng(seed).normal(size=(size, size)))[0]


SEEDS = st.integers(0, 2**32 - 1)


class TestClosedForms:
    @given(SEEDS, st.integers(1, 6))
    def test_equal(self, seed: int, rank: int) -> None:
        one = random_gaussian(seed, rank=rank)
        assert frechet_distance(one, one) == pytest.approx(0, abs=1e-11)

    @given(SEEDS, st.integers(1, 6))
    def test_shifted(self, seed: int, rank: int) -> None:
        one = random_gaussian(seed, rank=rank)
        shift = np.random.default_rng(seed + 1).normal(size=6)
        other = Gaussian(one.mean + shift, one.covariance, 100)
        assert frechet_distance(one, other) == pytest.approx(shift @ shift, rel=1e-10, abs=1e-10)

    @given(st.lists(st.tuples(st.floats(0, 50), st.floats(0, 50)), min_size=1, max_size=5))
    def test_diagonal(self, sds: list[tuple[float, float]]) -> None:
        """Of independent normals it is the sum of (σ₁ − σ₂)²; a standard deviation may be 0.

        A variance below the rounding of the largest one counts as 0, which costs at most √(5 · 2.2e-16) of the traces.
        """
        first, second = np.array(sds).T
        mean = np.zeros(len(sds))
        found = frechet_distance(Gaussian(mean, np.diag(first**2), 9), Gaussian(mean, np.diag(second**2), 9))
        traces = first @ first + second @ second
        assert found == pytest.approx(((first - second) ** 2).sum(), rel=1e-9, abs=4e-8 * traces + 1e-9)

    @given(SEEDS, st.lists(st.tuples(st.floats(0, 9), st.floats(0, 9)), min_size=2, max_size=5))
    def test_commuting(self, seed: int, sds: list[tuple[float, float]]) -> None:
        """The same in any basis."""
        first, second = np.array(sds).T
        basis, mean = random_rotation(seed, len(sds)), np.zeros(len(sds))
        one, other = (Gaussian(mean, basis * sd**2 @ basis.T, 9) for sd in (first, second))
        traces = first @ first + second @ second
        assert frechet_distance(one, other) == pytest.approx(((first - second) ** 2).sum(), abs=1e-7 * traces + 1e-7)

    def test_one_dimension(self) -> None:
        one, other = Gaussian(np.array([1.0]), np.array([[4.0]]), 9), Gaussian(np.array([-2.0]), np.array([[25.0]]), 9)
        assert frechet_distance(one, other) == pytest.approx(3**2 + (2 - 5) ** 2)

    def test_a_point(self) -> None:
        """From a point it is the mean squared distance."""
        one, point = random_gaussian(3), Gaussian(np.zeros(6), np.zeros((6, 6)), 9)
        assert frechet_distance(one, point) == pytest.approx(one.mean @ one.mean + np.trace(one.covariance))

    @given(SEEDS, st.integers(1, 8), st.integers(1, 8))
    def test_few_vectors(self, seed: int, m: int, n: int) -> None:
        """Of samples smaller than the space, the root has the trace of the nuclear norm of the samples' product."""
        source = np.random.default_rng(seed)
        first, second = source.normal(size=(m + 1, 12)), source.normal(size=(n + 1, 12))
        a, b = ((x - x.mean(axis=0)) / np.sqrt(len(x) - 1) for x in (first, second))
        shift = first.mean(axis=0) - second.mean(axis=0)
        root = np.linalg.svd(a @ b.T, compute_uv=False).sum()
        expected = shift @ shift + (a**2).sum() + (b**2).sum() - 2 * root
        assert frechet_distance(fit(first), fit(second)) == pytest.approx(expected, rel=1e-9)

    @given(SEEDS)
    def test_the_root_of_the_product(self, seed: int) -> None:
        """Against scipy's matrix root, where the covariances are regular."""
        linalg = pytest.importorskip("scipy.linalg")
        one, other = random_gaussian(seed, 4), random_gaussian(seed + 1, 4)
        one, other = (Gaussian(g.mean, g.covariance + np.eye(4) / 10, 9) for g in (one, other))
        root = np.trace(linalg.sqrtm(one.covariance @ other.covariance).real)
        shift = one.mean - other.mean
        expected = shift @ shift + np.trace(one.covariance + other.covariance) - 2 * root
        assert frechet_distance(one, other) == pytest.approx(expected, rel=1e-6)


class TestLaws:
    @given(SEEDS, SEEDS, st.integers(1, 6), st.integers(1, 6))
    def test_symmetric(self, first: int, second: int, rank: int, other_rank: int) -> None:
        one, other = random_gaussian(first, rank=rank), random_gaussian(second, rank=other_rank)
        assert frechet_distance(one, other) == pytest.approx(frechet_distance(other, one), rel=1e-9, abs=1e-9)

    @given(SEEDS, st.integers(1, 6), st.floats(0.1, 10))
    def test_rotation_and_scale(self, seed: int, rank: int, scale: float) -> None:
        """A rotation changes nothing; a scale of the features comes out squared."""
        one, other, turn = random_gaussian(seed), random_gaussian(seed + 1, rank=rank), random_rotation(seed + 2, 6)
        moved = [Gaussian(scale * turn @ g.mean, scale**2 * turn @ g.covariance @ turn.T, 9) for g in (one, other)]
        assert frechet_distance(*moved) == pytest.approx(scale**2 * frechet_distance(one, other), rel=1e-7)

    @given(SEEDS, SEEDS, SEEDS)
    def test_triangle(self, a: int, b: int, c: int) -> None:
        """Its root is a metric."""
        one, two, three = map(random_gaussian, (a, b, c))
        roots = [np.sqrt(frechet_distance(*pair)) for pair in ((one, two), (two, three), (one, three))]
        assert roots[2] <= roots[0] + roots[1] + 1e-6

    def test_sizes_differ(self) -> None:
        with pytest.raises(UsageError, match="features of 6 and of 4"):
            frechet_distance(random_gaussian(0), random_gaussian(0, 4))

    def test_not_finite(self) -> None:
        with pytest.raises(UsageError, match="not finite"):
            frechet_distance(random_gaussian(0), Gaussian(np.full(6, np.nan), np.eye(6), 9))


class TestMoments:
    @given(SEEDS, st.lists(st.integers(0, 7), min_size=1, max_size=6))
    def test_batches_do_not_matter(self, seed: int, sizes: list[int]) -> None:
        """Features far from 0, where sums of squares would lose all digits."""
        vectors = np.random.default_rng(seed).normal(size=(sum(sizes) + 2, 3)) + 1e6
        moments, begin = Moments(3), 0
        for size in [*sizes, 2]:
            moments.add(vectors[begin : begin + size])
            begin += size
        found = moments.gaussian()
        np.testing.assert_allclose(found.mean, vectors.mean(axis=0), rtol=1e-14)
        np.testing.assert_allclose(found.covariance, np.cov(vectors, rowvar=False), rtol=1e-7, atol=1e-9)
        assert found.count == len(vectors)

    def test_half_precision_is_summed_in_double(self) -> None:
        vectors = np.random.default_rng(0).normal(size=(5000, 2)).astype(np.float16) + np.float16(100)
        np.testing.assert_allclose(
            fit(vectors).covariance, np.cov(vectors.astype(np.float64), rowvar=False), rtol=1e-10
        )

    def test_one_vector_is_too_few(self) -> None:
        with pytest.raises(UsageError, match="at least 2 images, and there are 1"):
            fit(np.zeros((1, 3)))

    @pytest.mark.parametrize(("count", "singular"), [(3, True), (4, True), (5, False)])
    def test_singular(self, count: int, singular: bool) -> None:
        gaussian = fit(np.random.default_rng(0).normal(size=(count, 4)))
        assert gaussian.is_singular == singular
        assert (np.linalg.matrix_rank(gaussian.covariance) < 4) == singular


class TestStandardError:
    def test_leaving_out_is_what_it_says(self) -> None:
        """Against distances of the vectors that are left, fitted anew."""
        vectors, other = np.random.default_rng(0).normal(size=(107, 6)) + 100, random_gaussian(1)
        left = [frechet_distance(fit(np.delete(vectors, np.s_[g::GROUPS], axis=0)), other) for g in range(GROUPS)]
        expected = np.sqrt((GROUPS - 1) / GROUPS * ((np.array(left) - np.mean(left)) ** 2).sum())
        assert standard_error(vectors, other) == pytest.approx(expected, rel=1e-9)

    @pytest.mark.parametrize(("n", "size", "low", "high"), [(400, 5, 0.85, 1.15), (60, 5, 0.85, 1.3), (40, 50, 0.9, 2)])
    def test_it_is_that_of_repeated_samples(self, n: int, size: int, low: float, high: float) -> None:
        """Of singular covariances (40 vectors, 50 dimensions) it may be too large, and not too small."""
        source, real = np.random.default_rng(1), random_gaussian(0, size)
        mix = source.normal(size=(size, size))
        samples = [source.normal(size=(n, size)) @ mix + 0.3 for _ in range(200)]
        distances = [frechet_distance(fit(vectors), real) for vectors in samples]
        errors = [standard_error(vectors, real) for vectors in samples[:50]]
        assert low < np.sqrt(np.mean(np.square(errors))) / np.std(distances) < high

    def test_few_vectors_have_none(self) -> None:
        vectors = np.random.default_rng(0).normal(size=(2 * GROUPS, 3))
        assert standard_error(vectors[1:], random_gaussian(0, 3)) is None
        assert standard_error(vectors, random_gaussian(0, 3)) is not None

    def test_the_quantile(self) -> None:
        stats = pytest.importorskip("scipy.stats")
        assert stats.t.ppf(0.975, GROUPS - 1) == pytest.approx(T_95)


def test_fewer_vectors_make_the_distance_larger() -> None:
    """The bias that a signature's n stands for: two samples of one distribution."""
    source = np.random.default_rng(3)
    means = [
        np.mean([frechet_distance(*(fit(source.normal(size=(n, 10))) for _ in range(2))) for _ in range(20)])
        for n in (20, 80, 320, 1280)
    ]
    assert means[0] > 2 * means[1] > 4 * means[2] > 8 * means[3] > 0
