"""The latent priors: the energy-based tilt of a Gaussian, and the plain Gaussian as its special case.

p(z) = exp(f(z)) N(z; 0, σ²I) / Z, with f a small multilayer perceptron; energy(z) = −f(z). A plain language model has
a Gaussian over no dimensions: every z is the empty vector, and its density is 1.
Source: Pang et al., NeurIPS 2020, equation 2.

With K > 1 outputs f(z) is their log-sum-exp, as in Pang and Wu, "Latent Space Energy-Based Model of Symbol-Vector
Coupling for Text Generation and Classification", ICML 2021. With spectral normalisation each weight matrix is divided
by its largest singular value (Miyato et al., ICLR 2018), so that f changes by no more than the activations' slopes
allow.
"""

import math
from collections.abc import Callable, Hashable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from itertools import pairwise

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import softplus
from torch.nn.utils import parametrizations, parametrize

from textebm import native
from textebm.config import PriorConfig
from textebm.model import graphs, langevin
from textebm.model.random import Noise, normal

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
    """The activations of a multilayer perceptron and their gradients, without autograd, for so many rows.

    In C where that is to be had, else by torch. What every step needs is allocated once: fresh memory costs more than
    what is done in it.
    """

    def __init__(self, kind: str, like: Tensor, widths: list[int]) -> None:
        """For as many rows as `like` has, of its dtype and on its device, through layers of these widths."""
        self.native = native.gelu(like, len(like) * max(widths)) if kind == "gelu" else None
        self.value, self.gradient = FORWARD[kind], BACKWARD[kind]
        self.arguments, self.products = ([like.new_empty(len(like), width) for width in widths] for _ in range(2))

    def forward(self, layer: int) -> Tensor:
        """The values of a layer; where C is used, the derivatives take the place of the arguments."""
        argument = self.arguments[layer]
        return self.value(argument) if self.native is None else self.native.forward(argument, self.products[layer])

    def below(self, above: Tensor, layer: int) -> Tensor:
        """The gradient in a layer's arguments, given that in its values, which is overwritten, after `forward`."""
        kept = self.arguments[layer]
        return self.gradient(above, kept) if self.native is None else above.mul_(kept)

    def below_top(self, above: Tensor) -> Tensor:
        """The gradient in the last layer's arguments, which may be overwritten, given that in its values."""
        argument = self.arguments[-1]
        return self.gradient(above, argument) if self.native is None else self.native.backward(above, argument)


class FrozenTilt:
    """U(z) = −f(z) + ‖z‖²/2σ² with the weights of now, layer by layer: many small steps need no autograd graph.

    A `langevin.Potential` and a `langevin.Stepper`.
    """

    def __init__(self, layers: list[tuple[Tensor, Tensor]], kind: str, precision: float) -> None:
        """Freeze the weights.

        Args:
            layers: weight and bias of each linear layer, detached; f is the log-sum-exp of the last one's outputs.
            kind: the activation.
            precision: 1/σ².
        """
        *self.hidden, (self.last, self.offset) = layers
        self.kind, self.precision = kind, precision
        self.rows: Tensor | None = None
        self.activations: dict[tuple[int, torch.dtype, torch.device], Activation] = {}

    @torch.no_grad()
    def __call__(
        self, z: Float[Tensor, "batch latent"]
    ) -> tuple[Float[Tensor, " batch"], Float[Tensor, "batch latent"]]:
        """U(z) in nats and ∇U(z)."""
        energy = torch.linalg.vecdot(z, z).mul_(0.5 * self.precision)
        gradient = z * self.precision
        if not self.hidden:
            tilt, slope = self._top(z)
            return energy.sub_(tilt), gradient.sub_(slope)
        activation = self._activation(z)
        self._up(z, activation)
        tilt, above = self._top(activation.value(activation.arguments[-1]))
        return energy.sub_(tilt), gradient.addmm_(self._down(above, activation), self.hidden[0][0], alpha=-1)

    def step(
        self, z: Float[Tensor, "batch latent"], step_size: float, noise: Float[Tensor, "batch latent"]
    ) -> Float[Tensor, "batch latent"]:
        """z − ½s²∇U(z) + noise; `noise`, which is sTε already, is overwritten. Nothing here may require a gradient."""
        half = 0.5 * step_size**2
        moved = noise.add_(z, alpha=1 - half * self.precision)
        if not self.hidden:
            return moved.add_(self._top(z)[1], alpha=half)
        activation = self._activation(z)
        self._up(z, activation)
        slope = self._down(self._above(activation), activation)
        return moved.addmm_(slope, self.hidden[0][0], alpha=half)

    def _activation(self, z: Tensor) -> Activation:
        key = (len(z), z.dtype, z.device)
        if key not in self.activations:
            self.activations[key] = Activation(self.kind, z, [len(bias) for _, bias in self.hidden])
        return self.activations[key]

    def _top(self, value: Tensor) -> tuple[Tensor, Tensor]:
        """f, and ∂f in the values of the last activation."""
        if len(self.last) == 1:
            rows = self.last.expand(len(value), -1).contiguous()  # kernels are slow on rows that are one and the same
            return torch.addmv(self.offset, value, self.last[0]), rows
        outputs = torch.addmm(self.offset, value, self.last.T)
        return outputs.logsumexp(1), outputs.softmax(1) @ self.last

    def _above(self, activation: Activation) -> Tensor:
        """∂f in the values of the last activation; with one output it is the same at every step."""
        argument = activation.arguments[-1]
        if len(self.last) > 1:
            return self._top(activation.value(argument))[1]
        if self.rows is None or len(self.rows) != len(argument):
            self.rows = self.last.expand(len(argument), -1).contiguous()
        return self.rows

    def _up(self, z: Tensor, activation: Activation) -> None:
        """Fill in the arguments of all activations."""
        value = z
        for layer, (weight, bias) in enumerate(self.hidden):
            if layer > 0:
                value = activation.forward(layer - 1)
            torch.addmm(bias, value, weight.T, out=activation.arguments[layer])

    def _down(self, above: Tensor, activation: Activation) -> Tensor:
        """∂f in what the first linear layer gives."""
        slope = activation.below_top(above)
        for layer in range(len(self.hidden) - 2, -1, -1):
            product = torch.mm(slope, self.hidden[layer + 1][0], out=activation.products[layer])
            slope = activation.below(product, layer)
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

    def refine_norms(self) -> None:
        """Follow the weights with what normalises them: nothing here."""

    def parts(self) -> list[nn.Module]:
        """What is learned, each part by an optimiser of its own, one after the other: nothing here."""
        return []

    def stage(self, step: int) -> int | None:
        """Which part, from 0, is learned at a learning step by telling samples apart; None: none is."""
        return None

    def before(self, stage: int | None) -> AbstractContextManager[None]:
        """Within it, the prior is the one that is known before a stage is learned; all of it where there is none."""
        return nullcontext()

    def objective(
        self, positive: Float[Tensor, "posterior latent"], negative: Float[Tensor, "prior latent"], stage: int | None
    ) -> tuple[Float[Tensor, ""], Float[Tensor, ""], Float[Tensor, ""]]:
        """What learning descends, and the mean of f over posterior and over prior samples, all differentiable.

        Args:
            positive: posterior samples z⁺.
            negative: prior samples z⁻.
            stage: which part is learned, where parts are learned one after the other.
        """
        f_positive, f_negative = self.tilt(positive).mean(), self.tilt(negative).mean()
        return f_negative - f_positive, f_positive, f_negative

    def frozen(self) -> langevin.Potential:
        """The potential with the weights of now; a chain asks for it once and then calls it at every step."""
        return self.potential

    @property
    def reference(self) -> "GaussianPrior":
        """The Gaussian that is tilted, as a prior of its own."""
        return GaussianPrior(self.config).to(self.origin)

    def sample_reference(self, n: int, generator: Noise) -> Float[Tensor, "{n} latent"]:
        """Exact samples of the reference Gaussian, where every chain starts."""
        return self.config.sigma * normal((n, self.config.dimensions), generator, self.origin)

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
        self.mlp = nn.Sequential(*layers, nn.Linear(sizes[-1], config.outputs))
        if config.spectral_norm:
            for layer in self._linear():
                parametrizations.spectral_norm(layer)
            self.train()
        self.recorded: dict[Hashable, graphs.Chain] = {}

    def tilt(self, z: Float[Tensor, "batch latent"]) -> Float[Tensor, " batch"]:
        """f(z), in nats."""
        value: Tensor = self.mlp(z)
        return value.squeeze(1) if self.config.outputs == 1 else value.logsumexp(1)

    def train(self, mode: bool = True) -> "EBMPrior":
        """Training or evaluation, which is one and the same here: estimated norms change by `refine_norms` alone."""
        super().train(mode)
        for norm in self._norms():
            norm.eval()
        return self

    def refine_norms(self) -> None:
        """One power iteration on the largest singular value of each weight matrix; nothing without normalisation.

        The learner calls it once after each update, so that chains, validation and generation see weights that stand
        still.
        """
        with torch.no_grad():
            for norm in self._norms():
                norm.train()
                norm()
                norm.eval()

    def _norms(self) -> list[nn.Module]:
        return [module for module in self.mlp.modules() if isinstance(module, parametrize.ParametrizationList)]

    def _linear(self) -> list[nn.Linear]:
        return [layer for layer in self.mlp if isinstance(layer, nn.Linear)]

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
        # a normalised weight is computed anew for each chain, and a recording would read the former one
        if not graphs.possible(start) or plan.steps == 0 or self.config.spectral_norm:
            return langevin.run(start, self.frozen(), plan, generator)
        places = tuple(p.data_ptr() for p in self.parameters())  # a recording reads weights where they were
        key = (start.shape, start.dtype, start.device, plan, places)
        if key not in self.recorded:
            while len(self.recorded) >= graphs.MOST_CHAINS:
                self.recorded.pop(next(iter(self.recorded)))
            self.recorded[key] = graphs.Chain(start, self.frozen(), plan)
        return self.recorded[key].run(start, generator)

    def parts(self) -> list[nn.Module]:
        """The one network."""
        return [self.mlp]

    def _layers(self) -> list[tuple[Tensor, Tensor]]:
        """Weight (normalised, where that is asked for) and bias of each linear layer, detached."""
        return [(layer.weight.detach(), layer.bias.detach()) for layer in self._linear()]

    def chain(self, steps: int | None = None) -> langevin.Schedule:
        """The schedule of the prior chain; `steps` overrides its length K0."""
        steps = self.config.steps if steps is None else steps
        return langevin.schedule(steps, self.config.step_size, self.config.temperature)


class RatioPrior(GaussianPrior):
    """p(z) ∝ r_1(z) ⋯ r_M(z) N(z; 0, σ²I): f is a sum of log density ratios that are learned one after the other.

    In stage m the prior is that of the stages before, p_m ∝ r_1 ⋯ r_(m−1) p_0: prior and posterior chains walk on it,
    and log r_m learns to tell posterior samples from prior samples by logistic regression, whose optimum is the ratio
    of the two densities. Then p_(m+1) is nearer to the posterior samples than p_m, and the next ratio has less to tell.
    What is measured and generated from is the product of all ratios; those of later stages are 1.
    Source: Xiao and Han, "Adaptive Multi-stage Density Ratio Estimation for Learning Latent Space Energy-based Model",
    NeurIPS 2022.
    """

    def __init__(self, config: PriorConfig) -> None:
        super().__init__(config)
        self.ratios = nn.ModuleList(EBMPrior(config) for _ in range(config.stages))
        for ratio in self._all():
            for parameter in ratio.mlp[-1].parameters():
                nn.init.zeros_(parameter)
        self.counted = config.stages

    def tilt(self, z: Float[Tensor, "batch latent"]) -> Float[Tensor, " batch"]:
        """f(z), the sum of the log ratios, in nats."""
        return sum((ratio.tilt(z) for ratio in self._counted()), start=z.new_zeros(len(z)))

    def potential(
        self, z: Float[Tensor, "batch latent"]
    ) -> tuple[Float[Tensor, " batch"], Float[Tensor, "batch latent"]]:
        """U(z) = −f(z) + ‖z‖²/2σ² and its gradient, as a `langevin.Potential`."""
        return self.frozen()(z)

    def frozen(self) -> langevin.Potential:
        """The potential with the weights of now: those of the ratios, with the reference Gaussian counted once."""
        potentials = [ratio.frozen() for ratio in self._counted()]
        reference = super().potential

        def potential(
            z: Float[Tensor, "batch latent"],
        ) -> tuple[Float[Tensor, " batch"], Float[Tensor, "batch latent"]]:
            energy, gradient = reference(z)
            total, slope = energy, gradient
            for one in potentials:
                value, direction = one(z)
                total, slope = total + (value - energy), slope + (direction - gradient)
            return total, slope

        return potential

    def chain(self, steps: int | None = None) -> langevin.Schedule:
        """The schedule of the prior chain, which has no steps before the first ratio; `steps` overrides K0."""
        steps = self.config.steps if steps is None else steps
        return langevin.schedule(steps if self.counted else 0, self.config.step_size, self.config.temperature)

    def move(
        self, start: Float[Tensor, "batch latent"], generator: torch.Generator, steps: int | None = None
    ) -> Float[Tensor, "batch latent"]:
        """Where the short-run chain leads from given points."""
        return langevin.run(start, self.frozen(), self.chain(steps), generator)

    def parts(self) -> list[nn.Module]:
        """The ratios, in order."""
        return list(self.ratios)

    def stage(self, step: int) -> int | None:
        """Which ratio, from 0, is learned at a learning step."""
        return min(step // self.config.stage_steps, self.config.stages - 1)

    @contextmanager
    def before(self, stage: int | None) -> Iterator[None]:
        """Within it, only the ratios before this one count."""
        self.counted = self.config.stages if stage is None else stage
        try:
            yield
        finally:
            self.counted = self.config.stages

    def objective(
        self, positive: Float[Tensor, "posterior latent"], negative: Float[Tensor, "prior latent"], stage: int | None
    ) -> tuple[Float[Tensor, ""], Float[Tensor, ""], Float[Tensor, ""]]:
        """The logistic loss of the stage's log ratio r as a logit, E log(1 + e^−r(z⁺)) + E log(1 + e^r(z⁻)).

        Beside it the means of f, all ratios counted, over posterior and prior samples.
        """
        ratio = self._all()[-1 if stage is None else stage]
        loss = softplus(-ratio.tilt(positive)).mean() + softplus(ratio.tilt(negative)).mean()
        return loss, self.tilt(positive).mean(), self.tilt(negative).mean()

    def _counted(self) -> list[EBMPrior]:
        return self._all()[: self.counted]

    def _all(self) -> list[EBMPrior]:
        return [ratio for ratio in self.ratios if isinstance(ratio, EBMPrior)]


PRIORS: dict[str, type[GaussianPrior]] = {
    "ebm": EBMPrior,
    "gaussian": GaussianPrior,
    "ratio": RatioPrior,
    "none": GaussianPrior,
}


def make_prior(config: PriorConfig) -> GaussianPrior:
    """The prior that a configuration describes."""
    return PRIORS[config.kind](config)
