"""Maps, neighbours and sums in the latent space: laws of the functions, then the commands."""

import csv
import dataclasses
import json
import shutil
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import Tensor

from textebm import evaluation, generation, latent_space
from textebm.commands.latent_space import parse_terms
from textebm.config import Config, ConvolutionConfig, GeneratorConfig, InferenceConfig, PriorConfig, to_dict
from textebm.data.text import EncodedText
from textebm.errors import DataError, UsageError
from textebm.given_images import Given
from textebm.latent_space import Posterior
from textebm.model.image_batch import ImageShape
from textebm.model.latent_model import LatentModel, ModelConfig
from textebm.model.recurrent import TextBatch

A, B, C = "the old dog sees a king", "no ship follows every wolf today", "a red river fears the child"
SENTENCES = [A, B, C, "a dog", "every quiet king loves no old ship at night", "the wolf sees the wolf"]
EXACT = {"rtol": 1e-4, "atol": 1e-5}
"""Of float32 chains: batches of other sizes are rounded otherwise."""


@pytest.fixture(scope="module")
def loaded(saved_model: Path):
    """The model and its tokeniser."""
    return generation.load(saved_model, "cpu")


@pytest.fixture(scope="module")
def text(loaded) -> EncodedText:
    return generation.encode_all(loaded[1], SENTENCES)


@pytest.fixture(scope="module")
def found(loaded, text: EncodedText) -> Posterior:
    return latent_space.posterior(loaded[0], text, seed=3)


class TestPosterior:
    def test_is_of_the_sentence_and_not_of_its_place(self, loaded, found: Posterior) -> None:
        """Other neighbours, another order, another size of batches: the same latents."""
        model, tokenizer = loaded
        order = [4, 0, 2]
        some = generation.encode_all(tokenizer, [SENTENCES[row] for row in order])
        again = latent_space.posterior(model, some, seed=3)
        for field in dataclasses.fields(Posterior):
            torch.testing.assert_close(getattr(again, field.name), getattr(found, field.name)[order], **EXACT)

    @pytest.mark.parametrize("together", [1, 7])
    def test_batches_of_any_size(
        self, loaded, text, found: Posterior, together: int, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(latent_space, "CHAINS_AT_ONCE", together)
        again = latent_space.posterior(loaded[0], text, seed=3)
        torch.testing.assert_close(again.samples, found.samples, **EXACT)

    def test_a_preconditioner_looks_at_one_sentence_alone(self, loaded, text: EncodedText) -> None:
        """It scales a chain's steps by gradients of the whole batch, in which no other sentence must stand."""
        model, tokenizer = loaded
        inference = InferenceConfig(steps=4, step_size=0.1, preconditioner="rms")
        scaled = LatentModel(dataclasses.replace(model.config, inference=inference), seed=2)
        together = latent_space.posterior(scaled, text, chains=3)
        alone = latent_space.posterior(scaled, generation.encode_all(tokenizer, [C]), chains=3)
        torch.testing.assert_close(together.samples[2], alone.samples[0], **EXACT)

    def test_chains_and_seeds_differ(self, loaded, text, found: Posterior) -> None:
        assert found.samples.shape == (6, latent_space.CHAINS, 3)
        assert (found.samples[:, 0] - found.samples[:, 1]).abs().amin() > 1e-4
        other = latent_space.posterior(loaded[0], text, seed=4)
        assert (found.samples - other.samples).abs().amin() > 1e-5
        more = latent_space.posterior(loaded[0], text, seed=3, chains=6)
        torch.testing.assert_close(more.samples[:, : latent_space.CHAINS], found.samples, **EXACT)

    def test_figures_are_those_of_the_samples(self, loaded, text, found: Posterior) -> None:
        model, _ = loaded
        x = text.batch(range(6))
        for chain in range(latent_space.CHAINS):
            z = found.samples[:, chain].float()
            torch.testing.assert_close(found.energies[:, chain].float(), model.energy(z), **EXACT)
            torch.testing.assert_close(found.log_likelihoods[:, chain].float(), model.log_prob(x, z), **EXACT)
        torch.testing.assert_close(found.means, found.samples.mean(1))

    def test_longer_chains_begin_as_shorter_ones(self, loaded, text, found: Posterior) -> None:
        """A chain of the steps of training is the default one; each sentence goes on from there for itself."""
        model, _ = loaded
        own = latent_space.posterior(model, text, seed=3, steps=model.config.inference.steps)
        torch.testing.assert_close(own.samples, found.samples, **EXACT)
        one, two = (latent_space.posterior(model, text, seed=3, steps=steps).samples for steps in (1, 2))
        assert 0 < float((one - two).norm(dim=2).mean()) < float((one - found.samples).norm(dim=2).mean())

    def test_an_encoder_knows_its_mean(self, loaded, text: EncodedText) -> None:
        model, _ = loaded
        inference = InferenceConfig(kind="amortised")
        amortised = LatentModel(dataclasses.replace(model.config, inference=inference), seed=2)
        found = latent_space.posterior(amortised, text, chains=2)
        torch.testing.assert_close(found.means, evaluation.encoded(amortised, text).mean)

    def test_spread_over_the_data(self, loaded, text, found: Posterior) -> None:
        some = latent_space.posterior(loaded[0], text, seed=3, n=3)
        torch.testing.assert_close(some.means, found.means[evaluation.spread(6, 3)], **EXACT)

    def test_a_language_model_has_no_z(self, loaded, text: EncodedText) -> None:
        model, _ = loaded
        parts = {"prior": PriorConfig(kind="none"), "inference": InferenceConfig(kind="none")}
        plain = LatentModel(dataclasses.replace(model.config, **parts))
        with pytest.raises(UsageError, match="no z"):
            latent_space.posterior(plain, text)

    def test_keys_are_of_the_content(self, text: EncodedText) -> None:
        batch = text.batch([0, 1, 3, 0])
        keys = latent_space.content_keys(batch)
        assert keys[0] == keys[3]
        assert len(set(keys)) == 3
        wider = TextBatch(*(torch.nn.functional.pad(part, (0, 5)) for part in batch[:2]), batch.lengths)
        assert latent_space.content_keys(wider) == keys
        pixels = Given(torch.rand(3, 1, 2, 2, generator=torch.Generator().manual_seed(0)))
        first, second, third = latent_space.content_keys(pixels.batch(np.array([2, 0, 2])))
        assert first == third != second


class TestTyped:
    @pytest.mark.parametrize(
        ("sentences", "said"),
        [
            ([A, " "], "sentence 2 of 2 is empty"),
            ([""], "sentence 1 of 1 is empty"),
            ([A, "xyzzy plugh"], "no word of 'xyzzy plugh'"),
        ],
    )
    def test_what_says_nothing_is_refused(self, loaded, sentences, said: str) -> None:
        with pytest.raises(DataError, match=said):
            latent_space.typed(loaded[1], sentences)

    def test_one_known_word_will_do_and_unk_may_be_written(self, loaded) -> None:
        assert len(latent_space.typed(loaded[1], ["xyzzy dog", "<unk> <unk>"])) == 2


class TestPrincipalComponents:
    @pytest.fixture
    def planted(self, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Two orthonormal directions in 6 dimensions; points that vary by 3 and by 1 along them, and little else."""
        axes = torch.linalg.qr(torch.randn(6, 2, generator=generator, dtype=torch.float64)).Q.T
        along = torch.randn(4000, 2, generator=generator, dtype=torch.float64) * torch.tensor([3.0, 1.0])
        noise = 0.01 * torch.randn(4000, 6, generator=generator, dtype=torch.float64)
        return axes, 5 + along @ axes + noise

    def test_planted_directions_come_back(self, planted) -> None:
        axes, points = planted
        found = latent_space.principal_components(points)
        cosines = (found.directions * axes).sum(1).abs()
        assert cosines.tolist() == pytest.approx([1, 1], abs=5e-3)
        assert found.variances[:2].sqrt().tolist() == pytest.approx([3, 1], rel=0.05)
        assert found.shares == pytest.approx([0.9, 0.1], abs=0.02)
        torch.testing.assert_close(found.centre, points.mean(0))
        torch.testing.assert_close(found.directions @ found.directions.T, torch.eye(2, dtype=torch.float64))

    def test_signs_are_stable(self, planted) -> None:
        """Neither the order of the points nor a reflection of all of them turns a direction round."""
        _, points = planted
        found = latent_space.principal_components(points)
        for other in (points.flip(0), -points, points + 1e-9):
            again = latent_space.principal_components(other)
            torch.testing.assert_close(again.directions, found.directions, rtol=1e-6, atol=1e-6)
        assert (found.directions.gather(1, found.directions.abs().argmax(1, keepdim=True)) > 0).all()

    def test_projecting_and_placing(self, planted) -> None:
        _, points = planted
        found = latent_space.principal_components(points)
        there = torch.tensor([[1.5, -2.0], [0.0, 0.0]], dtype=torch.float64)
        torch.testing.assert_close(found.project(found.place(there)), there)
        assert found.project(points).var(0).tolist() == pytest.approx(found.variances[:2].tolist())

    def test_all_points_in_one_place(self) -> None:
        assert latent_space.principal_components(torch.ones(4, 3)).shares == [0, 0]

    @pytest.mark.parametrize(("size", "said"), [((9, 1), "z has 1 dimensions"), ((2, 5), "at least 3 are wanted")])
    def test_too_few(self, size: tuple[int, int], said: str) -> None:
        with pytest.raises(UsageError, match=said):
            latent_space.principal_components(torch.zeros(size))


class TestMapsAndLandscapes:
    def test_a_map_keeps_what_belongs_together(self, text, found: Posterior) -> None:
        drawn = latent_space.latent_map(text, found, SENTENCES)
        components = latent_space.principal_components(found.means)
        torch.testing.assert_close(drawn.positions, components.project(found.means))
        assert drawn.lengths == [len(sentence.split()) for sentence in SENTENCES]
        points = drawn.as_dict()["points"]
        assert [point["name"] for point in points] == SENTENCES
        assert [point["energy"] for point in points] == pytest.approx(found.energies.mean(1).tolist())
        assert drawn.labels is None

    def test_umap_is_asked_for_by_name_where_it_is_missing(
        self, text, found: Posterior, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(latent_space, "find_spec", lambda name: None)
        with pytest.raises(UsageError, match="pip install umap-learn"):
            latent_space.latent_map(text, found, SENTENCES, method="umap")

    def test_umap_gives_the_positions(self, text, found: Posterior, monkeypatch: pytest.MonkeyPatch) -> None:
        """A stand-in, which is told the seed and gives the first two numbers of each point."""

        class Umap:
            def __init__(self, n_components: int, random_state: int) -> None:
                assert (n_components, random_state) == (2, 7)

            def fit_transform(self, points: np.ndarray) -> np.ndarray:
                return points[:, :2].astype(np.float32)

        monkeypatch.setattr(latent_space, "find_spec", lambda name: object())
        monkeypatch.setitem(sys.modules, "umap", SimpleNamespace(UMAP=Umap))
        drawn = latent_space.latent_map(text, found, SENTENCES, method="umap", seed=7)
        torch.testing.assert_close(drawn.positions, found.means[:, :2], rtol=1e-5, atol=1e-6)
        assert drawn.shares is None

    def test_a_landscape_is_the_energy_of_its_points(self, loaded, found: Posterior) -> None:
        model, _ = loaded
        land = latent_space.landscape(model, found, seed=1, samples=20, points=5)
        components = latent_space.principal_components(found.means)
        z = components.place(torch.stack([land.first[3], land.second[1]])[None])
        assert float(land.energy[1, 3]) == pytest.approx(float(model.energy(z.float())), rel=1e-4)
        assert float(land.potential[1, 3] - land.energy[1, 3]) == pytest.approx(float(z.square().sum()) / 2, rel=1e-6)
        prior = model.sample_prior(20, generation.stream(1, "prior", 0)).double()
        torch.testing.assert_close(land.prior, components.project(prior))
        assert land.posterior.shape == (6, 2)
        for samples in (land.prior, land.posterior):  # the grid reaches beyond every sample
            assert (samples[:, 0] > land.first[0]).all()
            assert (samples[:, 1] < land.second[-1]).all()


class TestNeighbours:
    def test_of_a_sentence_of_the_corpus_the_first_is_itself(self, loaded, found: Posterior) -> None:
        model, tokenizer = loaded
        for row, sentence in enumerate(SENTENCES):
            near = latent_space.neighbours(model, tokenizer, sentence, SENTENCES, found, 3, seed=3)
            assert near[0].number == row
            assert near[0].text == sentence
            assert near[0].distance < 1e-3 < near[1].distance <= near[2].distance

    def test_distances_by_hand(self) -> None:
        points = torch.tensor([[0.0, 0], [3, 4], [1, 0], [-1, 0]])
        assert latent_space.nearest(points, torch.zeros(2), 3) == [(0, 0.0), (2, 1.0), (3, 1.0)]
        assert len(latent_space.nearest(points, torch.zeros(2), 9)) == 4


class TestArithmetic:
    def test_what_is_added_and_taken_away_leaves_no_trace(self, loaded) -> None:
        model, tokenizer = loaded
        found = latent_space.arithmetic(model, tokenizer, [(1, A), (-1, A), (1, C)])
        assert found.text == found.terms[2].reconstruction
        assert found.text == latent_space.arithmetic(model, tokenizer, [(1, C)]).text
        assert found.terms[0].reconstruction == found.terms[1].reconstruction
        means = latent_space.posterior(model, generation.encode_all(tokenizer, [C])).means
        assert found.energy == pytest.approx(float(model.energy(means.float())), rel=1e-3, abs=1e-5)
        assert found.norm == pytest.approx(float(means.norm()), rel=1e-4)

    def test_the_order_of_terms_does_not_matter(self, loaded) -> None:
        model, tokenizer = loaded
        one = latent_space.arithmetic(model, tokenizer, [(1, A), (-1, B), (1, C)])
        other = latent_space.arithmetic(model, tokenizer, [(1, C), (1, A), (-1, B)])
        assert one.energy == pytest.approx(other.energy, rel=1e-3, abs=1e-5)

    @pytest.mark.parametrize(
        ("words", "terms"),
        [
            (("a b",), [(1, "a b")]),
            (("a", "-", "b", "+", "c d"), [(1, "a"), (-1, "b"), (1, "c d")]),
            (("-", "+", "+"), [(1, "-"), (1, "+")]),
        ],
    )
    def test_terms(self, words, terms) -> None:
        assert parse_terms(words) == terms

    @pytest.mark.parametrize(
        ("words", "said"),
        [
            ((), "nothing was given"),
            (("a", "-"), "last sentence is missing"),
            (("a", "b", "c"), "where 'b' stands"),
            (("a", "b"), "where 'b' stands"),
        ],
    )
    def test_wrong_terms(self, words, said: str) -> None:
        with pytest.raises(UsageError, match=said):
            parse_terms(words)


class TestKept:
    def test_is_computed_once(self, found: Posterior, tmp_path: Path) -> None:
        made = []

        def make() -> Posterior:
            made.append(1)
            return found

        for _ in range(2):
            kept = latent_space.kept_posterior(tmp_path / "latents", ("model", 1), make)
            torch.testing.assert_close(kept.samples, found.samples, rtol=0, atol=0)
        assert len(made) == 1
        latent_space.kept_posterior(tmp_path / "latents", ("model", 2), make)
        assert len(made) == 2
        for file in (tmp_path / "latents").iterdir():
            file.write_bytes(b"damaged")
        latent_space.kept_posterior(tmp_path / "latents", ("model", 1), make)
        assert len(made) == 3


class TestCommands:
    def test_map_draws_and_writes_points(self, saved_model: Path, command, tmp_path: Path) -> None:
        pytest.importorskip("matplotlib", reason="maps are drawn by matplotlib")
        options = ("--plot", "a.png", "--csv", "a.csv", "--landscape", "land.svg", "--format", "json", "-n", 12)
        done = command("map", "--model", saved_model, *options)
        assert done.code == 0, done.err
        assert (tmp_path / "a.png").read_bytes().startswith(b"\x89PNG")
        assert "<svg" in (tmp_path / "land.svg").read_text(encoding="utf-8")
        found = json.loads(done.out)
        with (tmp_path / "a.csv").open(encoding="utf-8", newline="") as file:
            rows = list(csv.DictReader(file))
        assert len(rows) == len(found["points"]) == 12
        for row, point in zip(rows, found["points"], strict=True):
            assert row["name"] == point["name"]
            assert float(row["x"]) == point["x"]
        assert len(found["landscape"]["energy"]) == latent_space.GRID
        assert found["shares"][0] >= found["shares"][1] > 0

    def test_map_of_a_file_is_map_of_its_sentences(self, saved_model: Path, loaded, command, tmp_path: Path) -> None:
        (tmp_path / "mine.txt").write_text("".join(f"{sentence}\n" for sentence in SENTENCES))
        done = command("map", "mine.txt", "--model", saved_model, "--csv", "a.csv", "--seed", 3)
        assert done.code == 0, done.err
        model, tokenizer = loaded
        text = generation.encode_all(tokenizer, SENTENCES)
        known = latent_space.latent_map(text, latent_space.posterior(model, text, 3), SENTENCES)
        known.write_csv(tmp_path / "known.csv")
        assert (tmp_path / "a.csv").read_text() == (tmp_path / "known.csv").read_text()
        assert not (tmp_path / "map.png").exists()

    def test_neighbours(self, saved_model: Path, command, corpus_folder: Path) -> None:
        sentence = (corpus_folder / "valid.txt").read_text(encoding="utf-8").splitlines()[7]
        words = ("neighbours", sentence, "--model", saved_model, "-n", 0, "--count", 3)
        done, again = command(*words, "--format", "json"), command(*words)
        assert done.code == 0, done.err
        near = json.loads(done.out)["neighbours"]
        assert near[0]["text"] == sentence
        assert near[0]["distance"] < 1e-3 < near[-1]["distance"]
        assert [line.split("  ")[-1] for line in again.lines[1:]] == [neighbour["text"] for neighbour in near]

    def test_arithmetic(self, saved_model: Path, loaded, command) -> None:
        done = command("arithmetic", A, "-", B, "+", C, "--model", saved_model, "--seed", 5, "--format", "json")
        assert done.code == 0, done.err
        found = json.loads(done.out)
        known = latent_space.arithmetic(*loaded, [(1, A), (-1, B), (1, C)], seed=5)
        assert found["text"] == known.text
        assert [term["sign"] for term in found["terms"]] == [1, -1, 1]
        plain = command("arithmetic", A, "-", B, "+", C, "--model", saved_model, "--seed", 5)
        assert plain.lines == [known.text]

    @pytest.mark.parametrize(
        ("words", "said"),
        [
            (("neighbours",), "wants a sentence"),
            (("neighbours", ""), "is empty"),
            (("neighbours", "xyzzy"), "no word of 'xyzzy'"),
            (("neighbours", A, "--count", 0), "count is 0"),
            (("arithmetic", A, "+"), "last sentence is missing"),
            (("arithmetic", A, "-", "xyzzy"), "no word of 'xyzzy'"),
            (("arithmetic", A, "--chains", 0), "chains is 0"),
            (("map", "--colour", "label"), "no labels"),
            (("map", "nowhere.txt"), "nowhere.txt: no such file"),
            (("map", "blank.txt"), "blank.txt, line 2 is empty"),
            (("map", "-n", -1), "n is -1"),
            (("map", "-n", 2), "at least 3"),
            (("map", "--plot", "map.xyz", "-n", 5), "map.xyz cannot be written"),
        ],
    )
    def test_what_makes_no_sense_is_said(self, words, said: str, saved_model: Path, command, tmp_path: Path) -> None:
        (tmp_path / "blank.txt").write_text("a dog\n\na king\n")
        done = command(*words, "--model", saved_model)
        assert done.code == 2
        assert said in done.err
        assert done.out == ""

    @pytest.mark.parametrize("words", [("map",), ("neighbours", A), ("arithmetic", A)])
    def test_a_run_that_is_not_there(self, words, command) -> None:
        done = command(*words, "--model", "nowhere")
        assert done.code == 1
        assert "no run and no model folder 'nowhere'" in done.err

    def test_a_model_folder_without_its_run_can_map_a_file(self, saved_model: Path, command, tmp_path: Path) -> None:
        shutil.copytree(saved_model, tmp_path / "bare", ignore=shutil.ignore_patterns("run.json"))
        (tmp_path / "mine.txt").write_text("".join(f"{sentence}\n" for sentence in SENTENCES))
        done = command("map", "mine.txt", "--model", "bare", "--csv", "a.csv")
        assert done.code == 0, done.err
        assert command("neighbours", A, "--model", "bare").code == 1


class TestImages:
    @pytest.fixture(scope="class")
    def folder(self, tmp_path_factory: pytest.TempPathFactory) -> Path:
        """A folder of dark and bright pictures, and beside it a model of such images that nobody trained."""
        image = pytest.importorskip("PIL.Image", reason="pictures are read by Pillow")
        folder = tmp_path_factory.mktemp("pictures")
        for split in ("train", "valid", "test"):
            for kind, brightness in (("bright", 200), ("dark", 20)):
                (folder / "data" / split / kind).mkdir(parents=True)
                for number in range(4):
                    picture = image.new("L", (8, 8), brightness + 10 * number)
                    picture.save(folder / "data" / split / kind / f"{number}.png")
        convolution = ConvolutionConfig(width=4, start=4, multiples=(2,), sigma=0.3)
        parts = {
            "prior": PriorConfig(latent_dim=3, width=8, steps=4),
            "generator": GeneratorConfig(kind="convolutional", convolution=convolution),
            "inference": InferenceConfig(steps=4, step_size=0.1),
        }
        LatentModel(ModelConfig(image=ImageShape(1, 8, 8), **parts), seed=1).save_pretrained(folder / "model")
        config = to_dict(dataclasses.replace(Config(), data=str(folder / "data"), **parts))
        described = {"format": 2, "config": config, "progress": {}, "contents": {}}
        (folder / "model" / "run.json").write_text(json.dumps(described), encoding="utf-8")
        return folder

    def test_a_map_of_a_split_has_labels(self, folder: Path, command, tmp_path: Path) -> None:
        pytest.importorskip("matplotlib", reason="maps are drawn by matplotlib")
        done = command("map", "--model", folder / "model", "--plot", "a.svg", "--format", "json")
        assert done.code == 0, done.err
        points = json.loads(done.out)["points"]
        assert [point["label"] for point in points] == ["bright"] * 4 + ["dark"] * 4
        assert [point["name"] for point in points] == [f"valid:{number}" for number in range(8)]
        drawn = (tmp_path / "a.svg").read_text(encoding="utf-8")
        assert all(f">{word}<" in drawn for word in ("bright", "dark", "class"))
        assert "8 images" in drawn

    def test_a_map_of_pictures(self, folder: Path, command) -> None:
        done = command("map", folder / "data" / "test", "--model", folder / "model", "--format", "json")
        assert done.code == 0, done.err
        points = json.loads(done.out)["points"]
        assert points[0]["name"] == str(folder / "data" / "test" / "bright" / "0.png")
        assert "label" not in points[0]
        assert "length" not in points[0]

    def test_scores_of_a_split(self, folder: Path, command) -> None:
        done = command("score", "--model", folder / "model", "--split", "valid", "-n", 3)
        assert done.code == 0, done.err
        assert [json.loads(line)["image"] for line in done.lines] == ["valid:0", "valid:4", "valid:7"]

    @pytest.mark.parametrize(
        ("words", "said"),
        [
            (("neighbours", A), "neighbours are found of sentences"),
            (("arithmetic", A), "a model of text is wanted"),
            (("map", "--colour", "length"), "--colour length is of sentences"),
            (("map", "--text-field", "words"), "--text-field is of sentences"),
            (("map", "a.png", "-n", 5), "--n is of a split, and a file is named"),
        ],
    )
    def test_what_is_of_text_is_said(self, words, said: str, folder: Path, command) -> None:
        done = command(*words, "--model", folder / "model")
        assert done.code == 2
        assert said in done.err
