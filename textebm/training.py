"""The training loop: what is done, in which order, and when. The learner says how a step is made."""

import dataclasses
import itertools
import json
import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from textebm import checkpoint, evaluation, hardware, memory
from textebm.chains import ChainMemory, Visited
from textebm.checkpoint import Progress
from textebm.config import Config, to_dict
from textebm.data.prefetch import ahead
from textebm.data.registry import SPLITS
from textebm.errors import CheckpointError, ConfigError, DivergenceError, UsageError
from textebm.materials import Corpus, Material, material_of
from textebm.model.generators import Batch
from textebm.model.langevin import LARGEST_NORM
from textebm.model.latent_model import LatentModel
from textebm.model.learner import Learner, StepReport
from textebm.model.random import stream
from textebm.phases import Improvement, Phases

READ_EVERY = 20
"""Steps between two readings of the losses: reading one waits for the device."""
LARGEST_ENERGY = 1e4
"""Mean |f(z)| in nats beyond which training has run away (published text energies reach about −190)."""
LOCK = ".lock"
"""In a run folder: held by the process that trains in it."""


@dataclasses.dataclass(frozen=True)
class Limits:
    """When to end early and cleanly, and when to save. None: no such limit."""

    max_epochs: int | None = None
    """Stop when so many epochs are done, counted from the start of the run."""
    max_steps: int | None = None
    """Stop when so many learning steps are done, counted from the start of the run."""
    max_minutes: float | None = None
    """Stop after so many minutes of this sitting."""
    checkpoint_every: int | None = None
    """Save every so many steps, besides the end of each epoch."""
    stop: Callable[[], bool] = lambda: False
    """Asked around every step; true ends the run without a last validation (an interrupt, say)."""

    def __post_init__(self) -> None:
        for name in ("max_epochs", "max_steps", "max_minutes", "checkpoint_every"):
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise ConfigError(f"{name} is {value}: it must be positive")


class Observer(Protocol):
    """Who watches a run: a progress bar, a notebook, a test."""

    def prepare(self, what: str, samples: int) -> None:
        """So many more sentences or images were read for `what`: the vocabulary, or a split. Not called for what is
        cached."""

    def begin(self, steps: int, done: int) -> None:
        """Training begins: it will end at `steps`, of which `done` are done."""

    def step(self, units: int) -> None:
        """One more step, over so many tokens or images."""

    def record(self, line: dict[str, Any]) -> None:
        """A line was written to the log."""


class Silent:
    """An observer that does nothing."""

    def prepare(self, what: str, samples: int) -> None:
        """Nothing."""

    def begin(self, steps: int, done: int) -> None:
        """Nothing."""

    def step(self, units: int) -> None:
        """Nothing."""

    def record(self, line: dict[str, Any]) -> None:
        """Nothing."""


def train(
    config: Config,
    corpus: Corpus,
    run_dir: Path,
    limits: Limits | None = None,
    device: torch.device | str = "cpu",
    resume: bool = False,
    observer: Observer | None = None,
) -> Path:
    """Train a model.

    Args:
        config: the run's configuration; a resumed run must be given its own.
        corpus: where sentences or images come from (see `Material.resolve`).
        run_dir: the run folder.
        limits: when to end early, when to save.
        device: where to compute.
        resume: go on from the folder's last checkpoint, where there is one.
        observer: who watches.

    Returns:
        The last checkpoint's folder.

    Raises:
        DataError: the corpus is unusable.
        CheckpointError: the folder holds a run already (and `resume` is false), or one of another configuration or
            text; another process trains in it; its checkpoints are all damaged; or it cannot be written any more.
        DivergenceError: a loss or a latent is not finite, or energies have run away; the last good checkpoint stays.
    """
    with _only_one_process(run_dir):
        run = _Run(config, corpus, run_dir, limits or Limits(), torch.device(device), observer or Silent())
        run.start(resume)
        data = run.material.train
        while not run.finished():
            rest = run.material.batches(run.progress.epoch, run.progress.batch)
            for rows, x in ahead(lambda rows: (rows, data.batch(rows).to(run.device)), rest):
                if run.finished():
                    break
                with_encoder = run.before_step(x)
                report = run.learner.step(x, run.progress.step, run.chains_of(rows), with_encoder)
                run.after_step(report, x.units)
            else:
                run.end_epoch()
        return run.end()


@contextmanager
def _only_one_process(run_dir: Path) -> Iterator[None]:
    """Hold a run folder, made if need be; the system lets go of it when the process ends, however it ends.

    Raises:
        CheckpointError: another process holds it.
        UsageError: it cannot be written.
    """
    from filelock import FileLock, Timeout

    lock = FileLock(run_dir / LOCK)
    try:
        run_dir.mkdir(parents=True, exist_ok=True)
        lock.acquire(timeout=0)
    except Timeout:
        raise CheckpointError(
            f"another process trains in {run_dir}: wait for it, stop it, or name another --run-dir"
        ) from None
    except OSError as error:
        raise UsageError(f"the run folder {run_dir} cannot be written: {error.strerror}") from None
    try:
        yield
    finally:
        lock.release()
        if not any(path for path in run_dir.iterdir() if path.name != LOCK):  # nothing came of it
            (run_dir / LOCK).unlink(missing_ok=True)
            run_dir.rmdir()


class _Run:
    """The state of a run, and what happens around its learning steps."""

    def __init__(
        self, config: Config, corpus: Corpus, run_dir: Path, limits: Limits, device: torch.device, observer: Observer
    ) -> None:
        self.config, self.corpus, self.run_dir, self.limits = config, corpus, run_dir, limits
        self.device, self.observer, self.kind = device, observer, material_of(config)
        self.progress = Progress()
        self.unread: list[StepReport] = []
        self.unread_units = 0
        self.saved: Path | None = None
        self.validated_at = -1

    def start(self, resume: bool) -> None:
        """Load the data, make or load the model, and write the run folder's first files."""
        if not resume and checkpoint.holds_run(self.run_dir):
            raise CheckpointError(f"{self.run_dir} holds a run already; --resume auto goes on with it")
        last, damage = checkpoint.newest_whole(self.run_dir)
        if last is not None and damage:
            checkpoint.go_back_to(last)
        if last is not None:
            written, self.progress = checkpoint.read_run(last)
            if dataclasses.replace(written, data_dir=self.config.data_dir) != self.config:
                changed = differences(to_dict(written), to_dict(self.config))
                raise CheckpointError(
                    f"{self.run_dir} was trained with other settings than those given now, and can only go on with its "
                    f"own: {', '.join(changed)}"
                )
        self.contents = {split: self.corpus.digest(split) for split in SPLITS}
        if last is not None:
            self._check_contents(last)
        self.material: Material = self.kind.load(self.config, self.corpus, last, self._prepared)
        self.steps_per_epoch = self.material.batches_an_epoch
        self.model = self._model(last)
        self.model.to(self.device).train()
        self.learner = Learner(self.model, self.config, self.steps_per_epoch)
        self.phases = Phases(self.config.bound, self.steps_per_epoch * self.config.epochs)
        if last is not None:
            checkpoint.restore_learner(last, self.learner)
            self.saved = last
            if self.progress.batch == 0:  # saved at the end of an epoch, after its validation
                self.validated_at = self.progress.step
        self._prepare_folder(-1 if last is None else self.progress.step)
        self.chains = self._chains(last) if self.model.method.is_persistent else None
        self.began, self.before = time.monotonic(), self.progress.seconds
        made_by = {"commit": hardware.commit(), "hardware": hardware.hardware_class(self.device)}
        annealing = self.config.inference.annealing_steps if self.model.method.has_chain else 0
        ends = {"last_step": self._last_step(), "annealing_steps": annealing}
        kind = "start" if last is None else "resume"
        self._log(
            kind,
            data=self.material.describe(self.corpus.name),
            device=str(self.device),
            threads=torch.get_num_threads(),
            precision=self.learner.precision,
            **made_by,
            **ends,
            **({"damage": damage} if damage else {}),
        )
        self.observer.begin(self._last_step(), self.progress.step)

    def _prepared(self, what: str, samples: int) -> None:
        """Tell who watches; whoever interrupts does not wait for a large corpus to be encoded."""
        if self.limits.stop():
            raise KeyboardInterrupt
        self.observer.prepare(what, samples)

    def _check_contents(self, last: Path) -> None:
        """A run goes on with the data that it began with, or it would not be the same run."""
        before = checkpoint.read_contents(last)
        changed = [split for split in SPLITS if before.get(split) != self.contents[split]]
        if changed:
            where = ", ".join(f"{self.corpus.describe(split)} ({split})" for split in changed)
            raise CheckpointError(
                f"{self.run_dir} was trained on other {self.kind.noun} than there {self.kind.verb} now in {where}. "
                f"Bring the former {self.kind.noun} back, or start a new run on this one: textebm train --config "
                f"{self.run_dir / 'config.json'}"
            )

    def _prepare_folder(self, step: int) -> None:
        """Make the run folder, write its config.json, and drop what was logged after `step`."""
        try:
            self.run_dir.mkdir(parents=True, exist_ok=True)
            checkpoint.truncate_log(self.run_dir / "log.jsonl", step)
            checkpoint.write_text(self.run_dir / "config.json", json.dumps(to_dict(self.config), indent=2) + "\n")
        except OSError as error:
            raise UsageError(f"the run folder {self.run_dir} cannot be written: {error.strerror}") from None

    def _chains(self, last: Path | None) -> ChainMemory:
        """New chains, or those of the checkpoint that the run goes on from."""
        samples = len(self.material.train)
        with self._writing():
            if last is None:
                return ChainMemory.begin(self.run_dir, samples, self.model.prior, self.config.seed)
            return ChainMemory.restore(last, self.run_dir, samples, self.config.prior.latent_dim)

    def _model(self, last: Path | None) -> LatentModel:
        """A new model, or that of the checkpoint that the run goes on from."""
        if last is not None:
            return LatentModel.from_pretrained(last)
        return LatentModel(self.material.model_config(), self.config.seed)

    def _last_step(self) -> int:
        epochs = min(self.config.epochs, self.limits.max_epochs or self.config.epochs)
        return min(epochs * self.steps_per_epoch, self.limits.max_steps or epochs * self.steps_per_epoch)

    def _sitting(self) -> float:
        return time.monotonic() - self.began

    def finished(self) -> bool:
        """Whether a limit, or the last step, is reached."""
        late = self.limits.max_minutes is not None and self._sitting() > 60 * self.limits.max_minutes
        return late or self.progress.step >= self._last_step() or self.limits.stop()

    def chains_of(self, rows: NDArray[np.int64]) -> Visited | None:
        """The persistent chains of these samples, in a run that has them."""
        return None if self.chains is None else self.chains.of(rows, self.device)

    def before_step(self, x: Batch) -> bool:
        """What a phase asks for before a learning step on x; returns whether the encoder is to learn in that step."""
        if self.phases.generator_starts_anew(self.progress):
            self.learner.reset_generator(self.progress.step)
        most = self.phases.encoder_updates(self.progress)
        if most == 0:
            return True
        number, improvement = self.progress.step, Improvement()
        for update, batch in enumerate(itertools.chain([x], self._other_batches(number, most - 1)), start=1):
            loss = self.learner.encoder_step(batch, number, update)
            if not improvement.goes_on(loss, batch.units):
                break
        return False

    def _other_batches(self, number: int, most: int) -> Iterator[Batch]:
        """Batches of the epoch from a random place on, for the updates before learning step `number`."""
        source = stream(self.config.seed, "aggressive", number)
        first = int(torch.randint(self.steps_per_epoch, (), generator=source))
        data, epoch = self.material.train, self.progress.epoch
        rounds = itertools.chain([first], itertools.repeat(0))
        every = itertools.chain.from_iterable(self.material.batches(epoch, begin) for begin in rounds)
        return (data.batch(rows).to(self.device) for rows in itertools.islice(every, most))

    def after_step(self, report: StepReport, units: int) -> None:
        """Count a step, read the losses now and then, save now and then."""
        self.progress = dataclasses.replace(
            self.progress,
            step=self.progress.step + 1,
            batch=self.progress.batch + 1,
            seconds=self.before + self._sitting(),
        )
        self.unread.append(report)
        self.unread_units += units
        self.observer.step(units)
        if self.progress.step % READ_EVERY == 0:  # so that a resumed run reads at the same steps
            self._read_losses()
        every = self.limits.checkpoint_every
        if every and self.progress.step % every == 0:
            self._save(best=False)

    def end_epoch(self) -> None:
        """Validate, and save; the epoch is then done."""
        if self.limits.stop():  # whoever interrupts does not wait for that: a resumed run begins with it
            return
        self.progress = dataclasses.replace(self.progress, epoch=self.progress.epoch + 1, batch=0)
        if self.phases.encoder_updates(self.progress):
            samples = self.config.evaluation.sentences
            known = evaluation.mutual_information(self.model, self.material.valid, self.config.seed, samples)
            self.progress = self.phases.after_epoch(self.progress, known)
            self._log("phase", mutual_information=known, aggressive=not self.progress.encoder_caught_up)
        self._validate_and_save()

    def end(self) -> Path:
        """Validate and save where the run stopped, unless that is done already."""
        if self.validated_at != self.progress.step:
            if self.limits.stop():
                self._save(best=False)
            elif self.progress.batch == self.steps_per_epoch:  # resumed after an interrupt at the very last step
                self.end_epoch()
            else:
                self._validate_and_save()
        assert self.saved is not None
        return self.saved

    def _read_losses(self) -> None:
        """Log the mean of the steps since the last reading; stop the run if it has diverged."""
        if not self.unread:
            return
        names = [f.name for f in dataclasses.fields(self.unread[0])]
        rows = torch.stack([torch.stack([getattr(r, name).float() for name in names]) for r in self.unread])
        means = dict(zip(names, rows.mean(0).tolist(), strict=True))
        self.unread, units, self.unread_units = [], self.unread_units, 0
        self._log("train", **means, **{self.kind.unit: units})
        if self.config.on_divergence == "stop":
            _check_chains(means["exploded_chains"], self.progress.step, self.run_dir)
        _check(means, self.progress.step, self.run_dir)

    def _validate_and_save(self) -> None:
        self._read_losses()
        settings, model = self.config.evaluation, self.learner.result
        measured = self.material.validate(model)
        _check(measured.to_dict(), self.progress.step, self.run_dir)
        units: dict[str, Any] = {}
        if settings.active_unit_sentences and self.config.prior.dimensions:
            units = self.material.latent_use(model)
        with self._writing():
            samples = self.material.draw(model, self.run_dir, self.progress.step)
        score = measured.score(settings.select_by)
        before = self.progress.best_score
        best = before is None or score < before or self.phases.is_provisional(self.progress.best_step)
        if best:
            self.progress = dataclasses.replace(self.progress, best_score=score, best_step=self.progress.step)
        self.validated_at = self.progress.step
        self._log("valid", **{**units, **measured.to_dict()}, best=best, samples=samples)
        self._save(best)
        memory.give_back()

    def _save(self, best: bool) -> None:
        self._read_losses()
        self.progress = dataclasses.replace(self.progress, seconds=self.before + self._sitting())
        with self._writing():
            self.saved = checkpoint.save(
                self.run_dir,
                self.learner.result,
                self.material,
                self.learner,
                self.config,
                self.progress,
                best,
                self.contents,
                self.chains,
            )

    @contextmanager
    def _writing(self) -> Iterator[None]:
        """Say what is lost, and what is not, when the run folder cannot be written: the disk is full, say."""
        try:
            yield
        except OSError as error:
            last = checkpoint.pointed_at(self.run_dir, "last")
            what = f"{self.run_dir} cannot be written at step {self.progress.step}: {error.strerror or error}"
            if last is None:
                raise CheckpointError(
                    f"{what}. No checkpoint had been saved yet: make room there and start again"
                ) from None
            raise CheckpointError(
                f"{what}. {last} is saved: make room there, then go on with: textebm train --resume {self.run_dir}"
            ) from None

    def _log(self, kind: str, **values: Any) -> None:  # noqa: ANN401
        line = {
            "kind": kind,
            "step": self.progress.step,
            "epoch": self.progress.epoch + self.progress.batch / self.steps_per_epoch,
            "seconds": round(self.before + self._sitting(), 3),
            **values,
        }
        with self._writing(), (self.run_dir / "log.jsonl").open("a", encoding="utf-8") as log:
            log.write(json.dumps(finite(line), ensure_ascii=False, allow_nan=False) + "\n")
        self.observer.record(line)


def finite(line: dict[str, Any]) -> dict[str, Any]:
    """The line with figures that are not finite as text: JSON has no number for them."""
    return {key: str(v) if isinstance(v, float) and not math.isfinite(v) else v for key, v in line.items()}


def differences(before: dict[str, Any], now: dict[str, Any], where: str = "") -> list[str]:
    """The settings that are not the same, as `key: before, now`."""
    found = []
    for key, old in before.items():
        if isinstance(old, dict):
            found += differences(old, now[key], f"{where}{key}.")
        elif old != now[key] and key != "data_dir":
            found.append(f"{where}{key} was {old!r} and is {now[key]!r}")
    return found


def _advice(run_dir: Path) -> str:
    """What is left, and what to try, where a run has diverged."""
    saved = checkpoint.pointed_at(run_dir, "last")
    kept = f"the last good checkpoint is {saved}" if saved is not None else "no checkpoint had been saved yet"
    return (
        f"{kept}. Try a smaller --inference.step-size or --prior.step-size, a smaller --optimiser.lr or "
        "--optimiser.energy-lr, or some --optimiser.energy-weight-decay"
    )


def _check_chains(exploded: float, step: int, run_dir: Path) -> None:
    """Raise a DivergenceError if chains of the last steps have exploded; so many a step."""
    if exploded > 0:
        raise DivergenceError(
            f"training diverged before step {step}: {exploded:.3g} chains a step exploded (a norm above "
            f"{LARGEST_NORM:g}, or not a number); {_advice(run_dir)}; --on-divergence reject puts such chains back to "
            "their starts and goes on"
        )


def _check(means: dict[str, float], step: int, run_dir: Path) -> None:
    """Raise a DivergenceError if what the last steps, or a validation, saw is not finite or has run away."""
    for name, value in means.items():
        if not math.isfinite(value):
            raise DivergenceError(f"training diverged before step {step}: {name} is {value}; {_advice(run_dir)}")
    for name in ("posterior_energy", "prior_energy"):
        if abs(means.get(name, 0.0)) > LARGEST_ENERGY:
            found = f"{name} is {means[name]:.3g}"
            raise DivergenceError(f"training diverged before step {step}: {found}; {_advice(run_dir)}")
    for name in ("posterior_norm", "prior_norm"):
        if means.get(name, 0.0) > LARGEST_NORM:
            found = f"{name} is {means[name]:.3g}"
            raise DivergenceError(f"training diverged before step {step}: {found}; {_advice(run_dir)}")
