"""A batch of images, as generators of images see it."""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor


@dataclass(frozen=True)
class ImageShape:
    """Channels, and height and width in pixels."""

    channels: int
    height: int
    width: int

    @property
    def dimensions(self) -> int:
        """Numbers that an image consists of."""
        return self.channels * self.height * self.width

    def __str__(self) -> str:
        return f"{self.channels}×{self.height}×{self.width}"


@dataclass(frozen=True, eq=False)
class ImageBatch:
    """Images of one batch.

    pixels: (batch, channels, height, width) float32 in [−1, 1]; of 8-bit values v they are v / 127.5 − 1.
    """

    pixels: Float[Tensor, "batch channels height width"]

    def __len__(self) -> int:
        return len(self.pixels)

    @property
    def batch_size(self) -> int:
        """Number of images."""
        return len(self.pixels)

    @property
    def units(self) -> int:
        """Number of images, which is what progress is counted in."""
        return len(self.pixels)

    @property
    def shape(self) -> ImageShape:
        """Of each image."""
        return ImageShape(*self.pixels.shape[1:])

    def to(self, device: torch.device | str) -> "ImageBatch":
        """The same batch on `device`."""
        if torch.device(device).type == "cuda" and not self.pixels.is_cuda:  # only pinned memory is copied in passing
            return ImageBatch(self.pixels.pin_memory().to(device, non_blocking=True))
        return ImageBatch(self.pixels.to(device))

    def repeated(self, copies: int) -> "ImageBatch":
        """Each image so many times in a row."""
        return ImageBatch(self.pixels.repeat_interleave(copies, dim=0))

    def split(self, size: int) -> "list[ImageBatch]":
        """Its images in batches of so many, the last one of what is left."""
        return [ImageBatch(part) for part in torch.split(self.pixels, size)]
