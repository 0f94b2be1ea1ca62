"""The Python interface: the same data as the commands give, for the same seed; and errors that say what to do."""

import dataclasses
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import textebm
from textebm import analysis, checkpoint, generation, image_generation, latent_space
from textebm.config import ConvolutionConfig, GeneratorConfig, InferenceConfig, PriorConfig
from textebm.errors import CheckpointError, ConfigError, DataError, UsageError
from textebm.interface import ImageEBM, LatentEBM, TextEBM
from textebm.model.decoding import Decoding
from textebm.model.image_batch import ImageShape
from textebm.model.latent_model import LatentModel, ModelConfig

A, B, C = "the old dog sees a king", "no ship follows every wolf today", "a red river fears the child"


@pytest.fixture(scope="module")
def model(saved_model: Path) -> TextEBM:
    return TextEBM.from_pretrained(saved_model, device="cpu")


@pytest.fixture(scope="module")
def image_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The model folder of a small model of images that nobody trained."""
    config = ModelConfig(
        prior=PriorConfig(latent_dim=3, width=8, steps=4),
        generator=GeneratorConfig(
            kind="convolutional", convolution=ConvolutionConfig(width=4, start=4, multiples=(2,), sigma=0.3)
        ),
        inference=InferenceConfig(steps=4, step_size=0.1),
        image=ImageShape(1, 8, 8),
    )
    folder = tmp_path_factory.mktemp("image-model")
    LatentModel(config, seed=1).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def painter(image_folder: Path) -> ImageEBM:
    return ImageEBM.from_pretrained(image_folder, device="cpu")


@pytest.fixture(scope="module")
def pixels() -> torch.Tensor:
    return torch.rand(3, 1, 8, 8, generator=torch.Generator().manual_seed(0))


class TestImport:
    def test_nothing_heavy_until_it_is_used(self) -> None:
        program = (
            "import sys, textebm; assert 'LatentEBM' in dir(textebm); "
            "print({'torch', 'numpy'} & sys.modules.keys()); textebm.LatentEBM; print('torch' in sys.modules)"
        )
        done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
        assert done.stdout.splitlines() == ["set()", "True"]

    def test_names(self) -> None:
        assert textebm.LatentEBM is LatentEBM
        with pytest.raises(AttributeError, match="no attribute 'LatentEMB'"):
            textebm.LatentEMB  # noqa: B018


class TestLoading:
    def test_gives_the_class_of_its_kind(self, model: TextEBM, painter: ImageEBM, saved_model: Path) -> None:
        assert type(LatentEBM.from_pretrained(saved_model)) is TextEBM
        assert type(LatentEBM.from_pretrained(painter.folder)) is ImageEBM
        assert "prior='ebm', dimensions=3" in repr(model)

    def test_a_run_means_its_best_checkpoint(self, saved_model: Path, tmp_path: Path) -> None:
        folder = tmp_path / "run" / "checkpoints"
        folder.mkdir(parents=True)
        (folder / "step-30").symlink_to(saved_model)
        (folder / "best.json").write_text('{"folder": "step-30"}')
        for name in (tmp_path / "run", str(tmp_path / "run"), folder / "step-30"):
            assert LatentEBM.from_pretrained(name).folder == folder / "step-30"

    @pytest.mark.parametrize("name", [None, "demo"])
    def test_the_shipped_model(self, name: str | None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
        monkeypatch.chdir(tmp_path)
        (found,) = LatentEBM.from_pretrained(name).generate(1, seed=3)
        loaded = generation.load(checkpoint.SHIPPED)
        assert found == next(generation.generate(*loaded, 1, 3)).text

    def test_a_folder_named_demo_is_meant_where_there_is_one(
        self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
    ) -> None:
        monkeypatch.chdir(tmp_path)
        (tmp_path / "demo").mkdir()
        with pytest.raises(CheckpointError, match="demo is no model folder"):
            LatentEBM.from_pretrained("demo")

    def test_what_is_not_there(self, saved_model: Path, painter: ImageEBM) -> None:
        with pytest.raises(CheckpointError, match="no run and no model folder 'nowhere'"):
            LatentEBM.from_pretrained("nowhere")
        with pytest.raises(UsageError, match="is a model of images, and TextEBM is one of text"):
            TextEBM.from_pretrained(painter.folder)
        with pytest.raises(UsageError, match="is a model of text, and ImageEBM is one of images"):
            ImageEBM.from_pretrained(saved_model)
        with pytest.raises(UsageError, match="device abacus cannot be used here"):
            LatentEBM.from_pretrained(saved_model, device="abacus")


class TestText:
    """What the commands print for the same seed."""

    @pytest.fixture
    def file(self, tmp_path: Path) -> Path:
        path = tmp_path / "sentences.txt"
        path.write_text(f"{A}\n{B}\n{C}\n")
        return path

    def test_generate(self, model: TextEBM, command, saved_model: Path) -> None:
        options = ("-n", 4, "--seed", 2, "--temperature", 0.7, "--prior-steps", 3)
        done = command("generate", "--model", saved_model, *options)
        assert model.generate(4, seed=2, temperature=0.7, steps=3) == done.lines
        assert model.generate(4, seed=2) == command("generate", "--model", saved_model, "-n", 4, "--seed", 2).lines
        greedy = command("generate", "--model", saved_model, "-n", 4, "--decoding", "greedy").lines
        assert model.generate(4, decoding=Decoding("greedy", max_length=9)) == greedy

    def test_reconstruct(self, model: TextEBM, command, saved_model: Path, file: Path) -> None:
        done = command("reconstruct", file, "--model", saved_model, "--seed", 2)
        assert model.reconstruct([A, B, C], seed=2) == done.lines
        assert model.decode(model.infer([A, B, C], seed=2), seed=2) == done.lines
        assert model.reconstruct(A, seed=2) == model.reconstruct([A], seed=2)

    def test_interpolate(self, model: TextEBM, command, saved_model: Path) -> None:
        done = command("interpolate", A, B, "--model", saved_model, "--points", 4, "--seed", 2)
        assert model.interpolate(A, B, points=4, seed=2) == done.lines

    def test_score(self, model: TextEBM, command, saved_model: Path, file: Path) -> None:
        done = command("score", file, "--model", saved_model, "--seed", 2, "--samples", 0)
        found = model.score([A, B, C], seed=2)
        assert [score.as_dict() for score in found] == [json.loads(line) for line in done.lines]

    def test_map(self, model: TextEBM, command, saved_model: Path, file: Path) -> None:
        done = command("map", file, "--model", saved_model, "--seed", 2, "--format", "json")
        drawn = json.loads(done.out)
        assert drawn["points"] == model.map([A, B, C], seed=2).as_dict()["points"]

    def test_neighbours(self, model: TextEBM) -> None:
        near = model.neighbours(B, [A, B, C], count=2, seed=2)
        assert near[0].text == B
        assert near[0].distance < 1e-3 < near[1].distance

    def test_arithmetic(self, model: TextEBM, command, saved_model: Path) -> None:
        done = command("arithmetic", A, "+", C, "-", B, "--model", saved_model, "--seed", 2)
        assert model.arithmetic([A, C], B, seed=2).text == done.lines[0]

    def test_latents(self, model: TextEBM) -> None:
        z = model.sample(5, seed=1, steps=0)
        assert z.shape == (5, 3)
        torch.testing.assert_close(z, model.model.prior.sample_reference(5, generation.stream(1, "prior", 0)))
        torch.testing.assert_close(model.energy(z), model.model.energy(z))
        known = latent_space.posterior(model.model, generation.encode_all(model.tokenizer, [A, B]), 3, chains=2)
        torch.testing.assert_close(model.means([A, B], seed=3, chains=2), known.means)

    def test_transition(self, model: TextEBM) -> None:
        found = model.transition(steps=6, marks=(0, 6), chains=4, shown=2, seed=5)
        known = analysis.transition(model.model, model.tokenizer, chains=4, shown=2, steps=6, marks=(0, 6), seed=5)
        assert found.as_dict() == known.as_dict()
        assert found.texts is not None

    def test_prints_nothing(self, model: TextEBM, capfd: pytest.CaptureFixture[str]) -> None:
        model.generate(2)
        model.score([A])
        model.map([A, B, C])
        assert capfd.readouterr() == ("", "")

    def test_what_makes_no_sense_is_said(self, model: TextEBM) -> None:
        for wrong, error, said in (
            (lambda: model.generate(0), UsageError, "n is 0: it must be at least 1"),
            (lambda: model.generate(1, seed=-1), UsageError, "seed is -1"),
            (lambda: model.generate(1, steps=-1), UsageError, "steps is -1"),
            (lambda: model.generate(1, temperature=0), ConfigError, "temperature is 0"),
            (lambda: model.infer([]), DataError, "no sentence is left"),
            (lambda: model.infer([A, ""]), DataError, "1 of 2 sentences are empty"),
            (lambda: model.infer(A, steps=0), UsageError, "steps is 0"),
            (lambda: model.interpolate(A, B, points=1), UsageError, "points is 1"),
            (lambda: model.score(["xyzzy"]), DataError, "no word of 'xyzzy'"),
            (lambda: model.score(A, chains=0), UsageError, "chains is 0"),
            (lambda: model.neighbours("", [A]), DataError, "is empty"),
            (lambda: model.neighbours(A, [B], count=0), UsageError, "count is 0"),
            (lambda: model.arithmetic([]), UsageError, "a sum of no sentences"),
            (lambda: model.map([A, B]), UsageError, "at least 3"),
            (lambda: model.transition(steps=0), UsageError, "0 steps"),
        ):
            with pytest.raises(error, match=said):
                wrong()

    def test_a_language_model_has_no_z(self, model: TextEBM) -> None:
        parts = {"prior": PriorConfig(kind="none"), "inference": InferenceConfig(kind="none")}
        network = LatentModel(dataclasses.replace(model.model.config, **parts))
        plain = TextEBM(network, model.folder, model.tokenizer)
        assert len(plain.generate(2)) == 2
        for ask in (plain.infer, plain.reconstruct, plain.means, plain.arithmetic):
            with pytest.raises(UsageError, match="no z"):
                ask([A, B, C])
        assert plain.score([A])[0].energy is None


class TestImages:
    def test_generate(self, painter: ImageEBM) -> None:
        images = painter.generate(5, seed=2)
        (known,) = image_generation.generate(painter.model, 5, 2)
        torch.testing.assert_close(images * 2 - 1, known.images)
        assert images.min() >= 0
        assert images.max() <= 1

    def test_infer_and_reconstruct(self, painter: ImageEBM, pixels: torch.Tensor) -> None:
        z = painter.infer(pixels, seed=2)
        assert z.shape == (3, 3)
        torch.testing.assert_close(painter.decode(z), painter.reconstruct(pixels, seed=2))

    def test_files_are_pixels(self, painter: ImageEBM, pixels: torch.Tensor, tmp_path: Path) -> None:
        image = pytest.importorskip("PIL.Image", reason="pictures are read by Pillow")
        values = (pixels * 255).round().to(torch.uint8)
        paths = [tmp_path / f"{number}.png" for number in range(3)]
        for path, value in zip(paths, values, strict=True):
            image.fromarray(value[0].numpy()).save(path)
        torch.testing.assert_close(painter.infer(paths, seed=2), painter.infer(values / 255, seed=2))
        line, known = painter.interpolate(*paths[:2], points=3), painter.interpolate(*(values / 255)[:2], points=3)
        torch.testing.assert_close(line, known)
        assert line.shape == (3, 1, 8, 8)
        assert [score.image for score in painter.score(paths)] == list(map(str, paths))

    def test_score(self, painter: ImageEBM, pixels: torch.Tensor) -> None:
        scores = painter.score(pixels, seed=2)
        assert [score.image for score in scores] == ["0", "1", "2"]
        assert np.isfinite([score.mse for score in scores]).all()

    def test_transition(self, painter: ImageEBM) -> None:
        found = painter.transition(steps=4, marks=(0, 4), chains=3, shown=2)
        assert found.images is not None
        assert found.images.shape == (2, 2, 1, 8, 8)

    def test_one_picture_may_be_named_by_its_path(self, painter: ImageEBM, tmp_path: Path) -> None:
        picture = tmp_path / "one.png"
        Image.new("L", (8, 8), 90).save(picture)
        assert torch.equal(painter.infer(str(picture)), painter.infer([picture]))

    def test_what_makes_no_sense_is_said(self, painter: ImageEBM, pixels: torch.Tensor) -> None:
        for wrong, error, said in (
            (lambda: painter.generate(2, temperature=0.5), UsageError, "temperature is 0.5"),
            (lambda: painter.infer(pixels[:, :, :4]), UsageError, r"this model's are \(n, 1, 8, 8\)"),
            (lambda: painter.infer(pixels * 2 - 1), UsageError, r"must be in \[0, 1\]"),
            (lambda: painter.infer(pixels[:0]), UsageError, "there is no image"),
            (lambda: painter.infer(["nowhere.png"]), DataError, "nowhere.png cannot be read"),
            (lambda: painter.interpolate(pixels[0], pixels[1], points=1), UsageError, "points is 1"),
        ):
            with pytest.raises(error, match=said):
                wrong()
