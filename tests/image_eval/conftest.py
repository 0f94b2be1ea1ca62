"""Names and shapes of published weights, weights of that form, and images."""

import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from textebm.image_eval.features import IMPLEMENTATIONS, MOBILENET_WEIGHTS, Implementation
from textebm.whole_files import sha256

Shapes = Mapping[str, tuple[int, ...]]
Pictures = Callable[..., NDArray[np.uint8]]


@pytest.fixture(scope="session")
def inception_shapes() -> Shapes:
    """Name -> shape in pt_inception-2015-12-05-6726825d.pth, from a list of its convolutions: name and shape."""
    shapes: dict[str, tuple[int, ...]] = {}
    for line in Path(__file__).with_name("inception-2015-12-05.txt").read_text(encoding="utf-8").splitlines():
        name, *sizes = line.split()
        shapes[f"{name}.conv.weight"] = tuple(map(int, sizes))
        for part in ("weight", "bias", "running_mean", "running_var"):
            shapes[f"{name}.bn.{part}"] = (int(sizes[0]),)
    return shapes | {"fc.weight": (1008, 2048), "fc.bias": (1008,)}


@pytest.fixture(scope="session")
def inception_weights(inception_shapes: Shapes) -> dict[str, Tensor]:
    """Such weights, the same on every machine and under every numpy, whose signals neither die nor blow up."""
    source = np.random.RandomState(0)  # its stream is frozen for good
    weights = {}
    for name, shape in inception_shapes.items():
        values = source.uniform(-1, 1, shape)
        if name.endswith("conv.weight"):
            values *= 2 / np.sqrt(np.prod(shape[1:]))
        elif name.endswith(("bn.weight", "running_var")):
            values = 1 + values / 2
        else:
            values /= 10
        weights[name] = torch.from_numpy(values).float()
    return weights


@pytest.fixture(scope="session")
def inception_file(inception_weights: dict[str, Tensor], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file of them, as torch saves it."""
    path = tmp_path_factory.mktemp("weights") / "inception.pth"
    torch.save(inception_weights, path)
    return path


@pytest.fixture(scope="session")
def pictures() -> Pictures:
    """What makes noise: pictures(count, height, width, seed), of shape (count, 3, height, width)."""

    def make(count: int, height: int = 8, width: int = 8, seed: int = 1) -> NDArray[np.uint8]:
        return np.random.RandomState(seed).randint(0, 256, (count, 3, height, width)).astype(np.uint8)

    return make


class ChannelMeans(nn.Module):
    """A network for tests: mean and largest value of each channel, in as many numbers."""

    def __init__(self, state: Mapping[str, Tensor]) -> None:
        super().__init__()
        self.register_buffer("scale", state["scale"])

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([x.mean(dim=(2, 3)), x.amax(dim=(2, 3)), x.amin(dim=(2, 3))], dim=1) * self.scale


@pytest.fixture(scope="session")
def toy_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Its weights."""
    path = tmp_path_factory.mktemp("toy") / "toy.pth"
    torch.save({"scale": torch.tensor(2.0)}, path)
    return path


@pytest.fixture
def toy(toy_file: Path, monkeypatch: pytest.MonkeyPatch) -> Implementation:
    """Features of that network in MobileNetV2's place, with its file as the published one."""
    published = dataclasses.replace(MOBILENET_WEIGHTS, file=toy_file.name, sha256=sha256(toy_file), package=None)
    toy = dataclasses.replace(
        IMPLEMENTATIONS["mobilenetv2"],
        size=9,
        prepare=lambda images: images.float() / 255,
        build=ChannelMeans,
        published=published,
    )
    monkeypatch.setitem(IMPLEMENTATIONS, "mobilenetv2", toy)
    return toy


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A TEXTEBM_HOME of the test's own, a hub folder without weights, and no network."""
    monkeypatch.setenv("TEXTEBM_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    monkeypatch.setenv("TEXTEBM_OFFLINE", "1")
    return tmp_path / "home"
