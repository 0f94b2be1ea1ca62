"""Inference of z from x: short-run Langevin on the posterior p(z|x) ∝ p(z) p(x|z).

Source: Pang et al., NeurIPS 2020, section 2.3: K1 steps from the reference Gaussian, no burn-in, no persistent chains.
"""

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor

from textebm.config import InferenceConfig
from textebm.model import langevin
from textebm.model.energy import GaussianPrior
from textebm.model.generators import ConditionedLikelihood


def posterior_potential(prior: GaussianPrior, likelihood: Callable[[], ConditionedLikelihood]) -> langevin.Potential:
    """U(z) = −f(z) + ‖z‖²/2σ² − log p(x|z) as a `langevin.Potential`.

    Args:
        prior: gives the first two terms.
        likelihood: gives the conditioned likelihood of a step; it may return the same one each time, or one with a
            fresh dropout mask.
    """

    def potential(z: Float[Tensor, "batch latent"]) -> tuple[Float[Tensor, " batch"], Float[Tensor, "batch latent"]]:
        energy, gradient = prior.potential(z)
        log_prob, slope = likelihood().log_prob_and_grad(z)
        return energy - log_prob, gradient - slope

    return potential


def short_run_posterior(
    prior: GaussianPrior,
    likelihood: Callable[[], ConditionedLikelihood],
    batch_size: int,
    config: InferenceConfig,
    generator: torch.Generator,
    observe: Callable[[int, langevin.State, langevin.Info], None] | None = None,
) -> tuple[Float[Tensor, "{batch_size} latent"], Float[Tensor, "{batch_size} latent"]]:
    """Posterior samples by a short chain from the reference Gaussian.

    Args:
        prior: the prior.
        likelihood: gives the conditioned likelihood of each step (see `posterior_potential`).
        batch_size: number of sentences, one chain each.
        config: length, step sizes, temperatures.
        generator: source of the starting points and of the noise.
        observe: called after each step (see `langevin.run`).

    Returns:
        The end points and the starting points, each (batch, latent).
    """
    start = prior.sample_reference(batch_size, generator)
    plan = langevin.schedule(config.steps, config.step_size, config.temperature)
    return langevin.run(start, posterior_potential(prior, likelihood), plan, generator, observe), start
