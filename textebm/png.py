"""Images as PNG files: one by one, or side by side in a grid."""

import math
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, UInt8
from numpy.typing import NDArray
from torch import Tensor

from textebm import whole_files
from textebm.errors import UsageError

BORDER = 2
"""Pixels between the images of a grid."""

Pixels = Float[Tensor, "images channels height width"]


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
