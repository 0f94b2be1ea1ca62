"""The model of images written as one writes it first: what the benchmarks compare with. It shares no code with
textebm/model.

torch's own transposed convolutions; every gradient by eager autograd in fp32, along chains whose weights all require
gradients, as in the loop that the paper's authors published.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class ImageSizes:
    """Sizes of a model and a batch; those of CIFAR-10."""

    batch: int = 50
    side: int = 32
    start: int = 8
    channels: tuple[int, ...] = (512, 256, 128)
    last: str = "keep"
    colours: int = 3
    latent: int = 128
    width: int = 200
    prior_steps: int = 60
    posterior_steps: int = 20
    sigma: float = 0.3


class StraightforwardImages(nn.Module):
    """Transposed convolutions with leaky ReLUs, and an energy of two hidden layers."""

    def __init__(self, sizes: ImageSizes) -> None:
        super().__init__()
        self.sizes = sizes
        steps = [nn.ConvTranspose2d(sizes.latent, sizes.channels[0], sizes.start, 1, 0)]
        for before, after in zip(sizes.channels, sizes.channels[1:], strict=False):
            steps.append(nn.ConvTranspose2d(before, after, 4, 2, 1))
        form = (4, 2, 1) if sizes.last == "double" else (3, 1, 1)
        steps.append(nn.ConvTranspose2d(sizes.channels[-1], sizes.colours, *form))
        self.convolutions = nn.ModuleList(steps)
        self.energy = nn.Sequential(
            nn.Linear(sizes.latent, sizes.width),
            nn.GELU(),
            nn.Linear(sizes.width, sizes.width),
            nn.GELU(),
            nn.Linear(sizes.width, 1),
        )

    def paint(self, z: Tensor) -> Tensor:
        """The mean image of each latent."""
        x = z[:, :, None, None]
        *inner, last = self.convolutions
        for convolution in inner:
            x = nn.functional.leaky_relu(convolution(x), 0.2)
        return torch.tanh(last(x))

    def log_prob(self, x: Tensor, z: Tensor) -> Tensor:
        """Sum of log p(x|z) over a batch, without its constant."""
        return -(x - self.paint(z)).square().sum() / (2 * self.sizes.sigma**2)

    def posterior_chain(self, x: Tensor, size: float, source: torch.Generator) -> Tensor:
        """Langevin on −f(z) + ‖z‖²/2 − log p(x|z)."""
        z = torch.randn(len(x), self.sizes.latent, generator=source, device=x.device)
        for _ in range(self.sizes.posterior_steps):
            z.requires_grad_()
            (of_image,) = torch.autograd.grad(self.log_prob(x, z), z)
            (of_energy,) = torch.autograd.grad(self.energy(z).sum(), z)
            noise = torch.randn(z.shape, generator=source, device=z.device)
            z = z.detach() - 0.5 * size**2 * (z.detach() - of_image - of_energy) + size * noise
        return z

    def prior_chain(self, n: int, size: float, source: torch.Generator) -> Tensor:
        """Langevin on −f(z) + ‖z‖²/2."""
        z = torch.randn(n, self.sizes.latent, generator=source, device=self.energy[0].weight.device)
        for _ in range(self.sizes.prior_steps):
            z.requires_grad_()
            (of_energy,) = torch.autograd.grad(self.energy(z).sum(), z)
            noise = torch.randn(z.shape, generator=source, device=z.device)
            z = z.detach() - 0.5 * size**2 * (z.detach() - of_energy) + size * noise
        return z

    def learning_step(self, optimisers: list[torch.optim.Optimizer], x: Tensor, source: torch.Generator) -> None:
        """Both chains and both gradients: squared error for the generator, the difference of energies for the EBM."""
        negative = self.prior_chain(len(x), 0.4, source)
        positive = self.posterior_chain(x, 0.1, source)
        for optimiser in optimisers:
            optimiser.zero_grad()
        (x - self.paint(positive)).square().sum(dim=(1, 2, 3)).mean().backward()
        (self.energy(negative).mean() - self.energy(positive).mean()).backward()
        for optimiser in optimisers:
            optimiser.step()
