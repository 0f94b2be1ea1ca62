"""Importance-weighted likelihoods against closed forms and grids: right, unbiased, from below, whatever the blocks."""

import math
from itertools import pairwise

import pytest
import torch
from torch import Tensor

from textebm.config import GeneratorConfig, InferenceConfig, PriorConfig
from textebm.model import ais, likelihood, proposals
from textebm.model.encoder import DiagonalGaussian
from textebm.model.energy import GaussianPrior
from textebm.model.generators import ConditionedLikelihood
from textebm.model.latent_model import LatentModel, ModelConfig
from textebm.model.proposals import Defensive, Fit, FittedToChains, FromEncoder, Gaussians

EXACT = {"rtol": 0, "atol": 1e-9}
SIGMA, NOISE = 1.3, 0.8
X = torch.tensor([[1.0, -0.5], [0.2, 3.0], [-2.0, 0.1]], dtype=torch.float64)  # (data, observed)
MAP = torch.tensor([[0.9, -0.4, 0.3], [0.2, 1.1, -0.8]], dtype=torch.float64)  # (observed, latent)


def sources(use: int = 0, count: int = len(X)) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(1000 * use + row) for row in range(count)]


class LinearGaussian(ConditionedLikelihood):
    """x = Wz + N(0, τ²I), for which everything is known in closed form."""

    def __init__(self, copies: int, x: Tensor = X) -> None:
        self.x = x.repeat_interleave(copies, 0)

    def log_prob(self, z: Tensor) -> Tensor:
        away = self.x - z @ MAP.T
        return -0.5 * (away.square().sum(1) / NOISE**2 + away.shape[1] * math.log(2 * math.pi * NOISE**2))

    def log_prob_and_grad(self, z: Tensor) -> tuple[Tensor, Tensor]:
        return self.log_prob(z), (self.x - z @ MAP.T) @ MAP / NOISE**2


@pytest.fixture
def prior() -> GaussianPrior:
    return GaussianPrior(PriorConfig(kind="gaussian", latent_dim=3, sigma=SIGMA)).double()


def known() -> Tensor:
    covariance = SIGMA**2 * MAP @ MAP.T + NOISE**2 * torch.eye(2, dtype=torch.float64)
    return torch.distributions.MultivariateNormal(torch.zeros(2, dtype=torch.float64), covariance).log_prob(X)


def posterior() -> Gaussians:
    """p(z|x), which is a Gaussian."""
    precision = MAP.T @ MAP / NOISE**2 + torch.eye(3, dtype=torch.float64) / SIGMA**2
    covariance = torch.linalg.inv(precision)
    return Gaussians(X @ MAP @ covariance / NOISE**2, torch.linalg.cholesky(covariance).expand(len(X), 3, 3))


def wide() -> Gaussians:
    return Gaussians(posterior().mean + 0.3, 1.4 * torch.eye(3).expand(len(X), 3, 3))


def weigh(prior: GaussianPrior, proposal, samples: int, use: int = 0, at_once: int = 10_000) -> likelihood.Weights:
    return likelihood.importance_weights(prior, LinearGaussian, proposal, samples, sources(use), at_once)


class TestLinearGaussian:
    def test_the_posterior_as_proposal_is_exact_with_a_single_sample(self, prior: GaussianPrior) -> None:
        weights = weigh(prior, posterior(), 1)
        torch.testing.assert_close(weights.log_mean(), known(), **EXACT)

    def test_then_every_weight_is_the_same(self, prior: GaussianPrior) -> None:
        weights = weigh(prior, posterior(), 50)
        torch.testing.assert_close(weights.log_weights, known()[:, None].expand(-1, 50), **EXACT)
        torch.testing.assert_close(weights.effective_samples(), torch.full((3,), 50.0, dtype=torch.float64))

    def test_another_proposal_comes_near_it(self, prior: GaussianPrior) -> None:
        weights = weigh(prior, wide(), 20_000)
        error = (1 / weights.effective_samples()).sqrt()
        assert error.max() < 0.02
        assert ((weights.log_mean() - known()).abs() < 4 * error).all()

    def test_the_reconstruction_is_the_posteriors(self, prior: GaussianPrior) -> None:
        """E[log p(x|z)] = log p(x|mean) − tr(W S Wᵀ)/2τ²."""
        exact = posterior()
        covariance = exact.scale @ exact.scale.mT
        trace = (MAP @ covariance @ MAP.T).diagonal(dim1=1, dim2=2).sum(1)
        expected = LinearGaussian(1).log_prob(exact.mean) - 0.5 * trace / NOISE**2
        found = weigh(prior, wide(), 20_000).reconstruction()
        torch.testing.assert_close(found, expected, rtol=0, atol=0.05)

    def test_the_estimate_is_unbiased_on_the_scale_of_probabilities(self, prior: GaussianPrior) -> None:
        """Mean of the estimated p(x) over 20,000 repeats of 2 samples each, beside its standard error."""
        estimates = (weigh(prior, wide(), 40_000).log_weights.view(3, -1, 2).exp().mean(2)).double()
        error = estimates.std(1) / math.sqrt(estimates.shape[1])
        assert (error < 0.02 * known().exp()).all()
        assert ((estimates.mean(1) - known().exp()).abs() < 4 * error).all()

    def test_the_bound_rises_with_the_samples_and_stays_below(self, prior: GaussianPrior) -> None:
        """In expectation (Burda et al. 2016): means over disjoint groups of 1, 4, 16 and 64 of the same samples."""
        log_weights = weigh(prior, wide(), 64_000).log_weights
        bounds = []
        for group in (1, 4, 16, 64):
            each = log_weights.view(3, -1, group).logsumexp(2) - math.log(group)
            bounds.append((each.mean(1), each.std(1) / math.sqrt(each.shape[1])))
        for (low, low_error), (high, high_error) in pairwise(bounds):
            assert (high - low > 2 * (low_error.square() + high_error.square()).sqrt()).all()
        value, error = bounds[-1]
        assert (value < known() + 3 * error).all()
        assert (bounds[0][0] < known() - 0.1).all()

    @pytest.mark.parametrize("covariance", ["diagonal", "full"])
    def test_a_gaussian_fitted_to_chains(self, prior: GaussianPrior, covariance: proposals.Covariance) -> None:
        """It is a good proposal, and near the posterior where it can be: the full one in mean and covariance."""
        fit = Fit(chains=20, steps=400, covariance=covariance, widening=1.0, defensive=0.0)
        proposal, acceptance = FittedToChains(prior, fit)(X, LinearGaussian, sources(1))
        weights = weigh(prior, proposal, 4000, use=2)
        assert acceptance == pytest.approx(0.574, abs=0.12)
        assert (weights.effective_samples() > (2000 if covariance == "full" else 400)).all()
        error = (1 / weights.effective_samples()).sqrt()
        assert ((weights.log_mean() - known()).abs() < 4 * error).all()
        if covariance == "full":
            exact = posterior()
            torch.testing.assert_close(proposal.mean, exact.mean, rtol=0, atol=0.25)
            ours, theirs = (q.scale @ q.scale.mT for q in (proposal, exact))
            torch.testing.assert_close(ours, theirs, rtol=0, atol=0.3)

    def test_an_encoder(self, prior: GaussianPrior) -> None:
        """Its own mean and variances, widened and mixed: what such a proposal would be by hand."""
        exact = posterior()
        variances = (exact.scale @ exact.scale.mT).diagonal(dim1=1, dim2=2)
        fit = Fit(widening=1.3, defensive=0.1)
        proposer = FromEncoder(prior, lambda x: DiagonalGaussian(exact.mean, variances.log()), fit)
        proposal, acceptance = proposer(X, LinearGaussian, sources(1))
        by_hand = Defensive(Gaussians(exact.mean, torch.diag_embed(1.3 * variances.sqrt())), prior, 0.1)
        z = proposal.sample(50, sources(2))
        torch.testing.assert_close(z, by_hand.sample(50, sources(2)), **EXACT)
        torch.testing.assert_close(proposal.log_prob(z), by_hand.log_prob(z), **EXACT)
        assert (proposer.name, acceptance) == ("encoder-x1.3+reference0.1", None)
        weights = weigh(prior, proposal, 20_000)
        error = (1 / weights.effective_samples()).sqrt()
        assert ((weights.log_mean() - known()).abs() < 4 * error).all()

    @pytest.mark.parametrize("at_once", [1, 7, 100])
    def test_how_many_are_computed_at_once_changes_nothing(self, prior: GaussianPrior, at_once: int) -> None:
        whole, part = weigh(prior, wide(), 100), weigh(prior, wide(), 100, at_once=at_once)
        torch.testing.assert_close(part.log_weights, whole.log_weights, **EXACT)

    def test_resampling_is_by_weight(self, prior: GaussianPrior) -> None:
        """One sample out of 2,000 is about one of the posterior: over 300 draws its mean is the posterior's."""
        weights = weigh(prior, wide(), 2000)
        drawn = torch.stack([weights.resampled(sources(use)) for use in range(300)])
        spread = (posterior().scale @ posterior().scale.mT).diagonal(dim1=1, dim2=2).sqrt()
        assert ((drawn.mean(0) - posterior().mean).abs() < 4 * spread / math.sqrt(100)).all()


class TestProposals:
    MEAN = torch.tensor([[0.5, -1.0], [3.0, 0.0]], dtype=torch.float64)
    SCALE = torch.tensor([[[0.7, 0.0], [0.4, 1.2]], [[2.0, 0.0], [-1.0, 0.3]]], dtype=torch.float64)

    def test_the_gaussians_density_is_torchs(self) -> None:
        z = torch.randn(2, 9, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
        theirs = torch.distributions.MultivariateNormal(self.MEAN[:, None], scale_tril=self.SCALE[:, None])
        torch.testing.assert_close(Gaussians(self.MEAN, self.SCALE).log_prob(z), theirs.log_prob(z), **EXACT)

    def test_its_samples_have_its_moments(self) -> None:
        z = Gaussians(self.MEAN, self.SCALE).sample(40_000, sources(count=2))
        torch.testing.assert_close(z.mean(1), self.MEAN, rtol=0, atol=0.05)
        for row in range(2):
            torch.testing.assert_close(z[row].T.cov(), self.SCALE[row] @ self.SCALE[row].T, rtol=0, atol=0.12)

    def test_the_mixture(self) -> None:
        """Its density is the mixture's, and its samples are so many of either: seen by the mean of a far component."""
        reference = GaussianPrior(PriorConfig(kind="gaussian", latent_dim=2, sigma=SIGMA)).double()
        inner = Gaussians(self.MEAN + 50, self.SCALE)
        mixture = Defensive(inner, reference, 0.25)
        z = mixture.sample(8000, sources(count=2))
        near = (z[..., 0] < 25).double().mean(1)
        torch.testing.assert_close(near, torch.full((2,), 0.25, dtype=torch.float64), rtol=0, atol=0.02)
        gaussian = torch.distributions.Normal(z.new_zeros(()), z.new_tensor(SIGMA)).log_prob(z).sum(2)
        expected = (0.75 * inner.log_prob(z).exp() + 0.25 * gaussian.exp()).log()
        torch.testing.assert_close(mixture.log_prob(z), expected, **EXACT)

    def test_it_bounds_the_weights(self, prior: GaussianPrior) -> None:
        """However bad the proposal, no weight is above max p(x|z) / share."""
        bad = Gaussians(posterior().mean, 0.02 * torch.eye(3).expand(3, 3, 3))
        largest = -0.5 * 2 * math.log(2 * math.pi * NOISE**2)
        with_share = weigh(prior, Defensive(bad, prior, 0.1), 5000)
        assert with_share.log_weights.max() <= largest - math.log(0.1) + 1e-9
        error = (1 / with_share.effective_samples()).sqrt()
        assert ((with_share.log_mean() - known()).abs() < 4 * error).all()

    def test_a_sentence_does_not_depend_on_its_neighbours(self, prior: GaussianPrior) -> None:
        fit = Fit(chains=3, steps=20)
        together, _ = FittedToChains(prior, fit)(X, LinearGaussian, sources(1))
        alone, _ = FittedToChains(prior, fit)(X[1:2], lambda n: LinearGaussian(n, X[1:2]), sources(1)[1:2])
        z, only = together.sample(5, sources(2)), alone.sample(5, sources(2)[1:2])
        torch.testing.assert_close(z[1:2], only, **EXACT)
        torch.testing.assert_close(together.log_prob(z)[1:2], alone.log_prob(only), **EXACT)

    def test_fitted_moments(self) -> None:
        samples = (
            torch.randn(1, 30, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64) @ self.SCALE[0].T
        )
        covariance = samples[0].T.cov()
        full = proposals.fitted(samples, Fit(covariance="full", widening=1.5))
        shrunk = covariance.clone()
        shrunk[0, 1] = shrunk[1, 0] = covariance[0, 1] * 30 / 32
        torch.testing.assert_close(full.mean, samples.mean(1))
        torch.testing.assert_close((full.scale @ full.scale.mT)[0], 1.5**2 * shrunk, **EXACT)
        diagonal = proposals.fitted(samples, Fit(covariance="diagonal", widening=1.0))
        torch.testing.assert_close(diagonal.scale[0], covariance.diagonal().sqrt().diag(), **EXACT)

    @pytest.mark.parametrize("covariance", ["diagonal", "full"])
    def test_fewer_samples_than_dimensions_and_chains_that_stood_still(self, covariance: proposals.Covariance) -> None:
        fit = Fit(covariance=covariance)
        few = torch.randn(2, 3, 7, generator=torch.Generator().manual_seed(0))
        for samples in (few, few[:, :1].expand(-1, 3, -1)):
            found = proposals.fitted(samples, fit).log_prob(few)
            assert found.isfinite().all()


def make_text_model(latent_dim: int, kind: str) -> LatentModel:
    """A small float64 model whose words depend on z, under a prior that is no Gaussian where it is an EBM."""
    config = ModelConfig(
        vocab_size=9,
        prior=PriorConfig(kind=kind, latent_dim=latent_dim, width=8, sigma=1.1),
        generator=GeneratorConfig(embedding_dim=3, hidden_dim=5, init_range=1.2),
        inference=InferenceConfig(),
    )
    model = LatentModel(config, seed=4).double()
    with torch.no_grad():
        for name, parameter in model.prior.named_parameters():
            if name.endswith("weight"):
                parameter.mul_(2)
    return model


@pytest.mark.parametrize("kind", ["ebm", "gaussian"])
@pytest.mark.parametrize("latent_dim", [1, 2])
def test_the_whole_likelihood_of_text_against_the_grid(latent_dim, kind, make_batch):
    """log p(x) of sentences of a recurrent generator: importance weighting and annealing, beside exact integration."""
    model = make_text_model(latent_dim, kind)
    sentences = [[4, 5, 3], [8], [6, 6, 7, 4, 5], []]
    x = make_batch(sentences)
    z, cell = likelihood.grid(latent_dim, 1.1, points=401 if latent_dim == 1 else 61, reach=6.0)

    def log_likelihood(points: Tensor) -> Tensor:
        values = model.condition(x.repeated(len(points))).log_prob(points.repeat(len(sentences), 1))
        return values.view(len(sentences), -1)

    with torch.no_grad():
        exact = likelihood.log_marginal(model.prior, log_likelihood, z, cell)

    def conditioned(copies: int) -> ConditionedLikelihood:
        return model.condition(x.repeated(copies))

    proposal, _ = FittedToChains(model.prior, Fit())(x, conditioned, sources(1, 4))
    weights = likelihood.importance_weights(model.prior, conditioned, proposal, 2000, sources(2, 4), 500)
    log_z, error_of_z = 0.0, 0.0
    if kind == "ebm":
        found = ais.estimate(model.prior, ais.Plan(200, 60, settling=60), 0)
        assert found.agrees
        log_z, error_of_z = found.larger, found.forward.log_normaliser.standard_error
    error = (1 / weights.effective_samples() + error_of_z**2).sqrt()
    assert error.max() < 0.1
    assert ((weights.log_mean() - log_z - exact).abs() < 4 * error).all()
    spread = weights.log_likelihood.std(1)
    assert spread.max() > 0.3  # so that z matters
