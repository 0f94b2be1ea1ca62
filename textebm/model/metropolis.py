"""Metropolis-adjusted steps between a Gaussian and a target, which leave what they aim at as it is.

The densities are those of the geometric path from the reference Gaussian N(0, σ²I) to a target exp(−U):

    U_b(z) = (1 − b) ‖z‖²/2σ² + b U(z),   0 ≤ b ≤ 1.

A step is one of Hamiltonian Monte Carlo with a unit mass: a fresh momentum, some leapfrogs of size s, and Metropolis's
choice between the two ends. With one leapfrog it is the Metropolis-adjusted Langevin algorithm, whose proposal is the
Langevin step of `langevin.py`, z − ½s²∇U_b(z) + sε.

Sources: Neal, "MCMC using Hamiltonian dynamics" (2011), sections 3.2 and 5.2; Roberts and Tweedie (1996).
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from textebm.model.langevin import Potential

StepSize = float | Float[Tensor, " batch"]
"""One for all chains, or one a chain."""


class Point(NamedTuple):
    """Where chains stand, with the target's potential there in nats and its gradient."""

    z: Float[Tensor, "batch latent"]
    potential: Float[Tensor, " batch"]
    gradient: Float[Tensor, "batch latent"]


class Bridge(NamedTuple):
    """The path from the reference Gaussian to a target.

    target: U and ∇U. precision: 1/σ² of the reference Gaussian.
    """

    target: Potential
    precision: float

    def look(self, z: Float[Tensor, "batch latent"]) -> Point:
        """What is known of a place: all that any density of the path needs."""
        return Point(z, *self.target(z))

    def at(self, point: Point, share: float) -> tuple[Float[Tensor, " batch"], Float[Tensor, "batch latent"]]:
        """U_b and ∇U_b for b = share."""
        reference = self.precision * point.z
        rest = 1 - share
        potential = share * point.potential + 0.5 * rest * torch.linalg.vecdot(reference, point.z)
        return potential, share * point.gradient + rest * reference

    def tilt(self, point: Point) -> Float[Tensor, " batch"]:
        """f(z) = ‖z‖²/2σ² − U(z) in float64: what the target's log-density has beyond the reference's."""
        z = point.z.double()
        tilt: Tensor = 0.5 * self.precision * torch.linalg.vecdot(z, z) - point.potential.double()
        return tilt


def step(
    bridge: Bridge,
    point: Point,
    share: float,
    step_size: StepSize,
    leapfrogs: int,
    momentum: Float[Tensor, "batch latent"],
    uniform: Float[Tensor, " batch"],
) -> tuple[Point, Float[Tensor, " batch"]]:
    """One step of every chain; it leaves exp(−U_b) invariant.

    Args:
        bridge: the path.
        point: where the chains stand.
        share: b.
        step_size: s.
        leapfrogs: of the trajectory, at least 1.
        momentum: standard normal numbers.
        uniform: numbers in [0, 1), one a chain.

    Returns:
        Where the chains stand then, and the probability that each had of moving. A trajectory that leaves the finite
        numbers is never accepted.
    """
    size = step_size[:, None] if isinstance(step_size, Tensor) else step_size
    potential, slope = bridge.at(point, share)
    before = potential + 0.5 * momentum.square().sum(1)
    momentum = momentum - 0.5 * size * slope
    new = point
    for number in range(leapfrogs):
        new = bridge.look(new.z + size * momentum)
        potential, slope = bridge.at(new, share)
        momentum = momentum - (size if number < leapfrogs - 1 else 0.5 * size) * slope
    after = potential + 0.5 * momentum.square().sum(1)
    acceptance = (before - after).clamp(max=0).exp().nan_to_num(nan=0.0)
    accepted = uniform < acceptance
    chosen = Point(
        torch.where(accepted[:, None], new.z, point.z),
        torch.where(accepted, new.potential, point.potential),
        torch.where(accepted[:, None], new.gradient, point.gradient),
    )
    return chosen, acceptance


def noise(
    z: Float[Tensor, "batch latent"], generator: torch.Generator
) -> tuple[Float[Tensor, "batch latent"], Float[Tensor, " batch"]]:
    """The momenta and the uniform numbers of one step, from one source on the device of z."""
    momentum = torch.randn(z.shape, generator=generator, device=z.device, dtype=z.dtype)
    return momentum, torch.rand(len(z), generator=generator, device=z.device, dtype=z.dtype)


def noise_by_sentence(
    z: Float[Tensor, "batch latent"], sources: Sequence[torch.Generator]
) -> tuple[Float[Tensor, "batch latent"], Float[Tensor, " batch"]]:
    """The same from one source a sentence, on the CPU, so that no sentence depends on which others stand beside it.

    Rows of z are the chains of the first sentence, then those of the second, and so on.
    """
    size = (len(z) // len(sources), z.shape[1])
    momentum = torch.cat([torch.randn(size, generator=source, dtype=z.dtype) for source in sources])
    uniform = torch.cat([torch.rand(size[0], generator=source, dtype=z.dtype) for source in sources])
    return momentum.to(z.device), uniform.to(z.device)


def target_acceptance(leapfrogs: int) -> float:
    """The mean acceptance at which such steps go furthest: 0.574 with one leapfrog, 0.651 with several.

    Sources: Roberts and Rosenthal (1998); Beskos et al. (2013).
    """
    return 0.574 if leapfrogs == 1 else 0.651


def log_kernel_ratio(
    before: Point, after: Point, step_size: float, temperature: float = 1.0
) -> Float[Tensor, " batch"]:
    """log q(z|z') − log q(z'|z) of Langevin moves from z to z', in nats and float64.

    q(z'|z) = N(z'; z − ½s²∇U(z), s²T²I) is the step of `langevin.py`; the ratio says how much likelier the way back is
    than the way there.

    Args:
        before: where the chains stood, z.
        after: where the move led, z'.
        step_size: s of the move.
        temperature: T of the move; positive.
    """
    there = after.z.double() - before.z.double() + 0.5 * step_size**2 * before.gradient.double()
    back = before.z.double() - after.z.double() + 0.5 * step_size**2 * after.gradient.double()
    squares = torch.linalg.vecdot(there, there) - torch.linalg.vecdot(back, back)
    ratio: Tensor = squares / (2 * (step_size * temperature) ** 2)
    return ratio


def langevin_acceptance(
    before: Point, after: Point, step_size: float, temperature: float = 1.0
) -> Float[Tensor, " batch"]:
    """The probability by which Metropolis's choice would have accepted plain Langevin moves, in float64.

    At a temperature T the density that the steps aim at, and that the choice would keep, is exp(−U/T²). A chain all of
    whose steps would nearly always be accepted makes little error by its step size; it says nothing of how far the
    chain has come.

    Args:
        before: where the chains stood.
        after: where the move led.
        step_size: s of the move.
        temperature: T of the move; positive.

    Source: Roberts and Tweedie (1996).
    """
    fall = (before.potential.double() - after.potential.double()) / temperature**2
    log_ratio = fall + log_kernel_ratio(before, after, step_size, temperature)
    return log_ratio.clamp(max=0).exp().nan_to_num(nan=0.0)
