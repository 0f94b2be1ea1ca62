"""Diagnostics of chains: draws whose mixing is known, chains whose end is known, and what cannot be said."""

import json
import math

import numpy as np
import pytest
import torch

from textebm import diagnostics
from textebm.config import GeneratorConfig, InferenceConfig, PriorConfig
from textebm.data.text import encode
from textebm.data.vocabulary import build_tokenizer
from textebm.errors import UsageError
from textebm.model import ais, langevin, short_run
from textebm.model.latent_model import LatentModel, ModelConfig
from textebm.model.random import stream

SENTENCES = ["the red fox sees an old dog", "no king fears the river", "an old king", "the fox fears no dog"]
PLAN = ais.Plan(chains=100, steps=40, settling=40)
FEW = {"steps": 60, "chains": 12, "posteriors": 2, "posterior_chains": 3, "posterior_steps": 20}


@pytest.fixture(scope="module")
def tokenizer():
    return build_tokenizer(SENTENCES, 100)


@pytest.fixture(scope="module")
def text(tokenizer):
    return encode(SENTENCES, tokenizer, max_length=None, overlong="cut")


@pytest.fixture
def make_model(tokenizer):
    """A model of text with random weights, large enough for z to matter."""

    def make(latent_dim: int = 3, inference: InferenceConfig | None = None, **prior) -> LatentModel:
        config = ModelConfig(
            vocab_size=tokenizer.get_vocab_size(),
            prior=PriorConfig(**{"latent_dim": latent_dim, "width": 8, "steps": 6, "step_size": 0.5, **prior}),
            generator=GeneratorConfig(embedding_dim=4, hidden_dim=8, init_range=0.8),
            inference=inference or InferenceConfig(steps=5, step_size=0.4),
            longest=8,
        )
        return LatentModel(config, 2).eval()

    return make


class TestMixing:
    """Draws of two posteriors: potential, energy, norm and two coordinates."""

    @staticmethod
    def draws(shift: float) -> np.ndarray:
        """Independent ones, but for a shift from chain to chain in the second posterior's last coordinate."""
        found = np.random.default_rng(0).normal(size=(2, 5, 6, 200))
        found[1, 4] += shift * np.arange(6)[:, None]
        return found

    def test_independent_draws(self) -> None:
        rhat, ess = diagnostics.mixing(self.draws(0))
        assert list(rhat) == list(ess) == ["potential", "energy", "norm", "coordinates"]
        for name in rhat:
            assert 0.99 < rhat[name].median <= rhat[name].worst < 1.02
            assert 700 < ess[name].worst <= ess[name].median < 1800

    def test_chains_apart(self) -> None:
        rhat, ess = diagnostics.mixing(self.draws(3))
        assert rhat["coordinates"].worst > 1.5
        assert ess["coordinates"].worst < 20
        assert rhat["norm"].worst < 1.02

    def test_a_figure_that_does_not_move(self) -> None:
        draws = self.draws(0)
        draws[:, 1] = 0.0  # the energy under a Gaussian prior
        rhat, ess = diagnostics.mixing(draws)
        assert rhat["energy"] is ess["energy"] is None
        assert rhat["norm"] is not None


class TestDiagnose:
    def test_steps_that_forget_at_once(self, make_model) -> None:
        """On N(0, I) a step of √2 is z ← √2 ε: independent draws, of which Metropolis would refuse many."""
        model = make_model(kind="gaussian", step_size=math.sqrt(2))
        prior = diagnostics.diagnose(model, steps=200, chains=16).prior
        assert prior.rhat["coordinates"].worst < 1.02
        assert prior.rhat["energy"] is None
        assert prior.ess["coordinates"].worst > 0.6 * prior.draws
        assert (prior.draws, prior.burn_in, prior.chains) == (16 * 100, 100, 16)
        # q(z') = N(0, 2I) whatever z was, so the ratio is exp(½|z|² − ½|z'|²) exp(−¼|z|² + ¼|z'|²), z as wide as z'
        z = math.sqrt(2) * torch.randn(2, 200_000, 3, generator=torch.Generator().manual_seed(0))
        known = (0.25 * (z[0].square().sum(1) - z[1].square().sum(1))).clamp(max=0).exp()
        assert prior.long_run_acceptance == pytest.approx(float(known.mean()), abs=0.03)

    def test_steps_too_small_to_arrive(self, make_model) -> None:
        model = make_model(kind="gaussian", step_size=0.02)
        prior = diagnostics.diagnose(model, steps=200, chains=16).prior
        assert prior.rhat["coordinates"].worst > 1.3
        assert prior.ess["coordinates"].worst < 100
        assert prior.long_run_acceptance > 0.999

    def test_prior_and_posterior(self, make_model, text) -> None:
        ticks = []
        found = diagnostics.diagnose(make_model(), text, **FEW, posterior=torch.randn(30, 3), tick=ticks.append)
        assert (found.prior.target, found.prior.posteriors, found.prior.chains) == ("prior", 1, 12)
        posterior = found.posterior
        assert (posterior.target, posterior.posteriors, posterior.chains) == ("posterior", 2, 3)
        assert (posterior.steps, posterior.burn_in, posterior.draws) == (20, 10, 3 * 10)
        assert (posterior.short_run_steps, len(posterior.acceptance)) == (5, 20)
        assert posterior.short_run_acceptance == pytest.approx(np.mean(posterior.acceptance[:5]))
        assert all(0 < share <= 1 for share in posterior.acceptance)
        assert sum(ticks) == 61 + 21
        described = json.loads(json.dumps(found.as_dict(), allow_nan=False))
        assert described["posterior"]["rhat"]["norm"]["worst"] == posterior.rhat["norm"].worst

    def test_acceptance_of_a_posterior_is_of_its_own_target(self, make_model, text) -> None:
        """A likelihood that is sharp refuses steps that the prior would take."""
        model = make_model(inference=InferenceConfig(steps=5, step_size=0.5), kind="gaussian")
        with torch.no_grad():
            for parameter in model.generator.parameters():
                parameter.mul_(4)
        found = diagnostics.diagnose(model, text, **FEW)
        assert found.posterior.long_run_acceptance < found.prior.long_run_acceptance - 0.02

    def test_short_and_long(self, make_model) -> None:
        model = make_model(kind="gaussian", step_size=0.3)
        beside = diagnostics.diagnose(model, steps=50, chains=100, posterior=torch.randn(30, 3)).short_and_long
        assert (sum(beside.short), sum(beside.long), sum(beside.posterior)) == (100, 100, 30)
        assert len(beside.edges) == len(beside.short) + 1
        assert beside.mmd.p_value > 0.01  # both are the same Gaussian
        assert (beside.samples, beside.long_steps) == (100, 50)

    def test_short_runs_that_are_far_from_the_long_ones(self, make_model) -> None:
        model = make_model(depth=0, steps=1, step_size=0.3)
        with torch.no_grad():
            model.prior.mlp[0].weight.fill_(2.0)  # the prior is N(2, I)
        beside = diagnostics.diagnose(model, steps=150, chains=60).short_and_long
        assert beside.mmd.p_value < 0.01
        assert beside.mmd.squared > 0.1
        assert beside.energy["long"] < beside.energy["short"] - 5
        assert beside.posterior is None

    def test_no_step_waits_for_the_device(self, make_model, no_readback) -> None:
        model = make_model()
        noise = stream(0, "diagnostics", 0)
        start = model.prior.sample_reference(6, noise)
        plan = langevin.schedule(10, 0.4)
        with no_readback():
            diagnostics._watch(model, start, model.prior.frozen(), plan, 4, 6, noise, lambda step: None)


class TestBound:
    def test_it_is_above_the_divergence_on_a_grid(self, make_model) -> None:
        model = make_model(latent_dim=1)
        with torch.no_grad():
            model.prior.mlp[-1].weight.mul_(8)
        found = diagnostics.diagnose(model, steps=8, chains=400, plan=PLAN)
        exact = short_run.on_grid(
            lambda z: tuple(part.double() for part in model.prior.potential(z.float())),
            langevin.schedule(6, 0.5),
            1,
        ).divergence
        bound = found.prior.kl_bound
        assert 0 < exact <= bound.value + 3 * bound.standard_error
        assert found.prior.kl_bound_withheld is None
        assert found.log_normaliser is not None

    def test_of_a_gaussian_prior_nothing_is_estimated(self, make_model) -> None:
        found = diagnostics.diagnose(make_model(kind="gaussian"), steps=8, chains=8, plan=PLAN)
        assert found.log_normaliser == 0
        assert found.prior.kl_bound.value == pytest.approx(0, abs=1e-6)  # sampled exactly: a chain of no steps

    def test_where_log_z_is_not_believed_there_is_none(self, make_model, monkeypatch: pytest.MonkeyPatch) -> None:
        def apart(*arguments, **settings) -> ais.LogNormaliser:
            forward, reverse = (ais.Run(ais.LogMean(value, 0.1, 50), 0.6) for value in (3.0, 4.0))
            return ais.LogNormaliser(forward, reverse, False)

        monkeypatch.setattr(ais, "estimate", apart)
        found = diagnostics.diagnose(make_model(), steps=8, chains=8, plan=PLAN)
        assert found.prior.kl_bound is found.log_normaliser is None
        assert "log Z is 3.00 by the forward and 4.00 by the reverse run" in found.prior.kl_bound_withheld

    def test_nor_without_log_z_or_without_noise(self, make_model) -> None:
        found = diagnostics.diagnose(make_model(), steps=8, chains=8)
        assert found.prior.kl_bound is None
        assert found.prior.kl_bound_withheld == "log Z was not estimated"
        still = diagnostics.diagnose(make_model(temperature=0.0), steps=8, chains=8, plan=PLAN)
        assert "without noise" in still.prior.kl_bound_withheld
        assert still.prior.acceptance is still.prior.long_run_acceptance is None


class TestWhatCannotBeSaid:
    def test_without_arviz(self, make_model, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(diagnostics, "find_spec", lambda name: None)
        with pytest.raises(UsageError, match=r"arviz: pip install 'textebm\[diagnostics\]'"):
            diagnostics.diagnose(make_model())

    @pytest.mark.parametrize("settings", [{"steps": 7}, {"chains": 3}, {"posterior_chains": 1}, {"posteriors": 0}])
    def test_too_little_of_anything(self, make_model, settings) -> None:
        with pytest.raises(UsageError, match="at least 8 steps, 4 prior chains"):
            diagnostics.diagnose(make_model(), **settings)

    def test_chains_shorter_than_those_of_training(self, make_model, text) -> None:
        with pytest.raises(UsageError, match=r"prior chains of 9 steps are shorter than .* which have 10"):
            diagnostics.diagnose(make_model(steps=10), steps=9)
        model = make_model(inference=InferenceConfig(steps=30))
        with pytest.raises(UsageError, match=r"posterior chains of 20 steps are shorter than .* which have 30"):
            diagnostics.diagnose(model, text, **FEW)

    @pytest.mark.parametrize(
        ("inference", "said"),
        [
            (InferenceConfig("amortised"), "amortised: z is inferred without a chain"),
            (InferenceConfig(preconditioner="rms"), "preconditioned"),
        ],
    )
    def test_posteriors_without_such_a_chain(self, make_model, text, inference, said) -> None:
        found = diagnostics.diagnose(make_model(inference=inference), text, **FEW)
        assert found.posterior is None
        assert said in found.posterior_withheld

    def test_posteriors_without_data(self, make_model) -> None:
        found = diagnostics.diagnose(make_model(), steps=8, chains=4)
        assert found.posterior_withheld == "no held-out data were given"
