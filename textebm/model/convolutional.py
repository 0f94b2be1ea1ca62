"""Convolutional generators of images: p(x|z) = N(x; g(z), σ²I), g a stack of transposed convolutions.

    log p(x|z) = −‖x − g(z)‖² / 2σ² − (d/2) log 2πσ²,   x of d numbers in [−1, 1], in nats.

The constant makes it a density, so that likelihoods of different σ compare; no gradient knows it.

Source of the form: Pang et al., NeurIPS 2020, and the authors' code, for SVHN and CelebA; DAMC's code (Yu et al.,
NeurIPS 2023) for CIFAR-10 and MNIST. All are one description, `layers`, with other numbers. The authors' code runs
chains on the density and lets the generator descend ‖x − g(z)‖² (`ConvolutionConfig.loss`): the same direction, another
length, of which Adam takes little notice.
"""

import itertools
import math
from contextlib import AbstractContextManager, nullcontext
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from textebm.config import ConvolutionConfig
from textebm.errors import ConfigError
from textebm.model import few_channels, softmax
from textebm.model.candidates import Candidates
from textebm.model.generators import Computation, ConditionedLikelihood, Generator
from textebm.model.image_batch import ImageBatch, ImageShape

Pixels = Float[Tensor, "batch channels height width"]

SLOPE = 0.2
"""Of the leaky ReLU below 0 (published: the authors' code)."""
ELEMENTS_AT_ONCE = 1 << 26
"""Numbers in all maps of the images that a chain works on together: 256 MB in float32."""
EPSILON = 1e-5
"""Added to a variance before it is divided by."""
MOST_GROUPS = 32
"""Groups of channels in group normalisation (Wu and He, ECCV 2018), or as many as divide the channels."""


class Layer(NamedTuple):
    """A transposed convolution: how it is made, and the side in pixels of the map that it makes."""

    inputs: int
    outputs: int
    kernel: int
    stride: int
    padding: int
    side: int


def layers(config: ConvolutionConfig, latent_dim: int, shape: ImageShape) -> list[Layer]:
    """The layers of a generator, from z to the image.

    Args:
        config: the description.
        latent_dim: number of dimensions of z.
        shape: of the images.

    Raises:
        ConfigError: the description makes images of another size.
    """
    if (shape.height, shape.width) != (config.side, config.side):
        raise ConfigError(
            f"generator.convolution makes images of {config.side}×{config.side} pixels, and those of the data have "
            f"{shape.height}×{shape.width}: choose start, multiples and last to fit, or resize the images "
            "(images.size)"
        )
    channels = [multiple * config.width for multiple in config.multiples]
    made = [Layer(latent_dim, channels[0], config.start, 1, 0, config.start)]
    for before, after in itertools.pairwise(channels):
        made.append(Layer(before, after, 4, 2, 1, 2 * made[-1].side))
    if config.last == "double":
        return [*made, Layer(channels[-1], shape.channels, 4, 2, 1, 2 * made[-1].side)]
    return [*made, Layer(channels[-1], shape.channels, 3, 1, 1, made[-1].side)]


def activate(name: str, x: Tensor) -> Tensor:
    """The activation of that name (see `ConvolutionConfig.activation`)."""
    if name == "lrelu":
        return functional.leaky_relu_(x, SLOPE)  # in place: whoever made x has no further need of it
    made: Tensor = getattr(functional, name)(x)
    return made


class _LeakyReLU(torch.autograd.Function):
    """The leaky ReLU of a chain on a CPU, differentiable once: not in place, since autograd copies for a changed view,
    and what is kept is the result, whose sign is that of x.
    """

    @staticmethod
    def forward(ctx: Any, x: Pixels) -> Pixels:  # noqa: ANN401
        made = functional.leaky_relu(x, SLOPE)
        ctx.save_for_backward(made)
        return made

    @staticmethod
    def backward(ctx: Any, slope: Pixels) -> Pixels:  # noqa: ANN401
        gradient: Pixels = torch.ops.aten.leaky_relu_backward(slope, *ctx.saved_tensors, SLOPE, True)
        return gradient


def initialise(module: nn.Module, generator: torch.Generator | None) -> None:
    """Xavier-normal weights, and biases as torch's, for every convolution and linear map in a module.

    Source: the authors' code.
    """
    for part in module.modules():
        if isinstance(part, nn.ConvTranspose2d | nn.Conv2d | nn.Linear):
            nn.init.xavier_normal_(part.weight, generator=generator)
            if part.bias is not None:
                bound = 1 / math.sqrt(part.weight[0].numel())
                nn.init.uniform_(part.bias, -bound, bound, generator=generator)


class BatchNorm(nn.Module):
    """Batch normalisation that is told whether it is learning (Ioffe and Szegedy, ICML 2015)."""

    mean: Tensor
    variance: Tensor

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))
        self.register_buffer("mean", torch.zeros(channels))
        self.register_buffer("variance", torch.ones(channels))

    def forward(self, x: Pixels, learning: bool) -> Pixels:
        """Learning: by the statistics of the batch, which enter the running ones; else by the running ones."""
        return functional.batch_norm(x, self.mean, self.variance, self.weight, self.bias, learning, eps=EPSILON)

    def reset(self) -> None:
        """A new start."""
        for values, start in ((self.weight, 1.0), (self.bias, 0.0), (self.mean, 0.0), (self.variance, 1.0)):
            nn.init.constant_(values, start)


class GroupNorm(nn.GroupNorm):
    """Group normalisation, of each image by itself: learning or not is the same."""

    def __init__(self, channels: int) -> None:
        super().__init__(math.gcd(MOST_GROUPS, channels), channels)

    def forward(self, x: Pixels, learning: bool = False) -> Pixels:
        """The normalised map."""
        return super().forward(x)

    def reset(self) -> None:
        """A new start."""
        self.reset_parameters()


NORMALISATIONS: dict[str, type[BatchNorm] | type[GroupNorm]] = {"batch": BatchNorm, "group": GroupNorm}


class ConvolutionalGenerator(Generator):
    """Makes an image of z: the mean g(z) of a Gaussian over its pixels."""

    def __init__(
        self, config: ConvolutionConfig, shape: ImageShape, latent_dim: int, generator: torch.Generator | None = None
    ) -> None:
        """Weights start as `initialise` says.

        Args:
            config: layers, activation, normalisation, σ.
            shape: of the images.
            latent_dim: number of dimensions of z.
            generator: source of the initial weights.

        Raises:
            ConfigError: the description makes images of another size.
        """
        super().__init__()
        self.config, self.shape, self.latent_dim = config, shape, latent_dim
        self.layers = layers(config, latent_dim, shape)
        normalisation = NORMALISATIONS.get(config.normalisation)
        *inner, last = self.layers
        self.convolutions = nn.ModuleList(
            nn.ConvTranspose2d(*layer[:5], bias=layer is last or normalisation is None) for layer in self.layers
        )
        norms = [] if normalisation is None else [normalisation(layer.outputs) for layer in inner]
        self.normalisations = nn.ModuleList(norms)
        self.loss_scale = 2 * config.sigma**2 if config.loss == "squared-error" else 1.0
        self.reset(generator)

    def reset(self, generator: torch.Generator | None = None) -> None:
        """Give every weight a new start."""
        initialise(self, generator)
        for norm in self.normalisations:
            norm.reset()  # type: ignore[operator]

    def forward(self, z: Float[Tensor, "batch latent"], learning: bool = False) -> Pixels:
        """The mean image g(z).

        Args:
            z: latents.
            learning: whether batch normalisation takes, and learns, the statistics of this batch.
        """
        x = z[:, :, None, None]
        *inner, last = self.convolutions
        for number, convolution in enumerate(inner):
            x = convolution(x)
            if self.normalisations:
                x = self.normalisations[number](x, learning)
            x = activate(self.config.activation, x)
        return self.output(last(x))

    def output(self, x: Pixels) -> Pixels:
        """What the last layer's map becomes."""
        return x.tanh() if self.config.output == "tanh" else x

    def log_density(self, x: Pixels, mean: Pixels) -> Float[Tensor, " batch"]:
        """log N(x; mean, σ²I) of each image, in nats."""
        variance = self.config.sigma**2
        squares = (x - mean.to(x.dtype)).square().flatten(1).sum(1)
        return -squares / (2 * variance) - 0.5 * self.shape.dimensions * math.log(2 * math.pi * variance)

    @property
    def elements(self) -> int:
        """Numbers in all maps of one image."""
        return sum(layer.outputs * layer.side**2 for layer in self.layers)

    def condition(
        self,
        x: ImageBatch,
        generator: torch.Generator | None = None,
        precision: softmax.Precision = "fp32",
        path: Computation = "fast",
        candidates: Candidates | None = None,
    ) -> "ConditionedImages":
        """log p(x|z) of a batch of images as a function of z.

        Args:
            x: the images, on the generator's device.
            generator: given in a learning step, where batch normalisation takes and learns the batch's statistics in
                `log_prob`; there is no dropout that it could be the source of.
            precision: of the convolutions.
            path: `fast`, or `plain`: straightforward autograd through the module, to check the other one by.
            candidates: must be None.

        Raises:
            ValueError: candidates are given, and there is no softmax.
            ConfigError: the images are of another size.
        """
        if candidates is not None:
            raise ValueError("images have no softmax that could be sampled")
        if x.shape != self.shape:
            raise ConfigError(f"the model makes images of {self.shape}, and these have {x.shape}")
        kind = PlainImages if path == "plain" else FastImages
        return kind(self, x, generator is not None, precision)


class ConditionedImages(ConditionedLikelihood):
    """log p(x|z) of a batch of images: what both paths have in common."""

    def __init__(
        self, model: ConvolutionalGenerator, x: ImageBatch, learning: bool, precision: softmax.Precision
    ) -> None:
        self.model, self.learning, self.precision = model, learning, precision
        self.pixels = x.pixels.to(next(model.parameters()).dtype)

    def log_prob(self, z: Float[Tensor, "batch latent"]) -> Float[Tensor, " batch"]:
        """log p(x|z) of each image in nats, differentiable in z and in the parameters; sums in float32 or better."""
        with self._autocast():
            mean = self.model(z, self.learning)
        return self.model.log_density(self.pixels, mean)

    def _autocast(self) -> AbstractContextManager[object]:
        narrow = softmax.NARROW.get(self.precision)
        return nullcontext() if narrow is None else torch.autocast(self.pixels.device.type, narrow)


class PlainImages(ConditionedImages):
    """Straightforward autograd through the module; what `FastImages` is checked by."""

    def log_prob_and_grad(
        self, z: Float[Tensor, "batch latent"]
    ) -> tuple[Float[Tensor, " batch"], Float[Tensor, "batch latent"]]:
        """log p(x|z) of each image and its gradient in z, by autograd; batch normalisation by running statistics."""
        with torch.enable_grad():
            point = z.detach().requires_grad_()
            with self._autocast():
                mean = self.model(point)
            log_prob = self.model.log_density(self.pixels, mean)
            (gradient,) = torch.autograd.grad(log_prob.sum(), point)
        return log_prob.detach(), gradient


class FastImages(ConditionedImages):
    """Weights frozen and laid out once a chain; no gradient of a weight is formed, memory is bounded."""

    def __init__(
        self, model: ConvolutionalGenerator, x: ImageBatch, learning: bool, precision: softmax.Precision
    ) -> None:
        super().__init__(model, x, learning, precision)
        self.frozen: _Frozen | None = None  # made when first asked for: the learner alone does not need it

    def log_prob_and_grad(
        self, z: Float[Tensor, "batch latent"]
    ) -> tuple[Float[Tensor, " batch"], Float[Tensor, "batch latent"]]:
        """log p(x|z) of each image and its gradient in z; batch normalisation by its running statistics."""
        if self.frozen is None:
            self.frozen = _Frozen(self.model, softmax.product_dtype(self.precision, self.pixels))
        size = max(1, ELEMENTS_AT_ONCE // self.model.elements)
        parts = [self._part(z[i : i + size], self.pixels[i : i + size]) for i in range(0, len(z), size)]
        if len(parts) == 1:
            return parts[0]
        log_probs, gradients = zip(*parts, strict=True)
        return torch.cat(log_probs), torch.cat(gradients)

    def _part(self, z: Tensor, x: Pixels) -> tuple[Tensor, Tensor]:
        assert self.frozen is not None
        with torch.enable_grad():
            point = z.detach().requires_grad_()
            mean = self.frozen(point)
        with torch.no_grad():
            residual = x - mean.to(x.dtype)
            slope = (residual / self.model.config.sigma**2).to(mean.dtype)  # of log p(x|z) in the mean
            log_prob = self.model.log_density(residual, torch.zeros_like(residual))
        (gradient,) = torch.autograd.grad(mean, point, slope)
        return log_prob, gradient


class _Frozen:
    """A generator with weights that stay as they are: detached, in the precision of the products, channels last.

    The first layer is one matrix product, since its input has one pixel. Batch normalisation by running statistics is
    part of the weights.
    """

    def __init__(self, model: ConvolutionalGenerator, dtype: torch.dtype) -> None:
        self.model, self.dtype = model, dtype
        folded = [self._folded(number) for number in range(len(model.layers))]
        (entry, entry_bias), *self.rest = [
            (weight.to(dtype), None if bias is None else bias.to(dtype)) for weight, bias in folded
        ]
        self.entry = entry.permute(0, 2, 3, 1).flatten(1)  # (latent, side² · channels)
        self.entry_bias = None if entry_bias is None else entry_bias.repeat(model.layers[0].side ** 2)
        layout = torch.channels_last
        self.rest = [(weight.contiguous(memory_format=layout), bias) for weight, bias in self.rest]

    def _folded(self, number: int) -> tuple[Tensor, Tensor | None]:
        """Weight and bias of a convolution, with what batch normalisation makes of its output."""
        convolution = self.model.convolutions[number]
        assert isinstance(convolution, nn.ConvTranspose2d)
        weight, bias = convolution.weight.detach(), convolution.bias
        bias = None if bias is None else bias.detach()
        norm = self.model.normalisations[number] if number < len(self.model.normalisations) else None
        if not isinstance(norm, BatchNorm):
            return weight, bias
        scale = norm.weight.detach() * torch.rsqrt(norm.variance + EPSILON)  # (channels,)
        return weight * scale[:, None, None], norm.bias.detach() - norm.mean * scale

    def __call__(self, z: Float[Tensor, "batch latent"]) -> Pixels:
        """The mean image, differentiable in z alone."""
        model, first = self.model, self.model.layers[0]
        x = z.to(self.dtype) @ self.entry
        x = x if self.entry_bias is None else x + self.entry_bias
        x = x.view(-1, first.side, first.side, first.outputs).permute(0, 3, 1, 2)
        for number, (weight, bias) in enumerate(self.rest):
            layer = model.layers[number + 1]
            x = self._activated(self._normalised(x, number))
            last = number + 1 == len(self.rest)
            if last and few_channels.applies(layer.outputs, layer.kernel, layer.stride, layer.padding, x.device):
                x = few_channels.transposed(x, weight, bias)
            else:
                x = functional.conv_transpose2d(x, weight, bias, layer.stride, layer.padding)
        return model.output(x)

    def _activated(self, x: Pixels) -> Pixels:
        name = self.model.config.activation
        if name == "lrelu" and x.device.type == "cpu":
            made: Pixels = _LeakyReLU.apply(x)  # type: ignore[no-untyped-call]
            return made
        return activate(name, x)

    def _normalised(self, x: Pixels, number: int) -> Pixels:
        norm = self.model.normalisations[number] if self.model.normalisations else None
        if not isinstance(norm, GroupNorm):
            return x
        weight, bias = norm.weight.detach().to(x.dtype), norm.bias.detach().to(x.dtype)
        return functional.group_norm(x, norm.num_groups, weight, bias, norm.eps)
