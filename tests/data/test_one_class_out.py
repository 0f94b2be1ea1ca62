"""A class left out of images, and all splits drawn anew: who is in which split, for every source of images."""

import numpy as np
import pytest

from textebm.data.image_cards import load_image_card
from textebm.data.images import class_number, resolve_images
from textebm.data.registry import DATA_DIR_VARIABLE, SPLITS
from textebm.errors import DataError

pytest.importorskip("PIL")


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("TEXTEBM_HOME", str(tmp_path / "home"))
    monkeypatch.delenv(DATA_DIR_VARIABLE, raising=False)


@pytest.fixture
def digits(write, tmp_path):
    """A copy of MNIST with 200 and 60 random images, 20 and 6 of each digit."""
    write.mnist(tmp_path / "mnist", 200, 60)
    return str(tmp_path / "mnist")


def members(images):
    """Each image by its pixels, with its label."""
    return {
        pixels.tobytes(): int(label) for pixels, label in zip(np.asarray(images.pixels), images.labels, strict=True)
    }


def splits_of(*arguments, **options):
    corpus = resolve_images(*arguments, **options)
    return [members(corpus.encoded(split)) for split in SPLITS]


def counts(found, *, of):
    return sum(label == of for label in found.values()), sum(label != of for label in found.values())


class TestPool:
    """Split A."""

    def test_train_is_80_percent_of_the_others_and_test_the_rest_and_all_of_the_class(self, digits):
        train, valid, test = splits_of("mnist", digits, exclude_class="3", pool=True)
        assert counts(train | valid, of=3) == (0, int(0.8 * 234))
        assert counts(valid, of=3) == (0, int(0.8 * 234) // 20)
        assert counts(test, of=3) == (26, 234 - int(0.8 * 234))
        assert not (train.keys() & valid.keys() or train.keys() & test.keys() or valid.keys() & test.keys())
        plain = splits_of("mnist", digits)
        assert train | valid | test == plain[0] | plain[1] | plain[2]

    def test_all_of_the_80_percent_can_be_trained_on(self, digits):
        train, valid, _ = splits_of("mnist", digits, exclude_class="3", pool=True)
        whole, same, _ = splits_of("mnist", digits, exclude_class="3", pool=True, whole_train=True)
        assert whole == train | valid
        assert same == valid

    def test_without_a_class_it_is_a_split_of_everything(self, digits):
        train, valid, test = splits_of("mnist", digits, pool=True)
        assert (len(train) + len(valid), len(test)) == (208, 52)

    def test_train_can_be_limited(self, digits):
        train, _, test = splits_of("mnist", digits, exclude_class="3", pool=True)
        fewer, _, same = splits_of("mnist", digits, exclude_class="3", pool=True, max_images=10)
        assert len(fewer) == 10
        assert fewer.items() <= train.items()
        assert same == test

    @pytest.mark.realdata
    def test_of_mnist_the_base_rates_are_the_published_ones(self, shared_data):
        if not (shared_data / "mnist").is_dir():
            pytest.skip("no local copy of MNIST")
        corpus = resolve_images("mnist", str(shared_data), exclude_class="1", pool=True, whole_train=True)
        choice = corpus.choice("test")
        pictures = corpus.source("test").read()
        labels = np.array([pictures.label(row) for row in choice.of(pictures, "mnist")])
        assert len(labels) == 70_000 - int(0.8 * 62_123)
        assert (labels == 1).mean() == pytest.approx(0.388, abs=5e-4)


class TestPublishedSplits:
    """Split B."""

    def test_the_class_is_left_out_of_train_and_valid_alone(self, digits):
        plain = splits_of("mnist", digits)
        found = splits_of("mnist", digits, exclude_class="3")
        for one, other in zip(found[:2], plain[:2], strict=True):
            assert one == {pixels: label for pixels, label in other.items() if label != 3}
        assert found[2] == plain[2]
        assert counts(found[2], of=3) == (6, 54)

    def test_splits_that_are_there_and_splits_that_are_held_out(self, write, tmp_path):
        pixels = iter(write.pixels(400, 8))
        for split, count in {"train": 100, "test": 12}.items():
            for kind in ("cat", "dog"):
                folder = tmp_path / "set" / split / kind
                folder.mkdir(parents=True)
                for number in range(count):
                    (folder / f"{number}.png").write_bytes(write.png(next(pixels)))
        found = splits_of(str(tmp_path / "set"), exclude_class="dog")
        assert counts(found[0] | found[1], of=1) == (0, 100)
        assert counts(found[1], of=1)[1] > 0
        assert counts(found[2], of=1) == (12, 12)
        pooled = splits_of(str(tmp_path / "set"), exclude_class="dog", pool=True)
        assert counts(pooled[0] | pooled[1], of=1) == (0, int(0.8 * 112))
        assert counts(pooled[2], of=1) == (112, 112 - int(0.8 * 112))


class TestHub:
    def test_labels_of_a_data_set(self, write, tmp_path):
        datasets = pytest.importorskip("datasets")
        pixels = write.pixels(40, 8)
        features = datasets.Features(picture=datasets.Image(), kind=datasets.ClassLabel(names=["cat", "dog"]))
        rows = {
            "picture": [{"bytes": write.png(p), "path": None} for p in pixels],
            "kind": [n % 2 for n in range(40)],
        }
        datasets.Dataset.from_dict(rows, features).save_to_disk(str(tmp_path / "set"))
        train, valid, test = splits_of(f"hf:{tmp_path / 'set'}", exclude_class="dog", pool=True)
        assert counts(train | valid, of=1) == (0, 16)
        assert counts(test, of=1) == (20, 4)


class TestDigests:
    def test_of_sets_as_they_are_published_are_what_they_were(self, digits):
        """An entry of the cache, and a run, from before a class could be left out is still good."""
        corpus = resolve_images("mnist", digits)
        assert corpus.choice("train").plain() == [["train"], 5000, ["valid"], None, 20, 0]
        assert corpus.choice("test").plain() == [None, None, [], None, 20, 0]

    def test_every_arrangement_has_its_own(self, digits):
        ways = [{}, {"exclude_class": "3"}, {"exclude_class": "4"}, {"pool": True}]
        ways += [{"pool": True, "exclude_class": "3"}, {"pool": True, "exclude_class": "3", "whole_train": True}]
        found = [resolve_images("mnist", digits, **way).digest("train") for way in ways]
        assert len(set(found)) == len(ways)
        tests = [resolve_images("mnist", digits, **way).digest("test") for way in ways[:3]]
        assert len(set(tests)) == 1  # under the published splits test is what it was


class TestClasses:
    def test_a_class_goes_by_its_name_or_its_number(self):
        classes = load_image_card("cifar10").classes
        assert class_number("cat", classes, "cifar10") == class_number("3", classes, "cifar10") == 3
        assert class_number("1", ("7", "1"), "digits") == 1  # a name comes first

    @pytest.mark.parametrize("name", ["10", "lion", "-1", ""])
    def test_another_is_an_error_that_names_them(self, name, digits):
        with pytest.raises(DataError, match=r"no class .*its classes: 0, 1, 2"):
            resolve_images("mnist", digits, exclude_class=name)

    def test_images_without_classes_have_none_to_leave_out(self, write, tmp_path):
        (tmp_path / "set").mkdir()
        (tmp_path / "set" / "1.png").write_bytes(write.png(write.pixels(1, 8)[0]))
        with pytest.raises(DataError, match="set has no classes"):
            resolve_images(str(tmp_path / "set"), exclude_class="cat")

    def test_an_only_class_cannot_be_left_out(self, write, tmp_path):
        folder = tmp_path / "set" / "train" / "cat"
        folder.mkdir(parents=True)
        for number, pixels in enumerate(write.pixels(30, 8)):
            (folder / f"{number}.png").write_bytes(write.png(pixels))
        for pool in (True, False):
            corpus = resolve_images(str(tmp_path / "set"), exclude_class="cat", pool=pool)
            with pytest.raises(DataError, match="no picture of another class"):
                corpus.encoded("train")
