"""Transitions of prior chains, and quality over their steps: what holds of any chain, and of chains that are known."""

import dataclasses
import json
import math
import random
from pathlib import Path

import numpy as np
import pytest
import torch

from textebm import analysis, generation, image_generation
from textebm.analysis import Drawn
from textebm.config import ConvolutionConfig, GeneratorConfig, InferenceConfig, PriorConfig
from textebm.data.vocabulary import build_tokenizer
from textebm.errors import UsageError
from textebm.model.image_batch import ImageShape
from textebm.model.latent_model import LatentModel, ModelConfig
from textebm.model.random import stream

LATENT = 3


@pytest.fixture(scope="module")
def tokenizer():
    return build_tokenizer(["the red fox sees an old dog", "no king fears the river"], 100)


def prior_config(**prior) -> PriorConfig:
    return PriorConfig(**{"latent_dim": LATENT, "width": 8, "steps": 6, "step_size": 0.5, **prior})


@pytest.fixture
def make_model(tokenizer):
    """A model of text with random weights, large enough for z to matter."""

    def make(seed: int = 0, **prior) -> LatentModel:
        config = ModelConfig(
            vocab_size=tokenizer.get_vocab_size(),
            prior=prior_config(**prior),
            generator=GeneratorConfig(embedding_dim=4, hidden_dim=8, init_range=0.8),
            longest=8,
        )
        return LatentModel(config, seed).eval()

    return make


@pytest.fixture
def linear_model(make_model):
    """f(z) = w·z, so that the prior is N(σ²w, σ²I), where every chain's mean is known."""

    def make(pull: float, **prior) -> LatentModel:
        model = make_model(depth=0, **prior)
        with torch.no_grad():
            model.prior.mlp[0].weight.fill_(pull)
            model.prior.mlp[0].bias.zero_()
        return model

    return make


def painter() -> LatentModel:
    convolution = ConvolutionConfig(width=2, start=4, multiples=(2,))
    config = ModelConfig(
        prior=prior_config(),
        generator=GeneratorConfig(kind="convolutional", convolution=convolution),
        image=ImageShape(3, 8, 8),
    )
    return LatentModel(config, 1).eval()


class TestChains:
    @pytest.mark.parametrize("kind", ["ebm", "ratio", "gaussian"])
    def test_a_mark_is_what_a_chain_of_its_length_ends_with(self, make_model, tokenizer, kind) -> None:
        model = make_model(kind=kind)
        long = analysis.transition(model, tokenizer, chains=20, shown=20, steps=30, marks=(0, 10, 30))
        short = analysis.transition(model, tokenizer, chains=20, shown=20, steps=10, marks=(10,))
        assert [of_chain[1:2] for of_chain in long.texts] == short.texts
        assert torch.equal(long.latents[1], short.latents[0])
        assert [of_chain[1:2] for of_chain in long.mark_energy] == short.mark_energy
        assert long.energy.mean[:11] == short.energy.mean
        assert long.displacement.sd[:11] == short.displacement.sd

    def test_they_are_the_chains_of_generation(self, make_model, tokenizer) -> None:
        model = make_model()
        found = analysis.transition(model, tokenizer, chains=20, shown=20, steps=9, marks=(6, 9), seed=4)
        known = [sample.energy for sample in generation.generate(model, tokenizer, 20, seed=4)]
        assert [of_chain[0] for of_chain in found.mark_energy] == pytest.approx(known, abs=1e-5)

    def test_of_images_too(self) -> None:
        model = painter()
        found = analysis.transition(model, chains=5, shown=5, steps=6, marks=(0, 6), seed=2)
        (known,) = image_generation.generate(model, 5, seed=2)
        assert found.images.shape == (5, 2, 3, 8, 8)
        torch.testing.assert_close(found.images[:, 1], known.images)
        assert found.texts is None

    def test_only_z_differs_between_marks(self, make_model, tokenizer) -> None:
        """Chains without noise, hardly moved: every mark has the same sentence."""
        still = make_model(kind="gaussian", temperature=0.0, step_size=1e-4)
        found = analysis.transition(still, tokenizer, chains=30, shown=30, steps=4, marks=(0, 2, 4))
        assert all(len(set(of_chain)) == 1 for of_chain in found.texts)
        assert len({of_chain[0] for of_chain in found.texts}) > 10
        moving = analysis.transition(make_model(step_size=1.0), tokenizer, chains=30, shown=30, steps=4)
        assert any(len(set(of_chain)) > 1 for of_chain in moving.texts)

    def test_figures_are_those_of_the_states(self, make_model) -> None:
        model = make_model(sigma=1.3)
        found = analysis.transition(model, chains=12, shown=2, steps=9, marks=range(10))
        states = found.latents
        for mark, z in enumerate(states):
            for trace, values in (
                (found.energy, model.energy(z)),
                (found.norm, z.norm(dim=1)),
                (found.displacement, (z - states[0]).norm(dim=1)),
            ):
                assert trace.mean[mark] == pytest.approx(float(values.mean()), abs=1e-5)
                assert trace.sd[mark] == pytest.approx(float(values.std()), abs=1e-5)
        energies = torch.stack([model.energy(z) for z in states])
        assert found.change == pytest.approx((energies[-1] - energies[0]).tolist(), abs=1e-5)
        last_half = energies[4:].double().numpy()
        slopes = np.polyfit(np.arange(4, 10), last_half, 1)[0]
        assert found.verdict.drift.slope == pytest.approx(slopes.mean(), abs=1e-6)
        assert found.verdict.drift.standard_error == pytest.approx(slopes.std(ddof=1) / 12**0.5, abs=1e-6)

    def test_a_gaussian_without_a_tilt_keeps_its_norm(self, make_model) -> None:
        """E‖z‖² is the number of dimensions times the known variance of such a chain."""
        sigma, size, chains, steps = 1.2, 0.8, 4000, 12
        model = make_model(kind="gaussian", sigma=sigma, step_size=size)
        found = analysis.transition(model, chains=chains, shown=0, steps=steps)
        curvature = sigma**-2
        limit = 1 / (curvature * (1 - curvature * size**2 / 4))
        for step in (0, 1, steps):
            variance = limit + (sigma**2 - limit) * (1 - 0.5 * curvature * size**2) ** (2 * step)
            square = found.norm.mean[step] ** 2 + found.norm.sd[step] ** 2 * (chains - 1) / chains
            error = variance * math.sqrt(2 * LATENT / chains)
            assert square == pytest.approx(LATENT * variance, abs=4 * error)
        assert max(map(abs, found.energy.mean)) < 1e-6

    def test_no_step_waits_for_the_device(self, make_model, no_readback) -> None:
        for kind in ("ebm", "ratio", "gaussian"):
            model = make_model(kind=kind)
            noise = stream(0, "prior", 0)
            start = model.prior.sample_reference(6, noise)
            with no_readback():
                analysis.walk(model, start, 8, {0, 3, 8}, noise)

    def test_states_are_kept_at_the_marks_alone(self, make_model) -> None:
        model, noise = make_model(), stream(0, "prior", 0)
        walked = analysis.walk(model, model.prior.sample_reference(6, noise), 50, {0, 7}, noise)
        assert sorted(walked.states) == [0, 7]

    def test_json(self, make_model, tokenizer) -> None:
        found = analysis.transition(make_model(), tokenizer, chains=4, shown=3, steps=5)
        described = json.loads(json.dumps(found.as_dict(), allow_nan=False))
        assert described["marks"] == [0, 5]
        assert [len(described[name]["mean"]) for name in ("energy", "norm", "displacement")] == [6, 6, 6]
        assert [len(chain["texts"]) for chain in described["shown"]] == [2, 2, 2]

    @pytest.mark.parametrize(
        ("settings", "said"),
        [
            ({"steps": 5, "marks": (0, 6)}, "marks 0, 6 must lie between 0 and the last step, 5"),
            ({"chains": 1}, "at least 2"),
            ({"steps": 0}, "at least 2, 1"),
        ],
    )
    def test_numbers_that_make_no_sense(self, make_model, settings, said) -> None:
        with pytest.raises(UsageError, match=said):
            analysis.transition(make_model(), **settings)

    def test_without_z_there_is_no_chain(self, tokenizer) -> None:
        config = ModelConfig(
            vocab_size=tokenizer.get_vocab_size(), prior=PriorConfig("none"), inference=InferenceConfig("none")
        )
        with pytest.raises(UsageError, match=r"plain language model .* no chain"):
            analysis.transition(LatentModel(config))

    @pytest.mark.parametrize(("steps", "marks"), [(30, (0, 30)), (100, (0, 40, 100)), (2500, (0, 40, 100, 1000, 2500))])
    def test_default_marks(self, steps, marks) -> None:
        assert analysis.default_marks(steps) == marks


class TestVerdict:
    def test_a_drift_that_is_known(self, linear_model) -> None:
        """Under f(z) = w·z the mean energy after k steps is −‖w‖²σ²(1 − (1 − s²/2σ²)^k)."""
        pull, size, steps = 2.0, 0.1, 40
        found = analysis.transition(linear_model(pull, step_size=size), chains=400, shown=0, steps=steps)
        known = [-LATENT * pull**2 * (1 - (1 - size**2 / 2) ** step) for step in range(steps + 1)]
        spread = pull * LATENT**0.5
        assert found.energy.mean == pytest.approx(known, abs=4 * spread / 400**0.5)
        drift = found.verdict.drift
        slope = np.polyfit(np.arange(20, 41), known[20:], 1)[0]
        assert drift.slope == pytest.approx(slope, abs=4 * drift.standard_error)
        assert drift.drifts
        assert found.verdict.words.startswith("The chain drifts: its energy still falls, by -0.05")

    def test_a_chain_that_has_arrived_does_not_drift(self, linear_model) -> None:
        model = linear_model(1.0, step_size=1.0)
        found = [analysis.transition(model, chains=50, shown=0, steps=200, seed=seed).verdict for seed in range(8)]
        assert not any(verdict.drift.drifts for verdict in found)
        assert not any(verdict.oversaturates for verdict in found)
        assert "does not drift" in found[0].words
        assert "does not oversaturate" in found[0].words

    def test_nor_does_one_that_moves_by_next_to_nothing(self) -> None:
        """However sure a slope is, it must move the energy by a share of its spread."""
        sure = analysis.Drift(slope=-0.001, standard_error=1e-5, change=-0.05, first_step=50)
        assert not sure.drifts
        assert dataclasses.replace(sure, change=-0.2).drifts
        assert not dataclasses.replace(sure, change=-0.2, standard_error=5e-4).drifts

    def test_leaving_the_range_of_the_short_run(self, linear_model) -> None:
        model = linear_model(4.0, steps=2, step_size=0.2)
        found = analysis.transition(model, chains=100, shown=0, steps=200)
        verdict = found.verdict
        assert verdict.oversaturates
        assert verdict.energy.below > 0.95
        assert verdict.norm.above > 0.95
        assert verdict.energy.above == verdict.norm.below == 0
        assert "oversaturates: 100% of the chains ended with an energy below its range" in verdict.words
        # posterior samples that are there already make it the model's own range
        there = 4.0 + torch.randn(200, LATENT, generator=torch.Generator().manual_seed(0))
        again = analysis.transition(model, chains=100, shown=0, steps=200, posterior=there).verdict
        assert not again.oversaturates
        assert again.energy.low < verdict.energy.low
        assert again.energy.high == verdict.energy.high

    def test_of_chains_that_explode_nothing_is_said_but_that(self, make_model) -> None:
        """Steps of 2.5: the Gaussian alone multiplies z by 1 − 2.5²/2 at each."""
        verdict = analysis.transition(make_model(step_size=2.5), chains=6, shown=0, steps=400).verdict
        assert (verdict.drift, verdict.energy, verdict.norm, verdict.oversaturates) == (None, None, None, None)
        assert (verdict.chains, verdict.exploded) == (6, 6)
        assert verdict.words.startswith("6 of 6 chains exploded, so nothing is said of drift and oversaturation")

    def test_of_a_short_chain_nothing_is_said(self, make_model) -> None:
        verdict = analysis.transition(make_model(), chains=4, shown=0, steps=3).verdict
        assert (verdict.drift, verdict.oversaturates) == (None, None)
        assert verdict.words == (
            "Too short a chain to tell whether it drifts. No longer than the chain of training: nothing is said of "
            "oversaturation."
        )


class TestQuality:
    @dataclasses.dataclass(frozen=True)
    class Length:
        """A judge's answer: the mean number of words."""

        score: float
        metric: str = "length"
        interval: tuple[float, float] | None = None
        signature: str = "length"
        details: dict = dataclasses.field(default_factory=dict)

    def test_samples_are_those_of_the_chains(self, make_model, tokenizer) -> None:
        seen: list[Drawn] = []

        def judge(drawn: Drawn) -> TestQuality.Length:
            seen.append(drawn)
            return self.Length(float(np.mean([len(text.split()) for text in drawn.texts])))

        model = make_model()
        curve = analysis.quality_curve(model, judge, tokenizer, steps=(6, 0, 6, 20), samples=30)
        assert [(drawn.steps, drawn.as_in_training) for drawn in seen] == [(0, False), (6, True), (20, False)]
        assert [point.steps for point in curve.points] == [0, 6, 20]
        found = analysis.transition(model, tokenizer, chains=30, shown=30, steps=20, marks=(0, 6, 20))
        for mark, drawn in enumerate(seen):
            assert drawn.texts == [of_chain[mark] for of_chain in found.texts]
        assert json.loads(json.dumps(curve.as_dict()))["points"][0]["score"] == curve.points[0].score

    def test_more_than_one_batch(self, make_model, tokenizer, monkeypatch) -> None:
        """Every batch has chains and numbers of its own, and none is lost."""
        monkeypatch.setattr(analysis, "WRITTEN_AT_ONCE", 20)
        seen: list[str] = []

        def judge(drawn: Drawn) -> TestQuality.Length:
            seen.extend(drawn.texts)
            return self.Length(0.0)

        analysis.quality_curve(make_model(), judge, tokenizer, steps=(3,), samples=50)
        assert len(seen) == 50
        assert len(set(seen[:20]) & set(seen[20:40])) < 10

    def test_fppl_is_flat_where_no_tilt_moves_the_chain(self, make_model, tokenizer, corpus_folder: Path) -> None:
        judge = analysis.text_judge(
            corpus_folder / "train.txt", corpus_folder / "test.txt", lmplz="built-in", data="toy"
        )
        model = make_model(kind="gaussian", step_size=0.3)
        curve = analysis.quality_curve(model, judge, tokenizer, steps=(0, 5, 20), samples=400)
        assert curve.metric == "fppl"
        assert curve.real < min(point.score for point in curve.points)
        lows, highs = zip(*(point.interval for point in curve.points), strict=True)
        assert max(lows) < min(highs)
        signatures = [point.signature for point in curve.points]
        assert "decoding:sample-t1|" in signatures[0]  # a Gaussian prior is sampled by no steps
        assert "decoding:sample-t1+prior-steps-20|" in signatures[2]

    def test_fppl_is_the_score_of_lm_eval(self, make_model, tokenizer, corpus_folder: Path) -> None:
        from textebm import lm_eval

        train, test = corpus_folder / "train.txt", corpus_folder / "test.txt"
        options = {"lmplz": "built-in", "data": "toy", "resamples": 50}
        judge = analysis.text_judge(train, test, **options)
        pick = random.Random(1)
        lines = train.read_text(encoding="utf-8").splitlines()
        texts = [" ".join(pick.sample(line.split(), 4)) for line in lines[:40]]
        known = lm_eval.fppl(texts, train, reference=test, decoding="sample-t1+prior-steps-3", **options)
        found = judge(Drawn(3, False, texts))
        assert found.score == known.score
        assert found.interval == known.interval
        assert str(found.signature) == str(known.signature)
        assert found.details["real_row"] == known.details["real_row"]

    def test_numbers_that_make_no_sense(self, make_model, tokenizer) -> None:
        for settings in ({"steps": ()}, {"steps": (-1, 3)}, {"samples": 1}):
            with pytest.raises(UsageError, match="0 or more prior steps, of at least 2 samples"):
                analysis.quality_curve(make_model(), lambda drawn: self.Length(0.0), tokenizer, **settings)
        with pytest.raises(UsageError, match="tokenizer"):
            analysis.quality_curve(make_model(), lambda drawn: self.Length(0.0))
