"""The bound: below the exact likelihood by the KL from the posterior, its gradient, free bits, the KL weight."""

import dataclasses
import math

import pytest
import torch
from torch import Tensor

from textebm.config import BoundConfig, EncoderConfig, GeneratorConfig, InferenceConfig, PriorConfig
from textebm.model import bound, likelihood
from textebm.model.encoder import DiagonalGaussian
from textebm.model.energy import GaussianPrior
from textebm.model.latent_model import LatentModel, ModelConfig
from textebm.model.recurrent import TextBatch

SENTENCES = [[5, 5, 4], [5]]
KINDS = ["gaussian", "ebm"]


def make_model(kind: str, latent_dim: int = 1, cell: str = "lstm") -> LatentModel:
    """A float64 model in which z and the tilt matter."""
    config = ModelConfig(
        6,
        PriorConfig(kind=kind, latent_dim=latent_dim, sigma=1.2, width=5, activation="tanh"),
        GeneratorConfig(cell=cell, embedding_dim=2, hidden_dim=3, init_range=1.0),
        InferenceConfig(kind="amortised"),
        EncoderConfig(cell=cell, init_range=1.0),
    )
    model = LatentModel(config, seed=5).double()
    with torch.no_grad():
        for parameter in model.prior.parameters():
            parameter.mul_(2.5)
    return model


def log_likelihood(model: LatentModel, x: TextBatch, z: Tensor) -> Tensor:
    """log p(x|z) of every sentence at every point: (sentences, points)."""
    every = TextBatch(*(part.repeat_interleave(len(z), dim=0) for part in x))
    return model.condition(every).log_prob(z.repeat(len(x.lengths), 1)).view(len(x.lengths), len(z))


@pytest.mark.parametrize(("latent_dim", "points"), [(1, 401), (2, 61)])
@pytest.mark.parametrize("kind", KINDS)
def test_it_is_below_the_likelihood_by_the_kl_from_the_posterior(make_batch, generator, kind, latent_dim, points):
    """All by integration on a grid; then the estimate that training uses, within its standard error."""
    model, x, samples = make_model(kind, latent_dim), make_batch(SENTENCES), 20_000
    z, cell = likelihood.grid(latent_dim, 1.2, points, reach=6.0)
    with torch.no_grad():
        log_x = log_likelihood(model, x, z)
        log_prior = likelihood.log_prior(model.prior, z, cell)
        exact = likelihood.log_marginal(model.prior, lambda p: log_likelihood(model, x, p), z, cell)
        q = model.encode(x)
        for row in range(len(SENTENCES)):
            one = DiagonalGaussian(*(part[row].expand(len(z), latent_dim) for part in q))
            log_q = one.log_prob(z)
            density = log_q.exp() * cell
            assert density.sum() == pytest.approx(1, abs=1e-5)
            elbo = density @ (log_x[row] + log_prior - log_q)
            gap = density @ (log_q - (log_x[row] + log_prior - exact[row]))
            assert elbo < exact[row] - 1e-3
            torch.testing.assert_close(elbo, exact[row] - gap, rtol=0, atol=1e-4)

            many = DiagonalGaussian(*(part[row].expand(samples, latent_dim) for part in q))
            sampled = many.sample(generator)
            alone = TextBatch(*(part[row : row + 1].expand(samples, *part.shape[1:]) for part in x))
            estimates = model.condition(alone).log_prob(sampled) - bound.kl_divergence(many, sampled, model.prior)
            estimates = estimates - likelihood.log_normaliser(model.prior, z, cell)
            assert abs(estimates.mean() - elbo) < 5 * estimates.std() / math.sqrt(samples)


@pytest.mark.parametrize("cell", ["lstm", "gru"])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("free_bits", [0.0, 0.8])
def test_its_gradient_by_finite_differences(make_batch, kind, cell, free_bits):
    """Along random directions, in the parameters of encoder and generator, through the sample."""
    model, x = make_model(kind, 2, cell), make_batch(SENTENCES)
    parameters = [*model.encoder.parameters(), *model.generator.parameters()]
    config = BoundConfig(free_bits=free_bits)

    def loss() -> Tensor:
        q = model.encode(x)
        z = q.sample(torch.Generator().manual_seed(3))
        return 0.7 * bound.kl_with_free_bits(q, z, model.prior, config) - model.condition(x).log_prob(z).mean()

    gradients = torch.autograd.grad(loss(), parameters)
    source, width = torch.Generator().manual_seed(9), 1e-6
    for _ in range(3):
        way = [torch.randn(p.shape, generator=source, dtype=p.dtype) for p in parameters]
        values = []
        for sign in (1, -2):  # there, then as far on the other side
            with torch.no_grad():
                for parameter, part in zip(parameters, way, strict=True):
                    parameter.add_(part, alpha=sign * width)
                values.append(loss())
        with torch.no_grad():
            for parameter, part in zip(parameters, way, strict=True):
                parameter.add_(part, alpha=width)
        slope = sum((g * part).sum() for g, part in zip(gradients, way, strict=True))
        torch.testing.assert_close((values[0] - values[1]) / (2 * width), slope, rtol=1e-6, atol=1e-7)


class TestFreeBits:
    """Two dimensions with a share of 0.5 nat each; the KL of a mean m at variance 1 is ½ m²."""

    PRIOR = GaussianPrior(PriorConfig(kind="gaussian", latent_dim=2))
    SETTINGS = BoundConfig(free_bits=1.0)

    def gradient(self, means: list[list[float]], **changes) -> tuple[float, Tensor]:
        mean = torch.tensor(means, requires_grad=True)
        q = DiagonalGaussian(mean, torch.zeros_like(mean))
        config = dataclasses.replace(self.SETTINGS, **changes)
        value = bound.kl_with_free_bits(q, mean.detach(), self.PRIOR, config)
        value.backward()
        return float(value.detach()), mean.grad

    def test_a_dimension_below_its_share_has_no_gradient_and_costs_its_share(self):
        value, gradient = self.gradient([[0.5, 2.0]])
        assert gradient.tolist() == [[0.0, 2.0]]
        assert value == pytest.approx(0.5 + 2.0)

    def test_by_the_sentence_each_counts_by_itself(self):
        value, gradient = self.gradient([[0.0, 2.0], [2.0, 0.0]])
        assert gradient.tolist() == [[0.0, 1.0], [1.0, 0.0]]
        assert value == pytest.approx(2.5)

    def test_by_the_batch_the_mean_counts(self):
        value, gradient = self.gradient([[0.0, 0.5], [2.0, 0.5]], free_bits_over="batch")
        assert gradient.tolist() == [[0.0, 0.0], [1.0, 0.0]]  # means of 1 and of 0.125
        assert value == pytest.approx(1.5)

    @pytest.mark.parametrize("over", ["sentence", "batch"])
    def test_none_are_the_plain_kl(self, over):
        value, gradient = self.gradient([[0.5, 2.0]], free_bits=0.0, free_bits_over=over)
        assert value == pytest.approx(0.125 + 2.0)
        assert gradient.tolist() == [[0.5, 2.0]]

    def test_the_tilt_stays(self, generator):
        """Under an EBM prior the free bits are of the closed-form part; −f(z) counts in full."""
        model = make_model("ebm", 2)
        q = DiagonalGaussian(*(torch.randn(4, 2, generator=generator, dtype=torch.float64) for _ in range(2)))
        z = q.sample(generator)
        config = BoundConfig(free_bits=100.0)
        value = bound.kl_with_free_bits(q, z, model.prior, config)
        torch.testing.assert_close(value, 100.0 - model.prior.tilt(z).mean())


class TestWeight:
    def weights(self, steps: int, **config) -> list[float]:
        return [bound.kl_weight(BoundConfig(**config), step, steps) for step in range(steps)]

    def test_constant(self):
        assert self.weights(4, kl_weight=0.7) == [0.7] * 4

    def test_a_rise_in_a_line(self):
        found = self.weights(10, kl_schedule="linear", kl_start=0.2, kl_annealing=0.5)
        assert found == pytest.approx([0.2, 0.36, 0.52, 0.68, 0.84, 1, 1, 1, 1, 1])

    def test_cycles(self):
        found = self.weights(16, kl_schedule="cyclical", kl_cycles=2, kl_annealing=0.5, kl_weight=0.8)
        assert found == pytest.approx(2 * [0, 0.2, 0.4, 0.6, 0.8, 0.8, 0.8, 0.8])

    def test_cycles_that_do_not_come_out_even(self):
        found = self.weights(10, kl_schedule="cyclical", kl_cycles=3, kl_annealing=1.0)
        assert found == pytest.approx([0, 0.3, 0.6, 0.9, 0.2, 0.5, 0.8, 0.1, 0.4, 0.7])

    def test_the_pre_training_comes_before(self):
        found = self.weights(8, kl_schedule="linear", kl_annealing=0.5, autoencoder=0.5)
        assert found == pytest.approx([0, 0, 0, 0, 0, 0.5, 1, 1])

    @pytest.mark.parametrize(
        "config",
        [
            {"kl_schedule": "constant"},
            {"kl_schedule": "constant", "autoencoder": 0.3},
            {"kl_schedule": "linear", "kl_annealing": 0.37},
            {"kl_schedule": "linear", "kl_annealing": 0.37, "autoencoder": 0.25},
            {"kl_schedule": "cyclical", "kl_cycles": 3, "kl_annealing": 0.4},
            {"kl_schedule": "cyclical", "kl_cycles": 3, "kl_annealing": 1.0, "autoencoder": 0.1},
        ],
    )
    @pytest.mark.parametrize("steps", [7, 40, 101])
    def test_it_stays_as_it_is_from_the_last_change_on(self, config, steps):
        weights = self.weights(steps, **config)
        last = bound.last_change(BoundConfig(**config), steps)
        assert len(set(weights[last:])) <= 1
        assert last == 0 or weights[last - 1] != 1.0
