"""Short-run Langevin dynamics on any potential.

The update, in this project's step convention (that of the authors of the paper), is

    z ← z − ½ s² ∇U(z) + s T ε,   ε ~ N(0, I),

with step size s and noise temperature T. At T = 1 it is the unadjusted Langevin algorithm for the density exp(−U); at
another T its target is exp(−U/T²). Others write η = ½s² (noise √(2η)) or η = s² (noise √η).

With a preconditioner M, a positive diagonal matrix, the update is

    z ← z − ½ s² M ∇U(z) + s T M^½ ε,

whose target is the same for every M that does not depend on z.

This file knows a potential and nothing else: prior and posterior chains, of text and of images, are all run by it.
Source: Pang et al., "Learning Latent Space Energy-Based Prior Model", NeurIPS 2020, equations 8 and 9.
"""

from collections.abc import Callable
from typing import NamedTuple, Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from textebm.model.random import Noise, normal

LARGEST_NORM = 1e3
"""‖z‖ beyond which a chain has exploded: no prior of any use has samples there."""


def exploded(z: Float[Tensor, "batch latent"]) -> Bool[Tensor, " batch"]:
    """Which chains have run away: ‖z‖ is above `LARGEST_NORM`, or not a number."""
    return torch.logical_not(z.norm(dim=1) <= LARGEST_NORM)


def put_back(end: Float[Tensor, "batch latent"], start: Float[Tensor, "batch latent"]) -> Float[Tensor, "batch latent"]:
    """Where chains ended; those that exploded stand at their starts again."""
    return torch.where(exploded(end)[:, None], start, end)


@runtime_checkable
class Potential(Protocol):
    """U and its gradient: the (unnormalised) density that a chain walks on is exp(−U)."""

    def __call__(
        self, z: Float[Tensor, "batch latent"], /
    ) -> tuple[Float[Tensor, " batch"], Float[Tensor, "batch latent"]]:
        """U(z) in nats for each row of z, and ∇U(z), both without an autograd graph."""
        ...


@runtime_checkable
class Stepper(Protocol):
    """A potential that makes a whole step at once, which costs less than to say U and ∇U first."""

    def step(
        self, z: Float[Tensor, "batch latent"], step_size: float, noise: Float[Tensor, "batch latent"], /
    ) -> Float[Tensor, "batch latent"]:
        """z − ½s²∇U(z) + noise, in the place of `noise`, which is sTε already."""
        ...


@runtime_checkable
class Preconditioner(Protocol):
    """The diagonal of M: what each dimension's squared step is multiplied by."""

    def __call__(self, gradient: Float[Tensor, "batch latent"], /) -> Float[Tensor, " latent"]:
        """M at a step whose gradient is ∇U(z); positive."""
        ...


class RootMeanSquare:
    """M = 1/(λ + √V), V the running mean of squared gradients over the batch and over past steps.

    V ← ρV + (1 − ρ) mean of (∇U)² over the chains of the batch, from the first step's mean on. Directions in which
    gradients are large are walked in small steps. M follows the batch as a whole and hardly depends on any one chain,
    so the correction term Γ of the source, which its authors leave out too, is left out. Lasts for one chain.
    Source: Li, Chen, Carlson and Carin, "Preconditioned Stochastic Gradient Langevin Dynamics for Deep Neural
    Networks", AAAI 2016 (arXiv:1512.07666).
    """

    def __init__(self, decay: float = 0.9, floor: float = 1e-3) -> None:
        """ρ is `decay`, λ is `floor`."""
        self.decay, self.floor = decay, floor
        self._squares: Tensor | None = None

    def __call__(self, gradient: Float[Tensor, "batch latent"]) -> Float[Tensor, " latent"]:
        """M at a step with this gradient, which counts in it."""
        squares = gradient.square().mean(0)
        self._squares = squares if self._squares is None else torch.lerp(squares, self._squares, self.decay)
        return 1 / (self.floor + self._squares.sqrt())


class State(NamedTuple):
    """Where a batch of chains stands. z: (batch, latent)."""

    z: Float[Tensor, "batch latent"]


class Info(NamedTuple):
    """What a step saw before it moved: the potential (batch,) in nats and its gradient (batch, latent)."""

    potential: Float[Tensor, " batch"]
    gradient: Float[Tensor, "batch latent"]


class Schedule(NamedTuple):
    """Step size s and noise temperature T of each step of a chain."""

    step_sizes: tuple[float, ...]
    temperatures: tuple[float, ...]

    @property
    def steps(self) -> int:
        """Number of steps."""
        return len(self.step_sizes)


def schedule(
    steps: int, step_size: float | tuple[float, ...], temperature: float | tuple[float, ...] = 1.0
) -> Schedule:
    """A schedule of `steps` steps; a list shorter than that repeats its last value, a longer one is cut."""

    def spread(values: float | tuple[float, ...]) -> tuple[float, ...]:
        known = values if isinstance(values, tuple) else (values,)
        return (known + known[-1:] * steps)[:steps]

    return Schedule(spread(step_size), spread(temperature))


def init(z: Float[Tensor, "batch latent"]) -> State:
    """Chains that start at z."""
    return State(z.detach())


def step(
    state: State,
    potential: Potential,
    step_size: float,
    temperature: float,
    generator: Noise,
    precondition: Preconditioner | None = None,
) -> tuple[State, Info]:
    """One Langevin step of every chain.

    Args:
        state: where the chains stand.
        potential: U and ∇U.
        step_size: s.
        temperature: T; at 0 no noise is drawn and the step is gradient descent.
        generator: source of ε.
        precondition: what gives M (default: the identity).
    """
    energy, gradient = potential(state.z)
    scale = None if precondition is None else precondition(gradient)
    z = torch.add(state.z, gradient if scale is None else scale * gradient, alpha=-0.5 * step_size**2)
    if temperature > 0:
        noise = normal(tuple(z.shape), generator, z)
        if scale is not None:
            noise.mul_(scale.sqrt())
        z.add_(noise, alpha=step_size * temperature)
    return State(z), Info(energy, gradient)


def run(
    z: Float[Tensor, "batch latent"],
    potential: Potential,
    plan: Schedule,
    generator: Noise,
    observe: Callable[[int, State, Info], None] | None = None,
    precondition: Preconditioner | None = None,
) -> Float[Tensor, "batch latent"]:
    """Run chains from z through the whole schedule; nothing in here waits for the device.

    Args:
        z: starting points.
        potential: U and ∇U.
        plan: step sizes and temperatures.
        generator: source of the noise.
        observe: called after each step with its number (from 0), the new state, and what the step saw. Without it, and
            without a preconditioner, a `Stepper` makes its steps itself, where all rows have one source of noise.
        precondition: what gives M of each step (default: the identity).

    Returns:
        The end points, (batch, latent).
    """
    unseen = observe is None and precondition is None
    if unseen and isinstance(potential, Stepper) and isinstance(generator, torch.Generator):
        return _run_unseen(z, potential, plan, generator)
    state = init(z)
    for number, (size, temperature) in enumerate(zip(plan.step_sizes, plan.temperatures, strict=True)):
        state, info = step(state, potential, size, temperature, generator, precondition)
        if observe is not None:
            observe(number, state, info)
    return state.z


def _run_unseen(z: Tensor, potential: Stepper, plan: Schedule, generator: torch.Generator) -> Tensor:
    """`run` where nobody asks what a step saw; two places in memory take turns."""
    here, spare = z.detach(), torch.empty_like(z)
    for number, (size, temperature) in enumerate(zip(plan.step_sizes, plan.temperatures, strict=True)):
        noise = spare.normal_(0, size * temperature, generator=generator) if temperature > 0 else spare.zero_()
        moved = potential.step(here, size, noise)
        here, spare = moved, torch.empty_like(z) if number == 0 else here  # the start stays as it is
    return here
