"""Sets of images: splits, batches, labels, the cache; own folders and every published form."""

import dataclasses
import json
import os
import subprocess
import sys

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from textebm.data import image_cache
from textebm.data.image_cards import image_card_names, load_image_card
from textebm.data.images import ImageBatch, ImageShape, image_batches, is_image_data, resolve_images
from textebm.data.registry import DATA_DIR_VARIABLE, SPLITS, resolve
from textebm.errors import DataError

pytest.importorskip("PIL")


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("TEXTEBM_HOME", str(tmp_path / "home"))
    monkeypatch.delenv(DATA_DIR_VARIABLE, raising=False)
    return tmp_path / "home"


def everything(corpus):
    """Pixels, labels and report of each split."""
    found = [corpus.encoded(split) for split in SPLITS]
    return [
        (images.pixels.tobytes(), images.labels is not None and images.labels.tolist(), images.report)
        for images in found
    ]


def pictures(write, count, classes=("",), split="", size=8, seed=0):
    """Members: so many different pictures of each class."""
    pixels = write.pixels(count * len(classes), size, seed=seed)
    places = ["/".join(filter(None, (split, kind, f"{n:03}.png"))) for kind in classes for n in range(count)]
    return dict(zip(places, map(write.png, pixels), strict=True))


class TestBatches:
    @given(n=st.integers(1, 300), size=st.integers(1, 70), seed=st.integers(0, 9), epoch=st.integers(0, 9))
    def test_every_image_once_in_batches_of_the_size(self, n, size, seed, epoch):
        batches = list(image_batches(n, size, seed, epoch))
        assert sorted(np.concatenate(batches).tolist()) == list(range(n))
        assert [len(batch) for batch in batches[:-1]] == [size] * (len(batches) - 1)

    @given(n=st.integers(1, 300), size=st.integers(1, 70), first=st.integers(0, 20))
    def test_a_resumed_epoch_sees_the_rest(self, n, size, first):
        batches = list(image_batches(n, size, 1, 2))
        rest = list(image_batches(n, size, 1, 2, first))
        assert [batch.tolist() for batch in rest] == [batch.tolist() for batch in batches[first:]]

    def test_each_epoch_and_seed_has_another_order(self):
        orders = {tuple(np.concatenate(list(image_batches(50, 7, *key)))) for key in [(0, 0), (0, 1), (1, 0)]}
        assert len(orders) == 3

    def test_pixels_are_values_over_127_5_minus_1(self, write, tmp_path):
        write.mnist(tmp_path)
        images = resolve_images("mnist", str(tmp_path)).encoded("test")
        rows = np.array([3, 0, 3])
        batch = images.batch(rows)
        assert len(batch) == 3
        assert batch.shape == images.shape == ImageShape(1, 28, 28)
        assert batch.pixels.dtype == torch.float32
        exact = torch.from_numpy(write.pixels(12, 28, 1)[rows].transpose(0, 3, 1, 2).copy()).double() / 127.5 - 1
        torch.testing.assert_close(batch.pixels.double(), exact, rtol=0, atol=2**-23)
        assert batch.pixels.min() == -1
        assert batch.pixels.max() == 1

    def test_every_value_comes_back_as_it_was(self):
        values = torch.arange(256, dtype=torch.uint8)
        pixels = values.float().div(127.5).sub(1.0)
        assert torch.equal(((pixels + 1) * 127.5).round().to(torch.uint8), values)

    def test_moved_and_repeated(self):
        batch = ImageBatch(torch.arange(2.0).reshape(2, 1, 1, 1))
        assert torch.equal(batch.to("cpu").pixels, batch.pixels)
        assert batch.repeated(2).pixels.flatten().tolist() == [0, 0, 1, 1]


class TestMnist:
    def test_splits(self, write, tmp_path):
        pixels, labels = write.mnist(tmp_path / "mnist")
        corpus = resolve_images("mnist", str(tmp_path))
        train, valid, test = (corpus.encoded(split) for split in SPLITS)
        assert (len(train), len(valid), len(test)) == (20, 20, 12)  # a small copy: at most half is held out
        assert corpus.held_out == ("valid",)
        joined = np.concatenate([train.pixels, valid.pixels])[:, 0]
        assert sorted(map(bytes, joined)) == sorted(map(bytes, pixels))
        where = {bytes(image): label for image, label in zip(pixels, labels.tolist(), strict=True)}
        for images in (train, valid):
            assert [where[bytes(image)] for image in images.pixels[:, 0]] == images.labels.tolist()
        assert train.class_names == tuple("0123456789")
        assert test.report.labels == {str(n): 1 + (n < 2) for n in range(10)}

    @pytest.mark.parametrize("ending", ["", ".gz", ".xz"])
    def test_packing_does_not_matter(self, ending, write, tmp_path):
        for folder, end in (("one", ".gz"), ("other", ending)):
            write.mnist(tmp_path / folder, ending=end)
        one, other = (resolve_images("mnist", str(tmp_path / folder)) for folder in ("one", "other"))
        assert [one.digest(split) for split in SPLITS] == [other.digest(split) for split in SPLITS]
        assert everything(one) == everything(other)

    def test_as_published_no_valid_is_taken_away(self, write, tmp_path):
        pixels, _ = write.mnist(tmp_path)
        corpus = resolve_images("mnist", str(tmp_path), whole_train=True)
        assert np.array_equal(corpus.encoded("train").pixels[:, 0], pixels)
        assert len(corpus.encoded("valid")) == 20
        assert corpus.warnings() == [
            "valid is part of train, as was asked for: what is measured on valid says nothing of new images"
        ]

    def test_another_size_and_colour(self, write, tmp_path):
        write.mnist(tmp_path)
        images = resolve_images("mnist", str(tmp_path), size=32, channels=3).encoded("train")
        assert images.pixels.shape == (20, 3, 32, 32)
        assert images.report.converted == {"L": 20}

    def test_a_file_too_few(self, write, tmp_path):
        write.mnist(tmp_path)
        (tmp_path / "t10k-labels-idx1-ubyte.gz").unlink()
        with pytest.raises(DataError, match=r"has no t10k-labels-idx1-ubyte\. Where to get it: LeCun"):
            resolve_images("mnist", str(tmp_path))

    def test_no_copy_and_no_network(self):
        with pytest.raises(DataError, match="mnist is not on this machine, and HF_HUB_OFFLINE forbids to download it"):
            resolve_images("mnist")

    def test_no_copy_in_the_folder_that_is_named(self, tmp_path):
        with pytest.raises(DataError, match="no folder with a copy is named"):
            resolve_images("mnist", str(tmp_path))
        with pytest.raises(DataError, match=r"data_dir is .*none', which is no folder"):
            resolve_images("mnist", str(tmp_path / "none"))

    def test_a_downloaded_copy_is_found(self, write, home):
        write.mnist(home / "data" / "mnist")
        assert len(resolve_images("mnist").encoded("test")) == 12

    def test_where_text_is_wanted(self):
        with pytest.raises(DataError, match="mnist is a set of images, and text is wanted here"):
            resolve("mnist")


class TestSvhn:
    def test_splits(self, write, tmp_path):
        write.svhn(tmp_path / "svhn", test=11, train=24)
        train, valid, test = (resolve_images("svhn", str(tmp_path)).encoded(split) for split in SPLITS)
        assert (len(train), len(valid), len(test)) == (12, 12, 11)
        assert np.array_equal(test.pixels, write.pixels(11).transpose(0, 3, 1, 2))
        assert test.labels.tolist() == [1, 2, 3, 4, 5, 6, 7, 8, 9, 0, 1]

    def test_extra_images(self, write, tmp_path):
        write.svhn(tmp_path, test=11, train=24, extra=10)
        corpus = resolve_images("svhn-extra", str(tmp_path), whole_train=True)
        assert len(corpus.encoded("train")) == 34
        assert resolve_images("svhn", str(tmp_path)).digest("test") == corpus.digest("test")


class TestCifar:
    def forms(self, write, tmp_path):
        """The same images in every form, in folders of their own."""
        pixels, labels = write.cifar(tmp_path / "batches" / "cifar-10-batches-py")
        batches = {path.name: path.read_bytes() for path in (tmp_path / "batches" / "cifar-10-batches-py").iterdir()}
        (tmp_path / "published").mkdir()
        write.pack(
            tmp_path / "published" / "cifar-10-python.tar.gz",
            {f"cifar-10-batches-py/{n}": raw for n, raw in batches.items()},
        )
        files = {
            f"train/{write.classes[k]}/{n:04}.png": write.png(p)
            for n, (p, k) in enumerate(zip(pixels, labels, strict=True))
        }
        test = zip(write.pixels(8, seed=5), [(5 + row) % 10 for row in range(8)], strict=True)
        files |= {f"test/{write.classes[k]}/{n:04}.png": write.png(p) for n, (p, k) in enumerate(test)}
        write.spread(tmp_path / "folder" / "cifar10", files)
        for ending in ("tar", "tar.gz", "tar.xz", "zip"):
            (tmp_path / ending).mkdir()
            write.pack(tmp_path / ending / f"cifar10.{ending}", files)
        return pixels, labels

    def test_every_form_has_the_same_images(self, write, tmp_path):
        pixels, labels = self.forms(write, tmp_path)
        wanted = sorted(zip(map(bytes, pixels.transpose(0, 3, 1, 2)), labels, strict=True))
        tests = []
        for form in ("batches", "published", "folder", "tar", "tar.gz", "tar.xz", "zip"):
            corpus = resolve_images("cifar10", str(tmp_path / form), whole_train=True)
            train, test = corpus.encoded("train"), corpus.encoded("test")
            assert sorted(zip(map(bytes, train.pixels), train.labels.tolist(), strict=True)) == wanted, form
            tests.append(sorted(zip(map(bytes, test.pixels), test.labels.tolist(), strict=True)))
        assert all(test == tests[0] and len(test) == 8 for test in tests)

    def test_the_order_is_that_of_the_batches_or_of_the_paths(self, write, tmp_path):
        pixels, labels = self.forms(write, tmp_path)
        batches, folder, packed = (
            resolve_images("cifar10", str(tmp_path / form), whole_train=True).encoded("train")
            for form in ("published", "folder", "tar.xz")
        )
        assert np.array_equal(batches.pixels, pixels.transpose(0, 3, 1, 2))
        assert batches.labels.tolist() == labels
        assert folder.labels.tolist() == sorted(labels)
        assert folder.report == packed.report

    def test_a_batch_too_few(self, write, tmp_path):
        write.cifar(tmp_path / "cifar-10-batches-py")
        (tmp_path / "cifar-10-batches-py" / "data_batch_3").unlink()
        with pytest.raises(DataError, match="data_batch_3: no such file"):
            resolve_images("cifar10", str(tmp_path)).encoded("train")

    def test_pictures_of_other_classes(self, write, tmp_path):
        write.pack(
            tmp_path / "cifar10.tar", pictures(write, 2, ("cat",), "train") | pictures(write, 2, ("cat",), "test")
        )
        with pytest.raises(DataError, match="not CIFAR-10 as pictures: train/CLASS"):
            resolve_images("cifar10", str(tmp_path)).encoded("train")


class TestCeleba:
    @pytest.fixture
    def members(self, write):
        raw = np.random.default_rng(0).integers(0, 256, (7, 218, 178, 3), dtype=np.uint8)
        self.raw = raw
        return {f"img_align_celeba/{n + 1:06}.png": write.png(image) for n, image in enumerate(raw)}

    def partition(self, folder, numbers):
        folder.mkdir(parents=True, exist_ok=True)
        lines = [f"{n + 1:06}.png {number}\n" for n, number in enumerate(numbers)]
        (folder / "list_eval_partition.txt").write_text("".join(lines))

    @pytest.mark.parametrize("form", ["folder", ".tar", ".zip"])
    def test_splits_and_crops(self, form, members, write, tmp_path):
        folder = tmp_path / "celeba"
        self.partition(folder, [0, 0, 1, 0, 2, 2, 1])
        if form == "folder":
            write.spread(folder, members)
        else:
            write.pack(folder / f"img_align_celeba{form}", dict(reversed(members.items())))
        corpus = resolve_images("celeba128", str(tmp_path), crop="authors")
        train, valid, test = (corpus.encoded(split) for split in SPLITS)
        cropped = self.raw[:, 45:173, 25:153].transpose(0, 3, 1, 2)
        assert np.array_equal(train.pixels, cropped[[0, 1, 3]])
        assert np.array_equal(valid.pixels, cropped[[2, 6]])
        assert np.array_equal(test.pixels, cropped[[4, 5]])
        assert train.labels is None
        assert corpus.held_out == ()
        centre = resolve_images("celeba64", str(tmp_path), crop="centre").encoded("train")
        assert centre.pixels.shape == (3, 3, 64, 64)
        assert centre.report.digest != resolve_images("celeba64", str(tmp_path)).encoded("train").report.digest

    def test_a_limit_draws_the_same_images_every_time(self, members, write, tmp_path):
        self.partition(tmp_path, [0, 0, 0, 0, 0, 1, 2])
        write.spread(tmp_path, members)
        whole = resolve_images("celeba64", str(tmp_path)).encoded("train").pixels
        some = resolve_images("celeba64", str(tmp_path), max_images=3).encoded("train").pixels
        assert len(some) == 3
        places = [next(n for n, image in enumerate(whole) if np.array_equal(image, one)) for one in some]
        assert places == sorted(set(places))
        assert len(resolve_images("celeba64", str(tmp_path), max_images=3).encoded("test")) == 1
        assert len(resolve_images("celeba64", str(tmp_path), max_images=300).encoded("train")) == 5

    @pytest.mark.parametrize(
        ("lines", "said"),
        [
            ("", "no line in it"),
            ("000001.png 0\n000002.png\n", "line 2: '000002.png', where a file's name and 0, 1 or 2"),
            ("000001.png 3\n", "line 1: '000001.png 3'"),
            ("000001.png 0\n000009.png 0\n", "lacks 1 of the 2 images of train that .* lists, such as 000009.png"),
            ("000001.png 1\n", r"img_align_celeba \(train\): no picture in it"),
        ],
    )
    def test_a_list_that_does_not_fit(self, lines, said, members, write, tmp_path):
        write.spread(tmp_path, members)
        (tmp_path / "list_eval_partition.txt").write_text(lines)
        with pytest.raises(DataError, match=said):
            resolve_images("celeba64", str(tmp_path)).encoded("train")

    @pytest.mark.parametrize("missing", ["img_align_celeba", "list_eval_partition.txt"])
    def test_half_of_it(self, missing, members, write, tmp_path):
        if missing == "img_align_celeba":
            self.partition(tmp_path, [0])
        else:
            write.spread(tmp_path, members)
        with pytest.raises(DataError, match=f"has no {missing}.*Where to get it: Liu"):
            resolve_images("celeba64", str(tmp_path))


class TestFolders:
    def test_splits_and_classes(self, write, tmp_path):
        members = {}
        for seed, split in enumerate(("train", "val", "test")):
            members |= pictures(write, 3, ("cat", "dog"), split, seed=seed)
        corpus = resolve_images(str(write.spread(tmp_path / "pets", members)))
        assert (corpus.name, corpus.shape, corpus.held_out) == ("pets", ImageShape(3, 8, 8), ())
        for seed, split in enumerate(SPLITS):
            images = corpus.encoded(split)
            assert np.array_equal(images.pixels, write.pixels(6, 8, seed=seed).transpose(0, 3, 1, 2))
            assert images.labels.tolist() == [0, 0, 0, 1, 1, 1]
            assert images.report.labels == {"cat": 3, "dog": 3}

    @pytest.mark.parametrize("kind", ["pets.tar", "pets.tar.gz", "pets.zip"])
    def test_an_archive_is_the_folder_in_it(self, kind, write, tmp_path):
        members = {f"pets/{name}": raw for name, raw in pictures(write, 60, ("cat", "dog")).items()}
        folder = resolve_images(str(write.spread(tmp_path, members) / "pets"))
        packed = resolve_images(str(write.pack(tmp_path / kind, members)))
        assert packed.name == folder.name == "pets"
        assert everything(packed) == everything(folder)

    def test_valid_and_test_are_held_out_by_content(self, write, tmp_path):
        members = pictures(write, 200)
        flat = resolve_images(str(write.spread(tmp_path / "flat", members)))
        assert flat.held_out == ("valid", "test")
        parts = [set(map(bytes, flat.encoded(split).pixels)) for split in SPLITS]
        assert sum(map(len, parts)) == len(set.union(*parts)) == 200
        assert all(1 <= len(part) <= 25 for part in parts[1:])
        renamed = {f"x/{n}.png": raw for n, raw in enumerate(reversed(members.values()))}
        again = resolve_images(str(write.spread(tmp_path / "renamed", renamed)))
        assert [set(map(bytes, again.encoded(split).pixels)) for split in SPLITS] == parts

    def test_what_has_a_test_of_its_own(self, write, tmp_path):
        members = pictures(write, 100, split="train") | pictures(write, 3, split="test", seed=1)
        corpus = resolve_images(str(write.spread(tmp_path / "x", members)))
        assert corpus.held_out == ("valid",)
        sizes = [len(corpus.encoded(split)) for split in SPLITS]
        assert sizes[0] + sizes[1] == 100
        assert sizes[2] == 3

    def test_any_sizes(self, write, tmp_path):
        members = {f"{n}.png": write.png(write.pixels(1, 5 + n, seed=n)[0][:, : 9 + n % 3]) for n in range(100)}
        write.spread(tmp_path / "x", members)
        images = resolve_images(str(tmp_path / "x"), size=16).encoded("train")
        assert images.shape == ImageShape(3, 16, 16)
        with pytest.raises(DataError, match=r"0\.png: 5×5|8×5 pixels: say the size"):
            resolve_images(str(write.spread(tmp_path / "y", {"0.png": write.png(write.pixels(1, 8)[0][:5])})))

    def test_grey_pictures_are_one_channel(self, write, tmp_path):
        members = {f"{n:03}.png": write.png(p) for n, p in enumerate(write.pixels(50, 8, 1))}
        write.spread(tmp_path / "x", members)
        assert resolve_images(str(tmp_path / "x")).shape == ImageShape(1, 8, 8)
        write.spread(tmp_path / "x", {"zzz.png": write.png(write.pixels(1, 8)[0])})
        corpus = resolve_images(str(tmp_path / "x"))
        with pytest.raises(DataError, match=r"zzz\.png: in colour, and the first picture is grey"):
            [corpus.encoded(split) for split in SPLITS]
        assert resolve_images(str(tmp_path / "x"), channels=1).encoded("train").report.channels == 1

    @pytest.mark.parametrize(
        ("members", "said"),
        [
            ({}, "holds no picture"),
            ({"notes.txt": b"x"}, "holds no picture"),
            ({"train/a.png": b"", "b.png": b""}, r"b\.png lies outside the folders train"),
            ({"test/a.png": b"", "valid/b.png": b""}, "none named train"),
            ({"cat/a.png": b"", "b.png": b""}, r"b\.png lies beside folders of classes"),
            ({"train/cat/a.png": b"", "train/b.png": b""}, r"train/b\.png lies beside folders of classes"),
        ],
    )
    def test_what_is_not_plain(self, members, said, write, tmp_path):
        folder = tmp_path / "x"
        folder.mkdir()
        with pytest.raises(DataError, match=said):
            resolve_images(str(write.spread(folder, members)), size=8, channels=3)

    def test_too_few_to_hold_out(self, write, tmp_path):
        corpus = resolve_images(str(write.spread(tmp_path / "x", pictures(write, 1))))
        with pytest.raises(DataError, match="too small to hold out of it: none of its 1 pictures falls to"):
            [corpus.encoded(split) for split in SPLITS]

    def test_neither_folder_nor_archive(self, tmp_path):
        with pytest.raises(DataError, match="'minst' is neither a folder nor an archive of images, nor a named set"):
            resolve_images("minst")
        with pytest.raises(DataError, match="is neither a folder nor an archive"):
            resolve_images("x" * 5000)

    @pytest.mark.parametrize("name", ["none.tar", "none.tar.gz", "none.zip"])
    def test_an_archive_that_is_not_there(self, name, tmp_path):
        with pytest.raises(DataError, match=rf"{name}: no such file"):
            resolve_images(str(tmp_path / name))

    @pytest.mark.parametrize(
        "wrong", [{"size": 0}, {"size": 5000}, {"crop": "left"}, {"channels": 2}, {"max_images": 0}], ids=str
    )
    def test_arguments_out_of_range(self, wrong, tmp_path):
        with pytest.raises(DataError, match=str(next(iter(wrong.values())))):
            resolve_images(str(tmp_path), **wrong)


class TestBadPictures:
    @pytest.fixture
    def folder(self, write, tmp_path):
        members = pictures(write, 100, ("cat", "dog"), "train") | pictures(write, 2, ("cat",), "test")
        members |= pictures(write, 2, ("dog",), "valid")
        cut = members["train/dog/007.png"]
        members["train/dog/007.png"] = cut[: len(cut) // 2]
        return write.spread(tmp_path / "pets", members)

    def test_one_among_many_is_named(self, folder):
        with pytest.raises(DataError, match=r"pets, train/dog/007\.png: cannot be decoded .*truncated"):
            resolve_images(str(folder)).encoded("train")

    def test_or_left_out_and_counted(self, folder):
        images = resolve_images(str(folder), skip_bad=True).encoded("train")
        assert len(images) == len(images.labels) == 199
        assert images.report.left_out == 1
        assert images.report.labels == {"cat": 100, "dog": 99}
        assert "train/dog/007.png: cannot be decoded" in images.report.problems[0]
        assert "1 left out as unreadable" in str(images.report)
        good = resolve_images(str(folder), skip_bad=True).encoded("test")
        assert good.report.left_out == 0

    def test_none_left(self, write, tmp_path):
        members = {f"{split}/{n}.png": b"no picture" for split in SPLITS for n in range(3)}
        corpus = resolve_images(str(write.spread(tmp_path / "x", members)), size=8, channels=3, skip_bad=True)
        with pytest.raises(DataError, match=r"none of its 3 pictures can be used\. The first: .*0\.png"):
            corpus.encoded("train")


class TestCache:
    @pytest.fixture
    def corpus(self, write, tmp_path):
        write.mnist(tmp_path / "mnist")
        return resolve_images("mnist", str(tmp_path))

    def test_is_built_once_and_mapped(self, corpus):
        built = []
        first = corpus.encoded("train", lambda what, count: built.append((what, count)))
        again = corpus.encoded("train", lambda what, count: built.append((what, count)))
        assert built == [("train", 20)]
        assert again.report == first.report
        assert isinstance(again.pixels, np.memmap)
        assert not again.pixels.flags.writeable

    def test_batches_do_not_depend_on_how_it_was_made(self, corpus, monkeypatch, tmp_path):
        first = everything(corpus)
        for at_once in (1, 7):
            monkeypatch.setenv("TEXTEBM_HOME", str(tmp_path / f"home-{at_once}"))
            monkeypatch.setattr(image_cache, "PICTURES_AT_ONCE", at_once)
            assert everything(corpus) == first

    @pytest.mark.parametrize("ending", ["pixels", "labels", "json"])
    @pytest.mark.parametrize("damage", ["cut", "other bits", "gone"])
    def test_what_is_damaged_is_built_anew(self, ending, damage, corpus, home):
        images = corpus.encoded("train")
        report, pixels = images.report, images.pixels.copy()
        (path,) = (home / "images").glob(f"*.{ending}")
        raw = path.read_bytes()
        if damage == "gone":
            path.unlink()
        else:
            path.write_bytes(raw[:-1] if damage == "cut" else bytes([raw[0] ^ 1]) + raw[1:])
        again = corpus.encoded("train")
        assert again.report == report
        assert np.array_equal(again.pixels, pixels)

    def test_an_entry_that_is_too_large_to_check_is_told_by_its_size(self, corpus, home, monkeypatch):
        monkeypatch.setattr(image_cache, "CHECKED_WHOLE", 10)
        report = corpus.encoded("train").report
        (path,) = (home / "images").glob("*.pixels")
        path.write_bytes(path.read_bytes()[:-1])
        assert corpus.encoded("train").report == report
        assert path.stat().st_size == 20 * 28 * 28

    @pytest.mark.parametrize(
        "other", [{"size": 14}, {"channels": 3}, {"max_images": 5}, {"whole_train": True}], ids=str
    )
    def test_other_settings_are_another_entry(self, other, corpus, tmp_path, home):
        corpus.encoded("train")
        changed = resolve_images("mnist", str(tmp_path), **other)
        assert changed.digest("train") != corpus.digest("train")
        changed.encoded("train")
        assert len(list((home / "images").glob("*.json"))) == 2

    def test_other_content_is_another_entry(self, write, tmp_path):
        folder = write.spread(
            tmp_path / "x", pictures(write, 2, split="train") | pictures(write, 2, split="test", seed=1)
        )
        first = resolve_images(str(folder))
        before = {split: first.digest(split) for split in ("train", "test")}
        (folder / "test" / "000.png").write_bytes(write.png(write.pixels(1, 8, seed=9)[0]))
        after = resolve_images(str(folder))
        assert after.digest("train") == before["train"]
        assert after.digest("test") != before["test"]

    def test_a_fault_leaves_nothing_behind(self, write, tmp_path, home):
        folder = write.spread(tmp_path / "x", {"train/a.png": b"no picture", "test/b.png": b"", "valid/c.png": b""})
        with pytest.raises(DataError):
            resolve_images(str(folder), size=8, channels=3).encoded("train")
        assert {path.suffix for path in (home / "images").iterdir()} <= {".lock"}

    def test_a_folder_that_cannot_be_written(self, corpus, home):
        home.mkdir()
        (home / "images").write_text("in the way")
        with pytest.raises(DataError, match=r"cache of decoded images in .*cannot be written .*TEXTEBM_HOME"):
            corpus.encoded("train")

    def test_of_two_processes_one_builds(self, write, tmp_path):
        write.mnist(tmp_path / "mnist", train=400)
        script = (
            "import sys; from textebm.data.images import resolve_images\n"
            "built = []\n"
            "images = resolve_images('mnist', sys.argv[1]).encoded('train', lambda what, n: built.append(n))\n"
            "print(len(built), images.report.digest)\n"
        )
        command = [sys.executable, "-c", script, str(tmp_path)]
        both = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=os.environ) for _ in range(2)]
        said = [process.communicate()[0].split() for process in both]
        assert sorted(int(built) for built, _ in said) == [0, 1]
        assert said[0][1] == said[1][1]

    def test_a_report_is_written_as_json(self, corpus):
        report = corpus.encoded("train").report
        assert image_cache.ImageReport(**json.loads(json.dumps(dataclasses.asdict(report)))) == report
        assert str(report) == "20 images of 1×28×28, 10 classes"


class TestIsImageData:
    @pytest.mark.parametrize("name", image_card_names())
    def test_named_sets(self, name):
        assert is_image_data(name)

    def test_folders_and_archives(self, write, tmp_path):
        photos = write.spread(tmp_path / "photos", pictures(write, 3) | {"README.txt": b"x"})
        books = write.spread(tmp_path / "books", {"train.txt": b"x", "more.txt": b"x", "cover.png": b"x"})
        packed = write.pack(tmp_path / "x.tar.gz", pictures(write, 1))
        (tmp_path / "empty").mkdir()
        assert is_image_data(str(photos))
        assert is_image_data(str(packed))
        assert not any(
            map(is_image_data, (str(books), str(tmp_path / "empty"), str(tmp_path / "none"), "ptb", "demo", "-"))
        )

    def test_what_cannot_be_looked_at(self):
        assert not is_image_data("x" * 5000)
        assert not is_image_data("a\0b")


class TestHub:
    @pytest.fixture
    def saved(self, write, tmp_path):
        """A data set with pictures and labels, saved on the disk."""
        datasets = pytest.importorskip("datasets")
        write.spread(
            tmp_path / "raw",
            pictures(write, 60, ("cat", "dog"), "train") | pictures(write, 2, ("cat", "dog"), "test", seed=1),
        )
        found = datasets.load_dataset(str(tmp_path / "raw"))
        found.save_to_disk(tmp_path / "saved")
        return tmp_path

    def test_pictures_and_labels(self, saved, write):
        name = f"hf:{saved / 'saved'}"
        assert is_image_data(name)
        corpus = resolve_images(name)
        assert (corpus.name, corpus.shape, corpus.held_out) == ("saved", ImageShape(3, 8, 8), ("valid",))
        train, valid, test = (corpus.encoded(split) for split in SPLITS)
        assert len(train) + len(valid) == 120
        assert np.array_equal(test.pixels, write.pixels(4, 8, seed=1).transpose(0, 3, 1, 2))
        assert test.report.labels == {"cat": 2, "dog": 2}
        assert "column image, split train" in corpus.describe("valid")

    def test_a_folder_and_a_data_set_of_it_have_the_same_splits(self, saved):
        folder, hub = resolve_images(str(saved / "raw")), resolve_images(f"hf:{saved / 'raw'}")
        for split in SPLITS:
            assert folder.encoded(split).report.digest == hub.encoded(split).report.digest
        assert hub.digest("train") == resolve_images(f"hf:{saved / 'saved'}").digest("train")

    @pytest.mark.parametrize(
        ("options", "said"),
        [
            ({"image_column": "label"}, r"no column of images named 'label'; its columns: image \(image\), label"),
            ({"label_column": "image"}, "no column of class labels named 'image'"),
        ],
    )
    def test_columns(self, options, said, saved):
        with pytest.raises(DataError, match=said):
            resolve_images(f"hf:{saved / 'saved'}", **options)

    def test_several_columns_of_images(self, tmp_path, write):
        datasets = pytest.importorskip("datasets")
        rows = {"left": [{"bytes": write.png(write.pixels(1, 8)[0]), "path": None}]}
        rows["right"] = rows["left"]
        features = datasets.Features({name: datasets.Image() for name in rows})
        datasets.Dataset.from_dict(rows, features=features).save_to_disk(tmp_path / "pairs")
        with pytest.raises(
            DataError, match=r"several columns of images \(left, right\): name one with --images.image-column"
        ):
            resolve_images(f"hf:{tmp_path / 'pairs'}")
        assert resolve_images(f"hf:{tmp_path / 'pairs'}", image_column="left").class_names == ()

    def test_text_and_offline(self, tmp_path):
        datasets = pytest.importorskip("datasets")
        datasets.Dataset.from_dict({"text": ["a"]}).save_to_disk(tmp_path / "text")
        assert not is_image_data(f"hf:{tmp_path / 'text'}")
        with pytest.raises(DataError, match="has no column of images; its columns: text"):
            resolve_images(f"hf:{tmp_path / 'text'}")
        with pytest.raises(DataError, match=r"it is not in the cache .*HF_HUB_OFFLINE"):
            resolve_images("hf:nobody/nothing")

    def test_a_row_without_a_picture(self, tmp_path):
        datasets = pytest.importorskip("datasets")
        features = datasets.Features({"image": datasets.Image()})
        datasets.Dataset.from_dict({"image": [None]}, features=features).save_to_disk(tmp_path / "gap")
        with pytest.raises(DataError, match="row 0: no picture in it"):
            resolve_images(f"hf:{tmp_path / 'gap'}")


@pytest.mark.realdata
class TestRealData:
    def test_mnist(self, shared_data):
        corpus = resolve_images("mnist", str(shared_data))
        images = {split: corpus.encoded(split) for split in SPLITS}
        assert {split: len(found) for split, found in images.items()} == load_image_card("mnist").images
        ones = (
            images["train"].report.labels["1"] + images["valid"].report.labels["1"],
            images["test"].report.labels["1"],
        )
        assert ones == (6742, 1135)
        assert images["test"].labels[:10].tolist() == [7, 2, 1, 0, 4, 1, 4, 9, 5, 9]
        assert abs(float(images["train"].batch(np.arange(2000)).pixels.mean()) - (2 * 0.1307 - 1)) < 0.02

    def test_celeba(self, shared_data):
        for name, side in (("celeba64", 64), ("celeba128", 128)):
            corpus = resolve_images(name, str(shared_data))
            assert [len(corpus.encoded(split)) for split in SPLITS] == [1000, 100, 100]
            assert corpus.encoded("test").shape == ImageShape(3, side, side)

    @pytest.mark.slow
    def test_cifar10(self, shared_data):
        corpus = resolve_images("cifar10", str(shared_data))
        images = {split: corpus.encoded(split) for split in SPLITS}
        assert {split: len(found) for split, found in images.items()} == load_image_card("cifar10").images
        assert set(images["test"].report.labels.values()) == {1000}
        assert images["train"].report.labels["ship"] + images["valid"].report.labels["ship"] == 5000
