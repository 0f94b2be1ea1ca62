"""Metropolis-adjusted steps leave their target as it is, and propose what they say."""

import math

import pytest
import torch
from torch import Tensor

from textebm.model import langevin, metropolis
from textebm.model.metropolis import Bridge

SIGMA = 1.3


def double_well(z: Tensor) -> tuple[Tensor, Tensor]:
    """U(z) = (z² − 1)²/2 + 0.3 z in each dimension: two wells of unequal depth."""
    potential = (0.5 * (z.square() - 1).square() + 0.3 * z).sum(1)
    return potential, 2 * z * (z.square() - 1) + 0.3


BRIDGE = Bridge(double_well, SIGMA**-2)


def density(share: float, points: int = 4001) -> tuple[Tensor, Tensor]:
    """A grid in one dimension and the normalised density of the path on it."""
    z = torch.linspace(-7, 7, points, dtype=torch.float64)[:, None]
    potential, _ = BRIDGE.at(BRIDGE.look(z), share)
    weights = (-potential).exp()
    return z[:, 0], weights / (weights.sum() * (z[1, 0] - z[0, 0]))


def exact_samples(share: float, count: int, source: torch.Generator) -> Tensor:
    z, p = density(share)
    cumulative = p.cumsum(0) * (z[1] - z[0])
    uniform = torch.rand(count, generator=source, dtype=torch.float64)
    low = torch.searchsorted(cumulative, uniform).clamp(1, len(z) - 1)
    rest = (uniform - cumulative[low - 1]) / (cumulative[low] - cumulative[low - 1])
    return (z[low - 1] + rest * (z[low] - z[low - 1]))[:, None]


def distance(samples: Tensor, share: float) -> float:
    """Kolmogorov's and Smirnov's, times √n: above 1.95 once in a thousand times where the samples are from it."""
    z, p = density(share)
    cumulative = p.cumsum(0) * (z[1] - z[0])
    ordered = samples[:, 0].sort().values
    known = cumulative[torch.searchsorted(z, ordered).clamp(max=len(z) - 1)]
    steps = torch.arange(len(ordered) + 1, dtype=torch.float64) / len(ordered)
    return max(float((steps[1:] - known).max()), float((known - steps[:-1]).max())) * math.sqrt(len(ordered))


def walk(share: float, size, leapfrogs: int, steps: int, generator: torch.Generator, always: bool = False):
    point = BRIDGE.look(exact_samples(share, 20_000, generator))
    accepted = []
    for _ in range(steps):
        momentum, uniform = metropolis.noise(point.z, generator)
        uniform = torch.full_like(uniform, -1) if always else uniform
        point, acceptance = metropolis.step(BRIDGE, point, share, size, leapfrogs, momentum, uniform)
        accepted.append(acceptance.mean().item())
    return point.z, sum(accepted) / steps


@pytest.mark.parametrize("leapfrogs", [1, 4])
@pytest.mark.parametrize("share", [0.0, 0.3, 1.0])
def test_exact_samples_of_each_density_of_the_path_stay_exact(share, leapfrogs, generator):
    z, acceptance = walk(share, 0.9 if leapfrogs == 1 else 0.6, leapfrogs, 25, generator)
    assert distance(z, share) < 1.95
    assert acceptance < 0.99  # so that there was something to adjust


def test_that_test_finds_steps_that_are_not_adjusted(generator):
    z, _ = walk(1.0, 0.9, 1, 25, generator, always=True)
    assert not distance(z, 1.0) < 1.95


def test_one_leapfrog_proposes_the_langevin_step(generator):
    z = torch.randn(6, 3, generator=generator, dtype=torch.float64)
    momentum = torch.randn(6, 3, generator=generator, dtype=torch.float64)
    point, _ = metropolis.step(BRIDGE, BRIDGE.look(z), 1.0, 0.4, 1, momentum, torch.full((6,), -1.0))
    _, gradient = double_well(z)
    torch.testing.assert_close(point.z, z - 0.5 * 0.4**2 * gradient + 0.4 * momentum)
    plan = langevin.schedule(1, 0.4)
    first = langevin.run(z, double_well, plan, torch.Generator().manual_seed(5))
    noise = torch.randn(z.shape, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    again, _ = metropolis.step(BRIDGE, BRIDGE.look(z), 1.0, 0.4, 1, noise, torch.full((6,), -1.0))
    torch.testing.assert_close(again.z, first)


def test_its_acceptance_is_that_of_metropolis_and_hastings(generator):
    """min(1, p(z′) q(z|z′) / p(z) q(z′|z)), with q the Gaussian around the Langevin step's mean."""
    size, share = 0.7, 0.6
    z = torch.randn(50, 2, generator=generator, dtype=torch.float64)
    momentum = torch.randn(50, 2, generator=generator, dtype=torch.float64)
    point = BRIDGE.look(z)
    new, acceptance = metropolis.step(BRIDGE, point, share, size, 1, momentum, torch.full((50,), -1.0))

    def log_q(there: Tensor, here) -> Tensor:
        _, gradient = BRIDGE.at(here, share)
        return -(there - here.z + 0.5 * size**2 * gradient).square().sum(1) / (2 * size**2)

    ratio = BRIDGE.at(point, share)[0] - BRIDGE.at(new, share)[0] + log_q(z, new) - log_q(new.z, point)
    torch.testing.assert_close(acceptance, ratio.clamp(max=0).exp())
    assert acceptance.min() < 0.9


@pytest.mark.parametrize("leapfrogs", [1, 7])
def test_a_trajectory_is_reversible(leapfrogs, generator):
    """From its end, with the momentum turned round, it leads back: the last momentum is the negative of the first."""
    z = torch.randn(9, 2, generator=generator, dtype=torch.float64)
    momentum = torch.randn(9, 2, generator=generator, dtype=torch.float64)
    always = torch.full((9,), -1.0)
    end, _ = metropolis.step(BRIDGE, BRIDGE.look(z), 0.5, 0.2, leapfrogs, momentum, always)
    last = momentum.clone()
    place = z
    for _ in range(leapfrogs):  # the momentum at the end, by the textbook's half steps
        last = last - 0.1 * BRIDGE.at(BRIDGE.look(place), 0.5)[1]
        place = place + 0.2 * last
        last = last - 0.1 * BRIDGE.at(BRIDGE.look(place), 0.5)[1]
    torch.testing.assert_close(place, end.z)
    back, _ = metropolis.step(BRIDGE, end, 0.5, 0.2, leapfrogs, -last, always)
    torch.testing.assert_close(back.z, z)


def test_each_chain_may_have_its_own_step_size(generator):
    z = torch.randn(4, 2, generator=generator, dtype=torch.float64)
    momentum, uniform = metropolis.noise(z, generator)
    sizes = torch.tensor([0.1, 0.2, 0.3, 0.4], dtype=torch.float64)
    together, _ = metropolis.step(BRIDGE, BRIDGE.look(z), 1.0, sizes, 3, momentum, uniform)
    for row, size in enumerate(sizes.tolist()):
        only = slice(row, row + 1)
        alone, _ = metropolis.step(BRIDGE, BRIDGE.look(z[only]), 1.0, size, 3, momentum[only], uniform[only])
        torch.testing.assert_close(together.z[only], alone.z)


def test_what_leaves_the_finite_numbers_is_never_accepted():
    def wall(z: Tensor) -> tuple[Tensor, Tensor]:
        beyond = z[:, 0] > 1
        return torch.where(beyond, torch.nan, z[:, 0]), torch.ones_like(z)

    bridge = Bridge(wall, 1.0)
    z, momentum = torch.zeros(2, 1), torch.tensor([[50.0], [-0.1]])
    point, acceptance = metropolis.step(bridge, bridge.look(z), 1.0, 0.5, 2, momentum, torch.tensor([0.0, 0.0]))
    assert point.z[0] == 0
    assert point.potential[0] == 0
    assert acceptance[0] == 0
    assert point.z[1] != 0


def test_the_ends_of_the_path_and_the_tilt(generator):
    z = torch.randn(5, 2, generator=generator, dtype=torch.float64)
    point = BRIDGE.look(z)
    for share, (potential, gradient) in (
        (0.0, (z.square().sum(1) / (2 * SIGMA**2), z / SIGMA**2)),
        (1.0, double_well(z)),
    ):
        found = BRIDGE.at(point, share)
        torch.testing.assert_close(found[0], potential)
        torch.testing.assert_close(found[1], gradient)
    torch.testing.assert_close(BRIDGE.tilt(point), z.square().sum(1) / (2 * SIGMA**2) - double_well(z)[0])


def test_noise_of_a_sentence_does_not_depend_on_its_neighbours():
    def sources(*seeds: int) -> list[torch.Generator]:
        return [torch.Generator().manual_seed(seed) for seed in seeds]

    three, two = torch.zeros(6, 4), torch.zeros(4, 4)
    momentum, uniform = metropolis.noise_by_sentence(three, sources(1, 2, 3))
    fewer, marks = metropolis.noise_by_sentence(two, sources(2, 3))
    assert torch.equal(momentum[2:], fewer)
    assert torch.equal(uniform[2:], marks)
    assert len(momentum.unique()) == momentum.numel()
