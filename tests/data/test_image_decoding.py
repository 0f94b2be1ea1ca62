"""From a picture in a file to pixels: exact where nothing is to do, named where it fails."""

import io

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from textebm.data import image_decoding
from textebm.data.image_decoding import AUTHORS_BOX, CELEBA_SIZE, Fitting, Picture
from textebm.data.images import ImageShape
from textebm.errors import DataError

Image = pytest.importorskip("PIL.Image")


def fit(content, channels=3, size=8, **options):
    return Fitting(ImageShape(channels, size, size), **options).fit(Picture("the picture", content))


@pytest.mark.parametrize("kind", ["PNG", "BMP", "TIFF", "WEBP", "PPM"])
@pytest.mark.parametrize("channels", [1, 3])
def test_what_fits_keeps_every_bit(kind, channels, write):
    if kind == "WEBP" and channels == 1:
        pytest.skip("WebP has no grey")
    pixels = write.pixels(1, 8, channels)[0]
    options = {"lossless": True, "exact": True} if kind == "WEBP" else {}
    fitted, mode = fit(write.png(pixels, kind=kind, **options), channels)
    assert np.array_equal(fitted, pixels.transpose(2, 0, 1))
    assert mode is None
    assert np.array_equal(fit(pixels, channels)[0], fitted)


@given(height=st.integers(1, 20), width=st.integers(1, 20))
def test_the_largest_centred_square_is_kept(height, width):
    """Of a picture whose values say where they stand, cropped alone: each side loses the same, or one pixel more."""
    rows, columns = np.mgrid[:height, :width]
    side = min(height, width)
    raw = np.stack([rows, columns, rows], axis=-1).astype(np.uint8)
    kept, _ = fit(raw, size=side)
    top, left = (height - side) // 2, (width - side) // 2
    assert np.array_equal(kept.transpose(1, 2, 0), raw[top : top + side, left : left + side])


def test_the_authors_crop(write):
    width, height = CELEBA_SIZE
    raw = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
    kept, _ = fit(raw, size=128, crop="authors")
    assert np.array_equal(kept.transpose(1, 2, 0), raw[45 : 45 + 128, 25 : 25 + 128])
    assert AUTHORS_BOX == (25, 45, 153, 173)
    with pytest.raises(DataError, match="the picture: 8×8 pixels, and the crop of the authors is of CelebA"):
        fit(write.pixels(1, 8)[0], crop="authors")


@given(value=st.integers(0, 255), side=st.integers(1, 30), size=st.integers(1, 30))
def test_resizing_keeps_what_is_uniform(value, side, size):
    fitted, _ = fit(np.full((side, side, 3), value, np.uint8), size=size)
    assert fitted.shape == (3, size, size)
    assert (fitted == value).all()


def test_halving_a_linear_ramp_is_exact():
    """Bilinear resizing with antialiasing keeps a straight line away from the borders."""
    ramp = np.broadcast_to(np.arange(0, 64, 2, dtype=np.uint8)[None, :, None], (32, 32, 3))
    fitted, _ = fit(np.ascontiguousarray(ramp), size=16)
    assert np.array_equal(fitted[0, 0, 1:-1], np.arange(1, 63, 4)[1:-1])


class TestModes:
    def test_grey_for_colour_and_colour_for_grey(self, write):
        grey = write.pixels(1, 8, 1)[0]
        fitted, mode = fit(write.png(grey))
        assert mode == "L"
        assert all(np.array_equal(channel, grey[..., 0]) for channel in fitted)
        red = np.zeros((8, 8, 3), np.uint8) + np.array([255, 0, 0], np.uint8)
        fitted, mode = fit(write.png(red), channels=1)
        assert mode == "RGB"
        assert (fitted == 76).all()  # ITU-R 601-2: 0.299 of red

    def test_colour_where_the_first_picture_is_grey(self, write):
        with pytest.raises(DataError, match="the picture: in colour, and the first picture is grey"):
            fit(write.png(write.pixels(1, 8)[0]), channels=1, refuse_colour=True)

    @pytest.mark.parametrize("channels", [1, 3])
    def test_sixteen_bits_keep_the_upper_eight(self, channels):
        values = np.arange(64, dtype=np.uint16).reshape(8, 8) * 1000
        raw = io.BytesIO()
        Image.fromarray(values).save(raw, "PNG")
        fitted, mode = fit(raw.getvalue(), channels)
        assert all(np.array_equal(channel, values >> 8) for channel in fitted)
        assert mode == "I;16"

    @pytest.mark.parametrize("mode", ["RGBA", "LA"])
    def test_what_is_transparent_is_laid_over_white(self, mode):
        image = Image.new(mode, (8, 8))  # black, and clear
        image.putpixel((0, 0), (10, 20, 30, 255) if mode == "RGBA" else (10, 255))
        raw = io.BytesIO()
        image.save(raw, "PNG")
        fitted, was = fit(raw.getvalue())
        assert was == mode
        assert fitted[:, 0, 0].tolist() == ([10, 20, 30] if mode == "RGBA" else [10, 10, 10])
        assert (fitted[:, 1:] == 255).all()

    def test_palettes_and_single_bits(self, write):
        pixels = np.zeros((8, 8, 3), np.uint8)
        pixels[2:4] = [200, 100, 50]
        fitted, mode = fit(write.png(pixels, "P"))
        assert mode == "P"
        assert fitted.shape == (3, 8, 8)
        bits = np.zeros((8, 8), np.uint8)
        bits[3] = 255
        fitted, mode = fit(write.png(bits, "1"), channels=1)
        assert mode == "1"
        assert np.array_equal(fitted[0], bits)

    def test_cmyk(self, write):
        fitted, mode = fit(write.png(np.full((8, 8, 3), 255, np.uint8), "CMYK", "TIFF"))
        assert mode == "CMYK"
        assert (fitted == 255).all()

    @pytest.mark.parametrize(
        ("kind", "said"), [(np.float32, "values with a fraction"), (np.int32, "values of 32 bits")]
    )
    def test_values_that_are_no_bytes(self, kind, said):
        for value in (70000, 200):
            raw = io.BytesIO()
            Image.fromarray(np.full((8, 8), value, kind)).save(raw, "TIFF")
            with pytest.raises(DataError, match=f"the picture: {said}"):
                fit(raw.getvalue())

    def test_sixteen_bits_of_a_format_that_is_read_into_32(self):
        values = np.arange(64, dtype=np.uint16).reshape(8, 8) * 1000
        fitted, mode = fit(b"P5 8 8 65535\n" + values.astype(">u2").tobytes(), channels=1)
        assert np.array_equal(fitted[0], values >> 8)
        assert mode.startswith("I")

    def test_a_photograph_is_turned_as_its_camera_says(self, write):
        pixels = write.pixels(1, 8)[0]
        exif = Image.Exif()
        exif[0x0112] = 3  # upside down
        fitted, _ = fit(write.png(pixels, exif=exif))
        assert np.array_equal(fitted.transpose(1, 2, 0), pixels[::-1, ::-1])


class TestFaults:
    @pytest.mark.parametrize("kind", ["PNG", "JPEG", "GIF", "BMP"])
    @pytest.mark.parametrize("part", [0.02, 0.5, 0.9])
    def test_truncated(self, kind, part, write):
        raw = write.png(write.pixels(1, 64)[0], kind=kind)
        with pytest.raises(DataError, match=r"the picture: (cannot be decoded|no picture)"):
            fit(raw[: int(part * len(raw))])

    def test_a_png_with_other_bits(self, write):
        raw = bytearray(write.png(write.pixels(1, 64)[0]))
        raw[len(raw) // 2] ^= 0xFF
        with pytest.raises(DataError, match="the picture: cannot be decoded"):
            fit(bytes(raw))

    @given(
        raw=st.binary(max_size=100),
        start=st.sampled_from([b"", b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff", b"GIF89a", b"BM"]),
    )
    def test_any_bytes(self, raw, start):
        try:
            fit(start + raw)
        except DataError as error:
            assert str(error).startswith("the picture: ")

    @pytest.mark.parametrize(
        ("raw", "said"), [(b"", "an empty file"), (b"text, not a picture", "no picture of a known format")]
    )
    def test_what_is_no_picture(self, raw, said):
        with pytest.raises(DataError, match=f"the picture: .*{said}"):
            fit(raw)

    def test_a_format_that_is_not_read(self):
        raw = io.BytesIO()
        Image.new("RGB", (8, 8)).save(raw, "PDF")
        with pytest.raises(DataError, match="no picture of a known format"):
            fit(raw.getvalue())

    @pytest.mark.parametrize("limit", ["ours", "Pillow's"])
    def test_too_large(self, limit, write, monkeypatch):
        raw = write.png(write.pixels(1, 20)[0])
        if limit == "ours":
            monkeypatch.setattr(image_decoding, "LARGEST_PIXELS", 399)
        else:
            monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 300)
        with pytest.raises(DataError, match=r"the picture: .*million are read"):
            fit(raw)
