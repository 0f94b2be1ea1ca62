"""The diffusion model's laws: exact marginals, exact posteriors, exact denoisers that sample what they should."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from textebm.model import diffusion

LOWEST, HIGHEST = -5.1, 9.8  # as published
RATIOS = st.floats(-8, 8)


def column(value: float, n: int = 1) -> Tensor:
    return torch.full((n,), value, dtype=torch.float64)


class Mixture:
    """A mixture of Gaussians in one dimension, and its exact denoiser."""

    def __init__(self, weights: list[float], means: list[float], deviations: list[float]) -> None:
        self.weights, self.means = torch.tensor(weights).double(), torch.tensor(means).double()
        self.variances = torch.tensor(deviations).double().square()

    def cumulative(self, z: Tensor) -> Tensor:
        """The distribution function at z, (points,)."""
        each = 0.5 * (1 + torch.erf((z[:, None] - self.means) / (2 * self.variances).sqrt()))
        return each @ self.weights

    def denoiser(self, noisy: Tensor, ratio: Tensor) -> Tensor:
        """E[ε | z_λ]: in each component z_λ is Gaussian, and so is ε given it."""
        alpha, sigma = diffusion.signal(ratio), diffusion.deviation(ratio)
        variances = alpha.square() * self.variances + sigma.square()  # (batch, components)
        apart = noisy - alpha * self.means
        belief = (self.weights.log() - 0.5 * (variances.log() + apart.square() / variances)).softmax(1)
        return (belief * sigma * apart / variances).sum(1, keepdim=True)


class TestSchedule:
    @given(RATIOS)
    def test_signal_and_noise_keep_unit_variance_and_have_the_ratio(self, value: float) -> None:
        alpha, sigma = diffusion.signal(column(value)), diffusion.deviation(column(value))
        torch.testing.assert_close(alpha.square() + sigma.square(), torch.ones(1, 1).double())
        torch.testing.assert_close((alpha / sigma).square().log()[:, 0], column(value))

    def test_its_ends_and_its_direction(self) -> None:
        ends = diffusion.log_snr(torch.tensor([0.0, 1.0]).double(), LOWEST, HIGHEST)
        torch.testing.assert_close(ends, torch.tensor([HIGHEST, LOWEST]).double())
        ratios = diffusion.ladder(100, LOWEST, HIGHEST)
        assert len(ratios) == 100
        assert ratios == tuple(sorted(ratios))
        assert (ratios[0], ratios[-1]) == pytest.approx((LOWEST, HIGHEST))

    def test_it_is_the_cosine_schedule(self) -> None:
        """Between ends far apart, α = cos(πt/2) and σ = sin(πt/2)."""
        time = torch.linspace(0.05, 0.95, 19).double()
        ratio = diffusion.log_snr(time, -40, 40)
        torch.testing.assert_close(diffusion.signal(ratio)[:, 0], (math.pi / 2 * time).cos(), rtol=1e-7, atol=1e-7)
        torch.testing.assert_close(diffusion.deviation(ratio)[:, 0], (math.pi / 2 * time).sin(), rtol=1e-7, atol=1e-7)


class TestForward:
    def test_marginals_in_closed_form(self, generator) -> None:
        """z ~ N(m, v) becomes N(α m, α² v + σ²)."""
        n, mean, spread = 200_000, 1.5, 0.4
        for value in (-3.0, 0.0, 2.0):
            ratio = column(value, n)
            clean, noise = torch.randn(2, n, 1, generator=generator).double()
            noisy = diffusion.noised(mean + spread * clean, noise, ratio)
            square = 1 / (1 + math.exp(-value))
            variance = square * spread**2 + 1 - square
            assert float(noisy.mean()) == pytest.approx(math.sqrt(square) * mean, abs=5 * math.sqrt(variance / n))
            assert float(noisy.var()) == pytest.approx(variance, rel=5 * math.sqrt(2 / n))

    @given(RATIOS)
    def test_a_point_is_made_out_of_its_noise(self, value: float) -> None:
        source = torch.Generator().manual_seed(1)
        z, noise = torch.randn(2, 5, 3, generator=source, dtype=torch.float64)
        ratio = column(value, 5)
        torch.testing.assert_close(diffusion.made_out(diffusion.noised(z, noise, ratio), noise, ratio), z)


class TestLessNoisy:
    @given(RATIOS, st.floats(0.01, 4))
    def test_the_small_one_is_bayes_rule(self, value: float, gap: float) -> None:
        """z_μ given z_λ and z, from the joint Gaussian of z_μ and z_λ given z."""
        ratio, target, noisy, clean = column(value), column(value + gap), column(0.7)[:, None], column(-0.4)[:, None]
        step = diffusion.signal(ratio) / diffusion.signal(target)
        prior_mean, prior_variance = diffusion.signal(target) * clean, diffusion.deviation(target).square()
        added = diffusion.deviation(ratio).square() - step.square() * prior_variance
        gain = prior_variance * step / (step.square() * prior_variance + added)
        found = diffusion.less_noisy(noisy, clean, ratio, target, "small")
        torch.testing.assert_close(found.mean, prior_mean + gain * (noisy - step * prior_mean), rtol=1e-6, atol=1e-8)
        torch.testing.assert_close(found.deviation.square(), (1 - gain * step) * prior_variance, rtol=1e-5, atol=1e-10)

    @given(RATIOS, st.floats(0.01, 4))
    def test_the_large_one_keeps_the_standard_gaussian(self, value: float, gap: float) -> None:
        """For z ~ N(0, 1), E[z | z_λ] = α z_λ, and z_μ must come out as N(0, 1) again, whatever the step."""
        ratio, target = column(value), column(value + gap)
        noisy = column(1.0)[:, None]
        found = diffusion.less_noisy(noisy, diffusion.signal(ratio) * noisy, ratio, target, "large")
        torch.testing.assert_close(found.mean.square() + found.deviation.square(), torch.ones(1, 1).double())


class TestLoss:
    def test_the_exact_denoiser_has_the_least(self, generator) -> None:
        """Of N(m, v) the least loss is that of ε given z_λ, ½ α² v/(α² v + σ²); any departure adds half its square."""
        n, value = 100_000, 0.5
        gaussian, ratio = Mixture([1.0], [1.2], [0.6]), column(value, n)
        z, noise = torch.randn(2, n, 1, generator=generator).double()
        z = 1.2 + 0.6 * z
        share = 0.36 / (1 + math.exp(-value))
        least = 0.5 * share / (share + 1 / (1 + math.exp(value)))
        losses = diffusion.denoising_loss(gaussian.denoiser, z, noise, ratio)
        error = float(losses.std()) / math.sqrt(n)
        assert float(losses.mean()) == pytest.approx(least, abs=5 * error)
        other = diffusion.denoising_loss(lambda at, r: gaussian.denoiser(at, r) + 0.3, z, noise, ratio)
        assert float((other - losses).mean()) == pytest.approx(0.5 * 0.3**2, abs=5 * 0.3 / math.sqrt(n))

    def test_its_gradient_is_that_of_finite_differences(self, generator) -> None:
        z, noise = torch.randn(2, 6, 3, generator=generator).double()
        ratio = torch.linspace(-4, 4, 6).double()
        weight = torch.randn(3, 3, generator=generator).double().requires_grad_()

        def loss(matrix: Tensor) -> Tensor:
            return diffusion.denoising_loss(lambda at, _: torch.tanh(at @ matrix), z, noise, ratio).sum()

        assert torch.autograd.gradcheck(loss, (weight,))

    def test_it_is_a_sum_over_dimensions_and_one_for_each_point(self, generator) -> None:
        z, noise = torch.randn(2, 4, 3, generator=generator).double()
        losses = diffusion.denoising_loss(lambda at, _: at * 0, z, noise, column(0.3, 4))
        torch.testing.assert_close(losses, 0.5 * noise.square().sum(1))


class TestSampling:
    @pytest.mark.parametrize("variance", ["large", "small"])
    def test_the_exact_denoiser_of_a_mixture_samples_it(self, variance, generator) -> None:
        """By the Kolmogorov-Smirnov distance, whose 99.99 % quantile is 2.23/√n; 0.01 is left to the finite steps."""
        mixture, n = Mixture([0.3, 0.7], [-1.5, 1.0], [0.3, 0.5]), 8000
        start = torch.randn(n, 1, generator=generator).double()
        ratios = diffusion.ladder(200, LOWEST, HIGHEST)
        z = diffusion.sample(mixture.denoiser, start, ratios, generator, variance)[:, 0].sort().values
        empirical = (torch.arange(n) + 0.5) / n
        distance = float((mixture.cumulative(z) - empirical).abs().max())
        assert distance < 2.23 / math.sqrt(n) + 0.01
        # and the same test knows other mixtures from it
        assert float((Mixture([0.4, 0.6], [-1.5, 1.0], [0.3, 0.5]).cumulative(z) - empirical).abs().max()) > 0.05
        assert float((Mixture([0.3, 0.7], [-1.5, 1.0], [0.3, 0.8]).cumulative(z) - empirical).abs().max()) > 0.05

    def test_the_standard_gaussian_stays_itself_however_few_the_steps(self, generator) -> None:
        """With large variances every step is exact; at the last λ the mean given the point is left, α z_λ."""
        n = 100_000
        start = torch.randn(n, 1, generator=generator).double()
        z = diffusion.sample(lambda at, r: diffusion.deviation(r) * at, start, (-2.0, 0.0, 1.0), generator)
        expected = 1 / (1 + math.exp(-1.0))
        assert float(z.mean()) == pytest.approx(0, abs=5 / math.sqrt(n))
        assert float(z.var()) == pytest.approx(expected, rel=5 * math.sqrt(2 / n))

    def test_the_denoiser_is_asked_once_at_each_step_and_the_seed_decides(self) -> None:
        asked: list[float] = []

        def denoiser(z: Tensor, ratio: Tensor) -> Tensor:
            asked.append(float(ratio[0]))
            return z * 0.5

        ratios = diffusion.ladder(7, LOWEST, HIGHEST)
        start = torch.ones(2, 3).double()
        one, same, other = (
            diffusion.sample(denoiser, start, ratios, torch.Generator().manual_seed(seed)) for seed in (1, 1, 2)
        )
        assert asked == pytest.approx(list(ratios) * 3)
        assert torch.equal(one, same)
        assert not torch.equal(one, other)
        assert torch.equal(start, torch.ones(2, 3).double())
