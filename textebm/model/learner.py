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
import itertools
import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn

from textebm.config import Config, InferenceConfig, OptimiserConfig
from textebm.errors import CheckpointError, UsageError
from textebm.hardware import native_precision, precision_on
from textebm.model import langevin
from textebm.model.averaging import WeightAverage, follow
from textebm.model.bound import autoencoder_steps, kl_divergence, kl_weight
from textebm.model.candidates import Candidates
from textebm.model.generators import Batch, ConditionedLikelihood
from textebm.model.inference import Chains, Inferred, Request
from textebm.model.latent_model import LatentModel
from textebm.model.optimisers import adam, clip
from textebm.model.persistent import PersistentChains
from textebm.model.random import stream
from textebm.processes import ALONE, Cut, World, cut, part_size


class Part(NamedTuple):
    """Samples of a batch that are worked on at once.

    key: of their random streams; the learning step's number comes first. share: of the samples of the batch.
    """

    key: tuple[int, ...]
    x: Batch
    share: float


class Ends(NamedTuple):
    """Where the chains of a part led: start and positive are those of the posterior, both (samples, latent)."""

    start: Tensor
    positive: Tensor


class Pair(NamedTuple):
    """Posterior and prior samples that the EBM learns to tell apart, and their share of the batch."""

    share: float
    positive: Tensor
    negative: Tensor


class Tally:
    """Figures of a batch, gathered part by part: 0-dimensional tensors on the device."""

    def __init__(self, names: Iterable[str], like: Tensor) -> None:
        """Zeros of the dtype and on the device of `like`."""
        self.sums = {name: like.new_zeros(()) for name in names}

    def add(self, share: float, **figures: Tensor) -> None:
        """Take in what a part, which is that share of the batch, has to say."""
        for name, value in figures.items():
            self.sums[name] = self.sums[name] + share * value.detach()


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

    def __init__(self, model: LatentModel, config: Config, steps_per_epoch: int, world: World = ALONE) -> None:
        """Adam for the generator and, where there are such parts, for the EBM and the encoder.

        Args:
            model: what is trained, already on its device.
            config: the run's configuration.
            steps_per_epoch: learning steps an epoch, for the learning-rate schedule.
            world: the processes that make each step together.

        Raises:
            UsageError: the device cannot compute in the plain way in 16 bits.
        """
        self.model = model
        self.config = config
        self.steps_per_epoch = steps_per_epoch
        self.world = world
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
        self._loss_scale()  # the scaler makes its own when it is first asked
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

    def _loss_scale(self) -> Tensor:
        """What losses are multiplied by; it stays on the device."""
        scale: Tensor = self.scaler.scale(torch.ones((), device=self.model.device))
        return scale

    def optimisers(self) -> dict[str, torch.optim.Optimizer]:
        """The optimisers by the name of the part that each one owns."""
        names = ["energy", *(f"energy-{number}" for number in range(2, 1 + len(self.energy_optimisers)))]
        found = {"generator": self.generator_optimiser, **dict(zip(names, self.energy_optimisers, strict=False))}
        others = {"encoder": self.encoder_optimiser, "sampler": self.sampler_optimiser}
        return {**found, **{name: optimiser for name, optimiser in others.items() if optimiser is not None}}

    def step(
        self,
        x: Batch | None,
        number: int,
        chains: Chains | None = None,
        update_encoder: bool = True,
        samples: int | None = None,
    ) -> StepReport:
        """One learning step.

        Args:
            x: a batch on the model's device; of several processes, the rows of it that are this one's (see `cut`), or
                None where it has none.
            number: the step's number in the run, from 0; every random stream is keyed by it.
            chains: the persistent chains of these sentences, which move on.
            update_encoder: whether the encoder learns too; `encoder_step` may have taught it before.
            samples: of the whole batch (default: of x).

        Raises:
            ValueError: inference is persistent, and there are no chains.
            ProcessError: another process has ended.
        """
        self._set_learning_rates(number)
        loss_scale = self._loss_scale()
        stage = self.model.prior.stage(number)
        parts = self._parts(x, number, samples=samples)
        tally = self._tally()
        with self.model.prior.before(stage):
            ends = self._learn_from_parts(parts, chains, tally)
            pairs = self._negatives(parts, ends, number, samples, tally)
        self._learn_from_pairs(pairs, stage, tally)
        self._sum_over_processes(stage, tally)
        norms = self._follow(number, update_encoder, stage)
        of_sampler = self._update_sampler(parts, ends, number)
        if self.average is not None:
            before = autoencoder_steps(self.config.bound, self.steps_per_epoch * self.config.epochs)
            begun = before if number >= before else 0  # with the generator's new weights an average begins anew
            self.average.update(self.model, number + 1 - begun)
        seen = {**tally.sums, **norms, "loss_scale": loss_scale}
        if of_sampler:
            return SamplerReport(**seen, **of_sampler)
        return StepReport(**seen) if self.encoder_optimiser is None else EncoderReport(**seen)

    def encoder_step(self, x: Batch | None, number: int, update: int, samples: int | None = None) -> Tensor:
        """One update of the encoder alone, before learning step `number` (He et al., ICLR 2019).

        Args:
            x: a batch on the model's device, or this process's rows of it (see `step`).
            number: of the learning step.
            update: the update's number within it, from 1; random streams are keyed by both.
            samples: of the whole batch (default: of x).

        Returns:
            What the encoder descends, summed over the sentences of the batch, in nats; it stays on the device.
        """
        assert self.model.encoder is not None
        assert self.encoder_optimiser is not None
        self._set_learning_rates(number)
        self.encoder_optimiser.zero_grad(set_to_none=True)
        inputs, tally = list(self.model.encoder.parameters()), Tally(["loss"], self.model.prior.origin)
        for part in self._parts(x, number, update, samples):
            likelihood, inferred = self._infer(part.x, *part.key)
            loss = self._encoder_loss(inferred, number) - likelihood.log_prob(inferred.z).mean()
            self.scaler.scale(part.share * loss).backward(inputs=inputs)  # type: ignore[no-untyped-call]
            tally.add(part.x.batch_size, loss=loss)
        self._sum(inputs, tally)
        self._step_encoder()
        self.scaler.update()
        return tally.sums["loss"]

    def cut(self, samples: int) -> Cut:
        """How a batch of so many samples is cut, and which rows of it are this process's.

        Parts are numbered through the whole batch, and random streams are keyed by their numbers. So what a step does
        is decided by how its batch is cut, and not by which process does it: N processes make the step that one makes
        with `micro_batch` = batch_size / N.
        """
        config = self.config
        full = config.batch_size if config.batch_tokens is None and self.world.count > 1 else samples
        size = part_size(samples, full, config.micro_batch, self.world.count)
        return cut(samples, size, self.world.rank, self.world.count)

    def reset_generator(self, number: int) -> None:
        """Give the generator new weights before learning step `number`, and it and the encoder new optimisers.

        The end of a pre-training as an autoencoder (Li et al., EMNLP 2019): the encoder stays.
        """
        source = stream(self.config.seed, "initialisation", number, device=self.model.device)
        self.model.generator.reset(source)
        if self.average is not None:
            self.average.restart(self.model)
        self.generator_optimiser = self._adam(self.model.generator)
        self.encoder_optimiser = None if self.model.encoder is None else self._adam(self.model.encoder)

    def _set_learning_rates(self, number: int) -> None:
        settings = self.config.optimiser
        factor = learning_rate_factor(settings, number, self.steps_per_epoch, self.config.epochs)
        waits = number < settings.energy_start * self.steps_per_epoch * self.config.epochs
        of_energy = 0.0 if waits else settings.energy_lr
        rates = {"generator": settings.lr}
        for name, rate in (("encoder", settings.encoder_lr), ("sampler", settings.sampler_lr)):
            rates[name] = settings.lr if rate is None else rate
        for name, optimiser in self.optimisers().items():
            for group in optimiser.param_groups:
                group["lr"] = rates.get(name, of_energy) * factor

    def _parts(self, x: Batch | None, number: int, update: int = 0, samples: int | None = None) -> list[Part]:
        """The parts of a batch that this process works on, one after the other.

        Args:
            x: its rows of the batch.
            number: of the learning step.
            update: of the encoder alone within it, from 1; 0 for the learning step itself.
            samples: of the whole batch (default: of x).
        """
        if x is None:
            return []
        total = x.batch_size if samples is None else samples
        plan = self.cut(total)
        first = (number, update) if update else (number,)
        keys = (((number, update, place) if place else first) for place in itertools.count(plan.first))
        return [Part(key, part, part.batch_size / total) for key, part in zip(keys, x.split(plan.size), strict=False)]

    def _tally(self) -> Tally:
        """What is counted part by part, at 0."""
        names = ["log_prob", "posterior_energy", "prior_energy", "posterior_norm", "prior_norm"]
        names += ["posterior_displacement", "exploded_chains"]
        names += [] if self.encoder_optimiser is None else ["kl", "encoder_loss"]
        return Tally(names, self.model.prior.origin)

    def _learn_from_parts(self, parts: list[Part], chains: Chains | None, tally: Tally) -> list[Ends]:
        """Infer z of each part of a batch, and let the gradients of generator and encoder gather over all parts.

        Args:
            parts: of the batch.
            chains: the persistent chains of their samples, all in a row.
            tally: of the batch.

        Returns:
            Where the posterior chains of each part started and ended.

        Raises:
            ValueError: inference is persistent, and there are no chains.
        """
        if self.model.method.is_persistent and chains is None and parts:
            raise ValueError("inference is persistent: a learning step needs the chains of its sentences")
        kept = chains if self.model.method.is_persistent and parts else None
        sizes = [part.x.batch_size for part in parts]
        begun = [None] * len(parts) if kept is None else torch.split(kept.read(), sizes)
        self.generator_optimiser.zero_grad(set_to_none=True)
        if self.encoder_optimiser is not None:
            self.encoder_optimiser.zero_grad(set_to_none=True)
        ends = []
        for part, start in zip(parts, begun, strict=True):
            likelihood, inferred = self._infer(part.x, *part.key, start=start)
            tally.add(1, exploded_chains=langevin.exploded(inferred.z.detach()).sum())
            if self.rejects and self.model.method.has_chain:
                inferred = inferred._replace(z=langevin.put_back(inferred.z, inferred.start))
            self._gather(likelihood, inferred, part, tally)
            ends.append(Ends(inferred.start.detach(), inferred.z.detach()))
        if kept is not None:
            kept.write(torch.cat([end.positive for end in ends]))
        return ends

    def _gather(self, likelihood: ConditionedLikelihood, inferred: Inferred, part: Part, tally: Tally) -> None:
        """Add the gradients of a part, and what a report says of it."""
        number = part.key[0]
        log_prob = likelihood.log_prob(inferred.z).mean()
        of_encoder = self._encoder_loss(inferred, number)
        loss = -log_prob if self.encoder_optimiser is None else of_encoder - log_prob
        self.scaler.scale(part.share * loss).backward()  # type: ignore[no-untyped-call]
        moved = (inferred.z.detach() - inferred.start.detach()).norm(dim=1).mean()
        tally.add(part.share, log_prob=log_prob, posterior_displacement=moved)
        if inferred.q is not None:
            with torch.no_grad():
                kl = kl_divergence(inferred.q, inferred.start, self.model.inference_prior).mean()
            tally.add(part.share, kl=kl, encoder_loss=of_encoder)

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

    def _negatives(
        self, parts: list[Part], ends: list[Ends], number: int, samples: int | None, tally: Tally
    ) -> list[Pair]:
        """Prior samples beside the posterior samples of each part, from prior chains of its own.

        One for each posterior sample; two, where prior chains start at both the posterior chains' starts and the
        reference Gaussian. Chains that are kept from step to step are moved once for the whole batch, by every process
        alike, and stand beside all its posterior samples.
        """
        if self.chains is None:
            return [self._pair(part, end, tally) for part, end in zip(parts, ends, strict=True)]
        seed, device = self.config.seed, self.model.device
        own = sum(part.x.batch_size for part in parts)
        total = own if samples is None else samples
        choice, noise = (stream(seed, name, number, device=device) for name in ("persistent", "prior"))
        negative, exploded = self.chains.advance(total, choice, noise)
        if self.world.first:
            tally.add(1, exploded_chains=exploded)
        return [Pair(own / total, torch.cat([end.positive for end in ends]), negative)] if parts else []

    def _pair(self, part: Part, end: Ends, tally: Tally) -> Pair:
        """The posterior samples of a part, and prior samples of their own."""
        noise = stream(self.config.seed, "prior", *part.key, device=self.model.device)
        n = len(end.start)
        if self.model.draws_prior_starts and self.config.sampler.prior_start == "posterior":
            start = torch.cat([end.start, self.model.prior.sample_reference(n, noise)])
        else:
            start = self.model.prior_start(self.model.prior.sample_reference(n, noise), noise)
        negative = self.model.prior.move(start, noise)
        tally.add(1, exploded_chains=langevin.exploded(negative).sum())
        return Pair(part.share, end.positive, langevin.put_back(negative, start) if self.rejects else negative)

    def _candidates(self, *key: int) -> Candidates | None:
        """What draws the words of the chain's sampled softmax, where it is sampled."""
        sampled, device = self.config.inference.sampled_softmax, self.model.device
        return Candidates(sampled, stream(self.config.seed, "candidates", *key, device=device)) if sampled else None

    def _learn_from_pairs(self, pairs: list[Pair], stage: int | None, tally: Tally) -> None:
        """Let the gradient of the prior gather over all parts, and count what a report says of its samples."""
        prior = self.model.prior
        if self.energy_optimisers:
            self.energy_optimisers[stage or 0].zero_grad(set_to_none=True)
        for share, positive, negative in pairs:
            tally.add(share, posterior_norm=positive.norm(dim=1).mean(), prior_norm=negative.norm(dim=1).mean())
            if self.energy_optimisers:
                loss, f_positive, f_negative = prior.objective(positive, negative, stage)
                (share * loss).backward()  # type: ignore[no-untyped-call]
                tally.add(share, posterior_energy=-f_positive, prior_energy=-f_negative)

    def _sum_over_processes(self, stage: int | None, tally: Tally) -> None:
        """Let every process have the gradients and the figures of the whole batch, in one message."""
        learning: list[nn.Module | None] = [self.model.generator, self.model.encoder]
        learning += [self.model.prior.parts()[stage or 0]] if self.energy_optimisers else []
        self._sum([p for part in learning if part is not None for p in part.parameters()], tally)

    def _sum(self, parameters: Iterable[nn.Parameter], tally: Tally) -> None:
        """Sum gradients and figures over processes; who had no part of the batch brings zeros."""
        if self.world.count == 1:
            return
        learning = list(parameters)
        for parameter in learning:
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
        self.world.sum([*(p.grad for p in learning if p.grad is not None), *tally.sums.values()])

    def _follow(self, number: int, update_encoder: bool, stage: int | None) -> dict[str, Tensor]:
        """Let generator, encoder and EBM follow what was gathered; returns what a report says of their gradients."""
        self._scale_generator_gradient()
        norm = self._optimise(self.generator_optimiser, self.model.generator, self.config.optimiser.clip)
        seen = {"gradient_norm": norm, "energy_gradient_norm": torch.zeros_like(norm)}
        if self.encoder_optimiser is not None:
            weight = 0.0 if self.model.method.has_chain else self._kl_weight(number)
            seen["kl_weight"] = torch.full_like(norm, weight)
            seen["encoder_gradient_norm"] = self._step_encoder(update_encoder)
        self.scaler.update()
        if self.energy_optimisers:
            prior = self.model.prior
            part = prior.parts()[stage or 0]
            seen["energy_gradient_norm"] = clip(list(part.parameters()), self.config.optimiser.energy_clip)
            self.energy_optimisers[stage or 0].step()
            prior.refine_norms()
        return seen

    def _optimise(
        self, optimiser: torch.optim.Optimizer, part: nn.Module, largest: float, update: bool = True
    ) -> Tensor:
        """Clip the gradient of a scaled loss and follow it, unless it overflowed in fp16.

        Returns:
            Its norm before clipping; 0 of one that overflowed.
        """
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
        return self.model.method.encoder_loss(inferred, self.model.inference_prior, self.config.bound, weight)

    def _kl_weight(self, number: int) -> float:
        return kl_weight(self.config.bound, number, self.steps_per_epoch * self.config.epochs)

    def _step_encoder(self, update: bool = True) -> Tensor:
        """Clip the encoder's gradient, and follow it; returns its norm before."""
        assert self.model.encoder is not None
        assert self.encoder_optimiser is not None
        settings = self.config.optimiser
        largest = settings.clip if settings.encoder_clip is None else settings.encoder_clip
        return self._optimise(self.encoder_optimiser, self.model.encoder, largest, update)

    def _update_sampler(self, parts: list[Part], ends: list[Ends], number: int) -> dict[str, Tensor]:
        """Let the learned sampler, where there is one, learn from the ends of posterior chains, and its average follow.

        Args:
            parts: of the batch.
            ends: of their chains.
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
            self.sampler_optimiser.zero_grad(set_to_none=True)
            tally = Tally(["loss"], self.model.prior.origin)
            for part, end in zip(parts, ends, strict=True):
                place = part.key[2:]
                source = stream(self.config.seed, "sampler", number, update, *place, device=self.model.device)
                features = self.sampler.features(part.x, source, self.precision)
                loss = self.sampler.losses(end.positive, features, source).mean()
                self.scaler.scale(part.share * loss).backward()  # type: ignore[no-untyped-call]
                tally.add(part.share, loss=loss)
            self._sum(self.sampler.parameters(), tally)
            norms.append(self._optimise(self.sampler_optimiser, self.sampler, self.config.optimiser.sampler_clip))
            self.scaler.update()
            losses.append(tally.sums["loss"])
        follow(self.model.sampler, self.sampler, settings.ema, number + 1)
        return {"sampler_loss": torch.stack(losses).mean(), "sampler_gradient_norm": torch.stack(norms).mean()}
