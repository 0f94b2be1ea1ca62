"""The prior's normaliser Z by annealed importance sampling, from two sides.

A *forward* run starts from exact samples of the reference Gaussian and moves them through the densities of a path
(`metropolis.py`) to the prior p(z) = exp(f(z)) N(z; 0, σ²I) / Z. With shares 0 = b₀ < … < b_T = 1 and f seen before
each move,

    log w = Σ_t (b_t − b_{t−1}) f(z_{t−1}),   E[w] = Z,

so that the log of the mean of w is at most log Z in expectation: a stochastic lower bound. A *reverse* run goes from
the prior to the Gaussian, and the mean of its weights estimates 1/Z: minus its log is a stochastic upper bound if the
run starts from exact samples of the prior, and an estimate if it starts where long chains ended.

An underestimated log Z flatters a model. So the larger of the two is used, and none where they differ by more than
`LARGEST_GAP`. Step sizes come from a warm-up run of its own: adapted along the weighted run, they would bias it.

Sources: Neal, "Annealed importance sampling" (2001); Grosse, Ghahramani and Adams, "Sandwiching the marginal
likelihood" (2015), for the reverse run; Grosse, Maddison and Salakhutdinov (2013), for the sigmoid path.
"""

import math
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from textebm.model import metropolis
from textebm.model.energy import GaussianPrior
from textebm.model.metropolis import Bridge
from textebm.model.random import stream

LARGEST_GAP = 0.5
"""Nats by which forward and reverse estimate may differ; beyond, neither is believed."""

Path = Literal["sigmoid", "linear"]


@dataclass(frozen=True)
class LogMean:
    """The log of a mean of weights, from the logs of the weights."""

    value: float
    """In nats."""
    standard_error: float
    """Of the value, by the delta method; too small where few weights carry the mean."""
    effective_samples: float
    """(Σw)²/Σw²: how many equal weights would know the mean as well."""


def log_mean(log_weights: Float[Tensor, " samples"]) -> LogMean:
    """The log of the mean of weights, summed in float64."""
    log_weights = log_weights.double()
    count = len(log_weights)
    total = log_weights.logsumexp(0)
    effective = float(effective_samples(log_weights[None])[0])
    return LogMean(float(total) - math.log(count), math.sqrt(max(0.0, 1 / effective - 1 / count)), effective)


def effective_samples(log_weights: Float[Tensor, "rows samples"]) -> Float[Tensor, " rows"]:
    """(Σw)²/Σw² of each row of weights (Kong 1992)."""
    log_weights = log_weights.double()
    return (2 * log_weights.logsumexp(1) - (2 * log_weights).logsumexp(1)).exp()


@dataclass(frozen=True)
class Plan:
    """How log Z is estimated."""

    chains: int = 256
    """Chains of each run."""
    steps: int = 1000
    """Densities between the Gaussian and the prior: T."""
    leapfrogs: int = 1
    """Leapfrogs of each move; 1 is the Metropolis-adjusted Langevin algorithm."""
    path: Path = "sigmoid"
    """How b runs from 0 to 1: sigmoid spends more steps near the ends, where the density changes fastest."""
    settling: int = 1000
    """Moves of the long chains that a reverse run starts from."""

    def shares(self) -> tuple[float, ...]:
        """b₀ = 0, …, b_T = 1."""
        steps = range(self.steps + 1)
        if self.path == "linear":
            return tuple(t / self.steps for t in steps)
        height = [1 / (1 + math.exp(-4 * (2 * t / self.steps - 1))) for t in steps]
        return tuple((h - height[0]) / (height[-1] - height[0]) for h in height)


@dataclass(frozen=True)
class Run:
    """One annealed run: its estimate of log Z, and how often a move was accepted."""

    log_normaliser: LogMean
    acceptance: float


@dataclass(frozen=True)
class LogNormaliser:
    """log Z from both sides."""

    forward: Run
    reverse: Run
    exact_start: bool
    """Whether the reverse run started from exact samples, so that it is a bound from above."""

    @property
    def larger(self) -> float:
        """The larger of the two: what a likelihood is normalised by."""
        return max(self.forward.log_normaliser.value, self.reverse.log_normaliser.value)

    @property
    def gap(self) -> float:
        """Reverse minus forward, in nats."""
        return self.reverse.log_normaliser.value - self.forward.log_normaliser.value

    @property
    def agrees(self) -> bool:
        """Whether the two are near enough to be believed; not where one of them is no number."""
        return abs(self.gap) <= LARGEST_GAP


def estimate(
    prior: GaussianPrior,
    plan: Plan,
    seed: int,
    exact: Float[Tensor, "samples latent"] | None = None,
    starts: Float[Tensor, "starts latent"] | None = None,
) -> LogNormaliser:
    """log Z of a prior by a forward and a reverse run.

    Args:
        prior: the prior; f is what its potential has beyond the reference Gaussian's.
        plan: chains, steps, path.
        seed: of all of it.
        exact: exact samples of the prior for the reverse run, where they can be had.
        starts: else, where half of its long chains start (posterior samples, say: where the data have the prior put its
            mass); the other half, or all of them, start from the reference Gaussian. A region that only one half
            reaches pulls the reverse estimate up, by log 2 or more.
    """
    bridge = Bridge(prior.frozen(), prior.config.sigma**-2)
    device = prior.origin.device
    warm_up, forward, reverse = (stream(seed, "likelihood", key, device=device) for key in range(3))
    shares = plan.shares()
    sizes = tuned_step_sizes(bridge, prior.sample_reference(plan.chains, warm_up), shares, plan.leapfrogs, warm_up)
    up = anneal(bridge, prior.sample_reference(plan.chains, forward), shares, sizes, plan.leapfrogs, forward)
    if exact is None:
        start = prior.sample_reference(plan.chains, reverse)
        if starts is not None:
            half = plan.chains // 2
            picked = torch.randint(len(starts), (half,), generator=reverse, device=device)
            start[:half] = starts[picked]
        start = settle(bridge, start, sizes[-1], plan.leapfrogs, plan.settling, reverse)
    else:
        start = exact
    down = anneal(bridge, start, shares[::-1], sizes[::-1], plan.leapfrogs, reverse)
    inverse = log_mean(down.log_weights)
    turned = LogMean(-inverse.value, inverse.standard_error, inverse.effective_samples)
    return LogNormaliser(Run(log_mean(up.log_weights), up.acceptance), Run(turned, down.acceptance), exact is not None)


class Annealed(NamedTuple):
    """What became of the chains of a run.

    z: where they ended. log_weights: in float64; the mean of the weights is, in expectation, the normaliser of the last
    density over that of the first. acceptance: share of the moves that were accepted.
    """

    z: Float[Tensor, "chains latent"]
    log_weights: Float[Tensor, " chains"]
    acceptance: float


def anneal(
    bridge: Bridge,
    z: Float[Tensor, "chains latent"],
    shares: tuple[float, ...],
    step_sizes: tuple[float, ...],
    leapfrogs: int,
    generator: torch.Generator,
) -> Annealed:
    """Move samples of the first density of a path to the last, and weigh them.

    Args:
        bridge: the path.
        z: samples of its density at shares[0].
        shares: b of each density, rising or falling.
        step_sizes: of each density's moves, one a share.
        leapfrogs: of each move.
        generator: of the moves.
    """
    point = bridge.look(z)
    log_weights = bridge.tilt(point) * (shares[1] - shares[0])
    accepted = log_weights.new_zeros(())
    for number in range(1, len(shares) - 1):
        momentum, uniform = metropolis.noise(point.z, generator)
        point, acceptance = metropolis.step(
            bridge, point, shares[number], step_sizes[number], leapfrogs, momentum, uniform
        )
        log_weights += bridge.tilt(point) * (shares[number + 1] - shares[number])
        accepted += acceptance.mean()
    return Annealed(point.z, log_weights, float(accepted) / max(1, len(shares) - 2))


def tuned_step_sizes(
    bridge: Bridge,
    z: Float[Tensor, "chains latent"],
    shares: tuple[float, ...],
    leapfrogs: int,
    generator: torch.Generator,
) -> tuple[float, ...]:
    """A step size for each density of a path, by which moves are accepted about as often as they should be.

    Args:
        bridge: the path.
        z: samples of its density at shares[0].
        shares: b of each density.
        leapfrogs: of each move.
        generator: of the moves, which serve nothing else.
    """
    wanted = metropolis.target_acceptance(leapfrogs)
    log_size = math.log(bridge.precision**-0.5 * z.shape[1] ** -0.25)
    point, sizes = bridge.look(z), []
    for share in (shares[0],) * FIRST_STEPS + shares:
        momentum, uniform = metropolis.noise(point.z, generator)
        size = math.exp(log_size)
        point, acceptance = metropolis.step(bridge, point, share, size, leapfrogs, momentum, uniform)
        log_size += ADAPTATION * (float(acceptance.mean()) - wanted)
        sizes.append(size)
    return tuple(sizes[FIRST_STEPS:])


FIRST_STEPS = 30
"""Moves of the warm-up before it leaves the Gaussian."""
ADAPTATION = 0.3
"""By how much of the distance to the wanted acceptance the log of a step size moves at each step."""


def settle(
    bridge: Bridge,
    z: Float[Tensor, "chains latent"],
    step_size: float,
    leapfrogs: int,
    steps: int,
    generator: torch.Generator,
) -> Float[Tensor, "chains latent"]:
    """Where long chains on the target lead."""
    point = bridge.look(z)
    for _ in range(steps):
        momentum, uniform = metropolis.noise(point.z, generator)
        point, _ = metropolis.step(bridge, point, 1.0, step_size, leapfrogs, momentum, uniform)
    return point.z
