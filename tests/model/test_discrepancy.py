"""Maximum mean discrepancy: by hand, 0 in expectation, and a test that finds what differs and nothing else."""

import pytest
import torch

from textebm.model.discrepancy import mmd


def draw(n: int, seed: int, shift: float = 0.0, latent_dim: int = 3) -> torch.Tensor:
    return torch.randn(n, latent_dim, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) + shift


def by_hand(first: torch.Tensor, second: torch.Tensor) -> float:
    """Equation 3 of Gretton et al., pair by pair."""
    pooled = torch.cat([first, second])
    distances = sorted(float((a - b).norm()) for i, a in enumerate(pooled) for b in pooled[:i])
    width = distances[(len(distances) - 1) // 2]

    def kernel(a, b) -> float:
        return float(torch.exp(-(a - b).square().sum() / (2 * width**2)))

    def within(some) -> float:
        pairs = [kernel(a, b) for i, a in enumerate(some) for j, b in enumerate(some) if i != j]
        return sum(pairs) / len(pairs)

    across = [kernel(a, b) for a in first for b in second]
    return within(first) + within(second) - 2 * sum(across) / len(across)


def test_by_hand(generator) -> None:
    first, second = draw(7, 0), draw(5, 1, shift=0.8)
    assert mmd(first, second, generator, 3).squared == pytest.approx(by_hand(first, second))


def test_it_is_0_in_expectation_where_both_are_alike(generator) -> None:
    found = torch.tensor([mmd(draw(20, 2 * s), draw(25, 2 * s + 1), generator, 1).squared for s in range(300)])
    assert abs(float(found.mean())) < 4 * float(found.std()) / 300**0.5
    assert float((found < 0).float().mean()) > 0.3  # unbiased: it is negative often


def test_p_values_of_equal_distributions_are_uniform(generator) -> None:
    values = torch.tensor([mmd(draw(15, 2 * s), draw(15, 2 * s + 1), generator, 99).p_value for s in range(200)])
    for level in (0.1, 0.5, 0.9):
        assert float((values <= level).float().mean()) == pytest.approx(
            level, abs=4 * (level * (1 - level) / 200) ** 0.5
        )


def test_what_differs_is_found(generator) -> None:
    found = mmd(draw(40, 0), draw(40, 1, shift=2.0), generator, 199)
    assert found.p_value == 1 / 200
    assert found.squared > 0.1
    wider = mmd(draw(60, 0), 2.5 * draw(60, 1), generator, 199)  # the same mean
    assert wider.p_value < 0.05


def test_a_unit_changes_the_width_alone(generator) -> None:
    first, second = draw(10, 0), draw(12, 1, shift=0.5)
    one, other = mmd(first, second, generator, 3), mmd(10 * first, 10 * second, generator, 3)
    assert other.squared == pytest.approx(one.squared)
    assert other.bandwidth == pytest.approx(10 * one.bandwidth)


def test_points_that_are_all_one_do_not_differ(generator) -> None:
    found = mmd(torch.ones(5, 2), torch.ones(4, 2), generator, 9)
    assert (found.squared, found.p_value) == (0.0, 1.0)


def test_one_sample_is_not_enough(generator) -> None:
    with pytest.raises(ValueError, match="two samples of each set, and there are 1 and 4"):
        mmd(torch.zeros(1, 2), torch.zeros(4, 2), generator)
