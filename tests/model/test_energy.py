"""Energies of several outputs and of normalised weights; their gradients are in tests/model/test_gradients.py."""

import copy

import pytest
import torch

from textebm.config import PriorConfig
from textebm.model.energy import EBMPrior

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
