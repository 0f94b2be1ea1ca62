"""Images through the real program: the same loop, learner, chains and checkpoints as text."""

import ast
import dataclasses
import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from textebm import checkpoint, evaluation, given_images, image_generation, png
from textebm.cli import main
from textebm.config import load_config
from textebm.lm_eval.signature import KNOWN, Signature
from textebm.materials import ImageMaterial, TextMaterial, material_of
from textebm.model.image_batch import ImageShape
from textebm.model.inference import METHODS

STEPS, EPOCH = 18, 6  # of the tiny configuration
QUICK = ("--evaluation.active-unit-sentences", 0, "--evaluation.samples", 0)
KINDS: dict[str, tuple[object, ...]] = {
    **{kind: ("--inference.kind", kind) for kind in METHODS if kind != "none"},
    "diffusion-langevin": ("--inference.kind", "diffusion-langevin", "--optimiser.sampler-lr", 0.001),
    "batch": ("--generator.convolution.normalisation", "batch", "--optimiser.ema", 0.9),
    "gaussian": ("--prior.kind", "gaussian"),
    "aggressive": ("--inference.kind", "amortised", "--prior.kind", "gaussian", "--bound.aggressive-updates", 3),
    "pre-trained": ("--inference.kind", "amortised", "--bound.autoencoder", 0.44),
}
"""Every way to infer z, and whatever else is kept from step to step."""


@pytest.fixture(scope="module")
def pictures(draw_squares: Callable[..., None], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with train, valid and test."""
    folder = tmp_path_factory.mktemp("images") / "squares"
    for seed, (split, count) in enumerate({"train": 60, "valid": 20, "test": 20}.items()):
        draw_squares(folder / split, count, seed)
    return folder


@pytest.fixture(scope="module")
def tiny(pictures: Path, write_image_config: Callable[..., Path]) -> Path:
    """A configuration file that trains on them in seconds: 3 epochs of 6 steps."""
    return write_image_config(pictures, epochs=3)


@pytest.fixture(scope="module")
def run(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a finished run."""
    folder = tmp_path_factory.mktemp("trained") / "run"
    assert main(["train", "--config", str(tiny), "--run-dir", str(folder), "--device", "cpu"]) == 0
    return folder


def log_of(folder: Path, *kinds: str) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in (folder / "log.jsonl").read_text(encoding="utf-8").splitlines()]
    return [{key: value for key, value in line.items() if key != "seconds"} for line in lines if line["kind"] in kinds]


def size_of(path: Path) -> tuple[int, int]:
    with Image.open(path) as image:
        return image.size


class TestOtherImages:
    def test_what_a_run_chose_among_its_own_is_not_chosen_among_others(
        self, run: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        from textebm import checkpoint
        from textebm.materials import ImageMaterial

        folder = checkpoint.pointed_at(run, "best")
        assert folder is not None
        config, progress = checkpoint.read_run(folder)
        images = dataclasses.replace(config.images, exclude_class="3", pool=True, max_images=7, crop="authors")
        chosen = dataclasses.replace(config, images=images)
        monkeypatch.setattr(checkpoint, "read_run", lambda ignored: (chosen, progress))
        monkeypatch.setattr(ImageMaterial, "resolve", staticmethod(lambda settings: settings))
        own, named, other = (ImageMaterial.resolve_for(folder, data, None) for data in (None, config.data, "mnist"))
        assert own == named
        assert (own.images.exclude_class, own.images.pool, own.images.max_images) == ("3", True, 7)
        assert other.data == "mnist"
        assert (other.images.exclude_class, other.images.pool, other.images.max_images) == (None, False, None)
        assert other.images.crop is None
        assert (other.images.size, other.images.channels) == (own.images.size, own.images.channels)

    def test_what_has_to_be_downloaded_is_said(self, run: Path, command, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("textebm.data.images.download_notice", lambda name, data_dir: "9 MB. Licence: theirs")
        done = command("reconstruct", "--model", run, "-n", 4)
        assert done.code == 0, done.err
        assert "downloading 9 MB. Licence: theirs" in done.err


class TestTraining:
    def test_the_log_says_what_was_learned(self, run: Path) -> None:
        (start,) = log_of(run, "start")
        assert start["data"]["shape"] == {"channels": 3, "height": 8, "width": 8}
        assert [start["data"][split]["count"] for split in ("train", "valid", "test")] == [60, 20, 20]
        train, valid = log_of(run, "train"), log_of(run, "valid")
        assert [line["images"] for line in train] == [60, 60, 60]
        assert [line["step"] for line in valid] == [EPOCH, 2 * EPOCH, STEPS]
        figures = {
            "reconstruction_mse",
            "prior_mse",
            "posterior_energy",
            "prior_energy",
            "posterior_norm",
            "prior_norm",
        }
        for line in valid:
            assert figures <= line.keys()
            assert all(math.isfinite(v) for v in line.values() if isinstance(v, float))
            assert line["reconstruction_mse_unit"] == pytest.approx(line["reconstruction_mse"] / 4)
            assert line["latent_images"] == 6
        assert valid[-1]["reconstruction_mse"] < valid[0]["reconstruction_mse"] < 2

    def test_a_grid_of_samples_is_written_at_each_validation(self, run: Path) -> None:
        for line in log_of(run, "valid"):
            assert line["samples"] == [f"samples/step-{line['step']}.png"]
            assert size_of(run / line["samples"][0]) == (3 * 10 - 2, 2 * 10 - 2)  # 6 images, 3 in a row

    def test_a_checkpoint_is_a_model_folder(self, run: Path) -> None:
        folder = checkpoint.pointed_at(run, "last")
        assert folder is not None
        assert {path.name for path in folder.iterdir()} == {
            *("config.json", "model.safetensors", "run.json", "optimiser.safetensors")
        }
        described = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        assert described["format"] == 1
        assert described["image"] == {"channels": 3, "height": 8, "width": 8}

    def test_the_mean_squared_error_is_that_of_reconstructions(self, run: Path) -> None:
        """What is computed from the likelihood against pixels, image by image, with the same posterior samples."""
        folder = checkpoint.pointed_at(run, "last")
        assert folder is not None
        config, _ = checkpoint.read_run(folder)
        model = image_generation.load(folder)
        valid = ImageMaterial.load(config, ImageMaterial.resolve(config)).valid
        rows = evaluation.spread(len(valid), config.evaluation.sentences)
        x = valid.batch(rows)
        z = model.infer(x, evaluation.stream(config.seed, "evaluation", 0, 0))
        wanted = float((model.paint(z) - x.pixels).square().mean())
        assert log_of(run, "valid")[-1]["reconstruction_mse"] == pytest.approx(wanted, rel=1e-4)

    @pytest.mark.parametrize("kind", KINDS)
    def test_every_method_resumes_as_if_never_stopped(
        self, kind: str, tiny: Path, command, tmp_path: Path, step: int = 8
    ) -> None:
        words = ("train", "--config", tiny, *QUICK, *KINDS[kind])
        assert command(*words, "--run-dir", "whole").code == 0
        assert command(*words, "--run-dir", "parts", "--max-steps", step).code == 0
        done = command(*words, "--run-dir", "parts", "--resume", "auto")
        assert done.code == 0, done.err
        folders = [checkpoint.pointed_at(tmp_path / name, "last") for name in ("whole", "parts")]
        names = [sorted(path.name for path in folder.iterdir()) for folder in folders if folder is not None]
        assert names[0] == names[1]
        for name in names[0]:
            whole, parts = (folder / name for folder in folders if folder is not None)
            if name.endswith(".safetensors"):
                tensors, others = load_file(whole), load_file(parts)
                assert tensors.keys() == others.keys()
                assert all(torch.equal(tensor, others[key]) for key, tensor in tensors.items()), name
            elif name.endswith(".npy"):
                assert whole.read_bytes() == parts.read_bytes()
        of_whole, of_parts = (
            [{k: v for k, v in line.items() if k != "best"} for line in log_of(tmp_path / name, "valid")]
            for name in ("whole", "parts")
        )
        assert of_whole == [line for line in of_parts if line["step"] % EPOCH == 0]

    def test_fast_and_plain_go_the_same_way(self, tiny: Path, command, tmp_path: Path) -> None:
        figures = []
        for computation in ("fast", "plain"):
            words = ("--computation", computation, "--max-steps", EPOCH, *QUICK)
            assert command("train", "--config", tiny, "--run-dir", computation, *words).code == 0
            figures.append(log_of(tmp_path / computation, "train"))
        for one, other in zip(*figures, strict=True):
            for name in one.keys() - {"kind"}:
                assert one[name] == pytest.approx(other[name], rel=1e-3, abs=1e-3), name

    def test_what_became_of_pictures_is_said(self, tiny: Path, pictures: Path, command, tmp_path: Path) -> None:
        copy = tmp_path / "copy"
        shutil.copytree(pictures, copy)
        first, second, *_ = sorted((copy / "train").glob("*.png"))
        first.write_bytes(first.read_bytes()[:40])
        Image.open(second).convert("L").save(second)
        words = ("train", "--config", tiny, "--data", copy, "--images.channels", 3, "--max-steps", 1, *QUICK)
        refused = command(*words, "--run-dir", "run")
        assert refused.code == 2
        assert first.name in refused.err
        done = command(*words, "--images.skip-bad", "True", "--run-dir", "run")
        assert done.code == 0, done.err
        assert "train: 59 images, 1 converted from L, 1 left out as unreadable" in done.err
        (named,) = [line for line in done.err.splitlines() if first.name in line]
        assert named.startswith("    ") and "no picture of a known format" in named

    def test_other_images_are_not_what_a_run_goes_on_with(
        self, tiny: Path, pictures: Path, command, tmp_path: Path
    ) -> None:
        copy = tmp_path / "copy"
        shutil.copytree(pictures, copy)
        words = ("train", "--config", tiny, "--data", copy, "--run-dir", "run", *QUICK)
        assert command(*words, "--max-steps", 2).code == 0
        (copy / "train" / "000.png").write_bytes((copy / "train" / "001.png").read_bytes())
        done = command(*words, "--resume", "auto")
        assert done.code == 1
        assert "was trained on other images than there are now in" in done.err

    def test_without_pillow_a_run_does_not_begin(
        self, tiny: Path, command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(png, "find_spec", lambda name: None)
        done = command("train", "--config", tiny, "--run-dir", "run")
        assert done.code == 2
        assert "pip install 'textebm[images]'" in done.err
        assert not (tmp_path / "run").exists()

    def test_a_folder_of_images_is_known_as_one(self, pictures: Path, command) -> None:
        done = command("train", "--data", pictures, "--print-config")
        assert done.code == 0, done.err
        config = json.loads(done.out)
        assert config["generator"]["kind"] == "convolutional"
        assert config["data"] == str(pictures)

    def test_images_and_settings_of_text_do_not_go_together(
        self, pictures: Path, corpus_folder: Path, tiny: Path, tiny_config: Path, command
    ) -> None:
        done = command("train", "--config", tiny_config, "--data", pictures, "--run-dir", "run")
        assert done.code == 2
        assert "is images, and the settings are of a model of text" in done.err
        done = command("train", "--config", tiny, "--data", corpus_folder, "--run-dir", "run")
        assert done.code == 2
        assert "corpus" in done.err

    @pytest.mark.parametrize("module", ["model/langevin", "model/inference", "model/learner", "training", "checkpoint"])
    def test_the_loop_and_what_it_runs_know_neither_text_nor_images(self, module: str, root: Path) -> None:
        names = set()
        for node in ast.walk(ast.parse((root / "textebm" / f"{module}.py").read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom):
                names |= {f"{node.module}.{name.name}" for name in node.names}
            elif isinstance(node, ast.Import):
                names |= {name.name for name in node.names}
        of_one = (
            "recurrent",
            "convolutional",
            "image",
            "data.text",
            "vocabulary",
            "tokenizers",
            "decoding",
            "generation",
        )
        assert not [name for name in names if any(word in name for word in of_one)]

    def test_the_kind_of_generator_says_what_is_learned_from(self, tiny: Path, tiny_config: Path) -> None:
        assert material_of(load_config(str(tiny))) is ImageMaterial
        assert material_of(load_config(str(tiny_config))) is TextMaterial


class TestCommands:
    def test_generate_writes_a_grid(self, run: Path, command, tmp_path: Path) -> None:
        done = command("generate", "--model", run, "-n", 9, "--output", "nine.png")
        assert done.code == 0, done.err
        assert size_of(tmp_path / "nine.png") == (28, 28)
        assert done.out == ""
        again = command("generate", "--model", run, "-n", 9, "--output", "again.png")
        other = command("generate", "--model", run, "-n", 9, "--seed", 1, "--output", "other.png")
        assert again.code == other.code == 0
        assert (tmp_path / "nine.png").read_bytes() == (tmp_path / "again.png").read_bytes()
        assert (tmp_path / "nine.png").read_bytes() != (tmp_path / "other.png").read_bytes()

    def test_generate_writes_single_images(self, run: Path, command, tmp_path: Path) -> None:
        done = command("generate", "--model", run, "-n", 3, "--format", "png", "--output", "single")
        assert done.code == 0, done.err
        assert sorted(path.name for path in (tmp_path / "single").iterdir()) == [f"0000{i}.png" for i in range(3)]
        assert size_of(tmp_path / "single" / "00000.png") == (8, 8)
        again = command("generate", "--model", run, "-n", 3, "--seed", 1, "--format", "png", "--output", "single")
        assert again.code == 0, again.err
        fewer = command("generate", "--model", run, "-n", 2, "--format", "png", "--output", "single")
        assert fewer.code == 2  # a folder of two models' images would be measured as one
        assert "single holds 1 pictures that this command does not write (00002.png, ...)" in " ".join(
            fewer.err.split()
        )

    def test_reconstruct_measures_the_test_split(self, run: Path, command, tmp_path: Path) -> None:
        done = command("reconstruct", "--model", run, "--format", "json")
        assert done.code == 0, done.err
        found = json.loads(done.out)
        assert found["metric"] == "reconstruction-mse"
        assert found["interval"][0] < found["score"] < found["interval"][1]
        assert found["details"]["mse_unit"] == pytest.approx(found["score"] / 4)
        assert found["details"]["images"] == 20
        facts = Signature.parse(found["signature"])
        assert {key: facts[key] for key in ("images", "shape", "crop", "scale", "inference", "steps")} == {
            "images": "20",
            "shape": "3×8×8",
            "crop": "centre",
            "scale": "-1..1",
            "inference": "short-run",
            "steps": "4",
        }
        assert all(key in KNOWN for key in facts)
        assert size_of(tmp_path / "reconstructions.png") == (8 * 10 - 2, 6 * 10 - 2)  # 3 rows of 8 pairs
        last = log_of(run, "valid")[-1]["reconstruction_mse"]
        assert found["score"] == pytest.approx(last, rel=0.5)
        done = command("reconstruct", "--model", run, "-n", 5, "--grid", "few.png")
        assert done.code == 0, done.err
        assert "mean squared error" in done.out
        assert "5 images" in done.out

    def test_reconstruct_takes_pictures(
        self, run: Path, pictures: Path, draw_squares: Callable[..., None], command, tmp_path: Path
    ) -> None:
        draw_squares(tmp_path / "others", 3, seed=9)
        whole, one = (
            command("reconstruct", path, "--model", run, "--format", "json") for path in ("others", "others/000.png")
        )
        assert (whole.code, one.code) == (0, 0), whole.err + one.err
        found = json.loads(whole.out)
        assert found["details"]["images"] == 3
        assert json.loads(one.out)["details"]["images"] == 1
        shutil.make_archive(str(tmp_path / "packed"), "zip", tmp_path / "others")
        packed = json.loads(command("reconstruct", "packed.zip", "--model", run, "--format", "json").out)
        assert packed["score"] == found["score"]
        digests = {Signature.parse(each["signature"])["test"] for each in (found, packed)}
        assert len(digests) == 1
        few = command("reconstruct", "others", "--model", run, "--format", "json", "-n", 2)
        assert json.loads(few.out)["details"]["images"] == 2

    def test_what_is_done_to_pictures_is_said(self, run: Path, command, tmp_path: Path) -> None:
        folder = tmp_path / "mixed"
        folder.mkdir()
        for number, mode in enumerate(("L", "RGB", "RGBA", "L")):
            Image.new(mode, (12, 9), 7).save(folder / f"{number}.png")
        for words in (("reconstruct", folder), ("score", folder), ("map", folder)):
            done = command(*words, "--model", run)
            assert done.code == 0, done.err
            assert "mixed: converted to colour of 8 bits: 2 from L, 1 from RGBA" in done.err

    def test_pictures_are_cropped_as_those_that_were_learned_from(self, tmp_path: Path) -> None:
        """The authors' crop is of CelebA's images alone; others are cropped to the centre."""
        wide = np.zeros((218, 178, 3), np.uint8)
        wide[45:173, 25:153] = 255
        Image.fromarray(wide).save(tmp_path / "face.png")
        square = np.zeros((10, 20, 3), np.uint8)
        square[:, 5:15] = 255
        Image.fromarray(square).save(tmp_path / "other.png")
        shape = ImageShape(3, 8, 8)
        authors, centre = (given_images.Pictures([tmp_path], shape, crop) for crop in ("authors", "centre"))
        assert authors.pixels.min() == 255
        assert centre.pixels[0].min() < 255
        assert torch.equal(authors.pixels[1], centre.pixels[1])

    @pytest.mark.parametrize(("data", "crop", "found"), [("celeba64", None, "authors"), ("celeba128", None, "centre")])
    def test_the_crop_of_a_named_set_is_its_own(self, data: str, crop: str | None, found: str, run: Path) -> None:
        folder = checkpoint.pointed_at(run, "last")
        assert folder is not None
        assert given_images.crop_of(folder) == "centre"
        config, progress = checkpoint.read_run(folder)
        config = dataclasses.replace(config, data=data, images=dataclasses.replace(config.images, crop=crop))
        with mock.patch.object(checkpoint, "read_run", lambda folder: (config, progress)):
            assert given_images.crop_of(folder) == found

    def test_interpolate_makes_lines(self, run: Path, pictures: Path, command, tmp_path: Path) -> None:
        done = command("interpolate", "--model", run, "--lines", 2, "--points", 5, "--output", "lines.png")
        assert done.code == 0, done.err
        assert size_of(tmp_path / "lines.png") == (5 * 10 - 2, 2 * 10 - 2)
        ends = (pictures / "test" / "000.png", pictures / "test" / "001.png")
        done = command("interpolate", *ends, "--model", run, "--points", 3)
        assert done.code == 0, done.err
        assert size_of(tmp_path / "interpolation.png") == (28, 8)

    def test_plot_draws_mean_squared_errors(self, run: Path, command, tmp_path: Path) -> None:
        pytest.importorskip("matplotlib")
        done = command("plot", run, "--output", "curves.png")
        assert done.code == 0, done.err
        assert size_of(tmp_path / "curves.png")[0] > 1000

    @pytest.mark.parametrize(
        ("words", "said"),
        [
            (("fppl",), "is a model of images, and this command measures text"),
            (("rppl",), "is a model of images, and this command measures text"),
            (("evaluate",), "is a model of images, and this command measures text"),
            (("likelihood",), "is a model of images, and this command measures text"),
            (("generate", "--format", "jsonl"), "--format jsonl is of sentences"),
            (("reconstruct", "missing.png"), "missing.png cannot be read"),
            (("reconstruct", "none.zip"), "none.zip"),
            (("reconstruct", "--decoding", "beam"), "--decoding is of sentences, and the model makes images"),
            (("reconstruct", "a.png", "--split", "train"), "--split is of images of a split, and pictures are named"),
            (("generate", "--temperature", "0.5"), "--temperature is of sentences, and the model makes images"),
            (("score", "--samples", "5"), "--samples is of sentences, and the model makes images"),
            (("interpolate", "a.png"), "the second is missing"),
            (("generate", "--output", "no/where.png"), "--output no/where.png cannot be written"),
        ],
    )
    def test_what_makes_no_sense_is_said(self, words: tuple[object, ...], said: str, run: Path, command) -> None:
        done = command(*words, "--model", run)
        assert done.code == 2
        assert said in " ".join(done.err.split())

    def test_what_makes_no_sense_of_text_is_said(self, trained_run: Path, command) -> None:
        for words, said in (
            (("generate", "--format", "png"), "--format png is of images"),
            (("reconstruct",), "wants a text file"),
            (("reconstruct", "a.txt", "-n", 3), "--n is of images, and the model writes sentences"),
            (("score", "a.txt", "--split", "valid"), "--split is of images, and the model writes sentences"),
            (("interpolate", "a", "b", "--lines", 3), "--lines is of images, and the model writes sentences"),
            (("interpolate",), "wants two sentences"),
        ):
            done = command(*words, "--model", trained_run)
            assert done.code == 2
            assert said in done.err


class TestFiles:
    def test_a_pixel_of_8_bits_comes_back_as_it_was(self) -> None:
        values = torch.arange(256, dtype=torch.float32)
        pixels = (values / 127.5 - 1).view(1, 1, 16, 16)
        assert torch.equal(png.to_bytes(pixels).flatten().float(), values)
        outside = torch.tensor([-3.0, 3.0]).view(1, 1, 1, 2)
        assert png.to_bytes(outside).flatten().tolist() == [0, 255]

    @pytest.mark.parametrize("channels", [1, 3])
    def test_a_grid_holds_each_image_in_its_place(self, channels: int) -> None:
        pixels = torch.rand(5, channels, 4, 4, generator=torch.Generator().manual_seed(0)) * 2 - 1
        whole = png.grid(pixels, columns=3)
        assert whole.shape[:2] == (10, 16)
        for place, image in enumerate(png.to_bytes(pixels)):
            top, left = place // 3 * 6, place % 3 * 6
            found = whole[top : top + 4, left : left + 4].reshape(4, 4, channels)
            assert np.array_equal(found, image.permute(1, 2, 0).numpy())
        assert (whole[4:6] == 255).all()
        assert (whole[6:, 12:] == 255).all()  # the sixth place is empty
