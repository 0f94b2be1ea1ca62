"""KL and mutual information of Gaussians: closed forms, bounds, and the laws that they obey."""

import math

import pytest
import torch

from textebm.config import PriorConfig
from textebm.model import information, likelihood
from textebm.model.encoder import DiagonalGaussian
from textebm.model.energy import EBMPrior, GaussianPrior

SENTENCES, LATENT = 6, 3


def source(seed: int = 1) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def gaussians(sentences: int = SENTENCES, latent: int = LATENT, seed: int = 1) -> tuple[torch.Tensor, torch.Tensor]:
    mean = torch.randn(sentences, latent, generator=source(seed), dtype=torch.float64)
    return mean, 0.8 * torch.randn(sentences, latent, generator=source(seed + 1), dtype=torch.float64) - 0.5


def kl_to_gaussian(mean: torch.Tensor, log_variance: torch.Tensor, sigma: float = 1.0) -> torch.Tensor:
    """The closed form, tested in tests/model/test_encoder.py."""
    return DiagonalGaussian(mean, log_variance).kl_from_reference(sigma).sum(1)


def draw(mean: torch.Tensor, log_variance: torch.Tensor, draws: int, seed: int = 9) -> torch.Tensor:
    size = (len(mean), draws, mean.shape[1])
    noise = torch.randn(size, generator=source(seed), dtype=torch.float64)
    return mean[:, None] + (0.5 * log_variance).exp()[:, None] * noise


def test_density_and_entropy_are_torchs():
    mean, log_variance = gaussians()
    normal = torch.distributions.Normal(mean, (0.5 * log_variance).exp())
    z = draw(mean, log_variance, 1)[:, 0]
    torch.testing.assert_close(information.log_density(z, mean, log_variance), normal.log_prob(z).sum(1))
    torch.testing.assert_close(information.entropy(log_variance), normal.entropy().sum(1))


@pytest.mark.parametrize("sigma", [1.0, 0.6])
class TestDivergence:
    def test_samples_agree_with_the_closed_form(self, sigma):
        mean, log_variance = gaussians()
        draws = 20_000
        samples = draw(mean, log_variance, draws)
        prior = GaussianPrior(PriorConfig(kind="gaussian", latent_dim=LATENT, sigma=sigma)).double()
        found = information.kl_to_prior(samples, information.entropy(log_variance), prior)
        spread = prior.log_reference(samples.flatten(0, 1)).view(SENTENCES, draws).std(1) / math.sqrt(draws)
        assert ((found - kl_to_gaussian(mean, log_variance, sigma)).abs() < 5 * spread).all()


def test_divergence_from_an_energy_based_prior_is_the_integral():
    """On a grid of two dimensions, where log Z is known; it is never negative, up to the sampling error."""
    torch.manual_seed(3)
    prior = EBMPrior(PriorConfig(latent_dim=2, width=8)).double()
    with torch.no_grad():
        for parameter in prior.parameters():
            parameter.mul_(3)
    mean, log_variance = gaussians(4, 2)
    mean = 0.5 * mean
    z, cell = likelihood.grid(2, points=241)
    with torch.no_grad():
        log_p, log_z = likelihood.log_prior(prior, z, cell), likelihood.log_normaliser(prior, z, cell)
    log_q = information.log_density(z[None], mean[:, None], log_variance[:, None])
    exact = (log_q.exp() * (log_q - log_p)).sum(1) * cell
    draws = 20_000
    samples = draw(mean, log_variance, draws)
    found = information.kl_to_prior(samples, information.entropy(log_variance), prior, log_z.item())
    assert abs(log_z.item()) > 0.1
    assert ((found - exact).abs() < 0.05).all()
    assert (exact > 0).all()


class TestMutualInformation:
    def test_of_a_code_that_tells_every_sentence_it_is_log_n(self):
        mean = torch.arange(50, dtype=torch.float64)[:, None] * torch.ones(1, 3, dtype=torch.float64)
        log_variance = torch.full_like(mean, -12.0)
        found = information.mutual_information(draw(mean, log_variance, 2), mean, log_variance)
        assert found.item() == pytest.approx(math.log(50), abs=1e-9)

    def test_of_equal_pairs_it_is_the_log_of_the_number_of_pairs(self):
        mean = torch.arange(25, dtype=torch.float64).repeat(2)[:, None]
        log_variance = torch.full_like(mean, -12.0)
        found = information.mutual_information(draw(mean, log_variance, 4), mean, log_variance)
        assert found.item() == pytest.approx(math.log(25), abs=1e-9)

    def test_of_a_q_that_ignores_x_it_is_0(self):
        mean, log_variance = torch.full((30, 4), 0.7, dtype=torch.float64), torch.full((30, 4), -0.3).double()
        found = information.mutual_information(draw(mean, log_variance, 3), mean, log_variance)
        assert abs(found.item()) < 1e-12

    def test_it_is_never_above_log_n(self):
        for seed in range(5):
            mean, log_variance = gaussians(seed=seed)
            samples = draw(3 * mean, log_variance, 5, seed)
            assert information.mutual_information(samples, 3 * mean, log_variance) <= math.log(SENTENCES) + 1e-12

    def test_of_gaussian_sentences_it_is_the_capacity_of_the_channel(self):
        """Means N(0, 1) with noise of variance v: I = ½ log(1 + 1/v); the aggregate over many sentences is close."""
        sentences, noise = 4000, 0.25
        mean = torch.randn(sentences, 1, generator=source(), dtype=torch.float64)
        log_variance = torch.full_like(mean, math.log(noise))
        found = information.mutual_information(draw(mean, log_variance, 1), mean, log_variance)
        assert found.item() == pytest.approx(0.5 * math.log(1 + 1 / noise), abs=5 / math.sqrt(sentences))

    def test_blocks_change_nothing(self, monkeypatch):
        mean, log_variance = gaussians()
        samples = draw(mean, log_variance, 7)
        whole = information.mutual_information(samples, mean, log_variance)
        monkeypatch.setattr(information, "BLOCK", 5 * SENTENCES * LATENT)
        torch.testing.assert_close(information.mutual_information(samples, mean, log_variance), whole)

    def test_hoffman_and_johnsons_identity(self):
        """Mean KL to the prior is the mutual information and the KL of the aggregate, integrated on a grid."""
        mean, log_variance = gaussians(5, 1)
        z, cell = likelihood.grid(1, points=4001, reach=10.0)
        log_q = information.log_density(z[None], mean[:, None], log_variance[:, None])
        aggregate = log_q.logsumexp(0) - math.log(5)
        prior = GaussianPrior(PriorConfig(kind="gaussian", latent_dim=1)).double()
        marginal = (aggregate.exp() * (aggregate - prior.log_reference(z))).sum() * cell
        draws = 20_000
        found = information.mutual_information(draw(mean, log_variance, draws), mean, log_variance)
        expected = kl_to_gaussian(mean, log_variance).mean() - marginal
        assert found.item() == pytest.approx(expected.item(), abs=5 / math.sqrt(5 * draws))


class TestFit:
    def test_it_finds_the_gaussian_that_chains_came_from(self):
        mean, _ = gaussians()
        log_variance = torch.tensor([-1.0, 0.0, 0.5], dtype=torch.float64).expand_as(mean)
        found = information.fitted_gaussian(draw(mean, log_variance, 50_000))
        torch.testing.assert_close(found[0], mean, rtol=0, atol=0.03)
        torch.testing.assert_close(found[1], log_variance, rtol=0, atol=0.02)

    def test_means_are_drawn_together_by_the_share_that_few_chains_explain(self):
        """Of two dimensions, one whose means are noise and one whose means are far apart."""
        far = torch.linspace(-100, 100, 40, dtype=torch.float64)
        mean = torch.stack([torch.zeros(40, dtype=torch.float64), far], dim=1)
        samples = draw(mean, torch.zeros_like(mean), 5)
        fitted, plain = information.fitted_gaussian(samples)[0], samples.mean(1)
        assert fitted[:, 0].var() < 0.25 * plain[:, 0].var()
        torch.testing.assert_close(fitted[:, 1], plain[:, 1], rtol=1e-3, atol=1e-2)
        torch.testing.assert_close(fitted.mean(0), plain.mean(0))

    def test_a_q_that_ignores_x_tells_next_to_nothing_from_few_chains(self):
        """In 32 dimensions and 10 chains, where means as they are would tell 3 nats."""
        samples = torch.randn(100, 10, 32, generator=source(), dtype=torch.float64)
        assert information.mutual_information(samples, *information.fitted_gaussian(samples)) < 0.3
        means, log_variance = samples.mean(1), samples.var(1).log()
        assert information.mutual_information(samples, means, log_variance) > 2

    @pytest.mark.parametrize("between", [0.5, 0.1])
    def test_it_tells_about_what_the_true_gaussian_tells(self, between):
        mean = math.sqrt(between) * torch.randn(100, 8, generator=source(), dtype=torch.float64)
        log_variance = torch.full_like(mean, math.log(1 - between))
        samples = draw(mean, log_variance, 30)
        true = information.mutual_information(samples, mean, log_variance)
        found = information.mutual_information(samples, *information.fitted_gaussian(samples))
        assert found == pytest.approx(true.item(), abs=0.25)

    @pytest.mark.parametrize("chains", [2, 4, 10])
    def test_entropy_and_divergence_of_chains_have_no_bias(self, chains):
        """Over many sentences of one and the same q, on average."""
        sentences = 20_000
        mean = torch.full((sentences, 2), 0.4, dtype=torch.float64)
        log_variance = torch.full((sentences, 2), -1.0, dtype=torch.float64)
        samples = draw(mean, log_variance, chains)
        entropies = information.entropy_of_chains(samples)
        expected = information.entropy(log_variance).mean()
        error = 5 * entropies.std() / math.sqrt(sentences)
        assert abs(entropies.mean() - expected) < error
        assert abs(information.entropy(samples.var(1).log()).mean() - expected) > error  # the plain one has a bias
        prior = GaussianPrior(PriorConfig(kind="gaussian", latent_dim=2)).double()
        found = information.kl_to_prior(samples, entropies, prior)
        exact = kl_to_gaussian(mean, log_variance).mean()
        assert abs(found.mean() - exact) < 5 * found.std() / math.sqrt(sentences)

    def test_chains_that_end_in_one_place_have_a_finite_density(self):
        still = torch.zeros(3, 4, 2, dtype=torch.float64)
        mean, log_variance = information.fitted_gaussian(still)
        assert log_variance.isfinite().all()
        assert information.mutual_information(still, mean, log_variance) == 0
        assert information.entropy_of_chains(still).isfinite().all()
