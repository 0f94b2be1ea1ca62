"""Laws of the Langevin chain, against closed forms for its step convention z ← z − ½s²∇U + sTε."""

import math

import numpy as np
import pytest
import torch
from scipy import stats
from torch import Tensor

from textebm.model import langevin

CURVATURES = torch.tensor([0.5, 1.0, 2.0, 4.0], dtype=torch.float64)  # λ, one for each dimension of z
CHAINS = 20_000


def quadratic(z: Tensor) -> tuple[Tensor, Tensor]:
    """U(z) = ½ Σ λᵢ zᵢ²."""
    gradient = z * CURVATURES
    return 0.5 * (z * gradient).sum(1), gradient


def variance_after(plan: langevin.Schedule, start: float) -> Tensor:
    """The exact recursion v ← (1 − λs²/2)² v + s²T², one v a curvature."""
    variance = torch.full_like(CURVATURES, start)
    for size, temperature in zip(plan.step_sizes, plan.temperatures, strict=True):
        variance = (1 - CURVATURES * size**2 / 2) ** 2 * variance + (size * temperature) ** 2
    return variance


def stationary_variance(size: float, temperature: float) -> Tensor:
    return temperature**2 / (CURVATURES * (1 - CURVATURES * size**2 / 4))


def assert_variance(z: Tensor, expected: Tensor) -> None:
    """A variance about the known mean 0, of Gaussian samples, has a standard error of v √(2/n): five are allowed."""
    assert ((z.square().mean(0) / expected - 1).abs() < 5 * math.sqrt(2 / len(z))).all()


@pytest.mark.parametrize("temperature", [0.3, 1.0, 1.7])
@pytest.mark.parametrize("size", [0.1, 0.4, 0.9])  # λs² reaches 3.24 of the 4 at which the chain breaks
@pytest.mark.parametrize("steps", [1, 7, 40])
def test_variance_after_k_steps(size, temperature, steps, generator):
    start_variance = 2.5
    start = math.sqrt(start_variance) * torch.randn(CHAINS, 4, generator=generator, dtype=torch.float64)
    z = langevin.run(start, quadratic, langevin.schedule(steps, size, temperature), generator)
    limit = stationary_variance(size, temperature)
    closed_form = limit + (start_variance - limit) * (1 - CURVATURES * size**2 / 2) ** (2 * steps)
    assert_variance(z, closed_form)


@pytest.mark.parametrize(("size", "temperature"), [(0.4, 1.0), (0.9, 1.0), (0.9, 0.2), (0.6, 1.7)])
def test_stationary_variance(size, temperature, generator):
    slowest = 1 - CURVATURES[0] * size**2 / 2
    steps = math.ceil(math.log(1e-4) / (2 * math.log(slowest)))  # then 1e-4 is left of the start, far below the error
    z = langevin.run(
        torch.zeros(CHAINS, 4, dtype=torch.float64), quadratic, langevin.schedule(steps, size, temperature), generator
    )
    assert_variance(z, stationary_variance(size, temperature))


def test_variance_under_schedules_of_size_and_temperature(generator):
    plan = langevin.schedule(12, (0.8, 0.7, 0.5, 0.2, 0.1), (0.1, 0.5, 1.0))
    start = torch.randn(CHAINS, 4, generator=generator, dtype=torch.float64)
    assert_variance(langevin.run(start, quadratic, plan, generator), variance_after(plan, 1.0))


@pytest.mark.parametrize("size", [0.3, 0.9])
def test_mean_decays_geometrically(size, generator):
    steps, plan = 6, langevin.schedule(6, size, 1.0)
    z = langevin.run(torch.full((CHAINS, 4), 3.0, dtype=torch.float64), quadratic, plan, generator)
    expected = 3.0 * (1 - CURVATURES * size**2 / 2) ** steps
    error = (variance_after(plan, 0.0) / CHAINS).sqrt()
    assert ((z.mean(0) - expected).abs() < 5 * error).all()


def test_beyond_the_limit_of_stability_the_chain_breaks(generator):
    size = 1.1  # λs² = 4.84 for λ = 4, and below 4 for the others
    z = langevin.run(torch.ones(100, 4, dtype=torch.float64), quadratic, langevin.schedule(60, size), generator)
    assert z[:, 3].abs().min() > 100
    assert z[:, :3].abs().max() < 20


def test_temperature_zero_is_gradient_descent_and_draws_nothing(generator):
    before = generator.get_state()
    plan = langevin.schedule(5, (0.5, 0.3), 0.0)
    z = start = torch.randn(9, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    end = langevin.run(start, quadratic, plan, generator)
    for size in plan.step_sizes:
        z = z - (0.5 * size**2) * quadratic(z)[1]
    torch.testing.assert_close(end, z, rtol=1e-14, atol=0)
    assert torch.equal(generator.get_state(), before)


def quartic(z: Tensor) -> tuple[Tensor, Tensor]:
    """U(z) = ¼ Σ zᵢ⁴ + ½ z₀, whose density is neither Gaussian nor symmetric."""
    return 0.25 * z.pow(4).sum(1) + 0.5 * z.sum(1), z.pow(3) + 0.5


def test_small_steps_sample_the_density():
    """Kolmogorov–Smirnov against the integrated density; the same chain at T = 0.8 must be caught."""
    x = np.linspace(-6, 6, 20_001)
    mass = np.exp(-(x**4) / 4 - x / 2)
    distribution = np.cumsum(mass) / mass.sum()

    def p_value(temperature: float) -> float:
        start = torch.zeros(10_000, 1, dtype=torch.float64)
        source = torch.Generator().manual_seed(5)
        z = langevin.run(start, quartic, langevin.schedule(400, 0.12, temperature), source)
        return float(stats.kstest(z[:, 0].numpy(), lambda v: np.interp(v, x, distribution)).pvalue)

    assert p_value(1.0) > 0.01
    assert p_value(0.8) < 1e-9


def test_gaussian_stationary_samples_pass_kolmogorov_smirnov(generator):
    z = langevin.run(
        torch.zeros(10_000, 4, dtype=torch.float64), quadratic, langevin.schedule(500, 0.2), generator
    )  # the smallest curvature has forgotten its start by exp(−5)
    for column, sigma in enumerate(stationary_variance(0.2, 1.0).sqrt().tolist()):
        assert stats.kstest(z[:, column].numpy(), "norm", args=(0, sigma)).pvalue > 0.001


@pytest.mark.parametrize(
    ("given", "expected"),
    [(0.4, (0.4,) * 4), ((0.8, 0.5), (0.8, 0.5, 0.5, 0.5)), ((4.0, 3.0, 2.0, 1.0, 0.5), (4.0, 3.0, 2.0, 1.0))],
)
def test_schedule_repeats_the_last_value_and_cuts_the_rest(given, expected):
    assert langevin.schedule(4, given).step_sizes == expected
    assert langevin.schedule(4, 0.1, given).temperatures == expected
    assert langevin.schedule(4, given).temperatures == (1.0,) * 4
    assert langevin.schedule(4, given).steps == 4


def test_a_chain_of_no_steps_stays(generator):
    start = torch.randn(3, 4, dtype=torch.float64)
    assert torch.equal(langevin.run(start, quadratic, langevin.schedule(0, 0.4), generator), start)


def test_observer_sees_every_step_and_changes_nothing(generator):
    start = torch.ones(2, 4, dtype=torch.float64)
    plan = langevin.schedule(5, 0.4)
    seen: list[tuple[int, langevin.State, langevin.Info]] = []
    end = langevin.run(start, quadratic, plan, generator, lambda *step: seen.append(step))
    assert [number for number, _, _ in seen] == [0, 1, 2, 3, 4]
    assert torch.equal(seen[-1][1].z, end)
    before = [start, *[state.z for _, state, _ in seen[:-1]]]  # Info is what the step saw before it moved
    for z, (_, _, info) in zip(before, seen, strict=True):
        assert torch.equal(info.potential, quadratic(z)[0])
        assert torch.equal(info.gradient, quadratic(z)[1])
    generator.manual_seed(20260101)
    assert torch.equal(langevin.run(start, quadratic, plan, generator), end)


def test_the_seed_decides_the_chain():
    def chain(seed: int) -> Tensor:
        source = torch.Generator().manual_seed(seed)
        return langevin.run(torch.zeros(3, 4, dtype=torch.float64), quadratic, langevin.schedule(5, 0.4), source)

    assert torch.equal(chain(1), chain(1))
    assert not torch.equal(chain(1), chain(2))


def test_rows_do_not_touch_each_other():
    plan, start = langevin.schedule(10, 0.4), torch.zeros(6, 4, dtype=torch.float64)
    moved = start.clone()
    moved[1::2] += 5
    one, other = (langevin.run(s, quadratic, plan, torch.Generator().manual_seed(8)) for s in (start, moved))
    assert torch.equal(one[::2], other[::2])
    assert (one[1::2] != other[1::2]).all()


def test_rows_get_noise_of_their_own(generator):
    pairs = langevin.run(torch.zeros(CHAINS, 4, dtype=torch.float64), quadratic, langevin.schedule(3, 0.5), generator)
    neighbours = torch.corrcoef(torch.cat([pairs[::2], pairs[1::2]], dim=1).T)
    between = neighbours[:4, 4:]  # correlation of a row with the next; its standard error is 1/√pairs
    assert between.abs().max() < 5 / math.sqrt(CHAINS / 2)


def test_the_chain_leaves_no_graph_and_keeps_the_start(generator):
    start = torch.ones(2, 4, dtype=torch.float64, requires_grad=True)
    end = langevin.run(start, quadratic, langevin.schedule(2, 0.4), generator)
    assert not end.requires_grad
    assert torch.equal(start, torch.ones(2, 4, dtype=torch.float64))


def test_a_constant_preconditioner_has_the_stationary_law_of_the_scaled_curvature(generator):
    """z ← (1 − λMs²/2) z + s√M ε has variance 1/(λ (1 − λMs²/4)): M = 1/λ makes every direction alike, up to λ."""
    size = 0.8
    z = torch.zeros(CHAINS, 4, dtype=torch.float64)
    plan = langevin.schedule(60, size)
    end = langevin.run(z, quadratic, plan, generator, precondition=lambda gradient: 1 / CURVATURES)
    assert_variance(end, 1 / (CURVATURES * (1 - size**2 / 4)))
    uneven = torch.tensor([2.0, 1.0, 0.5, 0.25], dtype=torch.float64)
    end = langevin.run(z, quadratic, langevin.schedule(80, 0.7, 1.3), generator, precondition=lambda g: uneven)
    assert_variance(end, 1.3**2 / (CURVATURES * (1 - CURVATURES * uneven * 0.7**2 / 4)))


def test_the_identity_as_preconditioner_changes_no_bit():
    start = torch.randn(50, 4, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    plan = langevin.schedule(5, 0.4, (1.0, 0.0))
    ends = [
        langevin.run(start, quadratic, plan, torch.Generator().manual_seed(2), precondition=precondition)
        for precondition in (None, lambda gradient: torch.ones(4, dtype=torch.float64))
    ]
    assert torch.equal(*ends)


def test_root_mean_square_by_hand(generator):
    precondition = langevin.RootMeanSquare(decay=0.75, floor=0.1)
    gradients = torch.randn(3, 6, 4, generator=generator, dtype=torch.float64)
    squares = gradients.square().mean(1)
    running = squares[0]
    torch.testing.assert_close(precondition(gradients[0]), 1 / (0.1 + running.sqrt()))
    for gradient, square in zip(gradients[1:], squares[1:], strict=True):
        running = 0.75 * running + 0.25 * square
        torch.testing.assert_close(precondition(gradient), 1 / (0.1 + running.sqrt()))


def test_root_mean_square_brings_directions_of_any_curvature_to_their_law(generator):
    """Curvatures 0.5 to 400: a plain step as large breaks the chain; scaled ones reach every 1/λ, but for λMs²/4."""
    curvatures = torch.tensor([0.5, 4.0, 40.0, 400.0], dtype=torch.float64)

    def steep(z: Tensor) -> tuple[Tensor, Tensor]:
        return 0.5 * (z * z * curvatures).sum(1), z * curvatures

    start = torch.randn(CHAINS, 4, generator=generator, dtype=torch.float64)
    size = 0.2
    plan = langevin.schedule(400, size)
    end = langevin.run(start, steep, plan, generator, precondition=langevin.RootMeanSquare())
    scaled = curvatures.sqrt()  # λM, since the root mean square of λz is √λ at the law
    ratios = end.square().mean(0) * curvatures * (1 - scaled * size**2 / 4)
    assert ((ratios - 1).abs() < 0.05).all()
    assert langevin.run(start, steep, langevin.schedule(50, size), generator).abs().max() > 100


def test_with_a_source_a_row_a_chain_depends_on_no_other():
    def sources(*seeds: int) -> list[torch.Generator]:
        return [torch.Generator().manual_seed(seed) for seed in seeds]

    def potential(z: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return 0.5 * z.square().sum(1), z

    start, plan = torch.tensor([[1.0, 0.0], [0.0, 2.0], [3.0, 3.0]]), langevin.schedule(5, 0.4)
    together = langevin.run(start, potential, plan, sources(1, 2, 3))
    alone = langevin.run(start[[2]], potential, plan, sources(3))
    assert torch.equal(together[[2]], alone)
    assert not torch.equal(together[0] - 0.92**5 * start[0], together[1] - 0.92**5 * start[1])


def test_chains_that_run_away_are_known_one_by_one_and_put_back():
    """λs² = 100 in the first dimension alone: a chain explodes where it does not start at its fixed point, 0."""
    start = torch.tensor([[0.0, 1.0], [1.0, 0.0], [0.0, math.nan], [0.0, 0.0]], dtype=torch.float64)

    def steep(z: Tensor) -> tuple[Tensor, Tensor]:
        curvature = torch.tensor([100.0, 0.1], dtype=torch.float64)
        return 0.5 * (z.square() * curvature).sum(1), z * curvature

    end = langevin.run(start, steep, langevin.schedule(10, 1.0, 0.0), torch.Generator())
    assert langevin.exploded(end).tolist() == [False, True, True, False]
    contained = langevin.put_back(end, start)
    assert torch.equal(contained[[0, 3]], end[[0, 3]])
    assert torch.equal(contained[1], start[1])
    assert langevin.exploded(torch.full((1, 4), langevin.LARGEST_NORM)).all()  # of the norm, not of the coordinates
    assert not langevin.exploded(torch.zeros(2, 0)).any()  # a plain language model has no z to run away
