"""A diffusion model of vectors: how noise is added, what a denoiser learns, how samples are drawn.

At the log signal-to-noise ratio λ a point z has become

    z_λ = α z + σ ε,   ε ~ N(0, I),   α² = 1/(1 + e^−λ),   σ² = 1 − α² = 1/(1 + e^λ),

so that z of unit variance keeps it. A denoiser says ε̂(z_λ, λ); E[ε | z_λ] makes ½‖ε − ε̂‖² smallest in the mean, and is
all that is needed to draw z: from pure noise, along rising λ, each time by the Gaussian of a less noisy z given the
noisier one and the z that the denoiser makes out.

This file knows a denoiser, a function of points and of λ, and nothing of networks or of what z is a latent of.
Sources: Ho, Jain and Abbeel, "Denoising Diffusion Probabilistic Models", NeurIPS 2020 (loss, ancestral sampling); Ho
and Salimans, "Classifier-Free Diffusion Guidance", 2022 (the cosine schedule between two ends, by its λ).
"""

import math
from collections.abc import Callable
from itertools import pairwise
from typing import Literal, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from textebm.model.random import Noise, normal

Denoiser = Callable[[Float[Tensor, "batch latent"], Float[Tensor, " batch"]], Float[Tensor, "batch latent"]]
"""ε̂ of each noisy point, given the points and the log signal-to-noise ratio of each."""

Variance = Literal["large", "small"]
"""Of the Gaussian of a less noisy point: `large`, its variance for z of unit variance; `small`, for z that is known."""


class Normal(NamedTuple):
    """N(mean, deviation² I). mean: (batch, latent); deviation: (batch, 1)."""

    mean: Float[Tensor, "batch latent"]
    deviation: Float[Tensor, "batch 1"]


def log_snr(time: Float[Tensor, " batch"], lowest: float, highest: float) -> Float[Tensor, " batch"]:
    """λ at a time from 0 (clean) to 1 (noise) of the cosine schedule, σ/α = tan(a t + b), between two ends.

    Args:
        time: t, in [0, 1].
        lowest: λ at t = 1.
        highest: λ at t = 0.
    """
    begin, end = math.atan(math.exp(-0.5 * highest)), math.atan(math.exp(-0.5 * lowest))
    return -2 * torch.tan(begin + (end - begin) * time).log()


def ladder(steps: int, lowest: float, highest: float) -> tuple[float, ...]:
    """λ at each of `steps` (at least 2) moments of a draw, evenly spaced in time, from noise to clean."""
    times = torch.linspace(1, 0, steps, dtype=torch.float64)
    return tuple(log_snr(times, lowest, highest).tolist())


def signal(ratio: Float[Tensor, " batch"]) -> Float[Tensor, "batch 1"]:
    """α at λ = `ratio`."""
    return ratio.sigmoid().sqrt()[:, None]


def deviation(ratio: Float[Tensor, " batch"]) -> Float[Tensor, "batch 1"]:
    """σ at λ = `ratio`."""
    return (-ratio).sigmoid().sqrt()[:, None]


def noised(
    z: Float[Tensor, "batch latent"], noise: Float[Tensor, "batch latent"], ratio: Float[Tensor, " batch"]
) -> Float[Tensor, "batch latent"]:
    """z_λ = α z + σ ε.

    Args:
        z: clean points.
        noise: ε.
        ratio: λ of each.
    """
    return signal(ratio) * z + deviation(ratio) * noise


def made_out(
    noisy: Float[Tensor, "batch latent"], noise: Float[Tensor, "batch latent"], ratio: Float[Tensor, " batch"]
) -> Float[Tensor, "batch latent"]:
    """The clean point (z_λ − σ ε)/α that a noisy one tells, given its noise: what undoes `noised`."""
    return (noisy - deviation(ratio) * noise) / signal(ratio)


def less_noisy(
    noisy: Float[Tensor, "batch latent"],
    clean: Float[Tensor, "batch latent"],
    ratio: Float[Tensor, " batch"],
    target: Float[Tensor, " batch"],
    variance: Variance = "large",
) -> Normal:
    """The Gaussian of a less noisy point z_μ, given a noisier z_λ and the clean z; with r = e^(λ − μ) its

        mean is r (α_μ/α_λ) z_λ + (1 − r) α_μ z,   its variance (1 − r) σ_λ² (large) or (1 − r) σ_μ² (small).

    Args:
        noisy: z_λ.
        clean: z, or what a denoiser makes out of z_λ.
        ratio: λ.
        target: μ, at least λ.
        variance: `small` is exact for the z that is given; `large` where z is spread with unit variance and `clean` is
            its mean given z_λ.
    """
    kept = (ratio - target).exp()[:, None]
    lost = -torch.expm1(ratio - target)[:, None]
    mean = kept * (signal(target) / signal(ratio)) * noisy + lost * signal(target) * clean
    spread = deviation(ratio if variance == "large" else target)
    return Normal(mean, lost.sqrt() * spread)


def denoising_loss(
    denoiser: Denoiser,
    z: Float[Tensor, "batch latent"],
    noise: Float[Tensor, "batch latent"],
    ratio: Float[Tensor, " batch"],
) -> Float[Tensor, " batch"]:
    """½‖ε − ε̂(z_λ, λ)‖² of each point.

    Args:
        denoiser: ε̂.
        z: clean points.
        noise: ε.
        ratio: λ of each.
    """
    return 0.5 * (noise - denoiser(noised(z, noise, ratio), ratio)).square().sum(1)


def sample(
    denoiser: Denoiser,
    start: Float[Tensor, "batch latent"],
    ratios: tuple[float, ...],
    noise: Noise,
    variance: Variance = "large",
) -> Float[Tensor, "batch latent"]:
    """Draw clean points by ancestral sampling.

    Args:
        denoiser: ε̂.
        start: samples of N(0, I), which stand for z_λ at the first λ.
        ratios: λ of each step, rising; the denoiser is asked once at each.
        noise: source of what is added on the way.
        variance: see `less_noisy`.

    Returns:
        What the denoiser makes out at the last λ, (batch, latent).
    """
    z = start
    for here, there in pairwise(ratios):
        ratio, target = z.new_full((len(z),), here), z.new_full((len(z),), there)
        clean = made_out(z, denoiser(z, ratio), ratio)
        mean, spread = less_noisy(z, clean, ratio, target, variance)
        z = mean + spread * normal(tuple(z.shape), noise, z)
    last = z.new_full((len(z),), ratios[-1])
    return made_out(z, denoiser(z, last), last)
