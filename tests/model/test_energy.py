"""Energies of several outputs and of normalised weights; their gradients are in tests/model/test_gradients.py."""

import copy

import pytest
import torch

from textebm.config import PriorConfig
from textebm.errors import ConfigError
from textebm.model.energy import EBMPrior, RatioPrior

NORMED = PriorConfig(latent_dim=3, width=8, spectral_norm=True)


def made(config: PriorConfig, scale: float = 3.0) -> EBMPrior:
    torch.manual_seed(3)
    prior = EBMPrior(config).double()
    with torch.no_grad():
        for parameter in prior.parameters():
            parameter.mul_(scale)
    return prior


def norms(prior: EBMPrior) -> torch.Tensor:
    """Largest singular values of the weights that chains see."""
    return torch.stack([torch.linalg.matrix_norm(weight, 2) for weight, _ in prior._layers()])


def points(n: int = 40) -> torch.Tensor:
    return torch.randn(n, 3, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


class TestSeveralOutputs:
    def test_k_equal_outputs_are_one_and_a_constant(self):
        one, three = made(PriorConfig(latent_dim=3, width=8)), made(PriorConfig(latent_dim=3, width=8, outputs=3))
        with torch.no_grad():
            for ours, theirs in zip(three.mlp, one.mlp, strict=True):
                if isinstance(ours, torch.nn.Linear):
                    ours.weight.copy_(theirs.weight.expand_as(ours.weight))
                    ours.bias.copy_(theirs.bias.expand_as(ours.bias))
        z = points()
        torch.testing.assert_close(three.tilt(z), one.tilt(z) + torch.log(torch.tensor(3.0, dtype=torch.float64)))
        torch.testing.assert_close(three.potential(z)[1], one.potential(z)[1])

    def test_it_lies_between_the_largest_output_and_that_plus_log_k(self):
        prior, z = made(PriorConfig(latent_dim=3, width=8, outputs=5)), points()
        largest = prior.mlp(z).amax(1)
        above = prior.tilt(z) - largest
        assert (above >= 0).all()
        assert (above <= torch.log(torch.tensor(5.0))).all()

    def test_one_output_is_what_it_was(self):
        prior, z = made(PriorConfig(latent_dim=3, width=8)), points()
        assert torch.equal(prior.tilt(z), prior.mlp(z)[:, 0])


class TestSpectralNorm:
    def test_after_enough_iterations_every_norm_is_1(self):
        prior = made(NORMED, scale=1.0)
        with torch.no_grad():
            for parameter in prior.parameters():  # another direction, so that the estimates of the start are wrong
                parameter.add_(torch.randn_like(parameter))
        assert (norms(prior) - 1).abs().max() > 0.01
        for _ in range(300):
            prior.refine_norms()
        torch.testing.assert_close(norms(prior), torch.ones(3, dtype=torch.float64), rtol=1e-6, atol=0)

    def test_a_factor_on_the_weights_changes_nothing(self):
        z, steep, flat = points(), made(NORMED, scale=1.0), made(NORMED, scale=1.0)
        with torch.no_grad():
            for name, parameter in steep.named_parameters():
                if "original" in name:
                    parameter.mul_(7)
        torch.testing.assert_close(steep.tilt(z), flat.tilt(z))

    @pytest.mark.parametrize("activation", ["tanh", "lrelu"])
    def test_f_changes_by_no_more_than_z(self, activation):
        """Activations with slopes up to 1 and matrices of norm 1: f is 1-Lipschitz."""
        prior = made(PriorConfig(latent_dim=3, width=8, spectral_norm=True, activation=activation, outputs=2), 5.0)
        for _ in range(300):
            prior.refine_norms()
        z = 3 * points(200)
        slope = z - prior.potential(z)[1]
        assert slope.norm(dim=1).max() <= 1 + 1e-6
        assert slope.norm(dim=1).max() > 0.05

    def test_nothing_but_refinement_moves_the_estimates(self):
        prior, z = made(NORMED), points()
        before = copy.deepcopy(prior.state_dict())
        for mode in (True, False):
            prior.train(mode)
            prior.tilt(z).sum().backward()
            prior.potential(z)
            prior.sample(5, torch.Generator().manual_seed(1))
        assert all(torch.equal(tensor, before[name]) for name, tensor in prior.state_dict().items())
        prior.refine_norms()
        moved = {name for name, tensor in prior.state_dict().items() if not torch.equal(tensor, before[name])}
        assert moved
        assert all(name.endswith(("_u", "_v")) for name in moved)

    def test_without_it_refinement_does_nothing(self):
        prior = made(PriorConfig(latent_dim=3, width=8))
        before = copy.deepcopy(prior.state_dict())
        prior.refine_norms()
        assert all(torch.equal(tensor, before[name]) for name, tensor in prior.state_dict().items())


class TestRatios:
    CONFIG = PriorConfig(kind="ratio", latent_dim=3, width=8, sigma=0.8, stages=3, stage_steps=10)

    def steep(self) -> RatioPrior:
        torch.manual_seed(3)
        prior = RatioPrior(self.CONFIG).double()
        with torch.no_grad():
            for parameter in prior.parameters():
                parameter.add_(torch.randn_like(parameter))
        return prior

    @pytest.mark.parametrize("stage", [None, 0, 1, 2])
    def test_potential_against_autograd_in_every_stage(self, stage):
        prior, z = self.steep(), points().requires_grad_()
        with prior.before(stage):
            value, gradient = prior.potential(z.detach())
            joint = prior.tilt(z) + prior.log_reference(z)
            torch.testing.assert_close(gradient, -torch.autograd.grad(joint.sum(), z)[0], rtol=0, atol=1e-10)
            constant = (value + joint).detach()
            torch.testing.assert_close(constant, constant[:1].expand(len(constant)))

    def test_it_begins_as_the_gaussian(self):
        prior = RatioPrior(self.CONFIG)
        assert torch.equal(prior.tilt(points().float()), torch.zeros(40))
        torch.testing.assert_close(prior.potential(points().float())[1], points().float() / 0.8**2)

    def test_before_the_first_stage_it_is_sampled_exactly(self):
        prior = self.steep()
        with prior.before(0):
            sample = prior.sample(9, torch.Generator().manual_seed(1))
        assert torch.equal(sample, prior.sample_reference(9, torch.Generator().manual_seed(1)))
        assert not torch.equal(sample, prior.sample(9, torch.Generator().manual_seed(1)))

    def test_stages_follow_one_another_and_the_last_stays(self):
        prior = RatioPrior(self.CONFIG)
        assert [prior.stage(step) for step in (0, 9, 10, 19, 20, 1000)] == [0, 0, 1, 1, 2, 2]

    def test_a_stages_objective_reaches_its_own_ratio_alone(self):
        prior = self.steep()
        loss, f_positive, f_negative = prior.objective(points(), points() + 1, 1)
        loss.backward()
        reached = [all(p.grad is not None for p in part.parameters()) for part in prior.parts()]
        assert reached == [False, True, False]
        torch.testing.assert_close(
            f_positive - f_negative, prior.tilt(points()).mean() - prior.tilt(points() + 1).mean()
        )
        logits = [prior.ratios[1].tilt(z) for z in (points(), points() + 1)]
        expected = -torch.sigmoid(logits[0]).log().mean() - (1 - torch.sigmoid(logits[1])).log().mean()
        torch.testing.assert_close(loss, expected)

    def test_its_optimum_is_the_ratio_of_two_gaussians_and_the_next_stage_has_nothing_to_tell(self):
        """N(w, I) against N(0, I): the log ratio is wᵀz − ‖w‖²/2; chains on it then draw what the posterior draws."""
        config = PriorConfig(kind="ratio", latent_dim=2, depth=0, stages=2, steps=60, step_size=0.4)
        prior = RatioPrior(config).double()
        target = torch.tensor([1.0, -0.5], dtype=torch.float64)
        source = torch.Generator().manual_seed(2)
        n = 20_000
        positive = target + torch.randn(n, 2, generator=source, dtype=torch.float64)
        for stage in (0, 1):
            with prior.before(stage):
                negative = prior.sample(n, source)
            optimiser = torch.optim.LBFGS(prior.parts()[stage].parameters(), max_iter=50)

            def closure(stage=stage, negative=negative, optimiser=optimiser):
                optimiser.zero_grad()
                loss = prior.objective(positive, negative, stage)[0]
                loss.backward()
                return loss

            optimiser.step(closure)
        first, second = (ratio.mlp[-1] for ratio in prior.ratios)
        torch.testing.assert_close(first.weight[0], target, rtol=0, atol=0.05)
        torch.testing.assert_close(first.bias[0], -0.5 * target.square().sum(), rtol=0, atol=0.05)
        assert second.weight.norm() < 0.06

    @pytest.mark.parametrize("wrong", [{"outputs": 2}, {"spectral_norm": True}, {"stages": 0}, {"stage_steps": 0}])
    def test_what_it_cannot_be_combined_with(self, wrong):
        with pytest.raises(ConfigError, match="prior"):
            PriorConfig(kind="ratio", **wrong)
