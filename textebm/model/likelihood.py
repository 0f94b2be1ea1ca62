"""The likelihood log p(x) of data under a latent variable model, estimated and exact.

log p(x) = log E_{p_0}[exp(f(z)) p(x|z)] − log Z,   Z = E_{p_0}[exp(f(z))],   p_0 = N(0, σ²I).

Estimated: the first term by importance weighting with samples of a proposal q, an unbiased estimate of the mean whose
log is therefore at most the first term in expectation, and rises with the number of samples (Burda, Grosse and
Salakhutdinov, "Importance weighted autoencoders", 2016). log Z is `ais.py`'s.

Exact, for z of one or two dimensions: integrals are sums over one regular grid (the trapezoidal rule, whose error falls
faster than any power of the spacing for smooth integrands that vanish at the border). It is the yardstick that
everything approximate is tested against.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from textebm.model.ais import effective_samples
from textebm.model.energy import GaussianPrior
from textebm.model.generators import ConditionedLikelihood
from textebm.model.proposals import Conditioned, Proposal, Sources


class Weights(NamedTuple):
    """Importance weights of samples of z, of each datum, in float64.

    z: the samples. log_weights: log [exp(f(z)) p_0(z) p(x|z) / q(z)], in nats. log_likelihood: log p(x|z), in nats.
    """

    z: Float[Tensor, "data samples latent"]
    log_weights: Float[Tensor, "data samples"]
    log_likelihood: Float[Tensor, "data samples"]

    def log_mean(self) -> Float[Tensor, " data"]:
        """The estimate of log E_{p_0}[exp(f(z)) p(x|z)]: at most that in expectation."""
        return self.log_weights.logsumexp(1) - math.log(self.log_weights.shape[1])

    def effective_samples(self) -> Float[Tensor, " data"]:
        """(Σw)²/Σw² of each datum: near 1 where one sample carries the estimate, which is then far too low."""
        return effective_samples(self.log_weights)

    def reconstruction(self) -> Float[Tensor, " data"]:
        """E[log p(x|z)] under the posterior p(z|x), by weights that sum to 1 (biased by about 1/effective samples)."""
        return (self.log_weights.softmax(1) * self.log_likelihood).sum(1)

    def resampled(self, sources: Sources) -> Float[Tensor, "data latent"]:
        """One of the samples of each datum, chosen by its weight: about one of the posterior."""
        shares = self.log_weights.softmax(1).cumsum(1)
        marks = torch.stack([torch.rand(1, generator=source, dtype=torch.float64) for source in sources])
        chosen = torch.searchsorted(shares, marks.to(shares.device) * shares[:, -1:], right=True)
        chosen = chosen.clamp_(max=shares.shape[1] - 1)
        return self.z[torch.arange(len(self.z), device=self.z.device), chosen.squeeze(1)]


@torch.no_grad()
def importance_weights(
    prior: GaussianPrior,
    conditioned: Conditioned,
    proposal: Proposal,
    samples: int,
    sources: Sources,
    at_once: int,
) -> Weights:
    """Weigh samples of a proposal by the model.

    Args:
        prior: the prior, whose normaliser plays no part here.
        conditioned: gives the likelihood.
        proposal: q(z) of each datum, made without the samples drawn here.
        samples: drawn for each datum.
        sources: of the samples, one a datum.
        at_once: samples of each datum whose likelihood is computed together; it bounds the memory and changes nothing.
    """
    z = proposal.sample(samples, sources).to(prior.origin.dtype)  # rounded first: q is asked where the model is
    flat = z.flatten(0, 1)
    log_prior = (prior.tilt(flat).double() + prior.log_reference(flat.double())).view(z.shape[:2])
    by_copies: dict[int, ConditionedLikelihood] = {}
    parts = []
    for part in z.split(at_once, dim=1):  # type: ignore[no-untyped-call]
        copies = part.shape[1]
        if copies not in by_copies:
            by_copies[copies] = conditioned(copies)
        parts.append(by_copies[copies].log_prob(part.flatten(0, 1)).double().view(part.shape[:2]))
    log_likelihood = torch.cat(parts, dim=1)
    return Weights(z, log_prior + log_likelihood - proposal.log_prob(z), log_likelihood)


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
