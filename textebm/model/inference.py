"""Inference of z from x, by every method that there is: chains on the posterior p(z|x) ∝ p(z) p(x|z), an encoder, both.

`METHODS` names them. A method says how z is inferred, and what an encoder learns from; the learner does the rest.

Sources. Short-run: Pang et al., NeurIPS 2020, section 2.3: K1 steps from the reference Gaussian, no burn-in, no
persistent chains. Persistent: Han et al., "Alternating back-propagation for generator network", AAAI 2017. Amortised:
Kingma and Welling, ICLR 2014; under an EBM prior, Pang and Wu, ICML 2021. Amortised, then Langevin: Xie et al.,
"Learning energy-based model with variational auto-encoder as amortized sampler", AAAI 2021, where an encoder starts the
chain and learns from its end. Diffusion, then Langevin: Yu et al., "Learning Energy-Based Prior Model with
Diffusion-Amortized MCMC", NeurIPS 2023, where a diffusion model does.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, NamedTuple, Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor

from textebm.config import BoundConfig, InferenceConfig
from textebm.model import bound, graphs, langevin
from textebm.model.encoder import DiagonalGaussian
from textebm.model.energy import GaussianPrior
from textebm.model.generators import Batch, ConditionedLikelihood
from textebm.model.random import Noise
from textebm.model.softmax import Precision

if TYPE_CHECKING:
    from textebm.model.latent_model import LatentModel

Likelihood = ConditionedLikelihood | Callable[[], ConditionedLikelihood]
"""The likelihood that a chain walks on: one for all its steps, or a function that is asked at each step."""


class Inferred(NamedTuple):
    """Posterior samples of a batch.

    z: (batch, latent), differentiable in the encoder's parameters where it comes from the encoder alone.
    start: (batch, latent), where the chains began; z itself where there is no chain.
    q: what the encoder says, where there is one.
    """

    z: Float[Tensor, "batch latent"]
    start: Float[Tensor, "batch latent"]
    q: DiagonalGaussian | None = None


@runtime_checkable
class Chains(Protocol):
    """The persistent chains of the sentences of one batch, kept by someone else."""

    def read(self) -> Float[Tensor, "batch latent"]:
        """Where they stand."""
        ...

    def write(self, z: Float[Tensor, "batch latent"]) -> None:
        """Where they stand from now on."""
        ...


@dataclass(frozen=True)
class Request:
    """What is asked of an inference method."""

    x: Batch
    """The sentences, or images."""
    likelihood: Likelihood
    """log p(x|z) of them (see `posterior_potential`)."""
    config: InferenceConfig
    """The chain's length, step sizes, temperatures."""
    noise: Noise
    """Source of the samples' randomness."""
    start: Tensor | None = None
    """(batch, latent), where persistent chains stand (None: they begin in the reference Gaussian)."""
    dropout: torch.Generator | None = None
    """Source of an encoder's dropout masks; None means no dropout."""
    precision: Precision = "fp32"
    """Of an encoder's matrix products."""


class InferenceMethod(ABC):
    """One way to infer z from sentences or images."""

    has_encoder: ClassVar[bool] = False
    """Whether the model has an encoder."""
    has_sampler: ClassVar[bool] = False
    """Whether the model has a learned sampler of the points that chains start from."""
    has_chain: ClassVar[bool] = True
    """Whether z is the end of a Langevin chain."""
    is_persistent: ClassVar[bool] = False
    """Whether training keeps a chain for each sentence."""

    @abstractmethod
    def infer(self, model: "LatentModel", request: Request) -> Inferred:
        """One posterior sample a sentence."""

    def encoder_loss(
        self, inferred: Inferred, prior: GaussianPrior, config: BoundConfig, weight: float
    ) -> Float[Tensor, ""]:
        """What the encoder descends besides −log p(x|z): a mean over sentences, in nats; 0 without an encoder.

        Args:
            inferred: by `infer`.
            prior: the prior.
            config: free bits.
            weight: of the KL term, now.
        """
        return inferred.z.new_zeros(())


class ShortRun(InferenceMethod):
    """A short chain from the reference Gaussian."""

    def infer(self, model: "LatentModel", request: Request) -> Inferred:
        """The end of the chain."""
        start = request.start
        if start is None:
            start = model.prior.sample_reference(request.x.batch_size, request.noise)
        return Inferred(_end_of_chain(model.inference_prior, start, request), start)


class Persistent(ShortRun):
    """A chain a training sentence, which goes on where it stood; a new sentence has a short-run chain."""

    is_persistent = True


class Amortised(InferenceMethod):
    """A sample of the encoder's q(z|x), which maximises the bound together with the generator."""

    has_encoder = True
    has_chain = False

    def infer(self, model: "LatentModel", request: Request) -> Inferred:
        """A sample of q(z|x)."""
        q = model.encode(request.x, request.dropout, request.precision)
        z = q.sample(request.noise)
        return Inferred(z, z, q)

    def encoder_loss(
        self, inferred: Inferred, prior: GaussianPrior, config: BoundConfig, weight: float
    ) -> Float[Tensor, ""]:
        """The weighted KL term of the bound."""
        assert inferred.q is not None
        return weight * bound.kl_with_free_bits(inferred.q, inferred.z, prior, config)


class AmortisedLangevin(InferenceMethod):
    """A chain from a sample of q(z|x); the encoder learns to say where chains end, by maximum likelihood."""

    has_encoder = True

    def infer(self, model: "LatentModel", request: Request) -> Inferred:
        """The end of a chain from a sample of q(z|x)."""
        q = model.encode(request.x, request.dropout, request.precision)
        start = q.sample(request.noise).detach()
        return Inferred(_end_of_chain(model.inference_prior, start, request), start, q)

    def encoder_loss(
        self, inferred: Inferred, prior: GaussianPrior, config: BoundConfig, weight: float
    ) -> Float[Tensor, ""]:
        """−log q(z|x) of where the chains ended."""
        assert inferred.q is not None
        return -inferred.q.log_prob(inferred.z).mean()


class DiffusionLangevin(InferenceMethod):
    """A chain from where the learned sampler says, which learns from where chains end (see `textebm.model.sampler`).

    What draws is an average of its weights, and is asked without dropout.
    """

    has_sampler = True

    def infer(self, model: "LatentModel", request: Request) -> Inferred:
        """The end of a chain from a draw for x."""
        assert model.sampler is not None
        with torch.no_grad():
            features = model.sampler.features(request.x, precision=request.precision)
        reference = model.prior.sample_reference(len(features), request.noise)
        start = model.sampler.draw(reference, request.noise, features)
        return Inferred(_end_of_chain(model.inference_prior, start, request), start)


class NoLatent(InferenceMethod):
    """There is no z: a plain language model."""

    has_chain = False

    def infer(self, model: "LatentModel", request: Request) -> Inferred:
        """Empty vectors."""
        z = model.prior.sample_reference(request.x.batch_size, request.noise)  # (batch, 0)
        return Inferred(z, z)


METHODS: dict[str, InferenceMethod] = {
    "short-run": ShortRun(),
    "amortised": Amortised(),
    "amortised-langevin": AmortisedLangevin(),
    "diffusion-langevin": DiffusionLangevin(),
    "persistent": Persistent(),
    "none": NoLatent(),
}


def _end_of_chain(prior: GaussianPrior, start: Tensor, request: Request) -> Float[Tensor, "batch latent"]:
    return posterior_chain(prior, request.likelihood, start, request.config, request.noise)


def posterior_potential(prior: GaussianPrior, likelihood: Likelihood) -> langevin.Potential:
    """U(z) = −f(z) + ‖z‖²/2σ² − log p(x|z) as a `langevin.Potential`.

    Args:
        prior: gives the first two terms.
        likelihood: the conditioned likelihood; or what gives that of a step, with fresh dropout masks, say.
    """
    of_prior = prior.frozen()

    def of_step() -> ConditionedLikelihood:
        return likelihood if isinstance(likelihood, ConditionedLikelihood) else likelihood()

    # Plain types: each call would make classes of others, which live until the garbage is collected.
    def potential(z: Tensor) -> tuple[Tensor, Tensor]:
        energy, gradient = of_prior(z)
        log_prob, slope = of_step().log_prob_and_grad(z)
        return energy - log_prob, gradient - slope

    return potential


def posterior_chain(
    prior: GaussianPrior,
    likelihood: Likelihood,
    start: Float[Tensor, "batch latent"],
    config: InferenceConfig,
    noise: Noise,
    observe: Callable[[int, langevin.State, langevin.Info], None] | None = None,
) -> Float[Tensor, "batch latent"]:
    """Where K1 steps on the posterior lead from given points.

    Args:
        prior: the prior.
        likelihood: the conditioned likelihood, or what gives that of each step (see `posterior_potential`).
        start: starting points, one chain each.
        config: length, step sizes, temperatures.
        noise: source of the noise.
        observe: called after each step (see `langevin.run`).
    """
    plan = langevin.schedule(config.steps, config.step_size, config.temperature)
    potential = posterior_potential(prior, likelihood)
    precondition = langevin.RootMeanSquare() if config.preconditioner == "rms" else None
    fixed = isinstance(likelihood, ConditionedLikelihood) and likelihood.recordable
    if fixed and observe is None and precondition is None and graphs.possible(start):
        return graphs.run_by_steps(start, potential, plan, noise)
    return langevin.run(start, potential, plan, noise, observe, precondition)


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
    return posterior_chain(prior, likelihood, start, config, generator, observe), start
