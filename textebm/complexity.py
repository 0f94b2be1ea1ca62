"""How complex images are, and scores that allow for it.

An image of few strokes is made again with little error, whether or not anything like it was ever seen: −log p(x, z)
ranks images by their complexity first, and simple anomalies come out as the most normal of all. Serrà et al., ICLR
2020, "Input complexity and out-of-distribution detection with likelihood-based generative models", measure complexity
as the length of the image under a lossless compressor, and subtract it. Theirs are discrete likelihoods, in the same
bits; a density of fixed σ is not, so here the straight line of scores over complexities is found on images of training.
"""

import dataclasses
import io

import numpy as np
from numpy.typing import NDArray

from textebm.errors import UsageError

COMPRESSOR = "jpeg2000"
"""Lossless JPEG 2000, one of the compressors of Serrà et al.; the name in signatures."""
LEAST_SPREAD = 0.1
"""A spread is no less than this share of the mean one: a line that falls would cross zero somewhere."""


def require_compressor() -> None:
    """Check that complexities can be measured.

    Raises:
        UsageError: Pillow is not installed, or was built without JPEG 2000.
    """
    try:
        from PIL import features
    except ImportError:
        raise UsageError("the complexity of images needs Pillow: pip install 'textebm[images]'") from None
    if not features.check("jpg_2000"):
        raise UsageError("the complexity of images needs JPEG 2000, and this Pillow was built without it")


def complexities(pixels: NDArray[np.uint8]) -> NDArray[np.float64]:
    """The bytes of each image as a lossless JPEG 2000 codestream, headers included.

    Args:
        pixels: (images, 1 or 3, height, width).

    Returns:
        (images,)

    Raises:
        UsageError: see `require_compressor`.
    """
    require_compressor()
    from PIL import Image

    found = np.empty(len(pixels))
    for row, image in enumerate(pixels):
        shown = image[0] if len(image) == 1 else image.transpose(1, 2, 0)
        written = io.BytesIO()
        Image.fromarray(np.ascontiguousarray(shown)).save(written, format="JPEG2000", no_jp2=True)
        found[row] = written.tell()
    return found


@dataclasses.dataclass(frozen=True)
class Trend:
    """What scores are usual at a complexity c: a mean of level + slope · c, and a spread about it that is linear too.

    level, slope: of the mean. spread_level, spread_slope: of the mean distance from it. least: the least spread; above
    0.
    """

    level: float
    slope: float
    spread_level: float
    spread_slope: float
    least: float

    @staticmethod
    def of(complexity: NDArray[np.float64], scores: NDArray[np.float64]) -> "Trend":
        """The trend of some images, by two fits of least squares: of the scores, and of their distances from the first.

        Args:
            complexity: (images,)
            scores: (images,)
        """
        level, slope = _line(complexity, scores)
        distances = np.abs(scores - level - slope * complexity)
        return Trend(level, slope, *_line(complexity, distances), LEAST_SPREAD * float(distances.mean()) or 1.0)

    def adjust(self, complexity: NDArray[np.float64], scores: NDArray[np.float64]) -> NDArray[np.float64]:
        """(images,) how many spreads each score lies above what is usual at its complexity."""
        spread = np.maximum(self.spread_level + self.spread_slope * complexity, self.least)
        return (scores - self.level - self.slope * complexity) / spread


def _line(x: NDArray[np.float64], y: NDArray[np.float64]) -> tuple[float, float]:
    """Level and slope of the line of least squares; a flat one where all x are the same."""
    centred = x - x.mean()
    variance = float(centred @ centred)
    slope = float(centred @ y) / variance if variance > 0 else 0.0
    return float(y.mean()) - slope * float(x.mean()), slope
