"""How far short chains end from their target: exact densities on grids, weights of paths, the bound."""

import itertools
import math

import pytest
import torch

from textebm.config import PriorConfig
from textebm.model import langevin, likelihood, metropolis, short_run
from textebm.model.ais import log_mean
from textebm.model.energy import EBMPrior, GaussianPrior
from textebm.model.inference import posterior_potential
from textebm.model.metropolis import Bridge, Point


def make_ebm(latent_dim: int, spread: float = 1.5, sigma: float = 1.1, seed: int = 0) -> EBMPrior:
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


def quadratic(curvature: float) -> langevin.Potential:
    """U of a Gaussian of variance 1/curvature."""

    def potential(z):
        return 0.5 * curvature * z.square().sum(1), curvature * z

    return potential


def gaussian_kl(variance: float, target: float) -> float:
    """KL of two centred Gaussians of one dimension."""
    return 0.5 * (variance / target - 1 - math.log(variance / target))


def variance_after(steps: int, step_size: float, curvature: float, temperature: float, start: float) -> float:
    """Of a chain on a quadratic potential: v_K = v∞ + (v₀ − v∞)(1 − λs²/2)^2K, v∞ = T²/(λ(1 − λs²/4))."""
    limit = temperature**2 / (curvature * (1 - curvature * step_size**2 / 4))
    return limit + (start - limit) * (1 - 0.5 * curvature * step_size**2) ** (2 * steps)


def weigh(potential, sigma: float, plan, chains: int, generator, latent_dim: int) -> torch.Tensor:
    """log w of chains' paths, as the docstring of the module has it."""
    start = sigma * torch.randn(chains, latent_dim, generator=generator, dtype=torch.float64)
    places = list(short_run.visits(start, potential, plan, generator))
    moves = zip(itertools.pairwise(places), plan.step_sizes, plan.temperatures, strict=True)
    ratios = sum((metropolis.log_kernel_ratio(*pair, s, t) for pair, s, t in moves), torch.zeros(chains).double())
    return short_run.path_log_weights(start, places[-1], ratios, sigma)


class TestVisits:
    def test_they_are_the_chain_of_langevin_run(self, generator) -> None:
        prior, plan = make_ebm(3), langevin.schedule(6, (0.5, 0.3), (1.0, 0.7))
        start = prior.sample_reference(5, generator)
        seen = []
        state = generator.get_state()
        end = langevin.run(start, prior.frozen(), plan, generator, lambda number, at, info: seen.append(at.z))
        generator.set_state(state)
        places = list(short_run.visits(start, prior.frozen(), plan, generator))
        assert len(places) == 7
        assert torch.equal(torch.stack([place.z for place in places]), torch.stack([start, *seen]))
        assert torch.equal(places[-1].z, end)
        for place in places:
            value, gradient = prior.potential(place.z)
            assert torch.equal(place.potential, value)
            assert torch.equal(place.gradient, gradient)

    def test_of_no_steps_there_is_the_start(self, generator) -> None:
        prior = make_ebm(2)
        start = prior.sample_reference(4, generator)
        (only,) = short_run.visits(start, prior.frozen(), langevin.schedule(0, 0.3), generator)
        assert torch.equal(only.z, start)


class TestKernels:
    @pytest.mark.parametrize("temperature", [1.0, 0.6])
    def test_the_ratio_is_that_of_the_densities(self, generator, temperature, step_size=0.4) -> None:
        prior = make_ebm(3)
        one, other = (Point(z, *prior.potential(z)) for z in prior.sample_reference(12, generator).split(6))

        def log_kernel(before: Point, after: Point) -> torch.Tensor:
            mean = before.z - 0.5 * step_size**2 * before.gradient
            return torch.distributions.Normal(mean, step_size * temperature).log_prob(after.z).sum(1)

        known = log_kernel(other, one) - log_kernel(one, other)
        torch.testing.assert_close(metropolis.log_kernel_ratio(one, other, step_size, temperature), known)

    @pytest.mark.parametrize("temperature", [1.0, 0.6])
    def test_acceptance_is_that_of_the_adjusted_step(self, generator, temperature, step_size=0.9) -> None:
        """Of the same noise; at T the target is exp(−U/T²), and the step's size in it sT."""
        prior = make_ebm(3)
        potential = prior.frozen()

        def tempered(z):
            value, gradient = potential(z)
            return value / temperature**2, gradient / temperature**2

        start = prior.sample_reference(40, generator)
        state = generator.get_state()
        before, after = short_run.visits(start, potential, langevin.schedule(1, step_size, temperature), generator)
        generator.set_state(state)
        momentum, uniform = metropolis.noise(start, generator)
        bridge = Bridge(tempered, 1.0)
        _, known = metropolis.step(bridge, bridge.look(start), 1.0, step_size * temperature, 1, momentum, uniform)
        found = metropolis.langevin_acceptance(before, after, step_size, temperature)
        torch.testing.assert_close(found, known)
        assert known.min() < 0.9 < known.max()  # it is no test of ones

    def test_a_move_to_nowhere_is_never_accepted(self) -> None:
        place = Point(torch.zeros(1, 2), torch.zeros(1), torch.zeros(1, 2))
        lost = Point(torch.full((1, 2), torch.inf), torch.full((1,), torch.inf), torch.zeros(1, 2))
        assert float(metropolis.langevin_acceptance(place, lost, 0.3)) == 0


class TestOnGrid:
    @pytest.mark.parametrize("temperature", [1.0, 0.7])
    @pytest.mark.parametrize("steps", [0, 1, 7])
    def test_a_gaussian_in_one_dimension(self, steps, temperature, curvature=2.5, sigma=1.3) -> None:
        plan = langevin.schedule(steps, 0.5, temperature)
        found = short_run.on_grid(quadratic(curvature), plan, 1, sigma)
        z, cell = likelihood.grid(1, sigma)
        variance = variance_after(steps, 0.5, curvature, temperature, sigma**2)
        assert float((found.density * z[:, 0] ** 2).sum()) * cell == pytest.approx(variance, rel=1e-6)
        assert found.divergence == pytest.approx(gaussian_kl(variance, 1 / curvature), abs=1e-6)

    def test_in_two_dimensions_a_product_is_a_sum(self) -> None:
        """Of a potential that is a sum over dimensions, the divergence is one too."""

        def both(z):
            return 0.5 * (2.5 * z[:, 0] ** 2 + 0.6 * z[:, 1] ** 2), z * torch.tensor([2.5, 0.6], dtype=z.dtype)

        plan = langevin.schedule(3, (0.6, 0.4))
        parts = [short_run.on_grid(quadratic(c), plan, 1, points=61).divergence for c in (2.5, 0.6)]
        found = short_run.on_grid(both, plan, 2, points=61)
        assert found.divergence == pytest.approx(sum(parts), abs=1e-6)

    @pytest.mark.parametrize("latent_dim", [1, 2])
    def test_chains_end_there(self, latent_dim, generator) -> None:
        """The tilt's mean over chains is its mean under the density on the grid."""
        prior, plan = make_ebm(latent_dim), langevin.schedule(4, 0.6)
        z, cell = likelihood.grid(latent_dim, 1.1, points=101, reach=9)
        found = short_run.on_grid(prior.frozen(), plan, latent_dim, 1.1, points=101, reach=9)
        known = float((found.density * prior.tilt(z).detach()).sum()) * cell
        z = langevin.run(prior.sample_reference(20_000, generator), prior.frozen(), plan, generator)
        ends = prior.tilt(z).detach()
        assert float(ends.mean()) == pytest.approx(known, abs=4 * float(ends.std()) / 20_000**0.5)

    def test_longer_chains_end_nearer_as_far_as_their_steps_allow(self) -> None:
        prior = make_ebm(1)
        far, near, nearest, finer = (
            short_run.on_grid(prior.frozen(), langevin.schedule(steps, size), 1, 1.1, reach=9).divergence
            for steps, size in ((1, 0.5), (5, 0.5), (400, 0.5), (1600, 0.25))
        )
        assert far > near > nearest > finer > 0
        assert finer < 1e-3

    def test_the_target_is_the_prior(self) -> None:
        prior = make_ebm(2)
        z, cell = likelihood.grid(2, 1.1, points=61)
        found = short_run.on_grid(prior.frozen(), langevin.schedule(0, 0.5), 2, 1.1, points=61)
        torch.testing.assert_close(found.log_target, likelihood.log_prior(prior, z, cell).detach())

    @pytest.mark.parametrize(
        ("settings", "said"),
        [
            ({"latent_dim": 3}, "1 or 2 dimensions"),
            ({"points": 21}, "more points"),
            ({"plan": langevin.schedule(2, 0.5, 0.0)}, "more points"),
            ({"potential": quadratic(-2.0), "plan": langevin.schedule(30, 0.9)}, "have left a grid"),
        ],
    )
    def test_what_a_grid_cannot_hold(self, settings, said) -> None:
        usual = {"potential": quadratic(1.0), "plan": langevin.schedule(2, 0.5), "latent_dim": 1}
        with pytest.raises(ValueError, match=said):
            short_run.on_grid(**{**usual, **settings})


class TestBound:
    @pytest.mark.parametrize("temperature", [1.0, 0.8])
    def test_the_mean_weight_of_paths_is_the_normaliser(self, generator, temperature) -> None:
        prior, plan = make_ebm(2), langevin.schedule(3, 0.5, temperature)
        known = float(likelihood.log_normaliser(prior, *likelihood.grid(2, 1.1, points=201, reach=8)).detach())
        found = log_mean(weigh(prior.frozen(), 1.1, plan, 40_000, generator, 2))
        assert found.standard_error < 0.05
        assert found.value == pytest.approx(known, abs=4 * found.standard_error)

    @pytest.mark.parametrize("steps", [0, 2, 20])
    @pytest.mark.parametrize("latent_dim", [1, 2])
    def test_it_is_above_the_exact_divergence_of_a_prior(self, latent_dim, steps, generator) -> None:
        prior, plan = make_ebm(latent_dim), langevin.schedule(steps, 0.5)
        exact = short_run.on_grid(prior.frozen(), plan, latent_dim, 1.1, points=101, reach=9).divergence
        log_z = float(likelihood.log_normaliser(prior, *likelihood.grid(latent_dim, 1.1, points=201, reach=9)).detach())
        bound = short_run.kl_bound(log_z, weigh(prior.frozen(), 1.1, plan, 5000, generator, latent_dim))
        assert exact <= bound.value + 3 * bound.standard_error
        if steps == 0:  # a chain of no steps has no path to forget
            assert bound.value == pytest.approx(exact, abs=4 * bound.standard_error)
        else:
            assert bound.value - 3 * bound.standard_error > exact

    def test_and_of_a_posterior(self, make_generator, make_batch, generator) -> None:
        """Of one sentence, with log Z + log p(x) from the grid."""
        prior, plan = make_ebm(1), langevin.schedule(6, 0.4)
        writer, (z, cell) = make_generator(latent_dim=1, init_range=2.0), likelihood.grid(1, 1.1, points=201, reach=9)

        def potential_of(copies: int) -> langevin.Potential:
            return posterior_potential(prior, writer.condition(make_batch([[4, 5, 6]] * copies)))

        exact = short_run.on_grid(potential_of(len(z)), plan, 1, 1.1, reach=9).divergence
        energy, _ = potential_of(len(z))(z)
        log_normaliser = float((-energy).logsumexp(0)) + math.log(cell) - 0.5 * math.log(2 * math.pi * 1.1**2)
        bound = short_run.kl_bound(log_normaliser, weigh(potential_of(4000), 1.1, plan, 4000, generator, 1))
        assert 0 < exact <= bound.value + 3 * bound.standard_error

    def test_of_an_untilted_gaussian_only_the_steps_error_is_left(self, generator) -> None:
        prior = GaussianPrior(PriorConfig(latent_dim=4, sigma=1.2)).double()
        bounds = [
            short_run.kl_bound(0.0, weigh(prior.frozen(), 1.2, langevin.schedule(10, size), 4000, generator, 4)).value
            for size in (0.2, 0.8)
        ]
        assert 0 < bounds[0] < 0.01 < bounds[1]

    def test_errors_add_up(self) -> None:
        bound = short_run.kl_bound(2.0, torch.tensor([0.0, 1.0, 2.0, 5.0]), standard_error=0.3)
        assert bound.value == 0.0
        assert bound.standard_error == pytest.approx(math.hypot(0.3, math.sqrt(14 / 3 / 4)))
