"""Where importance weighting looks for z: proposals q(z) of each sentence, known with their densities.

An encoder gives one at once. Short-run inference gives samples and no density: then a Gaussian is fitted to chains on
the posterior of each sentence. Whatever it is, it must not have seen the samples that it is then asked for, or the
importance estimate would not be unbiased.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor

from textebm.model import metropolis
from textebm.model.encoder import DiagonalGaussian
from textebm.model.energy import GaussianPrior
from textebm.model.generators import ConditionedLikelihood
from textebm.model.inference import posterior_potential
from textebm.model.metropolis import Bridge

Sources = Sequence[torch.Generator]
"""A source of random numbers for each sentence, on the CPU: so its estimate depends on no other sentence."""

Conditioned = Callable[[int], ConditionedLikelihood]
"""Gives the likelihood of a batch in which each sentence stands so many times in a row."""

Covariance = Literal["full", "diagonal"]


@runtime_checkable
class Proposal(Protocol):
    """A density of z for each sentence of a batch."""

    def sample(self, count: int, sources: Sources) -> Float[Tensor, "sentences count latent"]:
        """So many samples for each sentence, in float64."""
        ...

    def log_prob(self, z: Float[Tensor, "sentences count latent"]) -> Float[Tensor, "sentences count"]:
        """log q(z) of each sample, normalised, in nats and float64."""
        ...


class Proposed(NamedTuple):
    """A proposal, and the share of accepted moves in the chains that it comes from (None: it comes from none)."""

    proposal: Proposal
    acceptance: float | None


@runtime_checkable
class Proposer(Protocol):
    """What makes a proposal for a batch: an encoder, say, or `FittedToChains`."""

    name: str
    """What it is, for signatures."""

    def __call__(self, x: Any, conditioned: Conditioned, sources: Sources) -> Proposed:  # noqa: ANN401
        """The proposal.

        Args:
            x: the batch, on the model's device.
            conditioned: gives its likelihood.
            sources: of random numbers, one a sentence, that serve nothing else.
        """
        ...


class Gaussians:
    """A Gaussian for each sentence."""

    def __init__(
        self, mean: Float[Tensor, "sentences latent"], scale: Float[Tensor, "sentences latent latent"]
    ) -> None:
        """From means and the lower triangular roots of covariances; a diagonal one has only its diagonal."""
        self.mean, self.scale = mean.double(), scale.double()

    def sample(self, count: int, sources: Sources) -> Float[Tensor, "sentences count latent"]:
        """So many samples for each sentence, in float64."""
        size = (count, self.mean.shape[1])
        noise = torch.stack([torch.randn(size, generator=source, dtype=torch.float64) for source in sources])
        z: Tensor = self.mean[:, None] + noise.to(self.mean.device) @ self.scale.mT
        return z

    def log_prob(self, z: Float[Tensor, "sentences count latent"]) -> Float[Tensor, "sentences count"]:
        """log q(z) of each sample, normalised, in nats and float64."""
        away = (z.double() - self.mean[:, None]).mT  # (sentences, latent, count)
        whitened = torch.linalg.solve_triangular(self.scale, away, upper=False)
        log_volume = self.scale.diagonal(dim1=1, dim2=2).log().sum(1)
        constant = 0.5 * self.mean.shape[1] * math.log(2 * math.pi)
        log_prob: Tensor = -0.5 * whitened.square().sum(1) - log_volume[:, None] - constant
        return log_prob


class Defensive:
    """A proposal mixed with the reference Gaussian, so that no weight is larger than p(x|z) exp(f(z)) / share."""

    def __init__(self, proposal: Proposal, prior: GaussianPrior, share: float) -> None:
        """A mixture.

        Args:
            proposal: what is mixed.
            prior: whose reference Gaussian it is mixed with.
            share: of the reference Gaussian, in (0, 1).
        """
        self.proposal, self.prior, self.share = proposal, prior, share

    def sample(self, count: int, sources: Sources) -> Float[Tensor, "sentences count latent"]:
        """So many samples for each sentence, in float64; each comes from either part by chance."""
        z = self.proposal.sample(count, sources)
        sigma = self.prior.config.sigma
        size = z.shape[1:]
        reference = torch.stack([sigma * torch.randn(size, generator=s, dtype=torch.float64) for s in sources])
        chosen = torch.stack([torch.rand(count, generator=s, dtype=torch.float64) for s in sources]) < self.share
        return torch.where(chosen.to(z.device)[..., None], reference.to(z.device), z)

    def log_prob(self, z: Float[Tensor, "sentences count latent"]) -> Float[Tensor, "sentences count"]:
        """log q(z) of each sample, normalised, in nats and float64."""
        reference = self.prior.log_reference(z.flatten(0, 1).double()).view(z.shape[:2])
        own = math.log1p(-self.share) + self.proposal.log_prob(z)
        return torch.logaddexp(own, math.log(self.share) + reference)


@dataclass(frozen=True)
class Fit:
    """How a Gaussian is fitted to the posterior chains of a sentence."""

    chains: int = 8
    """Chains a sentence, each from the reference Gaussian."""
    steps: int = 60
    """Metropolis-adjusted Langevin steps of each; step sizes are adapted in the first half, the second half is kept."""
    covariance: Covariance = "diagonal"
    """diagonal: no covariance between dimensions; full needs many more steps than dimensions."""
    widening: float = 1.1
    """Factor on the standard deviations: a proposal that is too narrow has rare, very large weights."""
    defensive: float = 0.05
    """Share of the reference Gaussian that is mixed in (0: none)."""

    @property
    def name(self) -> str:
        """What it is, for signatures."""
        return f"gaussian-{self.covariance}-fitted-to-{self.chains}x{self.steps}-mala{self.spread}"

    @property
    def spread(self) -> str:
        """How it is widened and mixed."""
        return f"-x{self.widening:g}" + (f"+reference{self.defensive:g}" if self.defensive else "")


class FromEncoder:
    """Proposes what an encoder says, widened and mixed as a fit would be."""

    def __init__(self, prior: GaussianPrior, encode: Callable[[Any], DiagonalGaussian], fit: Fit) -> None:
        """From an encoder.

        Args:
            prior: whose reference Gaussian is mixed in.
            encode: gives q(z|x) of a batch.
            fit: its `widening` and `defensive`; the rest says nothing.
        """
        self.prior, self.encode, self.fit = prior, encode, fit
        self.name = f"encoder{fit.spread}"

    def __call__(self, x: Any, conditioned: Conditioned, sources: Sources) -> Proposed:  # noqa: ANN401
        """The proposal for a batch."""
        q = self.encode(x)
        scale = torch.diag_embed(self.fit.widening * (0.5 * q.log_variance.double()).exp())
        return Proposed(mixed(Gaussians(q.mean, scale), self.prior, self.fit.defensive), None)


class FittedToChains:
    """Proposes a Gaussian fitted to posterior chains of each sentence."""

    def __init__(self, prior: GaussianPrior, fit: Fit) -> None:
        """For the posteriors under a prior, by chains and a covariance as `fit` says."""
        self.prior, self.fit = prior, fit
        self.name = fit.name

    def __call__(self, x: object, conditioned: Conditioned, sources: Sources) -> Proposed:
        """The proposal for a batch."""
        samples, acceptance = posterior_samples(self.prior, conditioned(self.fit.chains), sources, self.fit)
        return Proposed(mixed(fitted(samples, self.fit), self.prior, self.fit.defensive), acceptance)


def mixed(proposal: Proposal, prior: GaussianPrior, share: float) -> Proposal:
    """A proposal with that share of the reference Gaussian mixed in, or as it is where there is none."""
    return Defensive(proposal, prior, share) if share else proposal


def posterior_samples(
    prior: GaussianPrior, likelihood: ConditionedLikelihood, sources: Sources, fit: Fit
) -> tuple[Float[Tensor, "sentences kept latent"], float]:
    """Where Metropolis-adjusted Langevin chains on each sentence's posterior stand in their second half.

    Step sizes, one a sentence, are adapted in the first half and then fixed.

    Returns:
        The samples, chain after chain at each step, and the mean acceptance of the second half.
    """
    bridge = Bridge(posterior_potential(prior, likelihood), prior.config.sigma**-2)
    like, size = prior.origin, (fit.chains, prior.config.dimensions)
    start = torch.cat([torch.randn(size, generator=source, dtype=like.dtype) for source in sources])
    point = bridge.look((prior.config.sigma * start).to(like.device))
    log_size = like.new_full((len(sources),), math.log(prior.config.sigma * FIRST_STEP_SIZE))
    kept, accepted = [], 0.0
    burn_in = fit.steps // 2
    for number in range(fit.steps):
        momentum, uniform = metropolis.noise_by_sentence(point.z, sources)
        sizes = log_size.exp().repeat_interleave(fit.chains)
        point, acceptance = metropolis.step(bridge, point, 1.0, sizes, 1, momentum, uniform)
        if number < burn_in:
            by_sentence = acceptance.view(-1, fit.chains).mean(1)
            log_size = log_size + (by_sentence - metropolis.target_acceptance(1)) / (number + 1) ** 0.6
        else:
            kept.append(point.z.view(-1, *size))
            accepted += float(acceptance.mean())
    return torch.cat(kept, dim=1), accepted / max(1, fit.steps - burn_in)


FIRST_STEP_SIZE = 0.4
"""Of the chains that a proposal is fitted to, in units of σ; adapted then."""


def fitted(samples: Float[Tensor, "sentences kept latent"], fit: Fit) -> Gaussians:
    """The Gaussian of each sentence's samples: their mean, and their covariance, shrunk and widened.

    Covariances between dimensions are shrunk by the share latent / (latent + samples): of few samples they are mostly
    noise, and a covariance of fewer samples than dimensions has no inverse.
    """
    samples = samples.double()
    count, latent = samples.shape[1:]
    mean = samples.mean(1)
    away = samples - mean[:, None]
    covariance = away.mT @ away / max(1, count - 1)
    variances = covariance.diagonal(dim1=1, dim2=2).clamp_min(TINY_VARIANCE)
    rest = 0.0 if fit.covariance == "diagonal" else count / (latent + count)
    shrunk = rest * covariance + torch.diag_embed(variances - rest * covariance.diagonal(dim1=1, dim2=2))
    return Gaussians(mean, fit.widening * torch.linalg.cholesky(shrunk))


TINY_VARIANCE = 1e-8
"""Least variance of a fitted Gaussian, for chains that did not move."""
