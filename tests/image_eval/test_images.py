"""Images from folders, archives and arrays: the same pixels in the same order, or a clear refusal."""

import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image

from textebm.errors import DataError, UsageError
from textebm.image_eval.images import ArrayImages, ImageFiles, ImageSet, digest_of, open_images, spread

Pictures = Callable[..., NDArray[np.uint8]]


def all_of(images: ImageSet) -> list[NDArray[np.uint8]]:
    return [image for batch in images.batches(np.arange(len(images))) for image in batch]


def save(image: NDArray[np.uint8], path: Path) -> None:
    """A picture of shape (channels, height, width)."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(image[0] if len(image) == 1 else image.transpose(1, 2, 0)).save(path)


class TestOnePicture:
    """The same images in every form."""

    @pytest.fixture(params=["folder", "zip", "npy", "npz", "channels last", "one of several arrays"])
    def stored(self, request: pytest.FixtureRequest, tmp_path: Path, pictures: Pictures) -> Path:
        images, form = pictures(5, 6, 4), request.param
        if form in ("folder", "zip"):
            for number, image in enumerate(images):
                save(image, tmp_path / "images" / f"{'ab'[number > 2]}" / f"{number}.png")
        if form == "folder":
            (tmp_path / "images" / "notes.txt").write_text("no image")
            (tmp_path / "images" / ".hidden.png").write_bytes(b"no image")
            return tmp_path / "images"
        if form == "zip":
            with zipfile.ZipFile(tmp_path / "images.zip", "w") as archive:
                for path in (tmp_path / "images").rglob("*.png"):
                    archive.write(path, path.relative_to(tmp_path))
            return tmp_path / "images.zip"
        if form == "npz":
            np.savez(tmp_path / "images.npz", pictures=images)
            return tmp_path / "images.npz"
        if form == "one of several arrays":
            np.savez(tmp_path / "images.npz", images, labels=np.arange(5))
            return tmp_path / "images.npz"
        np.save(tmp_path / "images.npy", images.transpose(0, 2, 3, 1) if form == "channels last" else images)
        return tmp_path / "images.npy"

    def test_pixels_and_order(self, stored: Path, pictures: Pictures) -> None:
        images = open_images(stored)
        assert len(images) == 5
        np.testing.assert_array_equal(all_of(images), pictures(5, 6, 4))

    def test_one_digest(self, stored: Path, pictures: Pictures) -> None:
        expected = digest_of(ArrayImages("array", pictures(5, 6, 4)), np.arange(5))
        assert digest_of(open_images(stored), np.arange(5)) == expected
        assert digest_of(open_images(stored), np.array([1, 0, 2, 3, 4])) != expected

    def test_rows(self, stored: Path, pictures: Pictures) -> None:
        found = np.concatenate(list(open_images(stored).batches(np.array([3, 0, 3]))))
        np.testing.assert_array_equal(found, pictures(5, 6, 4)[[3, 0, 3]])


class TestFiles:
    def test_sizes_and_kinds(self, tmp_path: Path, pictures: Pictures) -> None:
        """A batch ends where the size changes; grey stays grey, a palette gives its colours, an idle alpha goes."""
        red = Image.new("RGB", (3, 2), (255, 0, 0))
        red.save(tmp_path / "a.png")
        red.convert("P").save(tmp_path / "b.png")
        red.convert("RGBA").save(tmp_path / "c.png")
        Image.new("L", (3, 2), 7).save(tmp_path / "d.png")
        Image.new("LA", (3, 2), (9, 255)).save(tmp_path / "e.png")
        Image.new("1", (3, 2), 1).save(tmp_path / "f.png")
        save(pictures(1, 9, 9)[0], tmp_path / "g.png")
        batches = list(open_images(tmp_path).batches(np.arange(7)))
        assert [batch.shape for batch in batches] == [(3, 3, 2, 3), (3, 1, 2, 3), (1, 3, 9, 9)]
        assert batches[0][:, :, 0, 0].tolist() == [[255, 0, 0]] * 3
        assert batches[1][:, 0, 0, 0].tolist() == [7, 9, 255]

    @pytest.mark.parametrize(
        ("image", "reason"),
        [
            (Image.new("RGBA", (3, 3), (1, 2, 3, 200)), "transparent in places"),
            (Image.fromarray(np.full((3, 3), 500, np.uint16)), "pixels of the kind I;16"),
        ],
    )
    def test_what_would_have_to_be_changed(self, image: Image.Image, reason: str, tmp_path: Path) -> None:
        image.save(tmp_path / "odd.png")
        with pytest.raises(DataError, match=rf"odd\.png: .*{reason}"):
            all_of(open_images(tmp_path))

    @pytest.fixture
    def one_bad(self, tmp_path: Path, pictures: Pictures) -> Path:
        for number, image in enumerate(pictures(3)):
            save(image, tmp_path / f"{number}.png")
        whole = (tmp_path / "1.png").read_bytes()
        (tmp_path / "1.png").write_bytes(whole[: len(whole) // 2])
        return tmp_path

    def test_a_bad_file_is_named(self, one_bad: Path) -> None:
        with pytest.raises(DataError, match=r"1\.png: .*damaged"):
            all_of(open_images(one_bad))

    def test_bad_files_can_be_left_out(self, one_bad: Path, pictures: Pictures) -> None:
        images = open_images(one_bad)
        assert isinstance(images, ImageFiles)
        readable, bad = images.readable()
        assert bad == ["1.png"]
        np.testing.assert_array_equal(all_of(readable), pictures(3)[[0, 2]])

    def test_an_empty_folder(self, tmp_path: Path) -> None:
        with pytest.raises(DataError, match="no image"):
            open_images(tmp_path)


class TestRefused:
    @pytest.mark.parametrize(
        ("array", "reason"),
        [
            (np.zeros((2, 3, 4, 4), np.float32), "uint8, from 0 to 255, and these are float32"),
            (np.zeros((2, 2, 4, 4), np.uint8), "holds no images"),
            (np.zeros((4, 4), np.uint8), "holds no images"),
            (np.zeros((0, 3, 4, 4), np.uint8), "holds no images"),
        ],
    )
    def test_arrays(self, array: NDArray[np.generic], reason: str, tmp_path: Path) -> None:
        np.save(tmp_path / "a.npy", array)
        with pytest.raises(DataError, match=rf"a\.npy: .*{reason}"):
            open_images(tmp_path / "a.npy")

    def test_several_arrays(self, tmp_path: Path) -> None:
        np.savez(tmp_path / "a.npz", images=np.zeros(1), labels=np.zeros(1))
        with pytest.raises(DataError, match="holds the arrays images, labels; one is wanted"):
            open_images(tmp_path / "a.npz")

    @pytest.mark.parametrize("name", ["a.npy", "a.npz"])
    def test_objects_are_not_unpickled(self, name: str, tmp_path: Path) -> None:
        array = np.array([{"a": 1}], dtype=object)
        np.save(tmp_path / "a.npy", array)
        np.savez(tmp_path / "a.npz", array)
        with pytest.raises(DataError, match="cannot be read"):
            open_images(tmp_path / name)

    @pytest.mark.parametrize("name", ["a.npy", "a.npz", "a.zip"])
    def test_damaged(self, name: str, tmp_path: Path) -> None:
        (tmp_path / name).write_bytes(b"nothing of the kind")
        with pytest.raises(DataError, match=rf"a\.{name[2:]}"):
            open_images(tmp_path / name)

    def test_missing_and_foreign(self, tmp_path: Path) -> None:
        with pytest.raises(DataError, match="no such file or folder"):
            open_images(tmp_path / "none")
        (tmp_path / "a.txt").write_text("text")
        with pytest.raises(DataError, match="an array in a"):
            open_images(tmp_path / "a.txt")


def test_grey_arrays() -> None:
    """(images, height, width) is grey; so is one channel, first or last."""
    grey = np.random.RandomState(0).randint(0, 256, (4, 6, 5)).astype(np.uint8)
    for array in (grey, grey[:, None], grey[..., None]):
        np.testing.assert_array_equal(all_of(ArrayImages("grey", array)), grey[:, None])


@given(st.integers(1, 500), st.integers(1, 500))
def test_rows_are_spread(count: int, total: int) -> None:
    """Different, in order, and no part of the whole has more than its share and one."""
    if count > total:
        with pytest.raises(UsageError, match="images are wanted, and there are"):
            spread(count, total)
        return
    rows = spread(count, total)
    assert len(rows) == count
    assert rows[0] == 0 and rows[-1] < total
    gaps = np.diff([*rows, total])
    assert gaps.max() - gaps.min() <= 1
