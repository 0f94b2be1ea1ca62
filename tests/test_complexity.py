"""The complexity of images, and scores adjusted for it: laws of the lines, and an anomaly that is simple."""

import sys

import numpy as np
import pytest

from textebm import complexity
from textebm.complexity import Trend, complexities
from textebm.errors import UsageError
from textebm.ranking import Ranking


def noise(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)


class TestComplexities:
    @pytest.mark.parametrize("channels", [1, 3])
    @pytest.mark.parametrize("side", [1, 5, 28, 64])
    def test_noise_takes_the_bytes_that_it_has_and_one_colour_next_to_none(self, channels: int, side: int) -> None:
        plain, noisy = complexities(
            np.stack([np.full((channels, side, side), 7, np.uint8), noise(channels, side, side)])
        )
        headers, pixels = 250, channels * side * side
        assert plain < headers
        assert noisy >= pixels
        assert noisy < 1.2 * pixels + headers

    def test_it_grows_with_what_is_drawn(self) -> None:
        images = np.zeros((4, 1, 28, 28), np.uint8)
        for strokes, image in enumerate(images):
            for stroke in range(strokes):
                image[0, 4:24, 5 + 7 * stroke] = 255
        found = complexities(images)
        assert (np.diff(found) > 0).all()

    def test_of_no_image_there_are_none(self) -> None:
        assert complexities(np.empty((0, 1, 8, 8), np.uint8)).shape == (0,)

    def test_without_pillow_the_message_says_what_to_install(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setitem(sys.modules, "PIL", None)
        with pytest.raises(UsageError, match=r"pip install 'textebm\[images\]'"):
            complexity.require_compressor()

    def test_without_jpeg_2000_the_message_says_so(self, monkeypatch: pytest.MonkeyPatch) -> None:
        from PIL import features

        monkeypatch.setattr(features, "check", lambda name: name != "jpg_2000")
        with pytest.raises(UsageError, match="built without"):
            complexities(noise(1, 1, 8, 8))


class TestTrend:
    def test_lines_are_found_again(self) -> None:
        """Scores N(3 + 2c, (1 + c)²): the mean distance from the first line is (1 + c) √(2/π)."""
        source = np.random.default_rng(0)
        c = source.uniform(0, 10, 100_000)
        trend = Trend.of(c, 3 + 2 * c + (1 + c) * source.normal(size=len(c)))
        assert (trend.level, trend.slope) == (pytest.approx(3, abs=0.1), pytest.approx(2, abs=0.03))
        ratio = (2 / np.pi) ** 0.5
        assert (trend.spread_level, trend.spread_slope) == (
            pytest.approx(ratio, abs=0.05),
            pytest.approx(ratio, abs=0.02),
        )
        assert trend.adjust(np.array([0.0, 10.0]), np.array([4.0, 34.0])) == pytest.approx([1 / ratio] * 2, rel=0.05)

    def test_what_is_adjusted_knows_neither_unit_nor_offset_of_scores_and_complexities(self) -> None:
        source = np.random.default_rng(1)
        c, scores = source.normal(size=(2, 500))
        one = Trend.of(c, scores).adjust(c, scores)
        other = Trend.of(100 * c - 7, 3 * scores + 40).adjust(100 * c - 7, 3 * scores + 40)
        np.testing.assert_allclose(one, other, atol=1e-9)

    def test_of_images_of_one_complexity_the_order_stays(self) -> None:
        scores = np.random.default_rng(2).normal(size=50)
        c = np.full(50, 300.0)
        assert (np.argsort(Trend.of(c, scores).adjust(c, scores)) == np.argsort(scores)).all()

    def test_scores_on_a_line_are_adjusted_by_the_distance_from_it(self) -> None:
        c = np.arange(10.0)
        assert Trend.of(c, 2 * c).adjust(c, 2 * c + 5) == pytest.approx([5] * 10)

    def test_a_spread_that_would_be_negative_is_the_least_one(self) -> None:
        c = np.array([0.0, 0.0, 1.0, 1.0])
        trend = Trend.of(c, np.array([-2.0, 2.0, -1.0, 1.0]))  # distances 2 and 1
        assert trend.adjust(np.array([5.0]), np.array([0.3])) == pytest.approx([0.3 / 0.15])

    def test_simple_anomalies_that_score_low_are_found(self) -> None:
        """Normal scores grow with complexity; anomalies are simple, and score high for so simple an image alone."""
        source = np.random.default_rng(3)
        c = np.concatenate([source.normal(600, 60, 2000), source.normal(430, 20, 500)])
        usual = 0.2 * c + 5 * source.normal(size=len(c))
        anomalous = np.arange(len(c)) >= 2000
        scores = usual + 15 * anomalous
        adjusted = Trend.of(c[:1000], scores[:1000]).adjust(c, scores)
        plain, allowed = (Ranking(each, anomalous).average_precision() for each in (scores, adjusted))
        assert plain < anomalous.mean() < 0.8 < allowed
