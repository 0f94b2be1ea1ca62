"""The learned sampler: what it draws before and after learning, what it learns from, and where prior chains start."""

import dataclasses
import math

import pytest
import torch
from torch import Tensor

from textebm.config import (
    Config,
    EncoderConfig,
    GeneratorConfig,
    InferenceConfig,
    OptimiserConfig,
    PriorConfig,
    SamplerConfig,
)
from textebm.errors import ConfigError
from textebm.model import inference, likelihood
from textebm.model.latent_model import LatentModel, ModelConfig
from textebm.model.learner import Learner
from textebm.model.random import stream
from textebm.model.recurrent import TextBatch

STILL = 1e-300  # a learning rate that changes no weight: Adam's step is far below the last digit
SENTENCES = [[5, 5, 4], [5], []]


def make(latent_dim: int = 2, prior: str = "ebm", sigma: float = 1.0, optimiser: dict | None = None, **sampler):
    """A float64 model with a small sampler, and the configuration of a run that learns nothing else."""
    config = Config(
        prior=PriorConfig(prior, latent_dim, sigma, width=4, steps=3, step_size=0.3, activation="tanh"),
        generator=GeneratorConfig(embedding_dim=2, hidden_dim=3, init_range=1.0),
        inference=InferenceConfig(kind="diffusion-langevin", steps=4, step_size=0.3),
        encoder=EncoderConfig(init_range=1.0),
        sampler=SamplerConfig(**{"steps": 10, "width": 8, "depth": 2, "features": 4, **sampler}),
        optimiser=OptimiserConfig(
            **{"lr": STILL, "energy_lr": STILL, "clip": 0.0, "energy_clip": 0.0, **(optimiser or {})}
        ),
        seed=11,
    )
    parts = (config.prior, config.generator, config.inference, config.encoder, config.sampler)
    return LatentModel(ModelConfig(6, *parts), seed=5).double(), config


def flat(module: torch.nn.Module) -> Tensor:
    return torch.cat([p.detach().flatten() for p in module.parameters()]).clone()


def source(seed: int = 1) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


class TestDraw:
    @pytest.mark.parametrize("told", [True, False])
    def test_before_any_learning_it_draws_the_reference_gaussian(self, told: bool) -> None:
        """Exactly, but for the last λ's factor α; so a run begins as short-run inference does."""
        model, _ = make(sigma=1.7)
        n = 50_000
        reference = model.prior.sample_reference(n, source())
        features = torch.randn(n, 4, generator=source(2), dtype=torch.float64) if told else None
        z = model.sampler.draw(reference, source(3), features)
        variance = 1.7**2 / (1 + math.exp(-9.8))
        assert z.mean(0).abs().max() < 5 * 1.7 / math.sqrt(n)
        assert ((z.var(0) / variance - 1).abs() < 5 * math.sqrt(2 / n)).all()
        assert abs(float(torch.corrcoef(z.T)[0, 1])) < 5 / math.sqrt(n)

    def test_it_scales_with_sigma(self) -> None:
        one, other = (make(sigma=sigma)[0] for sigma in (1.0, 2.5))
        other.sampler.load_state_dict(one.sampler.state_dict())
        draws = [model.sampler.draw(model.prior.sample_reference(9, source()), source(2)) for model in (one, other)]
        torch.testing.assert_close(2.5 * draws[0], draws[1])

    def test_a_row_is_its_own(self) -> None:
        """With the noise of each row given, the other rows of a batch change nothing."""
        model, _ = make()
        stir(model)
        z, features = torch.randn(5, 2, generator=source()).double(), torch.randn(5, 4, generator=source()).double()
        denoiser, ratio = model.sampler.denoiser, torch.linspace(-3, 3, 5).double()
        together = denoiser(z, ratio, denoiser.context(features, 5))
        apart = [denoiser(z[i : i + 1], ratio[i : i + 1], denoiser.context(features[i : i + 1], 1)) for i in range(5)]
        torch.testing.assert_close(together, torch.cat(apart))
        one_for_all = denoiser(z, ratio[:1], denoiser.context(features, 5))
        torch.testing.assert_close(one_for_all, denoiser(z, ratio[:1].expand(5), denoiser.context(features, 5)))

    def test_no_gradient_is_kept(self, make_batch) -> None:
        model, _ = make()
        x = make_batch(SENTENCES)
        z = model.sampler.draw(torch.zeros(3, 2).double(), source(), model.sampler.features(x))
        assert not z.requires_grad


def stir(model: LatentModel) -> None:
    """Weights of the sampler with which x, λ and z all matter."""
    with torch.no_grad():
        for parameter in model.sampler.parameters():
            parameter.normal_(0, 0.5, generator=source(7))


class TestLearning:
    def test_what_it_descends(self, make_batch) -> None:
        """The gradient that a step leaves, against autograd of the formula at the same ends, moments and noise."""
        model, config = make(updates=1, optimiser={"sampler_clip": 0.0})
        stir(model)
        x, number = make_batch(SENTENCES), 3
        learner = Learner(model, config, 1)
        with torch.no_grad():
            ends = model.posterior(learner_request(model, config, x, number)).z
        report = learner.step(x, number)
        noise = stream(config.seed, "sampler", number, 0)
        features = model.sampler.features(x)
        loss = model.sampler.losses(ends, features, noise).mean()
        known = torch.autograd.grad(loss, list(model.sampler.parameters()))
        torch.testing.assert_close([p.grad for p in learner.sampler.parameters()], list(known), rtol=1e-9, atol=1e-12)
        torch.testing.assert_close(report.sampler_loss, loss.detach())
        torch.testing.assert_close(report.sampler_gradient_norm, torch.cat([g.flatten() for g in known]).norm())

    @pytest.mark.parametrize("share", [0.0, 0.25, 1.0])
    def test_the_share_that_is_not_told_of_x(self, share: float) -> None:
        """Where nothing is told, the features of x change no loss."""
        model, _ = make(condition_dropout=share)
        stir(model)
        n = 4000
        z, features = torch.randn(n, 2, generator=source()).double(), torch.randn(n, 4, generator=source()).double()
        losses = [model.sampler.losses(z, told, source(3)) for told in (features, features + 1)]
        untold = float((losses[0] == losses[1]).double().mean())
        assert untold == pytest.approx(share, abs=5 * math.sqrt(share * (1 - share) / n))

    def test_moments_cover_the_schedule(self, monkeypatch) -> None:
        model, config = make()
        seen: list[Tensor] = []
        forward = model.sampler.denoiser.forward

        def watched(z: Tensor, ratio: Tensor, context: Tensor) -> Tensor:
            seen.append(ratio)
            return forward(z, ratio, context)

        monkeypatch.setattr(model.sampler.denoiser, "forward", watched)
        model.sampler.losses(torch.zeros(4000, 2).double(), torch.zeros(4000, 4).double(), source())
        low, high = config.sampler.log_snr_min, config.sampler.log_snr_max
        assert low <= float(seen[0].min()) < low + 0.05
        assert high - 2 < float(seen[0].max()) <= high  # near the clean end λ rises steeply in time

    def test_what_draws_is_the_average_of_what_learns(self, make_batch) -> None:
        decay = 0.8
        model, config = make(ema=decay, updates=2, optimiser={"sampler_lr": 0.01})
        learner, seen = Learner(model, config, 1), []
        for number in range(5):
            learner.step(make_batch(SENTENCES), number)
            seen.append(flat(learner.sampler))
        weights = torch.tensor([decay ** (5 - i) for i in range(1, 6)], dtype=torch.float64)
        torch.testing.assert_close(flat(model.sampler), weights @ torch.stack(seen) / weights.sum())
        assert not torch.equal(flat(model.sampler), seen[-1])

    def test_the_learner_goes_on_from_its_state(self, make_batch) -> None:
        """The average is in the model, what learns is in the state; the two together go on as if never parted."""
        x, ends = make_batch(SENTENCES), []
        for parted in (False, True):
            model, config = make(ema=0.8, optimiser={"sampler_lr": 0.01})
            learner = Learner(model, config, 1)
            learner.step(x, 0)
            if parted:
                saved, optimiser = learner.state(), learner.sampler_optimiser.state_dict()
                assert {name.partition(".")[0] for name in saved} == {"sampler"}
                saved = {name: tensor.clone() for name, tensor in saved.items()}
                learner = Learner(model, config, 1)
                learner.restore(saved)
                learner.sampler_optimiser.load_state_dict(optimiser)
            learner.step(x, 1)
            ends.append((flat(learner.sampler), flat(model.sampler)))
        assert torch.equal(ends[0][0], ends[1][0])
        assert torch.equal(ends[0][1], ends[1][1])

    def test_its_rate_and_its_clipping_are_its_own(self, make_batch) -> None:
        model, config = make(updates=1, optimiser={"lr": 0.1, "sampler_lr": 0.3, "sampler_clip": 0.001})
        stir(model)
        learner = Learner(model, config, 1)
        report = learner.step(make_batch(SENTENCES), 0)
        rates = {name: o.param_groups[0]["lr"] for name, o in learner.optimisers().items()}
        assert rates == pytest.approx({"generator": 0.1, "energy": STILL, "sampler": 0.3})
        left = torch.cat([p.grad.flatten() for p in learner.sampler.parameters()]).norm()
        assert left == pytest.approx(0.001, rel=1e-3)
        assert report.sampler_gradient_norm > 0.001

    def test_it_learns_to_start_chains_where_they_should_end(self, make_batch) -> None:
        """With all else fixed, draws for x come nearer to the exact posterior than the ends of the same chains from the
        reference Gaussian; and draws without x come near to all posteriors together."""
        rates = {"sampler_lr": 0.01, "schedule": "linear"}
        model, config = make(1, steps=12, width=32, updates=4, ema=0.9, optimiser=rates)
        chain = dataclasses.replace(config.inference, steps=8, step_size=0.6)
        config, learned, tested = dataclasses.replace(config, inference=chain, epochs=1), 80, 300
        few = make_batch([[5] * 6, [4] * 6, []])
        x, many, z = copies(few, 40), copies(few, tested), likelihood.grid(1, points=401)[0]
        with torch.no_grad():
            joint = model.condition(copies(few, len(z))).log_prob(z.repeat(3, 1)).view(3, -1)
            posterior = (joint + likelihood.log_prior(model.prior, z, 1.0)).softmax(1).cumsum(1)

        def distances() -> tuple[float, float]:
            """Kolmogorov-Smirnov distances: of draws for the sentence whose posterior is furthest from the Gaussian,
            and of draws without x."""
            reference = model.prior.sample_reference(3 * tested, source())
            told = model.sampler.draw(reference, source(2), model.sampler.features(many))
            untold = model.sampler.draw(reference, source(3))
            return apart(told[tested : 2 * tested], z, posterior[1]), apart(untold, z, posterior.mean(0))

        ends, _ = inference.short_run_posterior(model.prior, model.condition(many), 3 * tested, chain, source(4))
        before, learner = distances(), Learner(model, config, learned)
        for number in range(learned):
            learner.step(x, number)
        after = distances()
        assert after[0] < apart(ends[tested : 2 * tested], z, posterior[1]) - 0.05
        assert after[0] < before[0] - 0.25
        assert after[1] < before[1] - 0.05


def copies(x: TextBatch, times: int) -> TextBatch:
    return TextBatch(*(part.repeat_interleave(times, dim=0) for part in x))


def apart(draws: Tensor, z: Tensor, cumulative: Tensor) -> float:
    """The Kolmogorov-Smirnov distance of draws (n, 1) from a distribution function on a grid."""
    return float(((z >= draws[:, 0]).double().mean(1) - cumulative).abs().max())


def learner_request(model: LatentModel, config: Config, x: TextBatch, number: int) -> inference.Request:
    """What the learner asks of inference at a step, for a model without dropout."""
    return inference.Request(x, model.condition(x), config.inference, stream(config.seed, "posterior", number))


class TestPriorStart:
    @pytest.mark.parametrize("prior_start", ["posterior", "unconditional"])
    def test_after_training_prior_chains_start_at_draws_without_x(self, prior_start: str) -> None:
        model, _ = make(prior_start=prior_start)
        stir(model)
        noise = source(4)
        start = model.sampler.draw(model.prior.sample_reference(7, noise), noise)
        expected = model.prior.move(start, noise)
        assert torch.equal(model.sample_prior(7, source(4)), expected)
        assert torch.equal(model.sample_prior(7, source(4), steps=0), start)

    @pytest.mark.parametrize(
        ("prior", "prior_start"), [("ebm", "reference"), ("gaussian", "unconditional"), ("ratio", "unconditional")]
    )
    def test_else_they_start_in_the_reference_gaussian(self, prior: str, prior_start: str) -> None:
        model, _ = make(prior=prior, prior_start=prior_start)
        stir(model)
        assert torch.equal(model.sample_prior(7, source(4)), model.prior.sample(7, source(4)))

    @pytest.mark.parametrize("prior_start", ["posterior", "unconditional"])
    def test_where_they_start_in_training(self, prior_start: str, make_batch, monkeypatch) -> None:
        """posterior, as in the authors' code: one at each x's start, one in the reference Gaussian."""
        model, config = make(prior_start=prior_start)
        stir(model)
        x, starts, move = make_batch(SENTENCES), [], model.prior.move

        def watched(start: Tensor, noise: torch.Generator, steps: int | None = None) -> Tensor:
            starts.append(start)
            return move(start, noise, steps)

        monkeypatch.setattr(model.prior, "move", watched)
        noise = stream(config.seed, "prior", 0)
        reference = model.prior.sample_reference(3, noise)
        if prior_start == "posterior":
            expected = torch.cat([model.posterior(learner_request(model, config, x, 0)).start, reference])
        else:
            expected = model.sampler.draw(reference, noise)
        Learner(model, config, 1).step(x, 0)
        (seen,) = starts
        assert torch.equal(seen, expected)


class TestRefused:
    @pytest.mark.parametrize(
        ("values", "said"),
        [
            ({"steps": 1}, "sampler.steps is 1: it must be from 2 to 100,000"),
            ({"width": 0}, "sampler.width is 0"),
            ({"features": 3}, "sampler.features is 3: it must be even"),
            ({"log_snr_min": 10.0}, "it must be less than sampler.log_snr_max, which is 9.8"),
            ({"condition_dropout": 1.5}, "sampler.condition_dropout is 1.5"),
            ({"ema": 1.0}, "sampler.ema is 1.0"),
        ],
    )
    def test_values_out_of_range(self, values: dict, said: str) -> None:
        with pytest.raises(ConfigError, match=said):
            SamplerConfig(**values)

    def test_chains_that_both_persist_and_are_drawn(self) -> None:
        parts = {"prior": PriorConfig(persistent=10), "inference": InferenceConfig(kind="diffusion-langevin")}
        with pytest.raises(ConfigError, match=r"prior\.persistent is 10: it must be 0 with sampler\.prior_start"):
            Config(**parts)
        Config(**parts, sampler=SamplerConfig(prior_start="reference"))
