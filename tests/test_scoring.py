"""What a model says of each sentence or image: the figures are those that other commands measure, line by line."""

import dataclasses
import io
import json
import math
import sys
from pathlib import Path

import pytest
import torch

from textebm import evaluation, generation, latent_space, marginal, scoring
from textebm.config import ConvolutionConfig, GeneratorConfig, InferenceConfig, PriorConfig
from textebm.errors import CheckpointError, DataError
from textebm.given_images import Given
from textebm.marginal import Settings
from textebm.model import ais
from textebm.model.ais import Plan
from textebm.model.image_batch import ImageShape
from textebm.model.latent_model import LatentModel, ModelConfig
from textebm.model.proposals import Fit

SENTENCES = ["the old dog sees a king", "no ship", "a red river fears the child", "xyzzy dog"]
QUICK = Settings(samples=40, fit=Fit(chains=4, steps=12), plan=Plan(chains=40, steps=40, settling=20))


@pytest.fixture(scope="module")
def loaded(saved_model: Path):
    """The model and its tokeniser."""
    return generation.load(saved_model, "cpu")


@pytest.fixture(scope="module")
def language_model(loaded) -> LatentModel:
    parts = {"prior": PriorConfig(kind="none"), "inference": InferenceConfig(kind="none")}
    return LatentModel(dataclasses.replace(loaded[0].config, **parts), seed=1)


@pytest.fixture(scope="module")
def painter() -> LatentModel:
    convolution = ConvolutionConfig(width=4, start=4, multiples=(2,), sigma=0.3)
    config = ModelConfig(
        prior=PriorConfig(latent_dim=3, width=8, steps=4),
        generator=GeneratorConfig(kind="convolutional", convolution=convolution),
        inference=InferenceConfig(steps=4, step_size=0.1),
        image=ImageShape(1, 8, 8),
    )
    return LatentModel(config, seed=1).eval()


class TestSentences:
    def test_figures_are_means_over_posterior_samples(self, loaded) -> None:
        model, tokenizer = loaded
        scores = scoring.score_sentences(model, tokenizer, SENTENCES, seed=2, chains=3)
        found = latent_space.posterior(model, generation.encode_all(tokenizer, SENTENCES), 2, chains=3)
        assert [score.text for score in scores] == SENTENCES
        assert [score.words for score in scores] == [7, 3, 7, 3]
        assert [score.unknown_words for score in scores] == [0, 0, 0, 1]
        for row, score in enumerate(scores):
            assert score.energy == pytest.approx(float(found.energies[row].mean()), rel=1e-4, abs=1e-6)
            assert score.log_likelihood == pytest.approx(float(found.log_likelihoods[row].mean()), rel=1e-4)
            assert score.log_likelihood_per_word == score.log_likelihood / score.words
            assert score.marginal_nll is score.marginal_nll_per_word is score.effective_samples is None
            assert score.withheld == scoring.NOT_ASKED_FOR

    def test_a_score_depends_on_its_sentence_alone(self, loaded, monkeypatch: pytest.MonkeyPatch) -> None:
        together = scoring.score_sentences(*loaded, SENTENCES, seed=2)
        monkeypatch.setattr(latent_space, "CHAINS_AT_ONCE", 1)
        for row in (3, 1):
            (alone,) = scoring.score_sentences(*loaded, [SENTENCES[row]], seed=2)
            assert alone.energy == pytest.approx(together[row].energy, rel=1e-3, abs=1e-5)
            assert alone.log_likelihood == pytest.approx(together[row].log_likelihood, rel=1e-4)

    def test_in_the_mean_they_are_what_validation_measures(self, loaded) -> None:
        """Other noise of the same chains: the means of 300 agree within five standard errors."""
        model, tokenizer = loaded
        text, n = generation.encode_all(tokenizer, SENTENCES * 300), 300
        measured = evaluation.validate(model, text, seed=0, batch_size=400)
        found = latent_space.posterior(model, generation.encode_all(tokenizer, SENTENCES), chains=n)
        scores = scoring.score_sentences(model, tokenizer, SENTENCES, chains=n)
        for values, mean, known in (
            (found.log_likelihoods, [score.log_likelihood for score in scores], -measured.reconstruction_nll),
            (found.energies, [score.energy for score in scores], measured.posterior_energy),
        ):
            error = float(values.var(1).mean() / (n * len(SENTENCES)) * 2) ** 0.5
            assert sum(mean) / len(mean) == pytest.approx(known, abs=5 * error)

    def test_the_marginal_likelihood_is_that_of_the_likelihood_command(self, loaded) -> None:
        model, tokenizer = loaded
        scores = scoring.score_sentences(model, tokenizer, SENTENCES, seed=2, settings=QUICK)
        known = marginal.estimate(model, generation.encode_all(tokenizer, SENTENCES), 2, QUICK)
        assert known.withheld is None
        assert [score.marginal_nll for score in scores] == pytest.approx((known.log_z - known.log_means).tolist())
        assert known.effective_samples is not None
        assert [score.effective_samples for score in scores] == pytest.approx(known.effective_samples.tolist())
        mean = marginal.summarise(known, {}, QUICK).score
        assert scoring.summarise(scores).marginal_nll == pytest.approx(mean)

    def test_what_is_not_believed_is_withheld_with_the_reason(self, loaded, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(ais.LogNormaliser, "agrees", property(lambda _: False))
        scores = scoring.score_sentences(*loaded, SENTENCES, settings=QUICK)
        assert all(score.marginal_nll is None for score in scores)
        assert all("they differ by" in (score.withheld or "") for score in scores)
        assert all(score.energy is not None for score in scores)
        assert scoring.summarise(scores).marginal_nll is None

    def test_a_language_model_is_scored_exactly(self, loaded, language_model: LatentModel) -> None:
        tokenizer = loaded[1]
        scores = scoring.score_sentences(language_model, tokenizer, SENTENCES)
        measured = evaluation.validate(language_model, generation.encode_all(tokenizer, SENTENCES), 0)
        assert isinstance(measured, evaluation.ExactValidation)
        summary = scoring.summarise(scores)
        assert -summary.log_likelihood == pytest.approx(measured.nll)
        assert summary.perplexity == pytest.approx(measured.perplexity)
        assert summary.energy is None
        for score in scores:
            assert score.energy is None
            assert score.marginal_nll == -score.log_likelihood
            assert score.withheld is None

    def test_the_summary_is_of_all_words(self, loaded) -> None:
        scores = scoring.score_sentences(*loaded, SENTENCES)
        summary = scoring.summarise(scores)
        total, words = sum(score.log_likelihood for score in scores), sum(score.words for score in scores)
        assert summary.perplexity == pytest.approx(math.exp(-total / words))
        assert (summary.sentences, summary.words) == (4, words)

    def test_a_broken_model_is_said_to_be(self, loaded) -> None:
        model, tokenizer = loaded
        broken = LatentModel(model.config, seed=2)
        with torch.no_grad():
            broken.writer.output.bias[:] = torch.nan
        with pytest.raises(CheckpointError, match="broken"):
            scoring.score_sentences(broken, tokenizer, SENTENCES)

    @pytest.mark.parametrize("wrong", [["a dog", ""], ["xyzzy"]])
    def test_what_cannot_be_scored_is_refused(self, loaded, wrong) -> None:
        with pytest.raises(DataError):
            scoring.score_sentences(*loaded, wrong)


class TestImages:
    def test_figures(self, painter: LatentModel) -> None:
        pixels = torch.rand(5, 1, 8, 8, generator=torch.Generator().manual_seed(0)) * 2 - 1
        names = [f"{number}.png" for number in range(5)]
        scores = scoring.score_images(painter, Given(pixels), names, seed=1)
        found = latent_space.posterior(painter, Given(pixels), 1, chains=1)
        z = found.samples[:, 0].float()
        errors = (painter.paint(z) - pixels).square().flatten(1).mean(1)
        assert [score.image for score in scores] == names
        assert [score.mse for score in scores] == pytest.approx(errors.tolist(), rel=1e-3)
        assert [score.energy for score in scores] == pytest.approx(painter.energy(z).tolist(), rel=1e-3, abs=1e-6)
        assert all(score.marginal_nll is None and "sentences alone" in score.withheld for score in scores)

    def test_a_score_depends_on_its_image_alone(self, painter: LatentModel) -> None:
        pixels = torch.rand(5, 1, 8, 8, generator=torch.Generator().manual_seed(0)) * 2 - 1
        together = scoring.score_images(painter, Given(pixels), list("abcde"))
        (alone,) = scoring.score_images(painter, Given(pixels[3:4]), ["d"])
        assert alone.mse == pytest.approx(together[3].mse, rel=1e-3)


class TestCommand:
    QUICK = ("--samples", 0)

    @pytest.fixture
    def file(self, tmp_path: Path) -> Path:
        path = tmp_path / "sentences.txt"
        path.write_text("".join(f"{sentence}\n" for sentence in SENTENCES))
        return path

    def test_one_json_line_a_line(self, saved_model: Path, loaded, file: Path, command) -> None:
        done = command("score", file, "--model", saved_model, "--seed", 4, "--chains", 2, *self.QUICK)
        assert done.code == 0, done.err
        known = scoring.score_sentences(*loaded, SENTENCES, seed=4, chains=2)
        assert [json.loads(line) for line in done.lines] == [score.as_dict() for score in known]
        assert "4 sentences, 20 words; energy" in done.err

    def test_the_marginal_likelihood_too(self, saved_model: Path, file: Path, command) -> None:
        done = command("score", file, "--model", saved_model, "--samples", 20, "--ais-steps", 60)
        assert done.code == 0, done.err
        scores = [json.loads(line) for line in done.lines]
        for score in scores:
            assert (score["marginal_nll"] is None) == (score["withheld"] is not None)
        told = "; marginal NLL" if scores[0]["withheld"] is None else "no marginal NLL: log Z is"
        assert told in done.err

    def test_a_table(self, saved_model: Path, file: Path, command) -> None:
        done = command("score", file, "--model", saved_model, "--format", "text", *self.QUICK)
        assert len(done.lines) == 5
        for line, sentence in zip(done.lines[1:], SENTENCES, strict=True):
            assert line.endswith(f"  {sentence}")

    def test_standard_input(
        self, saved_model: Path, file: Path, command, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
    ) -> None:
        known = command("score", file, "--model", saved_model, *self.QUICK)
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(file.read_bytes())))
        done = command("score", "-", "--model", saved_model, *self.QUICK, "--output", "scores.jsonl")
        assert done.out == ""
        assert (tmp_path / "scores.jsonl").read_text(encoding="utf-8") == known.out

    @pytest.mark.parametrize(
        ("content", "options", "said"),
        [
            ("a dog\n\na king\n", (), "line 2 is empty"),
            ("\n", (), "holds no sentence"),
            ("xyzzy plugh\n", (), "no word of 'xyzzy plugh'"),
            ("a dog\n", ("--chains", 0), "chains is 0"),
            ("a dog\n", ("--steps", 0), "steps is 0"),
            ("a dog\n", ("--samples", -1), "samples is -1"),
            ("a dog\n", ("--seed", -1), "seed is -1"),
            ("a dog\n", ("--output", "nowhere/x"), "--output nowhere/x cannot be written"),
        ],
    )
    def test_what_makes_no_sense_is_said(
        self, content: str, options, said: str, saved_model: Path, command, tmp_path: Path
    ) -> None:
        (tmp_path / "file.txt").write_text(content)
        done = command("score", "file.txt", "--model", saved_model, *self.QUICK, *options)
        assert done.code == 2
        assert said in done.err
        assert done.out == ""

    def test_without_a_file(self, saved_model: Path, command) -> None:
        done = command("score", "--model", saved_model)
        assert done.code == 2
        assert "wants a text file" in done.err

    def test_images_of_a_folder(self, painter: LatentModel, command, tmp_path: Path) -> None:
        image = pytest.importorskip("PIL.Image", reason="pictures are read by Pillow")
        painter.save_pretrained(tmp_path / "model")
        (tmp_path / "pictures").mkdir()
        for number in range(3):
            image.new("L", (8, 8), 60 * number).save(tmp_path / "pictures" / f"{number}.png")
        done = command("score", "pictures", "--model", "model")
        assert done.code == 0, done.err
        assert [json.loads(line)["image"] for line in done.lines] == [f"pictures/{number}.png" for number in range(3)]
        assert "3 images: energy" in done.err
