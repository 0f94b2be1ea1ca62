"""From a picture as it lies in a file to the pixels that a model sees: decoded, cropped, resized, 8 bits a channel."""

import io
import warnings
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, get_args

import numpy as np
import numpy.typing as npt

from textebm.errors import DataError
from textebm.model.image_batch import ImageShape

if TYPE_CHECKING:
    from PIL.Image import Image

Crop = Literal["authors", "centre"]
CROPS: tuple[Crop, ...] = get_args(Crop)

CELEBA_SIZE = (178, 218)
"""Width and height of CelebA's aligned images."""
AUTHORS_BOX = (25, 45, 153, 173)
"""Left, top, right and bottom of the crop named `celeba_crop` in the code of Pang et al. (2020), in CelebA's aligned
images: 128 by 128 pixels around the face (train_svhn.py and train_celeba_128.py of bpucla/latent-space-EBM-prior)."""
FORMATS = ("JPEG", "PNG", "BMP", "GIF", "WEBP", "TIFF", "PPM")
LARGEST_PIXELS = 64_000_000
"""Of one picture; more is a mistake, or a bomb."""
SIXTEEN_BITS = ("I;16", "I;16L", "I;16B", "I")
MODES = {1: "L", 3: "RGB"}
"""Pillow's name of 8 bits a channel, by the number of channels."""


@dataclass(frozen=True, eq=False)
class Picture:
    """A picture as it lies in its source.

    name: what messages call it. label: number of its class, None: it has none.
    content: an image file's bytes, or (height, width, channels) uint8.
    """

    name: str
    content: bytes | npt.NDArray[np.uint8]
    label: int | None = None


@dataclass(frozen=True)
class Fitting:
    """How pictures are made to fit: the shape they get, and what of them is kept.

    Args:
        shape: channels (1: grey, 3: red, green, blue), height and width.
        crop: `centre`: the largest centred square; `authors`: AUTHORS_BOX, of CelebA's aligned images.
        refuse_colour: whether a picture in colour is an error where one channel is wanted, not made grey.
    """

    shape: ImageShape
    crop: Crop = "centre"
    refuse_colour: bool = False

    def fit(self, picture: Picture) -> tuple[npt.NDArray[np.uint8], str | None]:
        """The pixels of a picture, resized bilinearly (with antialiasing) where its crop has another size.

        Returns:
            (channels, height, width) uint8, and Pillow's name of the picture's own mode where that was converted.

        Raises:
            DataError: the picture cannot be decoded, or not be cropped so; its name is in the message.
        """
        wanted = (self.shape.height, self.shape.width, self.shape.channels)
        if isinstance(picture.content, np.ndarray) and picture.content.shape == wanted and self.crop == "centre":
            return np.ascontiguousarray(picture.content.transpose(2, 0, 1)), None
        image = opened(picture)
        mode = MODES[self.shape.channels]
        if self.refuse_colour and self.shape.channels == 1 and is_coloured(image):
            raise DataError(
                f"{picture.name}: in colour, and the first picture is grey. Say how many channels all get: 1 or 3"
            )
        eight_bits = _eight_bits(image, mode, picture.name)
        size = (self.shape.width, self.shape.height)
        box = self._box(picture, image.size)
        if box != (0, 0, *image.size):
            eight_bits = eight_bits.crop(box)
        if eight_bits.size != size:
            eight_bits = eight_bits.resize(size, _bilinear())
        pixels = np.asarray(eight_bits).reshape(wanted)
        return np.ascontiguousarray(pixels.transpose(2, 0, 1)), None if image.mode == mode else image.mode

    def _box(self, picture: Picture, size: tuple[int, int]) -> tuple[int, int, int, int]:
        """Left, top, right and bottom of what is kept."""
        if self.crop == "authors":
            if size != CELEBA_SIZE:
                raise DataError(
                    f"{picture.name}: {size[0]}×{size[1]} pixels, and the crop of the authors is of CelebA's images "
                    f"({CELEBA_SIZE[0]}×{CELEBA_SIZE[1]}); take the crop named centre"
                )
            return AUTHORS_BOX
        return centred(size)


def centred(size: tuple[int, int]) -> tuple[int, int, int, int]:
    """Left, top, right and bottom of the largest centred square of a picture, of whose width and height."""
    side = min(size)
    left, top = (size[0] - side) // 2, (size[1] - side) // 2
    return left, top, left + side, top + side


@dataclass(frozen=True)
class FittingOfAny(Fitting):
    """The same for pictures that a user names: those that are no images of CelebA, which the authors' crop is of, are
    cropped to the centred square, whatever a model was trained on.
    """

    def _box(self, picture: Picture, size: tuple[int, int]) -> tuple[int, int, int, int]:
        return super()._box(picture, size) if size == CELEBA_SIZE else centred(size)


def opened(picture: Picture) -> "Image":
    """A picture, decoded, and turned as its camera says that it is to be looked at.

    Raises:
        DataError: Pillow is not installed, or the picture is damaged, of an unknown format, or too large.
    """
    try:
        from PIL import Image, ImageOps, UnidentifiedImageError
    except ImportError:
        raise DataError(f"{picture.name}: pictures need Pillow: pip install 'textebm[images]'") from None
    if isinstance(picture.content, np.ndarray):
        pixels = picture.content
        return Image.fromarray(pixels[..., 0] if pixels.shape[-1] == 1 else pixels)
    if not picture.content:
        raise DataError(f"{picture.name}: an empty file, where a picture is wanted; copy it again or take it out")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            warnings.filterwarnings("ignore", category=UserWarning)  # of odd metadata, which is not used
            image = Image.open(io.BytesIO(picture.content), formats=FORMATS)
            if image.width * image.height > LARGEST_PIXELS:
                raise DataError(_too_large(picture.name, f"{image.width:,}×{image.height:,} pixels"))
            image.load()
            if image.mode == "I" and image.format != "PPM":  # the one format whose 16 bits are read into 32
                raise DataError(f"{picture.name}: values of 32 bits; save it with 8 or 16")
            return ImageOps.exif_transpose(image)
    except (Image.DecompressionBombWarning, Image.DecompressionBombError) as error:
        raise DataError(_too_large(picture.name, str(error))) from None
    except DataError:
        raise
    except UnidentifiedImageError:
        raise DataError(
            f"{picture.name}: no picture of a known format ({', '.join(FORMATS)}); copy it again or take it out"
        ) from None
    except Exception as error:  # decoders raise what their parsers do: OSError, SyntaxError, ValueError, struct.error
        reason = " ".join(str(error).split()) or type(error).__name__
        raise DataError(
            f"{picture.name}: cannot be decoded ({reason}); the file is damaged or no picture: copy it anew or drop it"
        ) from None


def _too_large(name: str, size: str) -> str:
    return f"{name}: {size}; at most {LARGEST_PIXELS // 1_000_000} million are read. Make it smaller or take it out"


def is_coloured(image: "Image") -> bool:
    """Whether a picture's mode has colour."""
    return image.mode not in ("1", "L", "LA", "La", "F", *SIXTEEN_BITS)


def _eight_bits(image: "Image", mode: str, name: str) -> "Image":
    """A picture in the mode `L` or `RGB`.

    Of 16 bits the upper 8 are kept. What is transparent is laid over white.

    Raises:
        DataError: it has values that are not of 8 or 16 bits.
    """
    from PIL import Image

    if image.mode in SIXTEEN_BITS:
        values = np.asarray(image).astype(np.int64)
        if values.min() < 0 or values.max() > 65535:
            raise DataError(
                f"{name}: values of 32 bits, from {values.min():,} to {values.max():,}; save it with 8 or 16"
            )
        image = Image.fromarray((values >> 8).astype(np.uint8))
    if image.mode == "F":
        raise DataError(f"{name}: values with a fraction; save it with 8 or 16 bits")
    if image.has_transparency_data:
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image.convert("RGBA"))
    return image if image.mode == mode else image.convert(mode)


def _bilinear() -> int:
    from PIL.Image import Resampling

    return Resampling.BILINEAR
