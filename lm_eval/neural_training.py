"""Training of LSTM judges: the loop, read from top to bottom, and what it keeps of itself after each epoch.

Random numbers are keyed by (seed, what for, epoch), so that training which was interrupted and goes on from its last
epoch draws what it would have drawn.
"""

import hashlib
import json
import math
import time
import warnings
from collections.abc import Iterator, Mapping
from contextlib import nullcontext
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from textebm.errors import DivergenceError, UsageError
from textebm.lm_eval.corpus import Vocabulary
from textebm.lm_eval.judge_store import DamagedJudgeError, JudgeStore, flatten_optimiser, unflatten_optimiser
from textebm.lm_eval.large_softmax import LargeSoftmax, Precision, sums_in
from textebm.lm_eval.neural import (
    EncodedText,
    LstmJudge,
    LstmNetwork,
    Observe,
    State,
    Training,
    exact_products,
    padded,
    require_text,
    sentence_log_probs,
    stream_log_probs,
)
from textebm.lm_eval.perplexity import perplexity
from textebm.lm_eval.recipes import Recipe

FORMAT = 1
"""Of what is kept, and of what the same settings lead to: it goes up when either changes."""

EVALUATION_BATCH = 64
CHECK_EVERY = 100
"""Steps between two looks at the loss: looking waits for the device."""
LARGEST_LOSS = 100.0
"""Mean loss of an epoch, in nats a token, beyond which training has run away."""

HELD_OUT, WEIGHTS, BATCHES, ORDER, DROPOUT, SPANS = range(6)
"""What random numbers are for."""


def random_source(seed: int, purpose: int, epoch: int = 0) -> np.random.Generator:
    """The random numbers for one purpose in one epoch."""
    return np.random.default_rng([seed, purpose, epoch])


@dataclass(frozen=True)
class Limits:
    """When to end a training early. None: no such limit.

    Raises:
        UsageError: a limit is not positive.
    """

    max_epochs: int | None = None
    """When so many epochs are done, in all."""
    max_minutes: float | None = None
    """Before an epoch that would end later than so many minutes from now; one epoch is made in any case."""

    def __post_init__(self) -> None:
        for name in ("max_epochs", "max_minutes"):
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise UsageError(f"{name} is {value}: it must be positive")


@dataclass(frozen=True)
class Task:
    """What decides a judge's weights, but for the machine's rounding."""

    text: EncodedText
    held_out: EncodedText | None
    vocabulary: Vocabulary
    recipe: Recipe
    seed: int
    precision: Precision

    def __post_init__(self) -> None:
        if self.seed < 0:
            raise UsageError(f"the seed of a judge is {self.seed}: it must be 0 or more")

    @property
    def key(self) -> str:
        """SHA-256 of all of it, of the format, and of torch's version, whose sums and random numbers are its own."""
        digest = hashlib.sha256()
        facts = {
            "format": FORMAT,
            "torch": _torch_version(),
            "recipe": self.recipe.sha256,
            "seed": self.seed,
            "precision": self.precision,
            "held_out": self.held_out is not None,
        }
        digest.update(json.dumps(facts, sort_keys=True).encode())
        for text in (self.text, self.held_out):
            if text is not None:
                digest.update(np.int64(len(text)).tobytes() + text.offsets.tobytes() + text.ids.tobytes())
        digest.update("\n".join(self.vocabulary).encode())
        return digest.hexdigest()

    def split(self) -> tuple[EncodedText, EncodedText, str]:
        """What is trained on, what is held out, and a word for the latter.

        Raises:
            JudgeError: there is too little text.
        """
        if self.held_out is not None:
            require_text(self.text, 1, "training text")
            require_text(self.held_out, 1, "held-out text")
            return self.text, self.held_out, "given"
        require_text(self.text, 2, "training text")
        n = len(self.text)
        out = min(max(1, round(n * self.recipe.held_out)), n - 1)
        chosen = np.zeros(n, dtype=bool)
        chosen[random_source(self.seed, HELD_OUT).permutation(n)[:out]] = True
        rest, held = (self.text.take(np.flatnonzero(which)) for which in (~chosen, chosen))
        return rest, held, f"{out}-of-the-training-text"


def _torch_version() -> str:
    """Without the build (+cpu, +cu130)."""
    return str(torch.__version__).split("+")[0]


@dataclass
class Progress:
    """Where a training is; in JSON types, so that it can be kept."""

    epoch: int = 0
    """Epochs done."""
    lr: float = 0.0
    bad_epochs: int = 0
    decays: int = 0
    best: float | None = None
    """Best held-out perplexity so far."""
    best_epoch: int = 0
    averaging: bool = False
    """Whether nt-asgd averages yet."""
    ended: str = "cut"
    curve: list[dict[str, Any]] = field(default_factory=list)


def train(task: Task, device: torch.device, limits: Limits, cache: Path | None, observe: Observe | None) -> LstmJudge:
    """Train a judge, or take up what is kept of it: see `LstmJudge.train`."""
    trained_on, held_out, how = task.split()
    trainer = _Trainer(task, trained_on, held_out, device, observe or _ignore)
    if cache is None:
        trainer.run(limits, None)
    else:
        store = JudgeStore(cache / task.key)
        if store.is_busy():
            trainer.observe({"kind": "waiting", "folder": str(store.folder)})
        with store.locked():
            _take_up(trainer, store, said=observe is not None)
            trainer.run(limits, store)
    progress = trainer.progress
    training = Training(
        seed=task.seed,
        held_out=how,
        precision=task.precision,
        epochs=progress.epoch,
        ended=progress.ended,
        best_epoch=progress.best_epoch,
        longest=int(task.text.lengths.max()),
        device=device.type,
        torch=_torch_version(),
        curve=tuple(progress.curve),
    )
    seen = np.bincount(trained_on.ids, minlength=len(task.vocabulary) + 1)[: len(task.vocabulary)]
    return LstmJudge(task.vocabulary, trainer.best_network(), training, int((seen == 0).sum()))


def _ignore(event: Mapping[str, Any]) -> None:
    """An observer that does nothing."""


def _take_up(trainer: "_Trainer", store: JudgeStore, *, said: bool) -> None:
    """Go on from what is kept, if anything is; say so where it is damaged, and begin anew."""
    try:
        kept = store.load()
        if kept is not None:
            trainer.restore(*kept)
    except (DamagedJudgeError, KeyError, TypeError, ValueError, RuntimeError) as error:
        trainer.observe({"kind": "damaged", "folder": str(store.folder), "reason": str(error)})
        if not said:
            warnings.warn(f"the judge kept in {store.folder} is damaged and is trained again: {error}", stacklevel=4)
        trainer.begin()


class _Trainer:
    """Weights on their way, and everything that the loop changes."""

    def __init__(
        self, task: Task, text: EncodedText, held_out: EncodedText, device: torch.device, observe: Observe
    ) -> None:
        self.task, self.recipe, self.device, self.observe = task, task.recipe, device, observe
        self.text, self.held_out = text, held_out
        self.end = len(task.vocabulary)
        self.softmax = LargeSoftmax(task.precision)
        self.begin()

    def begin(self) -> None:
        """Untrained weights."""
        drawn = torch.Generator().manual_seed(int(random_source(self.task.seed, WEIGHTS).integers(2**62)))
        self.network = LstmNetwork(self.recipe, self.end + 1, drawn).to(self.device)
        self.progress = Progress(lr=self.recipe.lr)
        self.optimiser = self._new_optimiser()
        self.best: dict[str, Tensor] = {}

    def _new_optimiser(self) -> torch.optim.Optimizer:
        recipe, progress = self.recipe, self.progress
        settings: dict[str, Any] = {"lr": progress.lr, "weight_decay": recipe.weight_decay}
        if progress.averaging:
            return torch.optim.ASGD(self.network.parameters(), t0=0, lambd=0.0, **settings)
        kind = torch.optim.Adam if recipe.optimiser == "adam" else torch.optim.SGD
        return kind(self.network.parameters(), **settings)

    def best_network(self) -> LstmNetwork:
        """The network with the weights of the best epoch."""
        self.network.load_state_dict(self.best)
        return self.network

    # ---- what is kept

    def save(self, store: JudgeStore) -> None:
        """Keep everything that the next epoch needs; of a training that has ended, the best weights."""
        groups: dict[str, Mapping[str, Tensor]] = {"best": self.best}
        if self.progress.ended == "cut":
            groups["last"] = self.network.state_dict()
            if optimiser := flatten_optimiser(self.optimiser.state_dict()):
                groups["optimiser"] = optimiser
        facts = {"recipe": asdict(self.recipe), "device": self.device.type, "progress": asdict(self.progress)}
        store.save(facts, groups)

    def restore(self, facts: dict[str, Any], groups: dict[str, dict[str, Tensor]]) -> None:
        """Take up what was kept."""
        self.progress = Progress(**facts["progress"])
        self.best = {name: tensor.to(self.device) for name, tensor in groups["best"].items()}
        self.network.load_state_dict(groups.get("last", groups["best"]))
        self.optimiser = self._new_optimiser()
        if "optimiser" in groups:
            described = self.optimiser.state_dict()["param_groups"]
            self.optimiser.load_state_dict(unflatten_optimiser(groups["optimiser"], described))

    # ---- the loop

    def run(self, limits: Limits, store: JudgeStore | None) -> None:
        """Epochs until training has ended, or a limit says so."""
        started, progress = time.monotonic(), self.progress
        if progress.ended != "cut":
            self.observe({"kind": "cached", "epochs": progress.epoch, "best": progress.best})
            return
        self._tell("resume" if progress.epoch else "start")
        longest = max((entry["seconds"] for entry in progress.curve), default=0.0)
        while progress.ended == "cut" and not self._reached(limits, time.monotonic() - started + longest):
            begun = time.monotonic()
            self._epoch()
            longest = max(longest, time.monotonic() - begun)
            if store is not None:
                self.save(store)
            self.observe({"kind": "epoch", **progress.curve[-1]})
        self._tell("done")

    def _tell(self, kind: str) -> None:
        self.observe(
            {
                "kind": kind,
                "recipe": self.recipe.label,
                "epochs": self.progress.epoch,
                "of": self.recipe.epochs,
                "best": self.progress.best,
                "ended": self.progress.ended,
                "sentences": len(self.text),
                "tokens": len(self.text.ids),
                "held_out": len(self.held_out),
                "precision": self.task.precision,
                "device": str(self.device),
            }
        )

    def _reached(self, limits: Limits, seconds: float) -> bool:
        """Whether a limit keeps the next epoch off, which would end so many seconds after the start."""
        if self.progress.epoch == 0:
            return False
        too_many = limits.max_epochs is not None and self.progress.epoch >= limits.max_epochs
        return too_many or (limits.max_minutes is not None and seconds > 60 * limits.max_minutes)

    def _epoch(self) -> None:
        progress, begun = self.progress, time.monotonic()
        progress.epoch += 1
        lr = progress.lr
        with exact_products() if self.task.precision == "fp32" else nullcontext():
            log_prob, tokens = self._pass()
        seconds = time.monotonic() - begun
        train = math.exp(-log_prob / tokens)
        valid = self._evaluate()
        if not math.isfinite(valid):
            raise self._diverged(valid)
        better = progress.best is None or valid < progress.best
        self._judge_epoch(valid, better)
        progress.curve.append(
            {
                "epoch": progress.epoch,
                "lr": lr,
                "train_perplexity": train,
                "valid_perplexity": valid,
                "seconds": round(seconds, 2),
                "tokens_per_second": round(tokens / seconds, 1),
                "best": better,
            }
        )

    def _judge_epoch(self, valid: float, better: bool) -> None:
        """What a held-out perplexity leads to: weights kept, a lower rate, averaging, the end."""
        recipe, progress = self.recipe, self.progress
        earlier = [entry["valid_perplexity"] for entry in progress.curve]
        if better:
            progress.best, progress.best_epoch = valid, progress.epoch
            self.best = {name: tensor.clone() for name, tensor in self._evaluated().items()}
        progress.bad_epochs = 0 if better else progress.bad_epochs + 1
        if recipe.patience is not None and progress.bad_epochs >= recipe.patience:
            progress.bad_epochs = 0
            progress.decays += 1
            progress.lr *= recipe.decay
            self.network.load_state_dict(self.best)
            self.optimiser = self._new_optimiser()
        waited = recipe.optimiser == "nt-asgd" and len(earlier) > recipe.nonmonotone
        if waited and not progress.averaging and valid > min(earlier[: -recipe.nonmonotone]):
            progress.averaging = True
            self.optimiser = self._new_optimiser()
        if recipe.patience is not None and progress.decays >= recipe.max_decays:
            progress.ended = "converged"
        elif progress.epoch >= recipe.epochs:
            progress.ended = "all-epochs"

    def _pass(self) -> tuple[float, int]:
        """One pass over the text: Σ log p with dropout, in nats, and of how many tokens (a stream leaves out some)."""
        progress, recipe = self.progress, self.recipe
        drawn = int(random_source(self.task.seed, DROPOUT, progress.epoch).integers(2**62))
        dropout = torch.Generator(self.device).manual_seed(drawn)
        log_prob = torch.zeros((), dtype=sums_in(self.device), device=self.device)
        batches = self._stream() if recipe.batching == "stream" else self._batches()
        state: State | None = None
        tokens = 0
        for step, batch in enumerate(batches):
            if state is None or recipe.batching != "stream":
                state = self.network.start(batch.inputs.shape[1])
            found, state = self._step(batch, state, dropout)
            log_prob += found
            tokens += batch.tokens
            if step % CHECK_EVERY == 0:
                self._check(log_prob, tokens)
            self.observe({"kind": "step", "tokens": batch.tokens})
        self._check(log_prob, tokens)
        return float(log_prob), tokens

    def _check(self, log_prob: Tensor, tokens: int) -> None:
        loss = -float(log_prob) / tokens
        if not loss < LARGEST_LOSS:
            raise self._diverged(loss)

    def _diverged(self, loss: float) -> DivergenceError:
        return DivergenceError(
            f"the judge's training diverged in epoch {self.progress.epoch}: its loss is {loss:.4g} nats a token; the "
            f"recipe {self.recipe.label} does not suit this text (its learning rate is {self.recipe.lr})"
        )

    def _step(self, batch: "_Batch", state: State, dropout: torch.Generator) -> tuple[Tensor, State]:
        """One learning step; Σ log p of its tokens, and the state after it."""
        recipe, network = self.recipe, self.network
        network.train()
        output, raw, state = network(batch.inputs.to(self.device), state, dropout)
        hidden, targets = output.detach().flatten(0, 1), batch.targets.to(self.device).flatten()
        if batch.kept is not None:
            kept = batch.kept.to(self.device)
            hidden, targets = hidden[kept], targets[kept]
        scale = 1 / (len(targets) if recipe.loss == "token" else batch.inputs.shape[1])
        gradients = self.softmax.gradients(hidden, network.output, network.bias, targets, scale)
        of_output = gradients.hidden
        if batch.kept is not None:
            of_output = torch.zeros_like(output).flatten(0, 1)
            of_output[kept] = gradients.hidden
        self.optimiser.zero_grad(set_to_none=True)
        network.output.grad = gradients.weight
        if network.bias is not None:
            network.bias.grad = gradients.bias
        penalties = self._penalties(output, raw)
        torch.autograd.backward([output, *penalties], [of_output.view_as(output), *(None for _ in penalties)])
        torch.nn.utils.clip_grad_norm_(network.parameters(), recipe.clip)
        for group in self.optimiser.param_groups:
            group["lr"] = self.progress.lr * batch.rate
        self.optimiser.step()
        return gradients.log_prob, [(h.detach(), c.detach()) for h, c in state]

    def _penalties(self, output: Tensor, raw: Tensor) -> list[Tensor]:
        """The activation and the slowness penalty, as far as the recipe has them."""
        alpha, beta = self.recipe.activation_penalty, self.recipe.slowness_penalty
        found = [alpha * output.square().mean()] if alpha else []
        if beta and len(raw) > 1:
            found.append(beta * (raw[1:] - raw[:-1]).square().mean())
        return found

    def _evaluated(self) -> dict[str, Tensor]:
        """The weights that count: their averages, while they are averaged."""
        state = self.network.state_dict()
        if not self.progress.averaging:
            return state
        averages = {name: self.optimiser.state[parameter]["ax"] for name, parameter in self.network.named_parameters()}
        return {**state, **averages}

    def _evaluate(self) -> float:
        """Perplexity of the held-out text."""
        network = self.network.eval()
        last = {name: tensor.clone() for name, tensor in network.state_dict().items()}
        network.load_state_dict(self._evaluated())
        if self.recipe.batching == "stream":
            totals, _ = stream_log_probs(network, self.held_out, network.start(1))
        else:
            totals = sentence_log_probs(network, self.held_out, EVALUATION_BATCH)
        network.load_state_dict(last)
        return float(perplexity(totals, self.held_out.lengths))

    # ---- batches

    def _batches(self) -> Iterator["_Batch"]:
        """Batches of sentences, in this epoch's order."""
        order = random_source(self.task.seed, ORDER, self.progress.epoch)
        if self.recipe.batching == "equal-length":
            grouped = random_source(self.task.seed, BATCHES)  # the same in every epoch
            groups = equal_length_groups(self.text.lengths, self.recipe.batch, grouped)
        else:
            shuffled = order.permutation(len(self.text))
            groups = [shuffled[i : i + self.recipe.batch] for i in range(0, len(shuffled), self.recipe.batch)]
        for index in order.permutation(len(groups)):
            chosen = groups[index]
            inputs, targets = padded(self.text, chosen, self.end)
            lengths = self.text.lengths[chosen]
            whole = int(lengths.min()) == len(targets)
            kept = None if whole else torch.from_numpy((np.arange(len(targets))[:, None] < lengths).flatten())
            yield _Batch(torch.from_numpy(inputs), torch.from_numpy(targets), kept, int(lengths.sum()))

    def _stream(self) -> Iterator["_Batch"]:
        """The text as one stream in columns, cut at random places; what does not fill the columns is left out."""
        recipe = self.recipe
        random = random_source(self.task.seed, SPANS, self.progress.epoch)
        columns = min(recipe.batch, len(self.text.ids))
        rows = len(self.text.ids) // columns
        targets = self.text.ids[: rows * columns].reshape(columns, rows).T.astype(np.int64)
        inputs = np.concatenate([[self.end], self.text.ids[: rows * columns - 1]]).reshape(columns, rows).T
        at = 0
        while at < rows:
            mean = recipe.span if random.random() < 0.95 else recipe.span / 2
            span = max(5, int(random.normal(mean, 5)))
            cut = [torch.from_numpy(np.ascontiguousarray(part[at : at + span])) for part in (inputs, targets)]
            yield _Batch(cut[0].long(), cut[1], None, cut[1].numel(), span / recipe.span)
            at += span


@dataclass(frozen=True)
class _Batch:
    """Inputs and targets of a step, both (places, sentences).

    Args:
        kept: which of them are real, flattened; None where all are.
        tokens: real ones.
        rate: what the learning rate is multiplied by.
    """

    inputs: Tensor
    targets: Tensor
    kept: Tensor | None
    tokens: int
    rate: float = 1.0


def equal_length_groups(lengths: NDArray[np.int64], batch: int, random: np.random.Generator) -> list[NDArray[np.int64]]:
    """Sentences of one length each, at most `batch` of them, together; which of that length, is random."""
    shuffled = random.permutation(len(lengths))
    order = shuffled[np.argsort(lengths[shuffled], kind="stable")]
    borders = np.flatnonzero(np.diff(lengths[order])) + 1
    return [same[i : i + batch] for same in np.split(order, borders) for i in range(0, len(same), batch) if len(same)]
