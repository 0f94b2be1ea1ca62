"""Exact likelihood by integration on a grid, for z of one or two dimensions.

log p(x) = log ∫ exp(f(z)) N(z; 0, σ²I) p(x|z) dz − log Z,   Z = ∫ exp(f(z)) N(z; 0, σ²I) dz.

Both integrals are sums over one regular grid (the trapezoidal rule, whose error falls faster than any power of the
spacing for smooth integrands that vanish at the border). It is the yardstick that everything approximate is tested
against.
"""

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor

from textebm.model.energy import GaussianPrior


def grid(
    latent_dim: int, sigma: float = 1.0, points: int = 201, reach: float = 6.0, dtype: torch.dtype = torch.float64
) -> tuple[Float[Tensor, "grid latent"], float]:
    """A regular grid over [−reach·σ, reach·σ] in each dimension.

    Args:
        latent_dim: 1 or 2.
        sigma: standard deviation of the reference Gaussian.
        points: grid points a dimension.
        reach: half width in units of σ.
        dtype: of the grid.

    Returns:
        The points (points ** latent_dim, latent_dim) and the volume of a cell.

    Raises:
        ValueError: latent_dim is not 1 or 2.
    """
    if latent_dim not in (1, 2):
        raise ValueError(f"a grid has 1 or 2 dimensions, not {latent_dim}")
    axis = torch.linspace(-reach * sigma, reach * sigma, points, dtype=dtype)
    mesh = torch.meshgrid(*[axis] * latent_dim, indexing="ij")
    return torch.stack([m.flatten() for m in mesh], dim=1), float(axis[1] - axis[0]) ** latent_dim


def log_normaliser(prior: GaussianPrior, z: Float[Tensor, "grid latent"], cell: float) -> Float[Tensor, ""]:
    """log Z of a prior on a grid, differentiable in its parameters; 0 for a Gaussian, up to the grid's error."""
    return (prior.tilt(z) + prior.log_reference(z)).logsumexp(0) + torch.tensor(cell, dtype=z.dtype).log()


def log_prior(prior: GaussianPrior, z: Float[Tensor, "grid latent"], cell: float) -> Float[Tensor, " grid"]:
    """Normalised log p(z) at the points of a grid, in nats."""
    return prior.tilt(z) + prior.log_reference(z) - log_normaliser(prior, z, cell)


def log_marginal(
    prior: GaussianPrior,
    log_likelihood: Callable[[Tensor], Float[Tensor, "data grid"]],
    z: Float[Tensor, "grid latent"],
    cell: float,
) -> Float[Tensor, " data"]:
    """Exact log p(x) of each datum, in nats, differentiable in all parameters.

    Args:
        prior: the prior.
        log_likelihood: log p(x|z) of every datum at every point of the grid.
        z: the grid.
        cell: volume of a cell.
    """
    joint = log_likelihood(z) + log_prior(prior, z, cell)
    return joint.logsumexp(1) + torch.tensor(cell, dtype=z.dtype).log()
