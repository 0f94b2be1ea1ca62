"""One learning step: posterior and prior samples, and the gradients. The only place that changes parameters.

    α: ascend  mean f(z⁺) − mean f(z⁻)      z⁺ inferred from x, z⁻ from the prior chain
    β: ascend  mean log p(x|z⁺)
    φ: ascend  mean log p(x|z⁺) − w KL(q ‖ p), through z⁺ (amortised); or mean log q(z⁺|x) (amortised, then Langevin)

Of a plain language model z is empty and no chain is run: what remains is maximum likelihood.

Source: Pang et al., NeurIPS 2020, algorithm 1; for the encoder's φ see `textebm.model.inference`.
"""

import dataclasses
import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from textebm.config import Config, InferenceConfig, OptimiserConfig
from textebm.errors import CheckpointError, UsageError
from textebm.hardware import native_precision, precision_on
from textebm.model.averaging import WeightAverage
from textebm.model.bound import kl_divergence, kl_weight
from textebm.model.candidates import Candidates
from textebm.model.generators import Batch, ConditionedLikelihood
from textebm.model.inference import Chains, Inferred, Request
from textebm.model.latent_ebm import LatentEBM
from textebm.model.optimisers import adam, clip
from textebm.model.persistent import PersistentChains
from textebm.model.random import stream


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


@dataclass(frozen=True)
class EncoderReport(StepReport):
    """What a learning step saw where there is an encoder."""

    kl: Tensor
    """Mean KL(q(z|x) ‖ p(z)) a sentence in nats, up to log Z of an EBM prior."""
    kl_weight: Tensor
    """Weight of the KL term of the bound; 0 where the encoder learns from the ends of chains."""
    encoder_loss: Tensor
    """What the encoder descends besides −log p(x|z): the weighted KL term with its free bits, or −log q(z⁺|x)."""
    encoder_gradient_norm: Tensor
    """Norm of the encoder's gradient before clipping."""


def learning_rate_factor(config: OptimiserConfig, step: int, steps_per_epoch: int, epochs: int) -> float:
    """What all learning rates are multiplied by at a step (counted from 0)."""
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
        """Adam for the generator and, where there are such parts, for the EBM and the encoder.

        Args:
            model: what is trained, already on its device.
            config: the run's configuration.
            steps_per_epoch: learning steps an epoch, for the learning-rate schedule.

        Raises:
            UsageError: the device cannot compute in the plain way in 16 bits.
        """
        self.model = model
        self.config = config
        self.steps_per_epoch = steps_per_epoch
        self.precision = precision_on(config.precision, model.device)
        narrow = self.precision == "bf16" and native_precision(model.device) != "bf16"
        if config.computation == "plain" and narrow and not model.generator.plain_has_bf16:
            raise UsageError(
                f"--computation plain --precision bf16: torch's LSTM and GRU have no bf16 on this {model.device.type}; "
                "take --precision fp32, or --computation fast"
            )
        settings = config.optimiser
        self.generator_optimiser = self._adam(model.generator)
        self.energy_optimisers = [
            adam(settings.kind, part.parameters(), settings.energy_lr, settings.betas, settings.energy_weight_decay)
            for part in model.prior.parts()
        ]
        self.encoder_optimiser = None if model.encoder is None else self._adam(model.encoder)
        self.average = WeightAverage(model, settings.ema) if settings.ema else None
        kept = config.prior.persistent if self.energy_optimisers else 0
        begin = stream(config.seed, "persistent", device=model.device)
        self.chains = PersistentChains(model.prior, kept, config.prior.restart, begin) if kept else None

    def _adam(self, part: nn.Module) -> torch.optim.Optimizer:
        settings = self.config.optimiser
        return adam(settings.kind, part.parameters(), settings.lr, settings.betas)

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
        found = {"generator": self.generator_optimiser, **dict(zip(names, self.energy_optimisers, strict=False))}
        return found if self.encoder_optimiser is None else {**found, "encoder": self.encoder_optimiser}

    def step(self, x: Batch, number: int, chains: Chains | None = None, update_encoder: bool = True) -> StepReport:
        """One learning step.

        Args:
            x: a batch on the model's device.
            number: the step's number in the run, from 0; every random stream is keyed by it.
            chains: the persistent chains of its sentences, which move on.
            update_encoder: whether the encoder learns too; `encoder_step` may have taught it before.

        Raises:
            ValueError: inference is persistent, and there are no chains.
        """
        self._set_learning_rates(number)
        stage = self.model.prior.stage(number)
        with self.model.prior.before(stage):
            last, inferred = self._infer(x, number, chains=chains)
            positive = inferred.z.detach()
            negative = self._negatives(len(positive), number)
        log_prob, gradient_norm, of_encoder = self._update_generator(last, inferred, number, update_encoder)
        energies = self._update_energy(positive, negative, stage)
        if self.average is not None:
            self.average.update(self.model, number + 1)
        seen = {
            "log_prob": log_prob,
            "posterior_energy": energies[0],
            "prior_energy": energies[1],
            "posterior_norm": positive.norm(dim=1).mean(),
            "prior_norm": negative.norm(dim=1).mean(),
            "posterior_displacement": (positive - inferred.start.detach()).norm(dim=1).mean(),
            "gradient_norm": gradient_norm,
            "energy_gradient_norm": energies[2],
        }
        return EncoderReport(**seen, **of_encoder) if of_encoder else StepReport(**seen)

    def encoder_step(self, x: Batch, number: int, update: int) -> Tensor:
        """One update of the encoder alone, before learning step `number` (He et al., ICLR 2019).

        Args:
            x: a batch on the model's device.
            number: of the learning step.
            update: the update's number within it, from 1; random streams are keyed by both.

        Returns:
            What the encoder descends, summed over the sentences, in nats; it stays on the device.
        """
        assert self.model.encoder is not None
        assert self.encoder_optimiser is not None
        self._set_learning_rates(number)
        likelihood, inferred = self._infer(x, number, update)
        loss = self._encoder_loss(inferred, number) - likelihood.log_prob(inferred.z).mean()
        self.encoder_optimiser.zero_grad(set_to_none=True)
        loss.backward(inputs=list(self.model.encoder.parameters()))  # type: ignore[no-untyped-call]
        self._step_encoder()
        return loss.detach() * x.batch_size

    def reset_generator(self, number: int) -> None:
        """Give the generator new weights before learning step `number`, and it and the encoder new optimisers.

        The end of a pre-training as an autoencoder (Li et al., EMNLP 2019): the encoder stays.
        """
        source = stream(self.config.seed, "initialisation", number, device=self.model.device)
        self.model.generator.reset(source)
        self.generator_optimiser = self._adam(self.model.generator)
        self.encoder_optimiser = None if self.model.encoder is None else self._adam(self.model.encoder)

    def _set_learning_rates(self, number: int) -> None:
        settings = self.config.optimiser
        factor = learning_rate_factor(settings, number, self.steps_per_epoch, self.config.epochs)
        encoder_lr = settings.lr if settings.encoder_lr is None else settings.encoder_lr
        rates = {"generator": settings.lr, "encoder": encoder_lr}
        for name, optimiser in self.optimisers().items():
            for group in optimiser.param_groups:
                group["lr"] = rates.get(name, settings.energy_lr) * factor

    def _infer(self, x: Batch, *key: int, chains: Chains | None = None) -> tuple[ConditionedLikelihood, Inferred]:
        """Posterior samples, and the likelihood that the generator learns from.

        Args:
            x: the batch.
            key: of the random streams; the step's number comes first.
            chains: the persistent chains of its sentences.
        """
        device, config, method = self.model.device, self.config, self.model.method
        if method.is_persistent and chains is None:
            raise ValueError("inference is persistent: a learning step needs the chains of its sentences")
        masks = stream(config.seed, "dropout", *key, device=device)
        candidates = self._candidates(*key) if method.has_chain else None
        conditioned = self.model.condition(x, masks, self.precision, config.computation, candidates)

        fresh = config.inference.dropout_mask == "step"

        def of_step() -> ConditionedLikelihood:
            return conditioned.with_fresh_masks(masks)

        start = chains.read() if method.is_persistent and chains is not None else None
        inferred = self.model.posterior(
            Request(
                x,
                of_step if fresh else conditioned,
                annealed(config.inference, key[0]),
                stream(config.seed, "posterior", *key, device=device),
                start,
                masks,
                self.precision,
            )
        )
        if start is not None and chains is not None:
            chains.write(inferred.z)
        return of_step() if fresh else conditioned, inferred

    def _negatives(self, n: int, number: int) -> Tensor:
        """Prior samples: n of them, unless fewer chains are kept."""
        seed, device = self.config.seed, self.model.device
        noise = stream(seed, "prior", number, device=device)
        if self.chains is None:
            return self.model.sample_prior(n, noise)
        return self.chains.advance(n, stream(seed, "persistent", number, device=device), noise)

    def _candidates(self, *key: int) -> Candidates | None:
        """What draws the words of the chain's sampled softmax, where it is sampled."""
        sampled, device = self.config.inference.sampled_softmax, self.model.device
        return Candidates(sampled, stream(self.config.seed, "candidates", *key, device=device)) if sampled else None

    def _update_generator(
        self, likelihood: ConditionedLikelihood, inferred: Inferred, number: int, update_encoder: bool
    ) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        """Update the generator, and the encoder with it; returns what a report says of both."""
        log_prob = likelihood.log_prob(inferred.z).mean()
        loss, of_encoder = -log_prob, self._encoder_loss(inferred, number)
        if self.encoder_optimiser is not None:
            loss = loss + of_encoder
            self.encoder_optimiser.zero_grad(set_to_none=True)
        self.generator_optimiser.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        self._scale_generator_gradient()
        norm = clip(list(self.model.generator.parameters()), self.config.optimiser.clip)
        self.generator_optimiser.step()
        if inferred.q is None:
            return log_prob.detach(), norm, {}
        with torch.no_grad():
            kl = kl_divergence(inferred.q, inferred.start, self.model.prior).mean()
        seen = {
            "kl": kl,
            "kl_weight": torch.full_like(kl, 0.0 if self.model.method.has_chain else self._kl_weight(number)),
            "encoder_loss": of_encoder.detach(),
            "encoder_gradient_norm": self._step_encoder(update_encoder),
        }
        return log_prob.detach(), norm, seen

    def _scale_generator_gradient(self) -> None:
        """Turn the gradient of −log p(x|z) into that of the generator's own loss; the encoder keeps the former."""
        scale = self.model.generator.loss_scale
        if scale != 1:
            gradients = [p.grad for p in self.model.generator.parameters() if p.grad is not None]
            torch._foreach_mul_(gradients, scale)

    def _encoder_loss(self, inferred: Inferred, number: int) -> Tensor:
        """What the encoder descends besides −log p(x|z) at a learning step."""
        weight = self._kl_weight(number)
        return self.model.method.encoder_loss(inferred, self.model.prior, self.config.bound, weight)

    def _kl_weight(self, number: int) -> float:
        return kl_weight(self.config.bound, number, self.steps_per_epoch * self.config.epochs)

    def _step_encoder(self, update: bool = True) -> Tensor:
        """Clip the encoder's gradient, and follow it; returns its norm before."""
        assert self.model.encoder is not None
        assert self.encoder_optimiser is not None
        settings = self.config.optimiser
        largest = settings.clip if settings.encoder_clip is None else settings.encoder_clip
        norm = clip(list(self.model.encoder.parameters()), largest)
        if update:
            self.encoder_optimiser.step()
        return norm

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
