"""InceptionV3 as FID needs it: the network `inception-2015-12-05` that its authors' TensorFlow code runs.

It is Szegedy et al. (2016)'s network with the quirks of that release, which the published weights were trained with:
1,008 classes, average pools that leave the padding out of the mean, and in the last block a maximum in place of the
average. Names and shapes of the tensors are those of the PyTorch port of its weights, so that its file loads.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

SIDE = 299
"""Pixels of the images that the network takes."""
FEATURES = 2048
"""Numbers of its last pooled layer, `pool3`."""
CLASSES = 1008

Pool = Literal["average", "maximum", "maximum, halved"]


@dataclass(frozen=True)
class Convolution:
    """A convolution without bias, batch normalisation and ReLU.

    Args:
        name: in the state dict.
        channels: that it gives.
        kernel: height and width.
        stride: of both.
        padded: whether the image keeps its size.
    """

    name: str
    channels: int
    kernel: tuple[int, int] = (1, 1)
    stride: int = 1
    padded: bool = True


Step = Convolution | tuple[Convolution, Convolution]
"""A convolution; or two of the same input, side by side, which end a path."""


class FrozenNorm(nn.Module):
    """Batch normalisation with the moments of training."""

    weight: Tensor
    bias: Tensor
    running_mean: Tensor
    running_var: Tensor

    def __init__(self, channels: int) -> None:
        super().__init__()
        for name, value in (("weight", 1.0), ("bias", 0.0), ("running_mean", 0.0), ("running_var", 1.0)):
            self.register_buffer(name, torch.full((channels,), value))

    def forward(self, x: Tensor) -> Tensor:
        """The same shape."""
        return functional.batch_norm(x, self.running_mean, self.running_var, self.weight, self.bias, eps=0.001)


class ConvolutionUnit(nn.Module):
    """What `Convolution` describes."""

    def __init__(self, channels: int, described: Convolution) -> None:
        super().__init__()
        height, width = described.kernel
        padding = (height // 2, width // 2) if described.padded else 0
        self.conv = nn.Conv2d(channels, described.channels, (height, width), described.stride, padding, bias=False)
        self.bn = FrozenNorm(described.channels)

    def forward(self, x: Tensor) -> Tensor:
        """Shape (batch, channels, height, width), before and after."""
        return functional.relu(self.bn(self.conv(x)), inplace=True)


class Mixed(nn.Module):
    """Paths of convolutions side by side, and a pool; their channels one after another.

    Args:
        channels: of the input.
        paths: convolutions one after another.
        pool: kind of the last path's pool, over 3×3.
        projection: channels of a 1×1 convolution behind the pool; 0 for none.
    """

    def __init__(self, channels: int, paths: Sequence[Sequence[Step]], pool: Pool, projection: int = 0) -> None:
        super().__init__()
        self.pool = pool
        self.paths: list[list[list[str]]] = []  # names of the convolutions: of each path, of each of its steps
        self.channels = projection or channels
        for path in paths:
            inside, names = channels, []
            for step in path:
                side_by_side = step if isinstance(step, tuple) else (step,)
                for described in side_by_side:
                    self.add_module(described.name, ConvolutionUnit(inside, described))
                names.append([described.name for described in side_by_side])
                inside = sum(described.channels for described in side_by_side)
            self.paths.append(names)
            self.channels += inside
        if projection:
            self.branch_pool = ConvolutionUnit(channels, Convolution("branch_pool", projection))

    def forward(self, x: Tensor) -> Tensor:
        """Shape (batch, channels, height, width), before and after."""
        found = [self._along(path, x) for path in self.paths]
        pooled = self._pooled(x)
        return torch.cat([*found, self.branch_pool(pooled) if hasattr(self, "branch_pool") else pooled], dim=1)

    def _along(self, path: list[list[str]], x: Tensor) -> Tensor:
        for names in path:
            outputs = [self.get_submodule(name)(x) for name in names]
            x = torch.cat(outputs, dim=1)
        return x

    def _pooled(self, x: Tensor) -> Tensor:
        if self.pool == "average":
            return functional.avg_pool2d(x, 3, stride=1, padding=1, count_include_pad=False)
        if self.pool == "maximum":
            return functional.max_pool2d(x, 3, stride=1, padding=1)
        return functional.max_pool2d(x, 3, stride=2)


def _block_of_35(channels: int, projection: int) -> Mixed:
    paths = [
        [Convolution("branch1x1", 64)],
        [Convolution("branch5x5_1", 48), Convolution("branch5x5_2", 64, (5, 5))],
        [
            Convolution("branch3x3dbl_1", 64),
            Convolution("branch3x3dbl_2", 96, (3, 3)),
            Convolution("branch3x3dbl_3", 96, (3, 3)),
        ],
    ]
    return Mixed(channels, paths, "average", projection)


def _from_35_to_17(channels: int) -> Mixed:
    paths = [
        [Convolution("branch3x3", 384, (3, 3), stride=2, padded=False)],
        [
            Convolution("branch3x3dbl_1", 64),
            Convolution("branch3x3dbl_2", 96, (3, 3)),
            Convolution("branch3x3dbl_3", 96, (3, 3), stride=2, padded=False),
        ],
    ]
    return Mixed(channels, paths, "maximum, halved")


def _block_of_17(channels: int, inner: int) -> Mixed:
    paths = [
        [Convolution("branch1x1", 192)],
        [
            Convolution("branch7x7_1", inner),
            Convolution("branch7x7_2", inner, (1, 7)),
            Convolution("branch7x7_3", 192, (7, 1)),
        ],
        [
            Convolution("branch7x7dbl_1", inner),
            Convolution("branch7x7dbl_2", inner, (7, 1)),
            Convolution("branch7x7dbl_3", inner, (1, 7)),
            Convolution("branch7x7dbl_4", inner, (7, 1)),
            Convolution("branch7x7dbl_5", 192, (1, 7)),
        ],
    ]
    return Mixed(channels, paths, "average", 192)


def _from_17_to_8(channels: int) -> Mixed:
    paths = [
        [Convolution("branch3x3_1", 192), Convolution("branch3x3_2", 320, (3, 3), stride=2, padded=False)],
        [
            Convolution("branch7x7x3_1", 192),
            Convolution("branch7x7x3_2", 192, (1, 7)),
            Convolution("branch7x7x3_3", 192, (7, 1)),
            Convolution("branch7x7x3_4", 192, (3, 3), stride=2, padded=False),
        ],
    ]
    return Mixed(channels, paths, "maximum, halved")


def _block_of_8(channels: int, pool: Pool) -> Mixed:
    paths: list[list[Step]] = [
        [Convolution("branch1x1", 320)],
        [
            Convolution("branch3x3_1", 384),
            (Convolution("branch3x3_2a", 384, (1, 3)), Convolution("branch3x3_2b", 384, (3, 1))),
        ],
        [
            Convolution("branch3x3dbl_1", 448),
            Convolution("branch3x3dbl_2", 384, (3, 3)),
            (Convolution("branch3x3dbl_3a", 384, (1, 3)), Convolution("branch3x3dbl_3b", 384, (3, 1))),
        ],
    ]
    return Mixed(channels, paths, pool, 192)


STEM = (
    Convolution("Conv2d_1a_3x3", 32, (3, 3), stride=2, padded=False),
    Convolution("Conv2d_2a_3x3", 32, (3, 3), padded=False),
    Convolution("Conv2d_2b_3x3", 64, (3, 3)),
    Convolution("Conv2d_3b_1x1", 80),
    Convolution("Conv2d_4a_3x3", 192, (3, 3), padded=False),
)
HALVED_AFTER = ("Conv2d_2b_3x3", "Conv2d_4a_3x3")


class InceptionV3(nn.Module):
    """The network up to `pool3`; its classifier is there so that the published file loads whole, and is not run."""

    def __init__(self) -> None:
        super().__init__()
        channels = 3
        for described in STEM:
            self.add_module(described.name, ConvolutionUnit(channels, described))
            channels = described.channels
        blocks = {
            "Mixed_5b": _block_of_35(192, 32),
            "Mixed_5c": _block_of_35(256, 64),
            "Mixed_5d": _block_of_35(288, 64),
            "Mixed_6a": _from_35_to_17(288),
            "Mixed_6b": _block_of_17(768, 128),
            "Mixed_6c": _block_of_17(768, 160),
            "Mixed_6d": _block_of_17(768, 160),
            "Mixed_6e": _block_of_17(768, 192),
            "Mixed_7a": _from_17_to_8(768),
            "Mixed_7b": _block_of_8(1280, "average"),
            "Mixed_7c": _block_of_8(2048, "maximum"),
        }
        self.blocks = tuple(blocks)
        for name, block in blocks.items():
            self.add_module(name, block)
        self.fc = nn.Linear(FEATURES, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        """The features of `pool3`.

        Args:
            x: prepared images, shape (batch, 3, 299, 299).

        Returns:
            Shape (batch, 2048).
        """
        for described in STEM:
            x = self.get_submodule(described.name)(x)
            if described.name in HALVED_AFTER:
                x = functional.max_pool2d(x, 3, stride=2)
        for name in self.blocks:
            x = self.get_submodule(name)(x)
        return x.mean(dim=(2, 3))


def from_state(state: Mapping[str, Tensor]) -> InceptionV3:
    """The network with these weights, ready to give features.

    Raises:
        RuntimeError: names or shapes are not the network's.
    """
    with torch.device("meta"):  # no weights are drawn that would be overwritten
        network = InceptionV3().eval()
    network.load_state_dict(dict(state), assign=True)
    network.float().requires_grad_(False)
    return network.to(memory_format=torch.channels_last)  # type: ignore[call-overload, no-any-return]


def prepare_as_tensorflow(images: Tensor) -> Tensor:
    """Images as the authors' TensorFlow code gives them to the network, and torch-fidelity after it: (x − 128) / 128 of
    pixels from 0 to 255, resized to 299×299 as TensorFlow 1's `resize_bilinear` does it.

    Args:
        images: uint8, shape (batch, 3, height, width).

    Returns:
        float32, shape (batch, 3, 299, 299).
    """
    return (resize_as_tensorflow(images.float(), SIDE) - 128) / 128


def prepare_as_pytorch_fid(images: Tensor) -> Tensor:
    """Images as pytorch-fid gives them: 2x − 1 of pixels from 0 to 1, resized bilinearly between the pixels' middles.

    Args:
        images: uint8, shape (batch, 3, height, width).

    Returns:
        float32, shape (batch, 3, 299, 299).
    """
    resized = functional.interpolate(images.float() / 255, size=(SIDE, SIDE), mode="bilinear", align_corners=False)
    return 2 * resized - 1


def resize_as_tensorflow(images: Tensor, side: int) -> Tensor:
    """Bilinear resizing between the pixels' upper left corners: output pixel i is input position i · old / new.

    So TensorFlow 1 does it unless told otherwise; other libraries take positions (i + ½) · old / new − ½.

    Args:
        images: floating, shape (batch, channels, height, width).
        side: height and width of the result.
    """
    for dim in (3, 2):
        old = images.shape[dim]
        position = torch.arange(side, dtype=torch.float32, device=images.device) * (old / side)
        lower = position.long().clamp(max=old - 1)
        weight = (position - lower).view([-1 if d == dim else 1 for d in range(4)])
        before, after = (images.index_select(dim, at) for at in (lower, (lower + 1).clamp(max=old - 1)))
        images = before + (after - before) * weight
    return images
