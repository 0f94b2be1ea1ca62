"""The latent priors: the energy-based tilt of a Gaussian, and the plain Gaussian as its special case.

p(z) = exp(f(z)) N(z; 0, σ²I) / Z, with f a small multilayer perceptron; energy(z) = −f(z). A plain language model has
a Gaussian over no dimensions: every z is the empty vector, and its density is 1.
Source: Pang et al., NeurIPS 2020, equation 2.
"""

import math
from collections.abc import Callable, Hashable
from itertools import pairwise

import torch
from jaxtyping import Float
from torch import Tensor, nn

from textebm import native
from textebm.config import PriorConfig
from textebm.model import graphs, langevin

ACTIVATIONS: dict[str, type[nn.Module]] = {"gelu": nn.GELU, "silu": nn.SiLU, "tanh": nn.Tanh, "lrelu": nn.LeakyReLU}

LEAK = 0.2
"""Slope of a leaky rectifier below 0."""

FORWARD: dict[str, Callable[[Tensor], Tensor]] = {
    "gelu": nn.functional.gelu,
    "silu": nn.functional.silu,
    "tanh": torch.tanh,
    "lrelu": lambda argument: nn.functional.leaky_relu(argument, LEAK),
}

BACKWARD: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "gelu": torch.ops.aten.gelu_backward,
    "silu": torch.ops.aten.silu_backward,
    "tanh": lambda above, argument: torch.ops.aten.tanh_backward(above, argument.tanh()),
    "lrelu": lambda above, argument: torch.ops.aten.leaky_relu_backward(above, argument, LEAK, False),
}
"""The gradient below an activation, given that above it and the activation's argument."""


class Activation:
    """An activation and its gradient, without autograd: in C where that is to be had, else by torch."""

    def __init__(self, kind: str, like: Tensor, numbers: int) -> None:
        """How `numbers` numbers of the dtype and device of `like` go through it."""
        self.native = native.gelu(like, numbers) if kind == "gelu" else None
        self.value, self.gradient = FORWARD[kind], BACKWARD[kind]

    def forward(self, argument: Tensor) -> tuple[Tensor, Tensor]:
        """The value, and what `below` wants of it, which may take the place of the argument."""
        return (self.value(argument), argument) if self.native is None else self.native.forward(argument)

    def below(self, above: Tensor, kept: Tensor) -> Tensor:
        """The gradient below, given that above, which is overwritten, and what `forward` kept."""
        return self.gradient(above, kept) if self.native is None else above.mul_(kept)

    def below_top(self, above: Tensor, argument: Tensor) -> Tensor:
        """The gradient below an activation whose value nobody needs. The argument may be overwritten."""
        return self.gradient(above, argument) if self.native is None else self.native.backward(above, argument)


class FrozenTilt:
    """U(z) = −f(z) + ‖z‖²/2σ² with the weights of now, layer by layer: many small steps need no autograd graph.

    A `langevin.Potential` and a `langevin.Stepper`.
    """

    def __init__(self, layers: list[tuple[Tensor, Tensor]], kind: str, precision: float) -> None:
        """Freeze the weights.

        Args:
            layers: weight and bias of each linear layer, detached; the last has one output.
            kind: the activation.
            precision: 1/σ².
        """
        *self.hidden, (self.last, self.offset) = layers
        self.kind, self.precision = kind, precision
        self.for_steps: tuple[Activation, Tensor] | None = None

    @torch.no_grad
    def __call__(
        self, z: Float[Tensor, "batch latent"]
    ) -> tuple[Float[Tensor, " batch"], Float[Tensor, "batch latent"]]:
        """U(z) in nats and ∇U(z)."""
        energy = torch.linalg.vecdot(z, z).mul_(0.5 * self.precision)
        gradient = z * self.precision
        if not self.hidden:
            return energy.sub_(torch.addmv(self.offset, z, self.last[0])), gradient.sub_(self.last)
        activation, above = self._prepared(z)
        argument, kept = self._up(z, activation)
        energy.sub_(torch.addmv(self.offset, activation.value(argument), self.last[0]))
        return energy, gradient.addmm_(self._down(above, argument, kept, activation), self.hidden[0][0], alpha=-1)

    def step(
        self, z: Float[Tensor, "batch latent"], step_size: float, noise: Float[Tensor, "batch latent"]
    ) -> Float[Tensor, "batch latent"]:
        """z − ½s²∇U(z) + noise; `noise`, which is sTε already, is overwritten. Nothing here may require a gradient."""
        half = 0.5 * step_size**2
        moved = noise.add_(z, alpha=1 - half * self.precision)
        if not self.hidden:
            return moved.add_(self.last, alpha=half)
        if self.for_steps is None or len(self.for_steps[1]) != len(z):
            self.for_steps = self._prepared(z)
        activation, above = self.for_steps
        argument, kept = self._up(z, activation)
        return moved.addmm_(self._down(above, argument, kept, activation), self.hidden[0][0], alpha=half)

    def _prepared(self, z: Tensor) -> tuple[Activation, Tensor]:
        """How so many chains go through the activations, and ∂f in the values of the last."""
        rows = self.last.expand(len(z), -1).contiguous()  # kernels are slow on rows that are one and the same
        return Activation(self.kind, z, rows.numel()), rows

    def _up(self, z: Tensor, activation: Activation) -> tuple[Tensor, list[Tensor]]:
        """The argument of the last activation, and what the others kept."""
        (weight, bias), *others = self.hidden
        argument, kept = torch.addmm(bias, z, weight.T), []
        for weight, bias in others:
            value, passed = activation.forward(argument)
            kept.append(passed)
            argument = torch.addmm(bias, value, weight.T)
        return argument, kept

    def _down(self, above: Tensor, argument: Tensor, kept: list[Tensor], activation: Activation) -> Tensor:
        """∂f in what the first linear layer gives."""
        slope = activation.below_top(above, argument)
        for (weight, _), passed in zip(reversed(self.hidden[1:]), reversed(kept), strict=True):
            slope = activation.below(slope @ weight, passed)
        return slope


class GaussianPrior(nn.Module):
    """p(z) = N(z; 0, σ²I): the prior of a VAE and of short-run inference (SRI)."""

    def __init__(self, config: PriorConfig) -> None:
        super().__init__()
        self.config = config
        self.register_buffer("origin", torch.zeros(config.dimensions), persistent=False)  # carries device and dtype
        self.origin: Tensor

    def tilt(self, z: Float[Tensor, "batch latent"]) -> Float[Tensor, " batch"]:
        """f(z), the log-density's departure from the reference Gaussian, in nats: 0 here."""
        return z.new_zeros(len(z))

    def log_reference(self, z: Float[Tensor, "batch latent"]) -> Float[Tensor, " batch"]:
        """log N(z; 0, σ²I), in nats, normalised."""
        variance = self.config.sigma**2
        return -0.5 * (z.square().sum(1) / variance + z.shape[1] * math.log(2 * math.pi * variance))

    def potential(
        self, z: Float[Tensor, "batch latent"]
    ) -> tuple[Float[Tensor, " batch"], Float[Tensor, "batch latent"]]:
        """U(z) = −f(z) + ‖z‖²/2σ² and its gradient, as a `langevin.Potential`."""
        gradient = z / self.config.sigma**2
        return (z * gradient).sum(1).mul_(0.5), gradient

    def frozen(self) -> langevin.Potential:
        """The potential with the weights of now; a chain asks for it once and then calls it at every step."""
        return self.potential

    def sample_reference(self, n: int, generator: torch.Generator) -> Float[Tensor, "{n} latent"]:
        """Exact samples of the reference Gaussian, where every chain starts."""
        size, like = (n, self.config.dimensions), self.origin
        return self.config.sigma * torch.randn(size, generator=generator, device=like.device, dtype=like.dtype)

    def chain(self, steps: int | None = None) -> langevin.Schedule:
        """The schedule of the prior chain; `steps` overrides its length K0."""
        return langevin.schedule(0, self.config.step_size)

    def sample(self, n: int, generator: torch.Generator, steps: int | None = None) -> Float[Tensor, "{n} latent"]:
        """Samples of the prior: the reference Gaussian, moved by the short-run chain where there is a tilt.

        Args:
            n: number of samples.
            generator: source of the starting points and of the chain's noise.
            steps: length of the chain (default: K0 as in training).
        """
        return self.move(self.sample_reference(n, generator), generator, steps)

    def move(
        self, start: Float[Tensor, "batch latent"], generator: torch.Generator, steps: int | None = None
    ) -> Float[Tensor, "batch latent"]:
        """Where the short-run chain leads from given points; under a Gaussian prior it has no steps."""
        return langevin.run(start, self.potential, self.chain(steps), generator)


class EBMPrior(GaussianPrior):
    """p(z) ∝ exp(f(z)) N(z; 0, σ²I), sampled by a short Langevin chain from the reference Gaussian."""

    def __init__(self, config: PriorConfig) -> None:
        super().__init__(config)
        activation = ACTIVATIONS[config.activation]
        sizes = [config.latent_dim, *[config.width] * config.depth]
        layers: list[nn.Module] = []
        for inputs, outputs in pairwise(sizes):
            layers += [nn.Linear(inputs, outputs), activation(LEAK) if activation is nn.LeakyReLU else activation()]
        self.mlp = nn.Sequential(*layers, nn.Linear(sizes[-1], 1))
        self.recorded: dict[Hashable, graphs.Chain] = {}

    def tilt(self, z: Float[Tensor, "batch latent"]) -> Float[Tensor, " batch"]:
        """f(z), in nats."""
        value: Tensor = self.mlp(z)
        return value.squeeze(1)

    def potential(
        self, z: Float[Tensor, "batch latent"]
    ) -> tuple[Float[Tensor, " batch"], Float[Tensor, "batch latent"]]:
        """U(z) = −f(z) + ‖z‖²/2σ² and its gradient, as a `langevin.Potential`."""
        return self.frozen()(z)

    def frozen(self) -> langevin.Potential:
        """The potential with the weights of now; a chain asks for it once and then calls it at every step."""
        return FrozenTilt(self._layers(), self.config.activation, 1 / self.config.sigma**2)

    def move(
        self, start: Float[Tensor, "batch latent"], generator: torch.Generator, steps: int | None = None
    ) -> Float[Tensor, "batch latent"]:
        """Where the short-run chain leads from given points."""
        plan = self.chain(steps)
        if not graphs.possible(start) or plan.steps == 0:
            return langevin.run(start, self.frozen(), plan, generator)
        places = tuple(p.data_ptr() for p in self.parameters())  # a recording reads weights where they were
        key = (start.shape, start.dtype, start.device, plan, places)
        if key not in self.recorded:
            while len(self.recorded) >= graphs.MOST_CHAINS:
                self.recorded.pop(next(iter(self.recorded)))
            self.recorded[key] = graphs.Chain(start, self.frozen(), plan)
        return self.recorded[key].run(start, generator)

    def _layers(self) -> list[tuple[Tensor, Tensor]]:
        """Weight and bias of each linear layer, detached."""
        return [(m.weight.detach(), m.bias.detach()) for m in self.mlp if isinstance(m, nn.Linear)]

    def chain(self, steps: int | None = None) -> langevin.Schedule:
        """The schedule of the prior chain; `steps` overrides its length K0."""
        steps = self.config.steps if steps is None else steps
        return langevin.schedule(steps, self.config.step_size, self.config.temperature)


PRIORS: dict[str, type[GaussianPrior]] = {"ebm": EBMPrior, "gaussian": GaussianPrior, "none": GaussianPrior}


def make_prior(config: PriorConfig) -> GaussianPrior:
    """The prior that a configuration describes."""
    return PRIORS[config.kind](config)
