"""Images that users bring to a model, in memory or in files, as a data set."""

import hashlib
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, UInt8
from numpy.typing import NDArray
from torch import Tensor

from textebm import checkpoint
from textebm.data.image_decoding import Crop, FittingOfAny, Picture
from textebm.data.image_files import ARCHIVE_ENDINGS, IMAGE_ENDINGS, is_image, open_container
from textebm.data.images import as_batch, chosen_crop, consecutive
from textebm.errors import DataError
from textebm.model.image_batch import ImageBatch, ImageShape


class Given:
    """Images in memory as a data set."""

    def __init__(
        self, pixels: UInt8[Tensor, "images channels height width"] | Float[Tensor, "images channels height width"]
    ) -> None:
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
