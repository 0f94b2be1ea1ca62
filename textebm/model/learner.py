"""One learning step: posterior and prior samples, and the gradients. The only place that changes parameters.

    α: ascend  mean f(z⁺) − mean f(z⁻)      z⁺ inferred from x, z⁻ from the prior chain
    β: ascend  mean log p(x|z⁺)
    φ: ascend  mean log p(x|z⁺) − w KL(q ‖ p), through z⁺ (amortised); or mean log q(z⁺|x) (amortised, then Langevin);
       or descend the loss of denoising z⁺ (diffusion, then Langevin)

Of a plain language model z is empty and no chain is run: what remains is maximum likelihood.

Source: Pang et al., NeurIPS 2020, algorithm 1; for the encoder's φ see `textebm.model.inference`.
"""

import copy
import dataclasses
import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from textebm.config import Config, InferenceConfig, OptimiserConfig
from textebm.errors import CheckpointError, UsageError
from textebm.hardware import native_precision, precision_on
from textebm.model import langevin
from textebm.model.averaging import WeightAverage, follow
from textebm.model.bound import kl_divergence, kl_weight
from textebm.model.candidates import Candidates
from textebm.model.generators import Batch, ConditionedLikelihood
from textebm.model.inference import Chains, Inferred, Request
from textebm.model.latent_model import LatentModel
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
    exploded_chains: Tensor
    """Posterior and prior chains that ran away (`langevin.exploded`); put back, where on_divergence is reject."""
    loss_scale: Tensor
    """What losses are multiplied by before their backward pass, in fp16: halved where a gradient overflowed, whose
    step is then left out. 1 in other precisions."""


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


@dataclass(frozen=True)
class SamplerReport(StepReport):
    """What a learning step saw where there is a learned sampler: means over its updates."""

    sampler_loss: Tensor
    """Mean ½‖ε − ε̂‖² of denoising z⁺."""
    sampler_gradient_norm: Tensor
    """Norm of the sampler's gradient before clipping."""


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

    def __init__(self, model: LatentModel, config: Config, steps_per_epoch: int) -> None:
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
        # of generator, encoder and sampler, whose products may have 16 bits; the EBM learns in fp32
        self.scaler = torch.amp.GradScaler(model.device.type, enabled=self.precision == "fp16")
        self.generator_optimiser = self._adam(model.generator)
        self.energy_optimisers = [
            adam(settings.kind, part.parameters(), settings.energy_lr, settings.betas, settings.energy_weight_decay)
            for part in model.prior.parts()
        ]
        self.encoder_optimiser = None if model.encoder is None else self._adam(model.encoder)
        # what learns; the model has the average of its weights, which is what draws
        self.sampler = copy.deepcopy(model.sampler)
        self.sampler_optimiser = None if self.sampler is None else self._adam(self.sampler)
        self.average = WeightAverage(model, settings.ema) if settings.ema else None
        kept = config.prior.persistent if self.energy_optimisers else 0
        begin = stream(config.seed, "persistent", device=model.device)
        restart = config.prior.restart
        self.chains = PersistentChains(model.prior, kept, restart, begin, self.rejects) if kept else None

    def _adam(self, part: nn.Module) -> torch.optim.Optimizer:
        settings = self.config.optimiser
        return adam(settings.kind, part.parameters(), settings.lr, settings.betas)

    @property
    def rejects(self) -> bool:
        """Whether chains that explode are put back to where they started."""
        return self.config.on_divergence == "reject"

    @property
    def result(self) -> LatentModel:
        """The model that is validated and saved: the one that is trained, or the average of its weights."""
        return self.model if self.average is None else self.average.model

    def state(self) -> dict[str, Tensor]:
        """What goes on from step to step beside `result` and the optimisers: kept chains, weights before averaging, and
        the scale of losses in fp16."""
        before = {"weights": None if self.average is None else self.model, "sampler": self.sampler}
        kept = {} if self.chains is None else {"chains": self.chains.z}
        if self.scaler.is_enabled():
            known = self.scaler.state_dict()
            kept["loss_scale"] = torch.tensor([known["scale"], known["_growth_tracker"]], dtype=torch.float64)
        for owner, part in before.items():
            if part is not None:
                kept |= {f"{owner}.{name}": tensor for name, tensor in part.state_dict().items()}
        return kept

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
        if self.scaler.is_enabled():
            scale, tracker = state["loss_scale"].tolist()
            self.scaler.load_state_dict({**self.scaler.state_dict(), "scale": scale, "_growth_tracker": int(tracker)})

    def optimisers(self) -> dict[str, torch.optim.Optimizer]:
        """The optimisers by the name of the part that each one owns."""
        names = ["energy", *(f"energy-{number}" for number in range(2, 1 + len(self.energy_optimisers)))]
        found = {"generator": self.generator_optimiser, **dict(zip(names, self.energy_optimisers, strict=False))}
        others = {"encoder": self.encoder_optimiser, "sampler": self.sampler_optimiser}
        return {**found, **{name: optimiser for name, optimiser in others.items() if optimiser is not None}}

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
        loss_scale = self.scaler.scale(torch.ones((), device=self.model.device))
        stage = self.model.prior.stage(number)
        with self.model.prior.before(stage):
            starts, positive, of_parts = self._learn_from_parts(x, number, chains)
            negative, exploded = self._negatives(starts, number)
        log_prob, gradient_norm, of_encoder = self._update_generator(of_parts, number, update_encoder)
        energies = self._update_energy(positive, negative, stage)
        of_sampler = self._update_sampler(x, positive, number)
        if self.average is not None:
            self.average.update(self.model, number + 1)
        seen = {
            "log_prob": log_prob,
            "posterior_energy": energies[0],
            "prior_energy": energies[1],
            "posterior_norm": positive.norm(dim=1).mean(),
            "prior_norm": negative.norm(dim=1).mean(),
            "posterior_displacement": (positive - starts).norm(dim=1).mean(),
            "gradient_norm": gradient_norm,
            "energy_gradient_norm": energies[2],
            "exploded_chains": exploded + torch.stack([part["exploded"] for part in of_parts]).sum(),
            "loss_scale": loss_scale,
        }
        if of_sampler:
            return SamplerReport(**seen, **of_sampler)
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
        self.encoder_optimiser.zero_grad(set_to_none=True)
        inputs, losses = list(self.model.encoder.parameters()), []
        for key, part in self._parts(x, number, update):
            likelihood, inferred = self._infer(part, *key)
            loss = self._encoder_loss(inferred, number) - likelihood.log_prob(inferred.z).mean()
            share = part.batch_size / x.batch_size
            self.scaler.scale(share * loss).backward(inputs=inputs)  # type: ignore[no-untyped-call]
            losses.append(loss.detach() * part.batch_size)
        self._step_encoder()
        self.scaler.update()
        return torch.stack(losses).sum()

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
        rates = {"generator": settings.lr}
        for name, rate in (("encoder", settings.encoder_lr), ("sampler", settings.sampler_lr)):
            rates[name] = settings.lr if rate is None else rate
        for name, optimiser in self.optimisers().items():
            for group in optimiser.param_groups:
                group["lr"] = rates.get(name, settings.energy_lr) * factor

    def _parts(self, x: Batch, number: int, update: int = 0) -> list[tuple[tuple[int, ...], Batch]]:
        """The parts of a batch that are worked on at once, each with the key of its random streams.

        Args:
            x: the batch.
            number: of the learning step.
            update: of the encoder alone within it, from 1; 0 for the learning step itself.
        """
        parts = x.split(self.config.micro_batch or x.batch_size)
        first = (number, update) if update else (number,)
        return [((number, update, place) if place else first, part) for place, part in enumerate(parts)]

    def _learn_from_parts(
        self, x: Batch, number: int, chains: Chains | None
    ) -> tuple[Tensor, Tensor, list[dict[str, Tensor]]]:
        """Infer z of each part of a batch, and let the gradients of generator and encoder gather over all parts.

        Args:
            x: the batch; its parts are of `micro_batch` samples.
            number: of the learning step.
            chains: the persistent chains of its samples.

        Returns:
            Where the posterior chains started, where they ended, and what a report says of each part, weighted by its
            share in the batch.

        Raises:
            ValueError: inference is persistent, and there are no chains.
        """
        if self.model.method.is_persistent and chains is None:
            raise ValueError("inference is persistent: a learning step needs the chains of its sentences")
        kept = chains if self.model.method.is_persistent else None
        parts = self._parts(x, number)
        sizes = [part.batch_size for _, part in parts]
        begun = [None] * len(parts) if kept is None else torch.split(kept.read(), sizes)
        self.generator_optimiser.zero_grad(set_to_none=True)
        if self.encoder_optimiser is not None:
            self.encoder_optimiser.zero_grad(set_to_none=True)
        starts, ends, told = [], [], []
        for (key, part), start in zip(parts, begun, strict=True):
            likelihood, inferred = self._infer(part, *key, start=start)
            exploded = langevin.exploded(inferred.z.detach()).sum()
            if self.rejects and self.model.method.has_chain:
                inferred = inferred._replace(z=langevin.put_back(inferred.z, inferred.start))
            share = part.batch_size / x.batch_size
            told.append({**self._gather(likelihood, inferred, number, share), "exploded": exploded})
            starts.append(inferred.start.detach())
            ends.append(inferred.z.detach())
        if kept is not None:
            kept.write(torch.cat(ends))
        return torch.cat(starts), torch.cat(ends), told

    def _gather(
        self, likelihood: ConditionedLikelihood, inferred: Inferred, number: int, share: float
    ) -> dict[str, Tensor]:
        """Add the gradients of a part, which is that share of its batch; returns what a report says of it."""
        log_prob = likelihood.log_prob(inferred.z).mean()
        of_encoder = self._encoder_loss(inferred, number)
        loss = -log_prob if self.encoder_optimiser is None else of_encoder - log_prob
        self.scaler.scale(share * loss).backward()  # type: ignore[no-untyped-call]
        seen = {"log_prob": log_prob}
        if inferred.q is not None:
            with torch.no_grad():
                kl = kl_divergence(inferred.q, inferred.start, self.model.prior).mean()
            seen |= {"kl": kl, "encoder_loss": of_encoder}
        return {name: share * value.detach() for name, value in seen.items()}

    def _infer(self, x: Batch, *key: int, start: Tensor | None = None) -> tuple[ConditionedLikelihood, Inferred]:
        """Posterior samples, and the likelihood that the generator learns from.

        Args:
            x: the batch.
            key: of the random streams; the step's number comes first.
            start: where its persistent chains stand.
        """
        device, config, method = self.model.device, self.config, self.model.method
        masks = stream(config.seed, "dropout", *key, device=device)
        candidates = self._candidates(*key) if method.has_chain else None
        conditioned = self.model.condition(x, masks, self.precision, config.computation, candidates)

        fresh = config.inference.dropout_mask == "step"

        def of_step() -> ConditionedLikelihood:
            return conditioned.with_fresh_masks(masks)

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
        return of_step() if fresh else conditioned, inferred

    def _negatives(self, starts: Tensor, number: int) -> tuple[Tensor, Tensor]:
        """Prior samples: one for each posterior sample, unless fewer chains are kept, or prior chains start at both
        the posterior chains' starts and the reference Gaussian; and how many chains exploded.
        """
        seed, device, n = self.config.seed, self.model.device, len(starts)
        noise = stream(seed, "prior", number, device=device)
        if self.model.draws_prior_starts and self.config.sampler.prior_start == "posterior":
            start = torch.cat([starts, self.model.prior.sample_reference(n, noise)])
        elif self.chains is None:
            start = self.model.prior_start(self.model.prior.sample_reference(n, noise), noise)
        else:
            choice = stream(seed, "persistent", number, device=device)
            return self.chains.advance(n, choice, noise)
        end = self.model.prior.move(start, noise)
        exploded = langevin.exploded(end).sum()
        return langevin.put_back(end, start) if self.rejects else end, exploded

    def _candidates(self, *key: int) -> Candidates | None:
        """What draws the words of the chain's sampled softmax, where it is sampled."""
        sampled, device = self.config.inference.sampled_softmax, self.model.device
        return Candidates(sampled, stream(self.config.seed, "candidates", *key, device=device)) if sampled else None

    def _update_generator(
        self, of_parts: list[dict[str, Tensor]], number: int, update_encoder: bool
    ) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        """Let the generator, and the encoder with it, follow what the parts gathered; returns what a report says."""
        self._scale_generator_gradient()
        norm = self._follow(self.generator_optimiser, self.model.generator, self.config.optimiser.clip)
        names = [name for name in of_parts[0] if name != "exploded"]
        seen = {name: torch.stack([part[name] for part in of_parts]).sum() for name in names}
        log_prob = seen.pop("log_prob")
        if seen:
            weight = 0.0 if self.model.method.has_chain else self._kl_weight(number)
            seen["kl_weight"] = torch.full_like(log_prob, weight)
            seen["encoder_gradient_norm"] = self._step_encoder(update_encoder)
        self.scaler.update()
        return log_prob, norm, seen

    def _follow(self, optimiser: torch.optim.Optimizer, part: nn.Module, largest: float, update: bool = True) -> Tensor:
        """Clip the gradient of a part and let its optimiser follow it, but for one that overflowed in fp16.

        Returns:
            Its norm before clipping; 0 of one that overflowed.
        """
        if self.scaler.is_enabled():
            self.scaler.unscale_(optimiser)
        norm = clip(list(part.parameters()), largest)
        if update:
            self.scaler.step(optimiser)
        return norm.nan_to_num(0, 0, 0) if self.scaler.is_enabled() else norm

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
        return self._follow(self.encoder_optimiser, self.model.encoder, largest, update)

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

    def _update_sampler(self, x: Batch, ends: Tensor, number: int) -> dict[str, Tensor]:
        """Let the learned sampler, where there is one, learn from the ends of posterior chains, and its average follow.

        Args:
            x: the batch that they are of.
            ends: z⁺.
            number: of the learning step.

        Returns:
            What a report says of it.
        """
        if self.sampler is None:
            return {}
        assert self.sampler_optimiser is not None
        assert self.model.sampler is not None
        settings, losses, norms = self.config.sampler, [], []
        for update in range(settings.updates):
            source = stream(self.config.seed, "sampler", number, update, device=self.model.device)
            features = self.sampler.features(x, source, self.precision)
            loss = self.sampler.losses(ends, features, source).mean()
            self.sampler_optimiser.zero_grad(set_to_none=True)
            self.scaler.scale(loss).backward()  # type: ignore[no-untyped-call]
            norms.append(self._follow(self.sampler_optimiser, self.sampler, self.config.optimiser.sampler_clip))
            self.scaler.update()
            losses.append(loss.detach())
        follow(self.model.sampler, self.sampler, settings.ema, number + 1)
        return {"sampler_loss": torch.stack(losses).mean(), "sampler_gradient_norm": torch.stack(norms).mean()}
