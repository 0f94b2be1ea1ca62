"""Inference of z from x: short-run Langevin on the posterior p(z|x) ∝ p(z) p(x|z).

Source: Pang et al., NeurIPS 2020, section 2.3: K1 steps from the reference Gaussian, no burn-in, no persistent chains.
"""

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor

from textebm.config import InferenceConfig
from textebm.model import graphs, langevin
from textebm.model.energy import GaussianPrior
from textebm.model.generators import ConditionedLikelihood

Likelihood = ConditionedLikelihood | Callable[[], ConditionedLikelihood]
"""The likelihood that a chain walks on: one for all its steps, or a function that is asked at each step."""


def posterior_potential(prior: GaussianPrior, likelihood: Likelihood) -> langevin.Potential:
    """U(z) = −f(z) + ‖z‖²/2σ² − log p(x|z) as a `langevin.Potential`.

    Args:
        prior: gives the first two terms.
        likelihood: the conditioned likelihood; or what gives that of a step, with fresh dropout masks, say.
    """
    of_prior = prior.frozen()

    def of_step() -> ConditionedLikelihood:
        return likelihood if isinstance(likelihood, ConditionedLikelihood) else likelihood()

    def potential(z: Float[Tensor, "batch latent"]) -> tuple[Float[Tensor, " batch"], Float[Tensor, "batch latent"]]:
        energy, gradient = of_prior(z)
        log_prob, slope = of_step().log_prob_and_grad(z)
        return energy - log_prob, gradient - slope

    return potential


def short_run_posterior(
    prior: GaussianPrior,
    likelihood: Likelihood,
    batch_size: int,
    config: InferenceConfig,
    generator: torch.Generator,
    observe: Callable[[int, langevin.State, langevin.Info], None] | None = None,
) -> tuple[Float[Tensor, "{batch_size} latent"], Float[Tensor, "{batch_size} latent"]]:
    """Posterior samples by a short chain from the reference Gaussian.

    Args:
        prior: the prior.
        likelihood: the conditioned likelihood, or what gives that of each step (see `posterior_potential`).
        batch_size: number of sentences, one chain each.
        config: length, step sizes, temperatures, preconditioner.
        generator: source of the starting points and of the noise.
        observe: called after each step (see `langevin.run`).

    Returns:
        The end points and the starting points, each (batch, latent). Where there is no z, no step is made.
    """
    start = prior.sample_reference(batch_size, generator)
    if config.kind == "none":
        return start, start
    plan = langevin.schedule(config.steps, config.step_size, config.temperature)
    potential = posterior_potential(prior, likelihood)
    precondition = langevin.RootMeanSquare() if config.preconditioner == "rms" else None
    fixed = isinstance(likelihood, ConditionedLikelihood) and likelihood.recordable
    if fixed and observe is None and precondition is None and graphs.possible(start):
        return graphs.run_by_steps(start, potential, plan, generator), start
    return langevin.run(start, potential, plan, generator, observe, precondition), start
