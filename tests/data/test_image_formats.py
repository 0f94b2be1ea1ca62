"""Readers of published formats: what was written is read again, what is damaged or foreign is refused by name."""

import gzip
import os
import pickle
import struct
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from textebm.data import image_formats
from textebm.data.image_formats import read_cifar_batch, read_idx, read_idx_images, read_mat, read_mats
from textebm.data.plain_pickle import PickledArray, load_plain
from textebm.errors import DataError


class TestIdx:
    @given(array=arrays.arrays(np.uint8, arrays.array_shapes(min_dims=1, max_dims=3, max_side=6)))
    def test_round_trip(self, array, tmp_path_factory):
        path = tmp_path_factory.mktemp("idx") / "x.gz"
        path.write_bytes(
            gzip.compress(bytes([0, 0, 8, array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape) + array.tobytes())
        )
        assert np.array_equal(read_idx(path, array.ndim), array)

    @pytest.mark.parametrize("ending", ["", ".gz", ".xz"])
    def test_images_and_labels(self, ending, write, tmp_path):
        pixels, labels = write.mnist(tmp_path, ending=ending)
        images = read_idx_images(*(tmp_path / f"train-{n}-ubyte{ending}" for n in ("images-idx3", "labels-idx1")))
        assert np.array_equal(images.pixels[..., 0], pixels)
        assert images.labels.tolist() == labels.tolist()

    @pytest.mark.parametrize(
        ("change", "said"),
        [
            (lambda raw: b"", "begins with nothing"),
            (lambda raw: raw[:6], "cut short: 6 bytes, and an idx header has 16"),
            (lambda raw: raw[:-1], "31,359 bytes of values, and its header says 40 × 28 × 28 = 31,360"),
            (lambda raw: raw + b"\0", "31,361 bytes of values"),
            (lambda raw: b"\0\0\x0d\x03" + raw[4:], "begins with 00 00 0d 03, not with 00 00 08 03"),
            (gzip.compress, "begins with 1f 8b 08"),
        ],
        ids=["empty", "cut header", "cut", "longer", "of floats", "packed twice"],
    )
    def test_damage(self, change, said, write, tmp_path):
        write.mnist(tmp_path, ending="")
        path = tmp_path / "train-images-idx3-ubyte"
        path.write_bytes(change(path.read_bytes()))
        with pytest.raises(DataError, match="train-images-idx3-ubyte") as caught:
            read_idx(path, 3)
        assert said in str(caught.value)

    def test_labels_in_the_place_of_images(self, write, tmp_path):
        write.mnist(tmp_path)
        with pytest.raises(DataError, match="not an idx file of images"):
            read_idx(tmp_path / "train-labels-idx1-ubyte.gz", 3)

    def test_a_truncated_gz(self, write, tmp_path):
        write.mnist(tmp_path)
        path = tmp_path / "train-images-idx3-ubyte.gz"
        path.write_bytes(path.read_bytes()[:-100])
        with pytest.raises(DataError, match=r"damaged or cut short: test it with gzip -t"):
            read_idx(path, 3)

    def test_files_that_do_not_belong_together(self, write, tmp_path):
        write.mnist(tmp_path)
        with pytest.raises(DataError, match=r"40 images and .* has 12 labels"):
            read_idx_images(tmp_path / "train-images-idx3-ubyte.gz", tmp_path / "t10k-labels-idx1-ubyte.gz")

    def test_a_bomb(self, tmp_path, monkeypatch):
        monkeypatch.setattr(image_formats, "LARGEST_IDX", 1000)
        (tmp_path / "x.gz").write_bytes(gzip.compress(bytes(1001)))
        with pytest.raises(DataError, match="more than 1,000 bytes, unpacked"):
            read_idx(tmp_path / "x.gz", 3)


class TestMat:
    def test_round_trip_and_the_digit_0(self, write, tmp_path):
        write.svhn(tmp_path, train=13)
        images = read_mat(tmp_path / "train_32x32.mat")
        assert np.array_equal(images.pixels, write.pixels(13))
        assert images.labels.tolist() == [1, 2, 3, 4, 5, 6, 7, 8, 9, 0, 1, 2, 3]

    def test_several_files_one_after_the_other(self, write, tmp_path):
        write.svhn(tmp_path, train=3, extra=2)
        images = read_mats(tmp_path / "train_32x32.mat", tmp_path / "extra_32x32.mat")
        assert np.array_equal(images.pixels, np.concatenate([write.pixels(3), write.pixels(2, seed=1)]))
        assert images.labels.tolist() == [1, 2, 3, 1, 2]

    @pytest.mark.parametrize("keep", [0, 20, 200, -200])
    def test_cut(self, keep, write, tmp_path):
        write.svhn(tmp_path, train=5)
        path = tmp_path / "train_32x32.mat"
        path.write_bytes(path.read_bytes()[:keep])
        with pytest.raises(DataError, match=r"train_32x32.mat: (cannot be read as a MATLAB 5 file|no variable)"):
            read_mat(path)

    @pytest.mark.parametrize(
        ("variables", "said"),
        [
            ({"y": np.ones((2, 1))}, "no variable X"),
            ({"X": np.zeros((32, 32, 3, 2), np.uint8)}, "no variable y"),
            ({"X": np.zeros((32, 32, 3, 2)), "y": np.ones((2, 1))}, "X is float64"),
            ({"X": np.zeros((2, 32, 32, 3), np.uint8), "y": np.ones((2, 1))}, r"X is uint8 \(2, 32, 32, 3\)"),
            ({"X": np.zeros((32, 32, 3, 2), np.uint8), "y": np.ones((3, 1))}, "2 images in X and 3 labels in y"),
            ({"X": np.zeros((32, 32, 3, 2), np.uint8), "y": np.full((2, 1), 11)}, "labels in y that are no digits"),
        ],
    )
    def test_other_contents(self, variables, said, tmp_path):
        pytest.importorskip("scipy.io").savemat(tmp_path / "x.mat", variables)
        with pytest.raises(DataError, match=said):
            read_mat(tmp_path / "x.mat")

    def test_missing(self, tmp_path):
        with pytest.raises(DataError, match="no such file"):
            read_mat(tmp_path / "x.mat")


class Evil:
    """What a hostile pickle asks for."""

    def __init__(self, *call):
        self.call = call

    def __reduce__(self):
        return self.call


class TestPickles:
    @pytest.mark.parametrize("protocol", range(2, 6))
    def test_round_trip_of_a_batch(self, protocol, write):
        pixels = write.pixels(4)
        images = read_cifar_batch(write.cifar_batch(pixels, [3, 1, 4, 1], protocol), "batch")
        assert np.array_equal(images.pixels, pixels)
        assert images.labels.tolist() == [3, 1, 4, 1]

    def test_a_batch_of_python_2(self, write):
        pixels = write.pixels(2)
        raw = write.cifar_batch_of_python2(pixels, [7, 9])
        assert isinstance(
            pickle.loads(raw, encoding="bytes")[b"data"], np.ndarray
        )  # it is one for the usual reader too
        images = read_cifar_batch(raw, "batch")
        assert np.array_equal(images.pixels, pixels)
        assert images.labels.tolist() == [7, 9]

    @given(
        value=st.recursive(
            st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text() | st.binary(),
            lambda inner: st.lists(inner) | st.tuples(inner, inner) | st.dictionaries(st.text(), inner),
            max_leaves=8,
        ),
        protocol=st.integers(0, 5),
    )
    def test_numbers_names_lists_and_dictionaries_are_read_as_they_are(self, value, protocol):
        assert load_plain(pickle.dumps(value, protocol), "x") == value

    @given(
        array=arrays.arrays(st.sampled_from([np.uint8, np.int32, np.float64, ">i4"]), arrays.array_shapes(max_side=4)),
        protocol=st.integers(2, 5),
        order=st.sampled_from("CF"),
    )
    def test_arrays_are_read_as_they_are(self, array, protocol, order):
        read = load_plain(pickle.dumps(np.asarray(array, order=order), protocol), "x").values("x")
        assert read.dtype == array.dtype
        assert np.array_equal(read, array, equal_nan=True)

    @pytest.mark.parametrize("protocol", range(6))
    @pytest.mark.parametrize(
        ("call", "named"),
        [
            ((os.system, ("touch pickled",)), "system"),
            ((eval, ("__import__('os').mkdir('pickled')",)), "eval"),
            ((Path, ("pickled",)), "Path"),
            ((np.load, ("pickled",)), "load"),
        ],
        ids=["system", "eval", "path", "numpy"],
    )
    def test_nothing_is_called(self, call, named, protocol, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        with pytest.raises(DataError, match=rf"x: not read as a pickle of numbers: it wants to import \S+{named}"):
            load_plain(pickle.dumps({"data": Evil(*call)}, protocol), "x")
        assert not list(tmp_path.iterdir())

    def test_arrays_of_objects_are_refused(self):
        array = load_plain(pickle.dumps(np.array([{}, None], dtype=object)), "x")
        assert isinstance(array, PickledArray)
        with pytest.raises(DataError, match="numbers"):
            array.values("x")

    def test_an_array_larger_than_its_bytes(self):
        raw = pickle.dumps(np.zeros(4, np.uint8), 2).replace(b"K\x04\x85", b"K\xff\x85")
        with pytest.raises(DataError, match=r"shape \(255,\) with 4 bytes"):
            load_plain(raw, "x").values("x")

    @given(raw=st.binary(max_size=200))
    def test_any_bytes(self, raw):
        try:
            load_plain(raw, "x")
        except DataError as error:
            assert str(error).startswith("x: ")

    @pytest.mark.parametrize(
        ("batch", "said"),
        [
            ([1, 2], "a list, where a dictionary is wanted"),
            ({"labels": [1]}, "it has labels, and an array data"),
            ({"data": np.zeros((2, 3072), np.uint8), "labels": [1]}, "2 images and 1 labels"),
            ({"data": np.zeros((2, 3072), np.int32), "labels": [1, 2]}, "data is int32"),
            ({"data": np.zeros((2, 784), np.uint8), "labels": [1, 2]}, r"data is uint8 \(2, 784\)"),
            ({"data": np.zeros((2, 3072), np.uint8), "labels": [1, 10]}, "labels that are no numbers from 0 to 9"),
        ],
    )
    def test_other_contents(self, batch, said):
        with pytest.raises(DataError, match=f"some file: .*{said}"):
            read_cifar_batch(pickle.dumps(batch), "some file")

    def test_cut(self, write):
        with pytest.raises(DataError, match="some file: not read as a pickle of numbers"):
            read_cifar_batch(write.cifar_batch(write.pixels(2), [1, 2])[:-500], "some file")
