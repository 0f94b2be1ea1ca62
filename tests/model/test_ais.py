"""log Z by annealed importance sampling against grids and closed forms; and that a wrong one is not believed."""

import dataclasses
import math
from itertools import pairwise

import pytest
import torch
from torch import Tensor

from textebm.config import PriorConfig
from textebm.model import ais, likelihood, metropolis
from textebm.model.energy import EBMPrior, GaussianPrior
from textebm.model.metropolis import Bridge

PLAN = ais.Plan(chains=200, steps=60, settling=100)


def make_ebm(latent_dim: int, spread: float = 1.0, sigma: float = 1.2, seed: int = 0) -> EBMPrior:
    """An EBM prior whose tilt has this standard deviation in nats over the reference Gaussian."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        prior = EBMPrior(PriorConfig(latent_dim=latent_dim, width=12, sigma=sigma)).double()
    with torch.no_grad():
        for layer in prior.mlp:
            if isinstance(layer, torch.nn.Linear):
                layer.weight.mul_(2)
        z = prior.sample_reference(2000, torch.Generator().manual_seed(seed))
        prior.mlp[-1].weight.mul_(spread / prior.tilt(z).std())
    return prior


class OnPurpose(GaussianPrior):
    """A prior by its tilt, with a gradient by autograd."""

    def __init__(self, latent_dim: int, tilt, sigma: float = 1.0) -> None:
        super().__init__(PriorConfig(latent_dim=latent_dim, sigma=sigma))
        self.double()
        self.tilt = tilt

    def potential(self, z: Tensor) -> tuple[Tensor, Tensor]:
        with torch.enable_grad():
            z = z.detach().requires_grad_()
            value = z.square().sum(1) / (2 * self.config.sigma**2) - self.tilt(z)
            (gradient,) = torch.autograd.grad(value.sum(), z)
        return value.detach(), gradient


def grid_of(prior: GaussianPrior, reach: float = 8.0) -> tuple[Tensor, float]:
    points = 4001 if prior.config.latent_dim == 1 else 401
    return likelihood.grid(prior.config.latent_dim, prior.config.sigma, points=points, reach=reach)


def exact_log_z(prior: GaussianPrior, reach: float = 8.0) -> float:
    with torch.no_grad():
        return float(likelihood.log_normaliser(prior, *grid_of(prior, reach)))


def exact_samples(prior: GaussianPrior, count: int, reach: float = 8.0) -> Tensor:
    """Points of a fine grid, by their density, moved by less than a cell."""
    source = torch.Generator().manual_seed(9)
    z, cell = grid_of(prior, reach)
    with torch.no_grad():
        shares = likelihood.log_prior(prior, z, cell).exp() * cell
    chosen = torch.multinomial(shares, count, replacement=True, generator=source)
    width = cell ** (1 / z.shape[1])
    return z[chosen] + width * (torch.rand(count, z.shape[1], generator=source, dtype=z.dtype) - 0.5)


@pytest.mark.parametrize("leapfrogs", [1, 3])
@pytest.mark.parametrize("latent_dim", [1, 2])
def test_both_runs_find_the_grids_log_z(latent_dim, leapfrogs):
    prior = make_ebm(latent_dim)
    plan = dataclasses.replace(PLAN, leapfrogs=leapfrogs)
    found = ais.estimate(prior, plan, 0, exact=exact_samples(prior, plan.chains))
    known = exact_log_z(prior)
    for run in (found.forward, found.reverse):
        assert run.log_normaliser.standard_error < 0.1
        assert run.log_normaliser.value == pytest.approx(known, abs=4 * run.log_normaliser.standard_error)
    assert found.exact_start
    assert found.agrees
    assert found.larger == max(r.log_normaliser.value for r in (found.forward, found.reverse))


@pytest.mark.parametrize("path", ["sigmoid", "linear"])
def test_a_quadratic_tilt_in_many_dimensions(path, latent_dim=16, a=0.5, c=1.5, sigma=1.1):
    """f(z) = a Σz − ½ c ‖z‖²: log Z = d (½a²/(c + 1/σ²) − ½ log(1 + cσ²))."""
    prior = OnPurpose(latent_dim, lambda z: a * z.sum(1) - 0.5 * c * z.square().sum(1), sigma)
    precision = c + sigma**-2
    known = latent_dim * (0.5 * a**2 / precision - 0.5 * math.log(1 + c * sigma**2))
    found = ais.estimate(prior, ais.Plan(chains=300, steps=150, path=path, settling=150), 1)
    for run in (found.forward, found.reverse):
        assert run.log_normaliser.standard_error < 0.15
        assert run.log_normaliser.value == pytest.approx(known, abs=4 * run.log_normaliser.standard_error)
    assert not found.exact_start


@pytest.mark.parametrize("kind", ["gaussian", "none"])
def test_without_a_tilt_log_z_is_0(kind):
    prior = GaussianPrior(PriorConfig(kind=kind, latent_dim=3, sigma=0.7)).double()
    bridge = Bridge(prior.frozen(), prior.config.sigma**-2)
    generator = torch.Generator().manual_seed(0)
    shares = PLAN.shares()
    run = ais.anneal(bridge, prior.sample_reference(50, generator), shares, (0.5,) * len(shares), 1, generator)
    assert run.log_weights.abs().max() < 1e-12


def log_weights(prior: GaussianPrior, z: Tensor, shares: tuple[float, ...], seed: int) -> Tensor:
    bridge = Bridge(prior.frozen(), prior.config.sigma**-2)
    generator = torch.Generator().manual_seed(seed)
    return ais.anneal(bridge, z, shares, (0.8,) * len(shares), 1, generator).log_weights


def test_the_weights_are_unbiased_however_few_the_steps():
    """E[w] = Z forward, and E[w] = 1/Z in reverse from exact samples: on the scale of probabilities, with 3 steps."""
    prior = make_ebm(1)
    known = exact_log_z(prior)
    shares = ais.Plan(steps=3).shares()
    start = prior.sample_reference(40_000, torch.Generator().manual_seed(2))
    up = log_weights(prior, start, shares, 3)
    down = log_weights(prior, exact_samples(prior, 40_000), shares[::-1], 4)
    for found, expected in ((ais.log_mean(up), known), (ais.log_mean(down), -known)):
        assert found.standard_error < 0.05
        assert found.value == pytest.approx(expected, abs=4 * found.standard_error)


def test_forward_bounds_log_z_from_below_and_reverse_from_above():
    """In expectation: means over repeats of few steps and few chains, so that the bounds are loose enough to see."""
    prior = make_ebm(2, spread=2.5)
    known = exact_log_z(prior)
    shares, repeats, chains = ais.Plan(steps=4).shares(), 3000, 3
    start = prior.sample_reference(repeats * chains, torch.Generator().manual_seed(5))
    up = log_weights(prior, start, shares, 6).view(repeats, chains)
    down = log_weights(prior, exact_samples(prior, repeats * chains), shares[::-1], 7).view(repeats, chains)
    below, above = (w.logsumexp(1) - math.log(chains) for w in (up, down))
    for gap in (known - below, -above - known):
        assert gap.mean() > 5 * gap.std() / math.sqrt(repeats)


def far_mode(latent_dim: int = 1, away: float = 9.0, height: float = 90.0) -> OnPurpose:
    """A prior with most of its mass in a narrow mode that lies where the Gaussian never looks."""

    def tilt(z: Tensor) -> Tensor:
        return height * (-0.5 * (z - away).square().sum(1) / 0.25).exp()

    return OnPurpose(latent_dim, tilt)


class TestWithheld:
    def test_a_far_mode_is_missed_from_below(self) -> None:
        """So it is a case in which a forward run alone would flatter the model, by tens of nats."""
        prior = far_mode()
        known = exact_log_z(prior, reach=14.0)
        found = ais.estimate(prior, PLAN, 0)
        assert found.forward.log_normaliser.value < known - 20

    def test_exact_samples_show_it(self) -> None:
        prior = far_mode()
        found = ais.estimate(prior, PLAN, 0, exact=exact_samples(prior, PLAN.chains, reach=14.0))
        assert found.gap > ais.LARGEST_GAP
        assert not found.agrees
        assert found.larger == found.reverse.log_normaliser.value

    def test_long_chains_from_where_the_data_are_show_it_too(self) -> None:
        prior = far_mode()
        there = torch.full((5, 1), 9.0, dtype=torch.float64)
        found = ais.estimate(prior, PLAN, 0, starts=there)
        assert found.gap > ais.LARGEST_GAP
        assert not found.agrees

    def test_starts_that_mix_do_no_harm(self) -> None:
        """Wherever long chains on a well-behaved prior start, they agree with the forward run."""
        prior = make_ebm(2)
        found = ais.estimate(prior, PLAN, 0, starts=torch.full((5, 2), 4.0, dtype=torch.float64))
        assert found.agrees
        assert found.larger == pytest.approx(exact_log_z(prior), abs=0.3)

    @pytest.mark.parametrize(
        ("forward", "reverse", "agrees"),
        [(1.0, 1.4, True), (1.4, 1.0, True), (1.0, 1.6, False), (1.6, 1.0, False), (1.0, math.nan, False)],
    )
    def test_the_rule(self, forward: float, reverse: float, agrees: bool) -> None:
        runs = [ais.Run(ais.LogMean(value, 0.1, 10.0), 0.6) for value in (forward, reverse)]
        assert ais.LogNormaliser(*runs, exact_start=False).agrees is agrees


class TestSteps:
    @pytest.mark.parametrize("leapfrogs", [1, 4])
    def test_sizes_are_tuned_to_the_acceptance(self, leapfrogs: int) -> None:
        prior = make_ebm(2, spread=2.5)
        found = ais.estimate(prior, dataclasses.replace(PLAN, chains=100, steps=150, leapfrogs=leapfrogs), 0)
        wanted = metropolis.target_acceptance(leapfrogs)
        assert found.forward.acceptance == pytest.approx(wanted, abs=0.06)
        assert found.reverse.acceptance == pytest.approx(wanted, abs=0.06)

    @pytest.mark.parametrize("path", ["sigmoid", "linear"])
    @pytest.mark.parametrize("steps", [1, 2, 50])
    def test_the_path_runs_from_0_to_1(self, steps: int, path: ais.Path) -> None:
        shares = ais.Plan(steps=steps, path=path).shares()
        assert len(shares) == steps + 1
        assert shares[0] == 0
        assert shares[-1] == 1
        assert all(a < b for a, b in pairwise(shares))

    def test_one_step_is_importance_sampling_from_the_gaussian(self) -> None:
        prior = make_ebm(1)
        z = prior.sample_reference(100, torch.Generator().manual_seed(0))
        found = ais.log_mean(log_weights(prior, z, (0.0, 1.0), 0))
        assert found.value == pytest.approx(float(prior.tilt(z).detach().exp().mean().log()), abs=1e-10)

    def test_the_same_seed_gives_the_same_figures(self) -> None:
        prior = make_ebm(2)
        first, again, other = (ais.estimate(prior, ais.Plan(20, 10, settling=5), seed) for seed in (1, 1, 2))
        assert first == again
        assert first != other


class TestLogMean:
    def test_by_hand(self) -> None:
        weights = torch.tensor([1.0, 2.0, 5.0], dtype=torch.float64)
        found = ais.log_mean(weights.log())
        assert found.value == pytest.approx(math.log(8 / 3))
        assert found.effective_samples == pytest.approx(64 / 30)
        relative = weights.std(correction=0) / weights.mean()
        assert found.standard_error == pytest.approx(float(relative) / math.sqrt(3))

    def test_far_from_1_in_either_direction(self) -> None:
        logs = torch.tensor([-2000.0, -2001.0])
        for shift in (0.0, 4000.0):
            found = ais.log_mean(logs + shift)
            expected = -2000 + shift + math.log((1 + math.exp(-1)) / 2)
            assert found.value == pytest.approx(expected, abs=1e-9)

    def test_the_standard_error_is_what_repeats_show(self) -> None:
        source = torch.Generator().manual_seed(3)
        logs = 0.7 * torch.randn(400, 200, generator=source, dtype=torch.float64)
        found = [ais.log_mean(row) for row in logs]
        spread = torch.tensor([f.value for f in found]).std().item()
        assert sum(f.standard_error for f in found) / 400 == pytest.approx(spread, rel=0.12)
