"""The learned sampler: a diffusion model in z that draws where chains start, and learns from where they end.

With an encoder's features of x it draws for the posterior of x; without, for all x at once, which is for the prior: the
posteriors of all x together are what an EBM prior learns to be. One network does both, since it is now and then not
told of x while it learns.
Source: Yu, Zhu, Xie, Ma, Gao, Zhu and Wu, "Learning Energy-Based Prior Model with Diffusion-Amortized MCMC", NeurIPS
2023, and its authors' code.
"""

import math

import torch
from jaxtyping import Float
from torch import Tensor, nn

from textebm.config import SamplerConfig
from textebm.model import diffusion
from textebm.model.random import Noise
from textebm.model.softmax import Precision

FASTEST = 1000.0
"""Of the sines and cosines by which the network reads the time, radians over the whole of it; the slowest makes 0.1."""


class Denoiser(nn.Module):
    """ε̂(z_λ, λ, x): a residual multilayer perceptron whose layers are scaled and shifted by λ and by what is told of x.

    It answers σ z_λ, which is right for N(0, I), plus an output that is 0 before any learning. So a new sampler draws
    what a chain would start from without one: the reference Gaussian.
    """

    def __init__(self, latent_dim: int, width: int, depth: int, features: int) -> None:
        """Weights by torch's defaults.

        Args:
            latent_dim: dimensions of z.
            width: hidden units of each layer.
            depth: hidden layers.
            features: numbers that tell of x.
        """
        super().__init__()
        self.depth, self.width = depth, width
        self.time = nn.Sequential(nn.Linear(width, width), nn.SiLU(), nn.Linear(width, width))
        self.told = nn.Linear(features, width)
        self.untold = nn.Parameter(torch.zeros(width))
        self.entry = nn.Linear(latent_dim, width)
        self.modulation = nn.Linear(width, 2 * width * depth)
        self.layers = nn.ModuleList(nn.Linear(width, width) for _ in range(depth))
        self.output = nn.Linear(width, latent_dim)
        nn.init.zeros_(self.output.weight)
        nn.init.zeros_(self.output.bias)

    def context(
        self, features: Float[Tensor, "batch features"] | None, n: int, told: Tensor | None = None
    ) -> Float[Tensor, "{n} width"]:
        """What the layers are told of x: the same at every λ.

        Args:
            features: of x; None: nothing is known of any.
            n: number of points.
            told: (batch,) whether each point is told of its x (default: all are).
        """
        nothing = self.untold.expand(n, -1)
        if features is None:
            return nothing
        known: Tensor = self.told(features)
        return known if told is None else torch.where(told[:, None], known, nothing)

    def forward(
        self,
        z: Float[Tensor, "batch latent"],
        ratio: Float[Tensor, " moments"],
        context: Float[Tensor, "batch width"],
    ) -> Float[Tensor, "batch latent"]:
        """ε̂ of noisy points.

        Args:
            z: z_λ.
            ratio: λ of each, or one for all.
            context: what is told of x (see `context`).
        """
        moment = nn.functional.silu(self.time(self._waves(ratio)) + context)
        scales, shifts = self.modulation(moment).view(-1, self.depth, 2, self.width).unbind(2)
        hidden = self.entry(z)
        for number, layer in enumerate(self.layers):
            moved = layer(hidden) * (1 + scales[:, number]) + shifts[:, number]
            hidden = hidden + nn.functional.silu(moved)
        answer: Tensor = diffusion.deviation(ratio) * z + self.output(hidden)
        return answer

    def _waves(self, ratio: Float[Tensor, " moments"]) -> Float[Tensor, "moments width"]:
        """Sines and cosines of the angle of σ/α, of many frequencies."""
        angle = torch.atan((-0.5 * ratio).exp()) / (0.5 * math.pi)  # from 0, clean, to 1, noise
        half = self.width // 2
        exponents = torch.linspace(0, 4, half, device=ratio.device, dtype=ratio.dtype)
        phases = angle[:, None] * (FASTEST * 10**-exponents)
        waves = torch.cat([phases.sin(), phases.cos()], 1)
        return nn.functional.pad(waves, (0, self.width - 2 * half))


class DiffusionSampler(nn.Module):
    """Draws z for given x, or without x, in units of the reference Gaussian's σ; and says what it learns from ends."""

    def __init__(self, config: SamplerConfig, encoder: nn.Module, latent_dim: int, sigma: float) -> None:
        """A sampler that draws the reference Gaussian.

        Args:
            config: sizes, schedule.
            encoder: gives two tensors (batch, config.features / 2) for a batch x; together they tell of x, and need not
                be moments of anything.
            latent_dim: dimensions of z.
            sigma: σ of the reference Gaussian.
        """
        super().__init__()
        self.config, self.sigma = config, sigma
        self.encoder = encoder
        self.denoiser = Denoiser(latent_dim, config.width, config.depth, config.features)
        self.ratios = diffusion.ladder(config.steps, config.log_snr_min, config.log_snr_max)

    def features(
        self, x: object, dropout: torch.Generator | None = None, precision: Precision = "fp32"
    ) -> Float[Tensor, "batch features"]:
        """What the encoder tells of a batch x.

        Args:
            x: a batch of whatever the encoder reads.
            dropout: source of its dropout masks; None means no dropout.
            precision: of its matrix products.
        """
        return torch.cat(tuple(self.encoder(x, dropout, precision)), dim=1)

    @torch.no_grad()
    def draw(
        self,
        reference: Float[Tensor, "batch latent"],
        noise: Noise,
        features: Float[Tensor, "batch features"] | None = None,
    ) -> Float[Tensor, "batch latent"]:
        """Points from which chains start.

        Args:
            reference: samples of the reference Gaussian, which are turned into them.
            noise: source of what is added on the way.
            features: of x, for its posterior; None: for all x at once.
        """
        context = self.denoiser.context(features, len(reference))

        def denoiser(z: Tensor, ratio: Tensor) -> Tensor:
            answer: Tensor = self.denoiser(z, ratio[:1], context)  # a draw takes its steps in all points at once
            return answer

        start = reference / self.sigma
        return self.sigma * diffusion.sample(denoiser, start, self.ratios, noise, self.config.variance)

    def losses(
        self, z: Float[Tensor, "batch latent"], features: Float[Tensor, "batch features"], source: torch.Generator
    ) -> Float[Tensor, " batch"]:
        """The denoising loss at each of some points, at random moments, in some of them not told of x.

        Args:
            z: where chains ended.
            features: of their x.
            source: of moments, noise, and of which points are not told of x.
        """
        n, config = len(z), self.config
        uniform = torch.rand(2, n, generator=source, device=z.device, dtype=z.dtype)
        noise = torch.randn(z.shape, generator=source, device=z.device, dtype=z.dtype)
        ratio = diffusion.log_snr(uniform[0], config.log_snr_min, config.log_snr_max)
        context = self.denoiser.context(features, n, told=uniform[1] >= config.condition_dropout)
        return diffusion.denoising_loss(
            lambda noisy, at: self.denoiser(noisy, at, context), z / self.sigma, noise, ratio
        )
