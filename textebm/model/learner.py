"""One learning step: both chains, both gradients. The only place that changes parameters.

    α: ascend  mean f(z⁺) − mean f(z⁻)      z⁺ from the posterior chain, z⁻ from the prior chain
    β: ascend  mean log p(x|z⁺)

Of a plain language model z is empty and no chain is run: what remains is maximum likelihood.

Source: Pang et al., NeurIPS 2020, algorithm 1.
"""

import dataclasses
import math
from dataclasses import dataclass

import torch
from torch import Tensor

from textebm.config import Config, InferenceConfig, OptimiserConfig
from textebm.errors import CheckpointError
from textebm.model import inference
from textebm.model.averaging import WeightAverage
from textebm.model.candidates import Candidates
from textebm.model.latent_ebm import LatentEBM
from textebm.model.optimisers import adam, clip
from textebm.model.persistent import PersistentChains
from textebm.model.random import stream
from textebm.model.recurrent import ConditionedText, TextBatch


@dataclass(frozen=True)
class StepReport:
    """What a learning step saw: 0-dimensional tensors on the device; to read one is to wait for the device."""

    log_prob: Tensor
    """Mean log p(x|z⁺) a sentence, with dropout, in nats."""
    posterior_energy: Tensor
    """Mean −f(z⁺)."""
    prior_energy: Tensor
    """Mean −f(z⁻)."""
    posterior_norm: Tensor
    """Mean ‖z⁺‖."""
    prior_norm: Tensor
    """Mean ‖z⁻‖."""
    posterior_displacement: Tensor
    """Mean distance of z⁺ from where its chain began."""
    gradient_norm: Tensor
    """Norm of the generator's gradient before clipping."""
    energy_gradient_norm: Tensor
    """Norm of the EBM's gradient before clipping."""


def learning_rate_factor(config: OptimiserConfig, step: int, steps_per_epoch: int, epochs: int) -> float:
    """What both learning rates are multiplied by at a step (counted from 0)."""
    warm = min(1.0, (step + 1) / config.warmup_steps) if config.warmup_steps else 1.0
    if config.schedule == "exponential":
        return warm * config.decay ** (step // steps_per_epoch)
    done = min(1.0, step / (steps_per_epoch * epochs))
    if config.schedule == "linear":
        return warm * (1 - done)
    if config.schedule == "cosine":
        return warm * 0.5 * (1 + math.cos(math.pi * done))
    return warm


def annealed(config: InferenceConfig, step: int) -> InferenceConfig:
    """The posterior chain's settings at a learning step: noise temperatures times the annealing factor."""
    if step >= config.annealing_steps:
        return config
    factor = config.annealing_start + (1 - config.annealing_start) * step / config.annealing_steps
    known = config.temperature if isinstance(config.temperature, tuple) else (config.temperature,)
    return dataclasses.replace(config, temperature=tuple(factor * t for t in known))


class Learner:
    """Owns the optimisers of one model and makes learning steps."""

    def __init__(self, model: LatentEBM, config: Config, steps_per_epoch: int) -> None:
        """Adam for the generator and, where the prior has parameters, for the EBM.

        Args:
            model: what is trained, already on its device.
            config: the run's configuration.
            steps_per_epoch: learning steps an epoch, for the learning-rate schedule.
        """
        self.model = model
        self.config = config
        self.steps_per_epoch = steps_per_epoch
        settings = config.optimiser
        self.generator_optimiser = adam(settings.kind, model.generator.parameters(), settings.lr, settings.betas)
        self.energy_optimisers = [
            adam(settings.kind, part.parameters(), settings.energy_lr, settings.betas, settings.energy_weight_decay)
            for part in model.prior.parts()
        ]
        self.average = WeightAverage(model, settings.ema) if settings.ema else None
        kept = config.prior.persistent if self.energy_optimisers else 0
        begin = stream(config.seed, "persistent", device=model.device)
        self.chains = PersistentChains(model.prior, kept, config.prior.restart, begin) if kept else None

    @property
    def result(self) -> LatentEBM:
        """The model that is validated and saved: the one that is trained, or the average of its weights."""
        return self.model if self.average is None else self.average.model

    def state(self) -> dict[str, Tensor]:
        """What goes on from step to step beside `result` and the optimisers: kept chains, weights before averaging."""
        weights = {} if self.average is None else self.model.state_dict()
        chains = {} if self.chains is None else {"chains": self.chains.z}
        return {**{f"weights.{name}": tensor for name, tensor in weights.items()}, **chains}

    def restore(self, state: dict[str, Tensor]) -> None:
        """Go on from what `state` told, with a model that holds the weights of `result`.

        Raises:
            CheckpointError: it is the state of another learner.
        """
        own = self.state()
        if {name: tensor.shape for name, tensor in state.items()} != {name: t.shape for name, t in own.items()}:
            raise CheckpointError("the saved chains or weights before averaging are not those of this model")
        for name, tensor in own.items():
            tensor.copy_(state[name])

    def optimisers(self) -> dict[str, torch.optim.Optimizer]:
        """The optimisers by the name of the part that each one owns."""
        names = ["energy", *(f"energy-{number}" for number in range(2, 1 + len(self.energy_optimisers)))]
        return {"generator": self.generator_optimiser, **dict(zip(names, self.energy_optimisers, strict=False))}

    def step(self, x: TextBatch, number: int) -> StepReport:
        """One learning step.

        Args:
            x: a batch on the model's device.
            number: the step's number in the run, from 0; every random stream is keyed by it.
        """
        self._set_learning_rates(number)
        stage = self.model.prior.stage(number)
        with self.model.prior.before(stage):
            last, start, positive = self._infer(x, number)
            negative = self._negatives(len(positive), number)
        log_prob, gradient_norm = self._update_generator(last, positive)
        energies = self._update_energy(positive, negative, stage)
        if self.average is not None:
            self.average.update(self.model, number + 1)
        return StepReport(
            log_prob=log_prob,
            posterior_energy=energies[0],
            prior_energy=energies[1],
            posterior_norm=positive.norm(dim=1).mean(),
            prior_norm=negative.norm(dim=1).mean(),
            posterior_displacement=(positive - start).norm(dim=1).mean(),
            gradient_norm=gradient_norm,
            energy_gradient_norm=energies[2],
        )

    def _set_learning_rates(self, number: int) -> None:
        settings = self.config.optimiser
        factor = learning_rate_factor(settings, number, self.steps_per_epoch, self.config.epochs)
        for name, optimiser in self.optimisers().items():
            for group in optimiser.param_groups:
                group["lr"] = (settings.lr if name == "generator" else settings.energy_lr) * factor

    def _infer(self, x: TextBatch, number: int) -> tuple[ConditionedText, Tensor, Tensor]:
        """Posterior samples; also the likelihood that the generator learns from, and where the chains began."""
        device, config = self.model.device, self.config
        masks = stream(config.seed, "dropout", number, device=device)
        conditioned = self.model.condition(x, masks, config.precision, config.computation, self._candidates(number))

        fresh = config.inference.dropout_mask == "step"

        def of_step() -> ConditionedText:
            return conditioned.with_fresh_masks(masks)

        noise = stream(config.seed, "posterior", number, device=device)
        settings = annealed(config.inference, number)
        z, start = inference.short_run_posterior(
            self.model.prior, of_step if fresh else conditioned, len(x.lengths), settings, noise
        )
        return of_step() if fresh else conditioned, start, z

    def _negatives(self, n: int, number: int) -> Tensor:
        """Prior samples: n of them, unless fewer chains are kept."""
        seed, device = self.config.seed, self.model.device
        noise = stream(seed, "prior", number, device=device)
        if self.chains is None:
            return self.model.sample_prior(n, noise)
        return self.chains.advance(n, stream(seed, "persistent", number, device=device), noise)

    def _candidates(self, number: int) -> Candidates | None:
        """What draws the words of the chain's sampled softmax, where it is sampled."""
        sampled, device = self.config.inference.sampled_softmax, self.model.device
        return Candidates(sampled, stream(self.config.seed, "candidates", number, device=device)) if sampled else None

    def _update_generator(self, likelihood: ConditionedText, z: Tensor) -> tuple[Tensor, Tensor]:
        log_prob = likelihood.log_prob(z).mean()
        self.generator_optimiser.zero_grad(set_to_none=True)
        (-log_prob).backward()  # type: ignore[no-untyped-call]
        norm = clip(list(self.model.generator.parameters()), self.config.optimiser.clip)
        self.generator_optimiser.step()
        return log_prob.detach(), norm

    def _update_energy(self, positive: Tensor, negative: Tensor, stage: int | None) -> tuple[Tensor, Tensor, Tensor]:
        if not self.energy_optimisers:
            zero = positive.new_zeros(())
            return zero, zero, zero
        prior, optimiser = self.model.prior, self.energy_optimisers[stage or 0]
        loss, f_positive, f_negative = prior.objective(positive, negative, stage)
        optimiser.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        norm = clip(list(prior.parts()[stage or 0].parameters()), self.config.optimiser.energy_clip)
        optimiser.step()
        prior.refine_norms()
        return -f_positive.detach(), -f_negative.detach(), norm
