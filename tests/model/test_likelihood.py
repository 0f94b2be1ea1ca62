"""Exact integration on a grid against closed forms."""

import math

import pytest
import torch
from torch import Tensor

from textebm.config import PriorConfig
from textebm.model import energy, likelihood

EXACT = {"rtol": 0, "atol": 1e-10}


class Tilted(energy.GaussianPrior):
    """f(z) = a·z − ½ c ‖z‖², for which everything is known in closed form."""

    def __init__(self, sigma: float, a: list[float], c: float = 0.0) -> None:
        super().__init__(PriorConfig(latent_dim=len(a), sigma=sigma))
        self.a = torch.tensor(a, dtype=torch.float64)
        self.c = c

    def tilt(self, z: Tensor) -> Tensor:
        return z @ self.a - 0.5 * self.c * z.square().sum(1)


def grid_of(prior, **options):
    return likelihood.grid(prior.config.latent_dim, prior.config.sigma, **options)


def number(value: float) -> Tensor:
    return torch.tensor(value, dtype=torch.float64)


@pytest.mark.parametrize("latent_dim", [1, 2])
@pytest.mark.parametrize("sigma", [0.5, 1.0, 3.0])
def test_a_gaussian_prior_is_normalised(latent_dim, sigma):
    prior = energy.GaussianPrior(PriorConfig(kind="gaussian", latent_dim=latent_dim, sigma=sigma)).double()
    z, cell = grid_of(prior, reach=8.0)
    torch.testing.assert_close(likelihood.log_normaliser(prior, z, cell), number(0.0), **EXACT)
    torch.testing.assert_close(likelihood.log_prior(prior, z, cell), prior.log_reference(z), **EXACT)


@pytest.mark.parametrize("sigma", [0.5, 1.0, 2.0])
@pytest.mark.parametrize("a", [[0.7], [-1.3, 0.4]])
def test_linear_tilt(sigma, a):
    """f(z) = a·z shifts the Gaussian by aσ²: log Z = ½‖a‖²σ²."""
    prior = Tilted(sigma, a)
    z, cell = grid_of(prior, reach=12.0, points=401)
    expected = number(0.5 * sum(v * v for v in a) * sigma**2)
    torch.testing.assert_close(likelihood.log_normaliser(prior, z, cell), expected, **EXACT)


@pytest.mark.parametrize("c", [-0.2, 0.5, 4.0])
@pytest.mark.parametrize("a", [[0.7], [-1.3, 0.4]])
def test_quadratic_tilt(a, c, sigma=1.2):
    """Precision c + 1/σ²: log Z = ½‖a‖²/(c + 1/σ²) − (d/2) log(1 + cσ²)."""
    prior = Tilted(sigma, a, c)
    z, cell = grid_of(prior, reach=12.0, points=401)
    dims, precision = len(a), c + 1 / sigma**2
    expected = 0.5 * sum(v * v for v in a) / precision - 0.5 * dims * math.log(1 + c * sigma**2)
    torch.testing.assert_close(likelihood.log_normaliser(prior, z, cell), number(expected), **EXACT)
    density = likelihood.log_prior(prior, z, cell).exp()
    torch.testing.assert_close(density.sum() * cell, number(1.0), **EXACT)
    torch.testing.assert_close((density @ z) * cell, prior.a / precision, **EXACT)


def normal_log_density(x: Tensor, mean: Tensor, variance: Tensor) -> Tensor:
    return -0.5 * ((x - mean).square() / variance + (2 * math.pi * variance).log())


@pytest.mark.parametrize("w", [[0.8], [0.8, -1.5]])
def test_marginal_of_a_linear_gaussian_generator(w, sigma=1.3, noise=0.6):
    """x = w·z + N(0, τ²) under z ~ N(0, σ²I): x ~ N(0, σ²‖w‖² + τ²)."""
    prior = energy.GaussianPrior(PriorConfig(kind="gaussian", latent_dim=len(w), sigma=sigma)).double()
    z, cell = grid_of(prior, reach=9.0, points=401)
    weights, x = torch.tensor(w, dtype=torch.float64), torch.tensor([-2.0, 0.0, 0.3, 4.0], dtype=torch.float64)

    def log_likelihood(points: Tensor) -> Tensor:
        return normal_log_density(x[:, None], points @ weights, number(noise**2))

    marginal = likelihood.log_marginal(prior, log_likelihood, z, cell)
    variance = sigma**2 * weights.square().sum() + noise**2
    torch.testing.assert_close(marginal, normal_log_density(x, number(0.0), variance), **EXACT)


def test_marginal_under_a_tilted_prior(sigma=1.1, noise=0.6, w=0.9, a=0.8, c=0.5):
    """The tilt makes the prior N(a/p, 1/p) with p = c + 1/σ², so x ~ N(wa/p, w²/p + τ²)."""
    prior = Tilted(sigma, [a], c)
    z, cell = grid_of(prior, reach=9.0, points=801)
    x = torch.tensor([-2.0, 0.3, 4.0], dtype=torch.float64)
    marginal = likelihood.log_marginal(
        prior, lambda points: normal_log_density(x[:, None], w * points[:, 0], number(noise**2)), z, cell
    )
    precision = number(c + 1 / sigma**2)
    expected = normal_log_density(x, w * a / precision, w**2 / precision + noise**2)
    torch.testing.assert_close(marginal, expected, **EXACT)


def test_grid():
    z, cell = likelihood.grid(2, sigma=2.0, points=5, reach=1.0)
    assert z.shape == (25, 2)
    assert z.dtype == torch.float64
    assert cell == 1.0
    assert z.min() == -2
    assert z.max() == 2
    assert len(z.unique(dim=0)) == 25
    assert likelihood.grid(1, points=5, reach=1.0, dtype=torch.float32)[0].dtype == torch.float32


@pytest.mark.parametrize("latent_dim", [0, 3, 32])
def test_only_one_or_two_dimensions(latent_dim):
    with pytest.raises(ValueError, match="1 or 2 dimensions"):
        likelihood.grid(latent_dim)
