"""Images to measure: files in a folder or an archive, an array; read anew at each pass, as 8-bit pixels."""

import hashlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import numpy as np
from numpy.typing import NDArray

from textebm.data.image_decoding import Picture, opened
from textebm.data.image_files import ARCHIVE_ENDINGS, IMAGE_ENDINGS, Container, is_image, open_container
from textebm.errors import DataError, UsageError
from textebm.lm_eval.plain_arrays import arrays_in, mapped, names_in

if TYPE_CHECKING:
    from PIL.Image import Image

Pixels = NDArray[np.uint8]
Rows = NDArray[np.int64]

AT_ONCE = 64
"""Images read in one go."""


class ImageSet(Protocol):
    """Images in a fixed order."""

    @property
    def name(self) -> str:
        """What they are called in messages and results."""
        ...

    def __len__(self) -> int: ...

    def batches(self, rows: Rows) -> Iterator[Pixels]:
        """The images of these rows, in the order given.

        Returns:
            Arrays of images of one size, shape (images, channels, height, width), of 1 or 3 channels, from 0 to 255.

        Raises:
            DataError: an image cannot be read; the message names it.
        """
        ...


class ArrayImages:
    """Images in an array.

    Args:
        name: what they are called.
        array: uint8, of shape (images, height, width, 1 or 3), (images, 1 or 3, height, width) or, grey, (images,
            height, width). What could be either of the first two is taken to be the first.

    Raises:
        DataError: the array is of another type or shape.
    """

    def __init__(self, name: str, array: NDArray[np.generic]) -> None:
        self.name = name
        if array.dtype != np.uint8:
            raise DataError(f"{name}: pixels are wanted as uint8, from 0 to 255, and these are {array.dtype}")
        if array.ndim == 3:
            array = array[:, None]
        elif array.ndim == 4 and array.shape[-1] in (1, 3):
            array = array.transpose(0, 3, 1, 2)
        if array.ndim != 4 or array.shape[1] not in (1, 3) or 0 in array.shape:
            raise DataError(
                f"{name}: an array of shape {array.shape} holds no images; (images, height, width, 3 or 1), "
                "(images, 3 or 1, height, width) and (images, height, width) do"
            )
        self._array: Pixels = array  # type: ignore[assignment]

    def __len__(self) -> int:
        return len(self._array)

    def batches(self, rows: Rows) -> Iterator[Pixels]:
        """See `ImageSet`."""
        for begin in range(0, len(rows), AT_ONCE):
            yield np.ascontiguousarray(self._array[rows[begin : begin + AT_ONCE]])


class ImageFiles:
    """Images in files of their own, of any sizes, in a folder or an archive.

    8-bit grey, colour and palette images are taken as they are; an alpha channel is dropped where nothing is
    transparent. What would have to be changed to be measured is refused: transparency, 16 bits, CMYK.

    Args:
        container: the folder or archive.
        files: names in it, in their order; all images by default.

    Raises:
        DataError: there is none, or the archive is damaged.
    """

    def __init__(self, container: Container, files: Sequence[str] | None = None) -> None:
        self.name = container.describe()
        self._container = container
        self.files = [name for name in container.names() if is_image(name)] if files is None else list(files)
        if not self.files:
            raise DataError(f"{self.name}: there is no image that can be read in it ({', '.join(IMAGE_ENDINGS)})")

    def readable(self) -> "tuple[ImageFiles, list[str]]":
        """The same without the files that cannot be read, and those."""
        bad = []
        for name in self.files:
            try:
                self.image(name)
            except DataError:
                bad.append(name)
        left_out = set(bad)
        return ImageFiles(self._container, [name for name in self.files if name not in left_out]), bad

    def __len__(self) -> int:
        return len(self.files)

    def batches(self, rows: Rows) -> Iterator[Pixels]:
        """See `ImageSet`; a batch ends where the size changes."""
        waiting: list[Pixels] = []
        for row in rows:
            image = self.image(self.files[row])
            if waiting and (len(waiting) == AT_ONCE or waiting[0].shape != image.shape):
                yield np.stack(waiting)
                waiting = []
            waiting.append(image)
        if waiting:
            yield np.stack(waiting)

    def image(self, name: str) -> Pixels:
        """The pixels of a file; shape (1 or 3, height, width).

        Raises:
            DataError: it cannot be read, or would have to be changed to be measured.
        """
        where = f"{self.name}/{name}"
        pixels = np.asarray(_plain(where, opened(Picture(where, self._container.read(name)))))
        return pixels[None] if pixels.ndim == 2 else pixels.transpose(2, 0, 1)


def _plain(where: str, image: "Image") -> "Image":
    """The image in 8-bit grey or colour.

    Raises:
        DataError: it has neither, or is transparent somewhere.
    """
    if image.has_transparency_data:
        colours = image.convert("RGBA")
        if colours.getchannel("A").getextrema() != (255, 255):
            raise DataError(f"{where}: is transparent in places; lay it on a background first")
        return colours.convert("L" if image.mode in ("L", "LA", "La") else "RGB")
    if image.mode in ("L", "RGB"):
        return image
    if image.mode in ("1", "P"):
        return image.convert("L" if image.mode == "1" else "RGB")
    raise DataError(f"{where}: pixels of the kind {image.mode}, where 8-bit grey or RGB is wanted; convert it first")


def open_images(path: Path) -> "ArrayImages | ImageFiles":
    """The images in a folder or an archive, or of an array in a .npy or .npz file.

    Raises:
        DataError: there is nothing of that kind.
    """
    if not path.exists():
        raise DataError(f"{path}: there is no such file or folder")
    if path.is_dir() or path.name.lower().endswith(ARCHIVE_ENDINGS):
        return ImageFiles(open_container(path))
    if path.suffix not in (".npy", ".npz"):
        raise DataError(
            f"{path}: images are files in a folder or an archive ({', '.join(ARCHIVE_ENDINGS)}), or an array in a .npy "
            "or .npz file"
        )
    try:
        array = mapped(path) if path.suffix == ".npy" else _only_array(path)
    except (OSError, ValueError, KeyError) as error:
        raise DataError(f"{path}: this array cannot be read ({error})") from None
    return ArrayImages(str(path), array)


def _only_array(path: Path) -> NDArray[np.generic]:
    names = names_in(path)
    if "arr_0" not in names and len(names) != 1:
        raise DataError(f"{path}: holds the arrays {', '.join(names) or 'none'}; one is wanted, or one named arr_0")
    return arrays_in(path, ["arr_0" if "arr_0" in names else names[0]])[0]


def spread(count: int, total: int) -> Rows:
    """`count` of `total` rows, spread evenly, so that data in the order of their classes keep the classes' shares."""
    if not 0 < count <= total:
        raise UsageError(f"{count:,} images are wanted, and there are {total:,}")
    return np.arange(count, dtype=np.int64) * total // count


def digest_of(images: ImageSet, rows: Rows, advance: Callable[[int], object] | None = None) -> str:
    """SHA-256 of the pixels of these rows: the same whatever form they are kept in, if it loses nothing."""
    digest = hashlib.sha256()
    for batch in images.batches(rows):
        shape = "x".join(map(str, batch.shape[1:])).encode()
        for image in batch:
            digest.update(shape + b"\n")
            digest.update(image.tobytes())
        if advance is not None:
            advance(len(batch))
    return digest.hexdigest()
