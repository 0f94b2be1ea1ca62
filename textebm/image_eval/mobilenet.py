"""MobileNetV2 (Sandler et al. 2018), whose features stand in for Inception's where those weights are not to be had.

Distances of its features are no FID and have other values: compare them with one another only. Names and shapes of the
tensors are those of torchvision's `mobilenet_v2`, so that its file loads.
"""

from collections.abc import Mapping
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils.fusion import fuse_conv_bn_eval

SIDE = 224
"""Pixels of the images that the network was trained on."""
FEATURES = 1280
"""Numbers of its last pooled layer."""
CLASSES = 1000

STAGES = ((1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1))
"""Table 2 of the paper: expansion, channels, blocks, stride of the first block."""

MEAN = (0.485, 0.456, 0.406)
SD = (0.229, 0.224, 0.225)
"""Of ImageNet's pixels, from 0 to 1, as torchvision has them."""


def _unit(channels: int, out: int, kernel: int = 1, stride: int = 1, groups: int = 1) -> nn.Sequential:
    """Convolution, normalisation, ReLU6."""
    convolution = nn.Conv2d(channels, out, kernel, stride, kernel // 2, groups=groups, bias=False)
    return nn.Sequential(convolution, nn.BatchNorm2d(out), nn.ReLU6(inplace=True))


class InvertedResidual(nn.Module):
    """Expansion, a convolution of each channel by itself, projection; added to the input where the shapes agree."""

    def __init__(self, channels: int, out: int, expansion: int, stride: int) -> None:
        super().__init__()
        self.residual = stride == 1 and channels == out
        inner = channels * expansion
        expand = [_unit(channels, inner)] if expansion > 1 else []
        project = [nn.Conv2d(inner, out, 1, bias=False), nn.BatchNorm2d(out)]
        self.conv = nn.Sequential(*expand, _unit(inner, inner, 3, stride, groups=inner), *project)

    def forward(self, x: Tensor) -> Tensor:
        """Shape (batch, channels, height, width), before and after."""
        found: Tensor = self.conv(x)
        return x + found if self.residual else found


class MobileNetV2(nn.Module):
    """The network up to its last pooled layer; its classifier is there so that the file loads whole, and is not run."""

    def __init__(self) -> None:
        super().__init__()
        layers: list[nn.Module] = [_unit(3, 32, 3, stride=2)]
        channels = 32
        for expansion, out, blocks, stride in STAGES:
            for number in range(blocks):
                layers.append(InvertedResidual(channels, out, expansion, stride if number == 0 else 1))
                channels = out
        layers.append(_unit(channels, FEATURES))
        self.features = nn.Sequential(*layers)
        self.classifier = nn.Sequential(nn.Dropout(0.2), nn.Linear(FEATURES, CLASSES))

    def forward(self, x: Tensor) -> Tensor:
        """The features.

        Args:
            x: prepared images, shape (batch, 3, 224, 224).

        Returns:
            Shape (batch, 1280).
        """
        found: Tensor = self.features(x)
        return found.mean(dim=(2, 3))


def from_state(state: Mapping[str, Tensor]) -> MobileNetV2:
    """The network with these weights, ready to give features.

    Its normalisations are folded into the convolutions before them, which on a CPU takes more than half of the time
    away and changes features by rounding alone.

    Raises:
        RuntimeError: names or shapes are not the network's.
    """
    with torch.device("meta"):  # no weights are drawn that would be overwritten
        network = MobileNetV2().eval()
    network.load_state_dict(dict(state), assign=True)
    network.float().requires_grad_(False)
    _fold(network)
    return network.to(memory_format=torch.channels_last)  # type: ignore[call-overload, no-any-return]


def _fold(module: nn.Module) -> None:
    children = list(module.named_children())
    for (name, convolution), (norm_name, norm) in pairwise(children):
        if isinstance(convolution, nn.Conv2d) and isinstance(norm, nn.BatchNorm2d):
            setattr(module, name, fuse_conv_bn_eval(convolution, norm))
            setattr(module, norm_name, nn.Identity())
    for _, child in children:
        _fold(child)


def prepare(images: Tensor) -> Tensor:
    """Images as the network takes them: resized to 224×224 bilinearly, smoothed where they shrink; ImageNet's mean and
    standard deviation taken off.

    Args:
        images: uint8, shape (batch, 3, height, width).

    Returns:
        float32, shape (batch, 3, 224, 224).
    """
    resized = functional.interpolate(images.float() / 255, size=(SIDE, SIDE), mode="bilinear", antialias=True)
    mean, sd = (torch.tensor(values, device=images.device).view(1, 3, 1, 1) for values in (MEAN, SD))
    return (resized - mean) / sd
