"""The encoder q(z|x) = N(μ(x), diag σ²(x)) of images: the generator's layers the other way round.

Strided convolutions halve the side where the generator doubles it; the last map gives μ and log σ² by a linear map.
Source of the idea: Kingma and Welling, "Auto-encoding variational Bayes", ICLR 2014; as a mirror of a convolutional
generator: Larsen et al., "Autoencoding beyond pixels using a learned similarity metric", ICML 2016.
"""

import dataclasses
from contextlib import nullcontext

import torch
from torch import nn

from textebm.config import ConvolutionConfig, EncoderConfig
from textebm.model import softmax
from textebm.model.convolutional import activate, initialise, layers
from textebm.model.encoder import DiagonalGaussian, drop
from textebm.model.image_batch import ImageBatch, ImageShape


class ImageEncoder(nn.Module):
    """q(z|x) of images, by strided convolutions."""

    def __init__(self, config: EncoderConfig, generator: ConvolutionConfig, shape: ImageShape, latent_dim: int) -> None:
        """Weights start as the generator's.

        Args:
            config: width, dropout.
            generator: whose layers are turned round; gives the width that `config` leaves open, and the activation.
            shape: of the images.
            latent_dim: number of dimensions of z.
        """
        super().__init__()
        self.config, self.activation = config, generator.activation
        mirrored = dataclasses.replace(generator, width=config.width or generator.width)
        first, *others = layers(mirrored, latent_dim, shape)
        self.convolutions = nn.ModuleList(
            nn.Conv2d(layer.outputs, layer.inputs, layer.kernel, layer.stride, layer.padding)
            for layer in reversed(others)
        )
        self.output = nn.Linear(first.outputs * first.side**2, 2 * latent_dim)
        initialise(self, None)

    def forward(
        self, x: ImageBatch, dropout: torch.Generator | None = None, precision: softmax.Precision = "fp32"
    ) -> DiagonalGaussian:
        """q(z|x) of each image.

        Args:
            x: the images, on the encoder's device.
            dropout: source of dropout masks; None means no dropout, as in evaluation.
            precision: of the convolutions.
        """
        features = x.pixels.to(self.output.weight.dtype)
        narrow = softmax.NARROW.get(precision)
        with nullcontext() if narrow is None else torch.autocast(features.device.type, narrow):
            for convolution in self.convolutions:
                features = activate(self.activation, convolution(features))
        flat = drop(features.flatten(1).to(self.output.weight.dtype), self.config.dropout, dropout)
        mean, log_variance = self.output(flat).chunk(2, dim=1)
        return DiagonalGaussian(mean, log_variance)
