"""Images to measure: a folder of files, an array in a file or in memory; read anew at each pass, as 8-bit pixels."""

import hashlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import numpy as np
from numpy.typing import NDArray

from textebm.errors import DataError, UsageError

if TYPE_CHECKING:
    from PIL.Image import Image

Pixels = NDArray[np.uint8]
Rows = NDArray[np.int64]

ENDINGS = (".png", ".jpg", ".jpeg")
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
    """Images in files of their own, of any sizes.

    8-bit grey, colour and palette images are taken as they are; an alpha channel is dropped where nothing is
    transparent. What would have to be changed to be measured is refused: transparency, 16 bits, CMYK.

    Args:
        name: what they are called.
        files: in their order.
    """

    def __init__(self, name: str, files: list[Path]) -> None:
        self.name = name
        self.files = files

    @classmethod
    def of_folder(cls, folder: Path) -> "ImageFiles":
        """All PNG and JPEG files in a folder and the folders in it, in the order of their paths; no hidden ones.

        Raises:
            DataError: there is none.
        """
        inside = (path.relative_to(folder) for path in folder.rglob("*") if path.suffix.lower() in ENDINGS)
        files = sorted(path for path in inside if not any(part.startswith(".") for part in path.parts))
        if not files:
            raise DataError(f"{folder}: there is no PNG or JPEG file in this folder")
        return cls(str(folder), [folder / path for path in files])

    def readable(self) -> "tuple[ImageFiles, list[Path]]":
        """The same without the files that cannot be read, and those."""
        bad = []
        for path in self.files:
            try:
                read_image(path)
            except DataError:
                bad.append(path)
        left_out = set(bad)
        return ImageFiles(self.name, [path for path in self.files if path not in left_out]), bad

    def __len__(self) -> int:
        return len(self.files)

    def batches(self, rows: Rows) -> Iterator[Pixels]:
        """See `ImageSet`; a batch ends where the size changes."""
        waiting: list[Pixels] = []
        for row in rows:
            image = read_image(self.files[row])
            if waiting and (len(waiting) == AT_ONCE or waiting[0].shape != image.shape):
                yield np.stack(waiting)
                waiting = []
            waiting.append(image)
        if waiting:
            yield np.stack(waiting)


def read_image(path: Path) -> Pixels:
    """The pixels of a file; shape (1 or 3, height, width).

    Raises:
        DataError: it cannot be read, or would have to be changed to be measured.
    """
    import PIL.Image

    try:
        with PIL.Image.open(path) as image:
            image.load()
            pixels = np.asarray(_plain(path, image))
    except PIL.UnidentifiedImageError:
        raise DataError(f"{path}: not an image, or one of an unknown format") from None
    except (OSError, ValueError, SyntaxError, PIL.Image.DecompressionBombError) as error:  # cut or damaged
        raise DataError(f"{path}: this image cannot be read ({error})") from None
    return pixels[None] if pixels.ndim == 2 else pixels.transpose(2, 0, 1)


def _plain(path: Path, image: "Image") -> "Image":
    """The image in 8-bit grey or colour.

    Raises:
        DataError: it has neither, or is transparent somewhere.
    """
    if image.mode in ("LA", "La", "RGBA", "PA", "RGBa") or "transparency" in image.info:
        colours = image.convert("RGBA")
        if colours.getextrema()[3] != (255, 255):
            raise DataError(f"{path}: is transparent in places; lay it on a background first")
        return colours.convert("L" if image.mode in ("LA", "La", "L") else "RGB")
    if image.mode in ("L", "RGB"):
        return image
    if image.mode in ("1", "P"):
        return image.convert("L" if image.mode == "1" else "RGB")
    raise DataError(f"{path}: pixels are of the kind {image.mode}, where 8-bit grey or RGB is wanted; convert it first")


def open_images(path: Path) -> "ArrayImages | ImageFiles":
    """The images of a folder, or of an array in a .npy or .npz file.

    Raises:
        DataError: there is nothing of that kind.
    """
    if path.is_dir():
        return ImageFiles.of_folder(path)
    if not path.exists():
        raise DataError(f"{path}: there is no such file or folder")
    if path.suffix not in (".npy", ".npz"):
        raise DataError(f"{path}: images are a folder of PNG or JPEG files, or an array in a .npy or .npz file")
    try:
        loaded = np.load(path, mmap_mode="r" if path.suffix == ".npy" else None, allow_pickle=False)
        array = loaded if path.suffix == ".npy" else _only_array(path, loaded)
    except (OSError, ValueError, EOFError, KeyError) as error:
        raise DataError(f"{path}: this array cannot be read ({error})") from None
    return ArrayImages(str(path), array)


def _only_array(path: Path, archive: "np.lib.npyio.NpzFile") -> NDArray[np.generic]:
    with archive:
        names = archive.files
        if "arr_0" not in names and len(names) != 1:
            raise DataError(f"{path}: holds the arrays {', '.join(names) or 'none'}; one is wanted, or one named arr_0")
        found: NDArray[np.generic] = archive["arr_0" if "arr_0" in names else names[0]]
        return found


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
