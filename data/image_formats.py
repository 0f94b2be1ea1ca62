"""Readers of the formats in which whole sets of images are published: idx, MATLAB's .mat, CIFAR-10's batches."""

import math
import struct
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from textebm.data.image_files import read_at_most
from textebm.data.matlab import read_arrays
from textebm.data.plain_pickle import PickledArray, load_plain
from textebm.errors import DataError
from textebm.lm_eval.corpus import readable, shown

LARGEST_IDX = 4 << 30
"""Bytes of an idx file, unpacked: MNIST's largest has 47 million."""
IDX_UNSIGNED_BYTES = 0x08
IMAGE_SIDE = 32
"""Of SVHN's and CIFAR-10's images, in pixels."""
CIFAR_ROW = 3 * IMAGE_SIDE * IMAGE_SIDE


@dataclass(frozen=True, eq=False)
class Images:
    """A whole set of images in memory.

    pixels: (images, height, width, channels) uint8. labels: (images,) int64.
    """

    pixels: npt.NDArray[np.uint8]
    labels: npt.NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.pixels)

    @staticmethod
    def joined(parts: "list[Images]") -> "Images":
        """Several sets, one after the other."""
        if len(parts) == 1:
            return parts[0]
        return Images(np.concatenate([p.pixels for p in parts]), np.concatenate([p.labels for p in parts]))


# ---- idx: MNIST


def read_idx(path: Path, dimensions: int) -> npt.NDArray[np.uint8]:
    """The array in an idx file of unsigned bytes, plain, .gz or .xz.

    A header of two zero bytes, the type, the number of dimensions, and each dimension as a big-endian 32-bit number
    is followed by the values (LeCun, "The MNIST database of handwritten digits").

    Args:
        path: the file.
        dimensions: 3 for images, 1 for labels.

    Raises:
        DataError: it cannot be read, is no such file, or its size is not what its header says.
    """
    raw = read_at_most(path, LARGEST_IDX)
    header = 4 + 4 * dimensions
    wanted = bytes([0, 0, IDX_UNSIGNED_BYTES, dimensions])
    if raw[:4] != wanted:
        what = "images" if dimensions == 3 else "labels"
        raise DataError(
            f"{shown(path)}: not an idx file of {what}: it begins with {raw[:4].hex(' ') or 'nothing'}, not with "
            f"{wanted.hex(' ')}. Check that it is the file that its name says, and that it was not unpacked by half"
        )
    if len(raw) < header:
        raise DataError(f"{shown(path)}: cut short: {len(raw)} bytes, and an idx header has {header}; copy it again")
    shape = struct.unpack(f">{dimensions}I", raw[4:header])
    if len(raw) - header != math.prod(shape):
        said = " × ".join(f"{n:,}" for n in shape)
        raise DataError(
            f"{shown(path)}: {len(raw) - header:,} bytes of values, and its header says {said} = {math.prod(shape):,}; "
            "the file is damaged or cut short: copy it again"
        )
    return np.frombuffer(raw, np.uint8, offset=header).reshape(shape)


def read_idx_images(images: Path, labels: Path) -> Images:
    """Grey images and their labels, from two idx files.

    Raises:
        DataError: a file is unusable, or they are of different numbers of images.
    """
    pixels, numbers = read_idx(images, 3), read_idx(labels, 1)
    if len(pixels) != len(numbers):
        raise DataError(
            f"{shown(images)} has {len(pixels):,} images and {shown(labels)} has {len(numbers):,} labels: they do not "
            "belong together"
        )
    return Images(pixels[..., None], numbers.astype(np.int64))


# ---- MATLAB: SVHN


def read_mat(path: Path) -> Images:
    """Images and labels of a .mat file as SVHN's are: X (32, 32, 3, images) uint8, y (images, 1), the digit 0 as 10.

    Source of the form: Netzer et al., "Reading Digits in Natural Images with Unsupervised Feature Learning" (2011).

    Raises:
        DataError: the file is unusable.
    """
    try:
        with readable(path):
            found = read_arrays(path, ("X", "y"))
    except (OSError, ValueError) as error:
        raise DataError(
            f"{shown(path)}: cannot be read as a MATLAB 5 file ({error}); if it should be one, it is damaged or cut "
            "short: copy it again"
        ) from None
    x, y = found.get("X"), found.get("y")
    if x is None or y is None:
        missing = " and ".join(name for name, value in (("X", x), ("y", y)) if value is None)
        raise DataError(f"{shown(path)}: no variable {missing} in it; SVHN's files of 32×32 images have X and y")
    if x.ndim != 4 or x.shape[2] != 3 or x.dtype != np.uint8:
        raise DataError(f"{shown(path)}: X is {x.dtype} {x.shape}, and uint8 (height, width, 3, images) is wanted")
    labels = np.asarray(y).reshape(-1)
    if len(labels) != x.shape[3]:
        raise DataError(f"{shown(path)}: {x.shape[3]:,} images in X and {len(labels):,} labels in y")
    if not np.isin(labels, np.arange(11)).all():
        raise DataError(f"{shown(path)}: labels in y that are no digits: 1 to 9, and 10 for 0, are wanted")
    return Images(np.ascontiguousarray(x.transpose(3, 0, 1, 2)), labels.astype(np.int64) % 10)


def read_mats(*paths: Path) -> Images:
    """The images of several such files, one after the other.

    Raises:
        DataError: see `read_mat`.
    """
    return Images.joined([read_mat(path) for path in paths])


# ---- pickles: CIFAR-10


def read_cifar_batch(raw: bytes, where: str) -> Images:
    """Images and labels of one of CIFAR-10's batches: a pickled dictionary with `data` and `labels`.

    Each row of `data` is an image: its red plane, then green, then blue (Krizhevsky, "Learning Multiple Layers of
    Features from Tiny Images", 2009).

    Args:
        raw: the file's content.
        where: what messages call it.

    Raises:
        DataError: it is unusable, or holds something else than numbers and names.
    """
    batch = load_plain(raw, where)
    if not isinstance(batch, dict):
        raise DataError(f"{where}: not a batch of CIFAR-10: a {type(batch).__name__}, where a dictionary is wanted")
    batch = {key.decode("latin-1") if isinstance(key, bytes) else key: value for key, value in batch.items()}
    data, labels = batch.get("data"), batch.get("labels")
    if not isinstance(data, PickledArray) or not isinstance(labels, list):
        there = ", ".join(map(str, batch))[:200]
        raise DataError(
            f"{where}: not a batch of CIFAR-10: it has {there}, and an array data and a list labels are wanted"
        )
    pixels = data.values(where)
    if pixels.dtype != np.uint8 or pixels.ndim != 2 or pixels.shape[1] != CIFAR_ROW:
        raise DataError(f"{where}: data is {pixels.dtype} {pixels.shape}, and uint8 (images, {CIFAR_ROW}) is wanted")
    if len(labels) != len(pixels):
        raise DataError(f"{where}: {len(pixels):,} images and {len(labels):,} labels")
    if not all(isinstance(label, int) and 0 <= label < 10 for label in labels):
        raise DataError(f"{where}: labels that are no numbers from 0 to 9")
    planes = pixels.reshape(-1, 3, IMAGE_SIDE, IMAGE_SIDE)
    return Images(np.ascontiguousarray(planes.transpose(0, 2, 3, 1)), np.array(labels, dtype=np.int64))
