"""From a trained model to images: generation, reconstruction, interpolation, and PNG files of them."""

import dataclasses
import hashlib
import math
from collections import Counter
from collections.abc import Iterable, Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, UInt8
from numpy.typing import NDArray
from torch import Tensor

from textebm import checkpoint, whole_files
from textebm.data.dataset import Dataset
from textebm.data.image_decoding import Crop, FittingOfAny, Picture
from textebm.data.image_files import ARCHIVE_ENDINGS, IMAGE_ENDINGS, is_image, open_container
from textebm.data.images import as_batch, chosen_crop, consecutive
from textebm.errors import DataError, UsageError
from textebm.model.generators import Batch
from textebm.model.image_batch import ImageBatch, ImageShape
from textebm.model.latent_model import LatentModel
from textebm.model.random import stream
from textebm.processes import ALONE, World

BATCH = 256
"""Images worked on at once; part of what a seed means, since each batch has its own random streams."""
BORDER = 2
"""Pixels between the images of a grid."""

Pixels = Float[Tensor, "images channels height width"]


def load(folder: Path, device: torch.device | str = "cpu") -> LatentModel:
    """A saved model of images.

    Raises:
        CheckpointError: the folder holds no readable model, or one that is not as it was written.
        UsageError: the model is one of text.
    """
    model = checkpoint.load_model(folder, device)
    _ = model.painter
    return model


class Given:
    """Images in memory as a data set."""

    def __init__(self, pixels: UInt8[Tensor, "images channels height width"] | Pixels) -> None:
        """Take them as they are.

        Args:
            pixels: 8-bit values, or numbers in [−1, 1].
        """
        self.pixels = pixels

    def __len__(self) -> int:
        return len(self.pixels)

    def batch(self, rows: NDArray[np.int64]) -> ImageBatch:
        """The images of these rows, in the order given."""
        some = self.pixels[torch.from_numpy(rows)]
        return as_batch(some.numpy()) if some.dtype == torch.uint8 else ImageBatch(some)

    def groups(self, rows: NDArray[np.int64], size: int) -> list[NDArray[np.int64]]:
        """Places in `rows` of the images that are worked on together: `size` in a row."""
        return consecutive(len(rows), size)


class Pictures(Given):
    """Pictures in files, decoded, cropped and resized as those that a model has learned from."""

    def __init__(self, paths: Iterable[Path], shape: ImageShape, crop: Crop = "centre") -> None:
        """Read them.

        Args:
            paths: each of a picture, of a folder with pictures in it and in the folders in it, or of an archive.
            shape: of the images that they become.
            crop: what is kept of images of CelebA; of other pictures it is the largest centred square.

        Raises:
            DataError: one is missing or no picture, or there is none.
        """
        fitting, found = FittingOfAny(shape, crop), []
        self.names: list[str] = []
        """Of the pictures' files."""
        self.converted: Counter[str] = Counter()
        """Pictures that had another mode than grey or colour of 8 bits, as is wanted, by Pillow's name of it."""
        for path in paths:
            for picture in _pictures_in(path):
                pixels, mode = fitting.fit(picture)
                self.names.append(picture.name)
                self.converted.update([] if mode is None else [mode])
                found.append(pixels)
        super().__init__(torch.from_numpy(np.stack(found)))

    @property
    def digest(self) -> str:
        """SHA-256 of the pixels, as hexadecimal digits."""
        return hashlib.sha256(self.pixels.numpy().tobytes()).hexdigest()


def _pictures_in(path: Path) -> Iterator[Picture]:
    """A picture, or those of a folder or an archive, sorted by name; each is read when it is asked for."""
    if not path.is_dir() and not path.name.lower().endswith(ARCHIVE_ENDINGS):
        try:
            yield Picture(str(path), path.read_bytes())
        except OSError as error:
            raise DataError(f"{path} cannot be read: {error.strerror}") from None
        return
    files = open_container(path)
    names = [name for name in files.names() if is_image(name)]
    if not names:
        raise DataError(f"{path} holds no picture ({', '.join(IMAGE_ENDINGS)})")
    for name in names:
        yield Picture(str(path / name), files.read(name))


def crop_of(folder: Path) -> Crop:
    """What was kept of the pictures that a model has learned from; nothing is known of a model without its run.

    Args:
        folder: the model's.
    """
    if not (folder / checkpoint.RUN).exists():
        return "centre"
    config, _ = checkpoint.read_run(folder)
    return chosen_crop(config.data, config.images.crop)


class Generated(NamedTuple):
    """Some images from the prior.

    images: (batch, channels, height, width) in [−1, 1]. energies: (batch,) −f(z) of their latents, in nats.
    """

    images: Pixels
    energies: Float[Tensor, " images"]


def generate(
    model: LatentModel, n: int, seed: int = 0, prior_steps: int | None = None, world: World = ALONE
) -> Iterator[Generated]:
    """Images from the prior: z by the short-run chain, then the mean image g(z); a batch at a time, on the CPU.

    Several processes draw what one would, a batch each in turn; the first one gets them all, the others none.

    Args:
        model: the model.
        n: number of images.
        seed: the same seed gives the same images on one machine.
        prior_steps: length of the prior chain (default: K0 as in training).
        world: the processes that share the work; all of them must go through the result to its end.
    """
    shape = model.painter.shape

    def batch(number: int) -> Generated:
        size = min(BATCH, n - number * BATCH)
        z = model.sample_prior(size, stream(seed, "prior", number, device=model.device), prior_steps)
        return Generated(model.paint(z).float().cpu(), model.energy(z).float().cpu())

    def unpack(content: bytes) -> Generated:
        rows = torch.frombuffer(bytearray(content), dtype=torch.float32).view(-1, shape.dimensions + 1)
        return Generated(rows[:, 1:].reshape(-1, *dataclasses.astuple(shape)), rows[:, 0].clone())

    return world.in_turn(-(-n // BATCH), batch, _pack, unpack)


def _pack(drawn: Generated) -> bytes:
    """A row an image: its energy, then its pixels."""
    return torch.cat([drawn.energies[:, None], drawn.images.flatten(1)], 1).numpy().tobytes()


class Reconstructed(NamedTuple):
    """Some images, and what a model makes of one posterior sample of z for each.

    originals, images: (batch, channels, height, width) in [−1, 1]. errors: (batch,) mean squared error of each image
    over channels and pixels.
    """

    originals: Pixels
    images: Pixels
    errors: Float[Tensor, " images"]


def reconstruct(
    model: LatentModel, data: Dataset, rows: NDArray[np.int64], seed: int = 0, steps: int | None = None
) -> Iterator[Reconstructed]:
    """Images, inferred (one posterior sample by the training chain) and made again, a batch at a time, on the CPU.

    Args:
        model: the model.
        data: where the images are.
        rows: which ones.
        seed: of the chains.
        steps: overrides the chain's length K1.
    """
    for number, begin in enumerate(range(0, len(rows), BATCH)):
        x = data.batch(rows[begin : begin + BATCH])
        assert isinstance(x, ImageBatch)
        images = model.paint(_infer_batch(model, x, seed, number, steps)).float().cpu()
        yield Reconstructed(x.pixels, images, (images - x.pixels).square().flatten(1).mean(1))


def infer(
    model: LatentModel, data: Dataset, rows: NDArray[np.int64], seed: int = 0, steps: int | None = None
) -> Float[Tensor, "images latent"]:
    """One posterior sample of z for each image: those that `reconstruct` paints.

    Args:
        model: the model.
        data: where the images are.
        rows: which ones.
        seed: of the chains.
        steps: overrides the chain's length K1.
    """
    latents = [
        _infer_batch(model, data.batch(rows[begin : begin + BATCH]), seed, number, steps)
        for number, begin in enumerate(range(0, len(rows), BATCH))
    ]
    return torch.cat(latents)


def _infer_batch(
    model: LatentModel, x: Batch, seed: int, number: int, steps: int | None
) -> Float[Tensor, "images latent"]:
    return model.infer(x.to(model.device), stream(seed, "posterior", number, device=model.device), steps)


def interpolate(model: LatentModel, ends: ImageBatch, points: int = 9, seed: int = 0) -> Pixels:
    """Images along the straight lines between the latents of pairs of images.

    Args:
        model: the model.
        ends: images 0 and 1 are the ends of the first line, 2 and 3 of the second, and so on.
        points: images on a line, both ends included (at least 2).
        seed: of the posterior chains.

    Returns:
        (lines · points, channels, height, width), line by line.
    """
    z = model.infer(ends.to(model.device), stream(seed, "posterior", 0, device=model.device))
    first, last = z[0::2, None], z[1::2, None]  # (lines, 1, latent)
    weights = torch.linspace(0, 1, points, device=z.device)[:, None]
    between = (first * (1 - weights) + last * weights).flatten(0, 1)
    return torch.cat([model.paint(part).float().cpu() for part in torch.split(between, BATCH)])


def to_bytes(pixels: Pixels) -> UInt8[Tensor, "images channels height width"]:
    """Pixels in [−1, 1] as 0 … 255: where 8-bit values became them, the same values."""
    return ((pixels + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)


def grid(pixels: Pixels, columns: int | None = None) -> NDArray[np.uint8]:
    """Images side by side, row by row, with a white border between them.

    Args:
        pixels: in [−1, 1].
        columns: images in a row (default: about as many as there are rows).

    Returns:
        (height, width) of grey images or (height, width, 3).
    """
    n, channels, height, width = pixels.shape
    columns = columns or math.ceil(math.sqrt(n))
    rows = math.ceil(n / columns)
    whole = np.full((rows * (height + BORDER) - BORDER, columns * (width + BORDER) - BORDER, channels), 255, np.uint8)
    for place, image in enumerate(to_bytes(pixels).permute(0, 2, 3, 1).numpy()):
        top, left = place // columns * (height + BORDER), place % columns * (width + BORDER)
        whole[top : top + height, left : left + width] = image
    return whole[:, :, 0] if channels == 1 else whole


def write_grid(path: Path, pixels: Pixels, columns: int | None = None) -> None:
    """Write images side by side as one PNG file (see `grid`), whole or not at all.

    Raises:
        OSError: it cannot be written.
    """
    _write_png(path, grid(pixels, columns))


def write_images(folder: Path, pixels: Pixels, first: int = 0) -> None:
    """Write images as PNG files of their own into a folder, made if need be: 00000.png, 00001.png, …

    Args:
        folder: where to.
        pixels: in [−1, 1].
        first: number of the first one.

    Raises:
        OSError: one cannot be written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for number, image in enumerate(pixels, start=first):
        _write_png(folder / f"{number:05}.png", grid(image[None]))


def require_pillow() -> None:
    """Check that PNG files can be written.

    Raises:
        UsageError: Pillow is not installed.
    """
    if find_spec("PIL") is None:
        raise UsageError("PNG files need Pillow: pip install 'textebm[images]'")


def _write_png(path: Path, image: NDArray[np.uint8]) -> None:
    require_pillow()
    from PIL import Image

    with whole_files.appearing(path, synced=False) as temporary:
        Image.fromarray(image).save(temporary, format="PNG")
