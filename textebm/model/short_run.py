"""How far a short-run chain ends from the density that it aims at.

Learning with short chains follows, with the short-run distributions held fixed at the parameters of now, the gradient
of

    log-likelihood − KL(short-run posterior ‖ posterior) + KL(short-run prior ‖ prior).

For z of one or two dimensions both divergences are computed here, by carrying the chain's density over a grid. In more
dimensions the density where a chain ends is not known, and that of its path is: with the same Langevin kernel q walked
back from the end, the weight

    w = exp(f(z_K)) p_0(z_K) Π_k q(z_(k−1)|z_k) / (p_0(z_0) Π_k q(z_k|z_(k−1)))

has the mean Z over the chain's paths, and since forgetting the path can only bring two distributions nearer,

    KL(short-run prior ‖ prior) ≤ KL(path ‖ path walked back from the prior) = log Z − E[log w].

The bound counts the error of every step, so it is loose where steps are many; it is no estimate of the divergence. The
same holds for a posterior, with log p(x|z) beside f(z) and log Z + log p(x) in the place of log Z.

Sources: Pang et al., NeurIPS 2020, for the theory; Jarzynski (1997) and Neal (2001) for weights of paths;
Wu, Köhler and Noé, "Stochastic normalizing flows", NeurIPS 2020, for those of Langevin steps.
"""

import math
from collections.abc import Iterator
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from textebm.model import langevin, likelihood
from textebm.model.langevin import Potential, Schedule
from textebm.model.metropolis import Point

LOST_MASS = 1e-3
"""Share of a chain's density that may be lost on a grid before it is no longer believed."""


def visits(
    z: Float[Tensor, "batch latent"], potential: Potential, plan: Schedule, generator: torch.Generator
) -> Iterator[Point]:
    """Every place of chains, from their start to their end, with the potential and its gradient there.

    The moves are those of `langevin.run`, for the same noise; nothing in here waits for the device.

    Args:
        z: starting points.
        potential: U and ∇U.
        plan: step sizes and temperatures.
        generator: source of the noise, on the device of z.

    Returns:
        `plan.steps` + 1 places, one after the other.
    """
    state = langevin.init(z)
    for size, temperature in zip(plan.step_sizes, plan.temperatures, strict=True):
        moved, info = langevin.step(state, potential, size, temperature, generator)
        yield Point(state.z, info.potential, info.gradient)
        state = moved
    yield Point(state.z, *potential(state.z))


def path_log_weights(
    start: Float[Tensor, "chains latent"],
    end: Point,
    kernel_ratios: Float[Tensor, " chains"],
    sigma: float,
) -> Float[Tensor, " chains"]:
    """log w of the paths of chains that started in the reference Gaussian, in nats and float64.

    Args:
        start: z_0, exact samples of N(0, σ²I).
        end: z_K, with U(z_K) = −f(z_K) + ‖z_K‖²/2σ² of a prior, less log p(x|z_K) of a posterior.
        kernel_ratios: the sum over the moves of `metropolis.log_kernel_ratio`.
        sigma: σ.
    """
    start = start.double()
    weights: Tensor = torch.linalg.vecdot(start, start) / (2 * sigma**2) - end.potential.double() + kernel_ratios
    return weights


class Bound(NamedTuple):
    """An upper bound of a divergence in nats, and the standard error of its estimate."""

    value: float
    standard_error: float


def kl_bound(log_normaliser: float, log_weights: Float[Tensor, " chains"], standard_error: float = 0.0) -> Bound:
    """KL(short-run ‖ target) ≤ log Z − E[log w], estimated from chains.

    Args:
        log_normaliser: log Z of a prior in nats, log Z + log p(x) of a posterior. An estimate that is too low makes the
            bound too low: take the larger of two.
        log_weights: see `path_log_weights`; at least two.
        standard_error: of `log_normaliser`, in nats.
    """
    log_weights = log_weights.double()
    own = float(log_weights.std()) / math.sqrt(len(log_weights))
    return Bound(log_normaliser - float(log_weights.mean()), math.hypot(own, standard_error))


class OnGrid(NamedTuple):
    """Where a chain ends, exactly, on a grid.

    density: at the points of the grid, normalised. log_target: log of the density that the chain aims at, normalised,
    in nats. divergence: KL(chain's end ‖ target) in nats.
    """

    density: Float[Tensor, " grid"]
    log_target: Float[Tensor, " grid"]
    divergence: float


def on_grid(
    potential: Potential,
    plan: Schedule,
    latent_dim: int,
    sigma: float = 1.0,
    points: int = 201,
    reach: float = 6.0,
) -> OnGrid:
    """The density in which chains from the reference Gaussian end, and its divergence from exp(−U), on a grid.

    Each step carries the density over by its kernel, q_(k+1)(z') = ∫ q_k(z) N(z'; z − ½s²∇U(z), s²T²I) dz, as a sum
    over the grid. Of a prior's potential it is the theory's KL(short-run prior ‖ prior), of a posterior's
    KL(short-run posterior ‖ posterior).

    Args:
        potential: U and ∇U, asked at all points of the grid at once, in float64.
        plan: step sizes and temperatures; every step needs noise.
        latent_dim: 1 or 2.
        sigma: σ of the reference Gaussian.
        points: grid points a dimension; neighbours must stand nearer than a step's noise sT is wide.
        reach: half width of the grid in units of σ.

    Raises:
        ValueError: latent_dim is not 1 or 2, a step's noise is too small for the grid, or the density leaves the grid.
    """
    z, cell = likelihood.grid(latent_dim, sigma, points, reach)
    spacing = 2 * reach * sigma / (points - 1)
    least = min((s * t for s, t in zip(plan.step_sizes, plan.temperatures, strict=True)), default=math.inf)
    if least < spacing:
        raise ValueError(f"a step's noise is {least:g} wide, less than the {spacing:g} between neighbours: more points")
    energy, gradient = potential(z)
    log_target = -energy.double() - (-energy.double()).logsumexp(0) - math.log(cell)
    density = (-z.square().sum(1) / (2 * sigma**2)).softmax(0) / cell
    axis = torch.linspace(-reach * sigma, reach * sigma, points, dtype=torch.float64)
    for size, temperature in zip(plan.step_sizes, plan.temperatures, strict=True):
        means = z - 0.5 * size**2 * gradient.double()
        density = _carried(density * cell, means, axis, size * temperature)
    mass = float(density.sum()) * cell
    if abs(mass - 1) > LOST_MASS:
        raise ValueError(f"{1 - mass:.1%} of the chain's density have left a grid that reaches to {reach:g} σ")
    density = density / mass
    divergence = float((torch.special.xlogy(density, density) - density * log_target).sum()) * cell
    return OnGrid(density, log_target, divergence)


def _carried(
    mass: Float[Tensor, " grid"], means: Float[Tensor, "grid latent"], axis: Float[Tensor, " points"], width: float
) -> Float[Tensor, " grid"]:
    """The density after one step: a mixture of Gaussians of this width around the means, weighed by the mass.

    A kernel is a product over dimensions, so in two of them the mixture is one product of two matrices.
    """
    kernels = [
        torch.exp(-0.5 * ((axis - mean[:, None]) / width) ** 2) / (width * math.sqrt(2 * math.pi))
        for mean in means.unbind(1)
    ]  # of each dimension, (grid, points)
    weighed = kernels[0] * mass[:, None]
    return weighed.sum(0) if len(kernels) == 1 else (weighed.T @ kernels[1]).flatten()
