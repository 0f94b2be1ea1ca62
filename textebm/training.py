"""The training loop: what is done, in which order, and when. The learner says how a step is made."""

import dataclasses
import itertools
import json
import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from textebm import checkpoint, evaluation, hardware, memory, whole_files
from textebm.chains import ChainMemory, Visited
from textebm.checkpoint import Progress
from textebm.config import Config, to_dict
from textebm.data.prefetch import ahead
from textebm.data.registry import SPLITS, Split
from textebm.errors import CheckpointError, ConfigError, DataError, DivergenceError, ProcessError, UsageError
from textebm.materials import Corpus, Material, material_of
from textebm.model.generators import Batch
from textebm.model.langevin import LARGEST_NORM
from textebm.model.latent_model import LatentModel
from textebm.model.learner import Learner, StepReport
from textebm.model.random import stream
from textebm.phases import Improvement, Phases
from textebm.processes import ALONE, World

if TYPE_CHECKING:
    from filelock import FileLock

READ_EVERY = 20
"""Steps between two readings of the losses: reading one waits for the device."""
LARGEST_ENERGY = 1e4
"""Mean |f(z)| in nats beyond which training has run away (published text energies reach about −190)."""
MAY_CHANGE = ("data_dir", "on_divergence")
"""Settings with which a run may go on though it began with others: where the data lie, and what is done about chains
that explode, which none has done up to the checkpoint if that stops the run."""
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


class Loaded(NamedTuple):
    """A batch, and what of it is this process's.

    rows: the samples of the whole batch, by number. own: those of them that are this process's. x: what they hold, on
    the device; None where it has none.
    """

    rows: NDArray[np.int64]
    own: NDArray[np.int64]
    x: Batch | None


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
    world: World = ALONE,
) -> Path:
    """Train a model.

    Several processes make each step together, on a share of the batch each. The first one alone writes and is watched.

    Args:
        config: the run's configuration; a resumed run must be given its own.
        corpus: where sentences or images come from (see `Material.resolve`).
        run_dir: the run folder.
        limits: when to end early, when to save.
        device: where to compute.
        resume: go on from the folder's last checkpoint, where there is one.
        observer: who watches.
        world: the processes that train together; all of them call this with the same arguments, but for the device.

    Returns:
        The last checkpoint's folder.

    Raises:
        DataError: the corpus is unusable.
        CheckpointError: the folder holds a run already (and `resume` is false), or one of another configuration or
            text; another process trains in it; its checkpoints are all damaged; or it cannot be written any more.
        DivergenceError: a loss or a latent is not finite, or energies have run away; the last good checkpoint stays.
        ConfigError: a setting is not for several processes.
        ProcessError: another process of several has ended.
    """
    require_shareable(config, world)
    with _only_one_run(run_dir, world):
        watched = observer if observer is not None and world.first else Silent()
        run = _Run(config, corpus, run_dir, limits or Limits(), torch.device(device), watched, world)
        run.start(resume)
        while not run.finished():
            rest = run.material.batches(run.progress.epoch, run.progress.batch)
            for batch in ahead(run.load, rest):
                if run.finished():
                    break
                with_encoder, chains = run.before_step(batch), run.chains_of(batch)
                report = run.learner.step(batch.x, run.progress.step, chains, with_encoder, len(batch.rows))
                run.after_step(report, run.material.units(batch.rows))
            else:
                run.end_epoch()
        return run.end()


def require_shareable(config: Config, world: World) -> None:
    """Check that several processes can train with a configuration as one would.

    Raises:
        ConfigError: they cannot; the message names the setting.
    """
    if world.count == 1:
        return
    if config.generator.kind == "convolutional" and config.generator.convolution.normalisation == "batch":
        raise ConfigError(
            f"generator.convolution.normalisation is 'batch', and there are {world.count} processes, each of which "
            "would see the statistics of its own share: take group, which normalises each image by itself"
        )
    if config.inference.kind == "persistent" and world.local_count < world.count:
        raise ConfigError(
            "inference.kind is 'persistent', whose chains stand in one file that is mapped, and there are processes on "
            "several machines: start all on one, or take short-run"
        )


@contextmanager
def _only_one_run(run_dir: Path, world: World) -> Iterator[None]:
    """Hold a run folder, made if need be; the system lets go of it when the process ends, however it ends.

    Of several processes the first one holds it for all.

    Raises:
        CheckpointError: another run holds it.
        UsageError: it cannot be written.
    """
    from filelock import FileLock, Timeout

    lock = FileLock(run_dir / LOCK)

    def hold() -> None:
        try:
            run_dir.mkdir(parents=True, exist_ok=True)
            lock.acquire(timeout=0)
        except Timeout:
            raise CheckpointError(
                f"another process trains in {run_dir}: wait for it, stop it, or name another --run-dir"
            ) from None
        except OSError as error:
            raise UsageError(f"the run folder {run_dir} cannot be written: {error.strerror}") from None

    world.told(hold)
    try:
        yield
    finally:
        if world.first:
            _let_go(run_dir, lock)


def _let_go(run_dir: Path, lock: "FileLock") -> None:
    """Release a run folder, and take it away if nothing is in it."""
    lock.release()
    if not any(path for path in run_dir.iterdir() if path.name != LOCK):  # nothing came of it
        (run_dir / LOCK).unlink(missing_ok=True)
        run_dir.rmdir()


class _Run:
    """The state of a run, and what happens around its learning steps."""

    def __init__(
        self,
        config: Config,
        corpus: Corpus,
        run_dir: Path,
        limits: Limits,
        device: torch.device,
        observer: Observer,
        world: World,
    ) -> None:
        self.config, self.corpus, self.run_dir, self.limits = config, corpus, run_dir, limits
        self.device, self.observer, self.kind, self.world = device, observer, material_of(config), world
        self.progress = Progress()
        self.unread: list[StepReport] = []
        self.unread_units = 0
        self.saved: Path | None = None
        self.validated_at = -1

    def start(self, resume: bool) -> None:
        """Load the data, make or load the model, and write the run folder's first files."""
        found, damage = self.world.told(lambda: self._newest(resume))
        last = None if found is None else Path(found)
        if last is not None:
            written, self.progress = checkpoint.read_run(last)
            if changed := differences(to_dict(written), to_dict(self.config)):
                raise CheckpointError(
                    f"{self.run_dir} was trained with other settings than those given now, and can only go on with its "
                    f"own: {', '.join(changed)}"
                )
        self.contents = self._digests()
        if last is not None:
            self._check_contents(last)
        load = self.kind.load
        self.material: Material = self.world.first_then_all(
            lambda: load(self.config, self.corpus, last, self._prepared)
        )
        self.steps_per_epoch = self.material.batches_an_epoch
        self.model = self._model(last)
        self.model.to(self.device).train()
        self.learner = Learner(self.model, self.config, self.steps_per_epoch, self.world)
        self.phases = Phases(self.config.bound, self.steps_per_epoch * self.config.epochs)
        if last is not None:
            checkpoint.restore_learner(last, self.learner)
            self.saved = last
            if self.progress.batch == 0:  # saved at the end of an epoch, after its validation
                self.validated_at = self.progress.step
        self._require_same_weights()
        self.world.told(lambda: self._prepare_folder(-1 if last is None else self.progress.step))
        self.chains = self._chains(last) if self.model.method.is_persistent else None
        self.began, self.before = time.monotonic(), self.progress.seconds
        self._log_start(last, damage)
        self.observer.begin(self._last_step(), self.progress.step)

    def _newest(self, resume: bool) -> tuple[str | None, list[str]]:
        """The newest whole checkpoint, which is the last one from now on, and what is wrong with newer ones."""
        if not resume and checkpoint.holds_run(self.run_dir):
            raise CheckpointError(f"{self.run_dir} holds a run already; --resume auto goes on with it")
        last, damage = checkpoint.newest_whole(self.run_dir)
        if last is not None and damage:
            checkpoint.go_back_to(last)
        return None if last is None else str(last), damage

    def _digests(self) -> dict[Split, str]:
        """The digest of each split; on several machines, that all have the same is checked on each."""
        digests = self.world.told(lambda: {split: self.corpus.digest(split) for split in SPLITS})
        if not self.world.first and self.world.local_rank == 0:
            for split in SPLITS:
                if self.corpus.digest(split) != digests[split]:
                    raise DataError(
                        f"process {self.world.rank} finds other {self.kind.noun} in {self.corpus.describe(split)} "
                        f"({split}) than process 0: put the same data on all machines"
                    )
        return digests

    def _log_start(self, last: Path | None, damage: list[str]) -> None:
        """The first line of a sitting."""
        if not self.world.first:
            return
        made_by = {"commit": hardware.commit(), "hardware": hardware.hardware_class(self.device)}
        inference, has_chain = self.config.inference, self.model.method.has_chain
        ends = {"last_step": self._last_step(), "annealing_steps": inference.annealing_steps if has_chain else 0}
        kind = "start" if last is None else "resume"
        self._log(
            kind,
            data=self.material.describe(self.corpus.name),
            device=str(self.device),
            processes=self.world.count,
            threads=torch.get_num_threads(),
            precision=self.learner.precision,
            sampled_softmax=inference.sampled_softmax if has_chain else 0,
            **made_by,
            **ends,
            **({"damage": damage} if damage else {}),
        )

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
            whole_files.write_text(self.run_dir / "config.json", json.dumps(to_dict(self.config), indent=2) + "\n")
        except OSError as error:
            raise UsageError(f"the run folder {self.run_dir} cannot be written: {error.strerror}") from None

    def _chains(self, last: Path | None) -> ChainMemory:
        """New chains, or those of the checkpoint that the run goes on from; all processes share their file."""
        samples = len(self.material.train)
        made = []

        def make() -> None:
            with self._writing():
                if last is None:
                    made.append(ChainMemory.begin(self.run_dir, samples, self.model.prior, self.config.seed))
                else:
                    made.append(ChainMemory.restore(last, self.run_dir, samples, self.config.prior.latent_dim))

        self.world.told(make)
        return made[0] if made else ChainMemory.share(self.run_dir)

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
        return self.progress.step >= self._last_step() or self.world.any(late or self.limits.stop())

    def interrupted(self) -> bool:
        """Whether any process was asked to stop."""
        return self.world.any(self.limits.stop())

    def load(self, rows: NDArray[np.int64]) -> Loaded:
        """A batch, of which this process's samples are read."""
        own = rows[self.learner.cut(len(rows)).rows]
        return Loaded(rows, own, self.material.train.batch(own).to(self.device) if len(own) else None)

    def chains_of(self, batch: Loaded) -> Visited | None:
        """The persistent chains of this process's samples, in a run that has them."""
        return None if self.chains is None else self.chains.of(batch.own, self.device)

    def before_step(self, batch: Loaded) -> bool:
        """What a phase asks for before a learning step; returns whether the encoder is to learn in that step."""
        if self.phases.generator_starts_anew(self.progress):
            self.learner.reset_generator(self.progress.step)
        most = self.phases.encoder_updates(self.progress)
        if most == 0:
            return True
        number, improvement = self.progress.step, Improvement()
        for update, one in enumerate(itertools.chain([batch], self._other_batches(number, most - 1)), start=1):
            loss = self.learner.encoder_step(one.x, number, update, len(one.rows))
            if not improvement.goes_on(loss, self.material.units(one.rows)):
                break
        return False

    def _other_batches(self, number: int, most: int) -> Iterator[Loaded]:
        """Batches of the epoch from a random place on, for the updates before learning step `number`."""
        source = stream(self.config.seed, "aggressive", number)
        first = int(torch.randint(self.steps_per_epoch, (), generator=source))
        epoch = self.progress.epoch
        rounds = itertools.chain([first], itertools.repeat(0))
        every = itertools.chain.from_iterable(self.material.batches(epoch, begin) for begin in rounds)
        return map(self.load, itertools.islice(every, most))

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
        if self.interrupted():  # whoever interrupts does not wait for that: a resumed run begins with it
            return
        self.progress = dataclasses.replace(self.progress, epoch=self.progress.epoch + 1, batch=0)
        if self.phases.encoder_updates(self.progress):
            samples = self.config.evaluation.sentences
            valid, seed = self.material.valid, self.config.seed
            known = self.world.told(lambda: evaluation.mutual_information(self.model, valid, seed, samples))
            self.progress = self.phases.after_epoch(self.progress, known)
            self._log("phase", mutual_information=known, aggressive=not self.progress.encoder_caught_up)
        self._validate_and_save()

    def end(self) -> Path:
        """Validate and save where the run stopped, unless that is done already."""
        if self.validated_at != self.progress.step:
            if self.interrupted():
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
        measured = self.material.validate(model, self.world)
        _check(measured.to_dict(), self.progress.step, self.run_dir)
        units: dict[str, Any] = {}
        if settings.active_unit_sentences and self.config.prior.dimensions:
            units = self.material.latent_use(model, self.world)
        samples = self.world.told(self._draw)
        score = measured.score(settings.select_by)
        before = self.progress.best_score
        best = before is None or score < before or self.phases.is_provisional(self.progress.best_step)
        if best:
            self.progress = dataclasses.replace(self.progress, best_score=score, best_step=self.progress.step)
        self.validated_at = self.progress.step
        self._log("valid", **{**measured.to_dict(), **units}, best=best, samples=samples)  # the KL is of `density`
        self._save(best)
        memory.give_back()

    def _draw(self) -> list[str]:
        """Samples for the log."""
        with self._writing():
            return self.material.draw(self.learner.result, self.run_dir, self.progress.step)

    def _save(self, best: bool) -> None:
        self._read_losses()
        self._require_same_weights()
        self.progress = dataclasses.replace(self.progress, seconds=self.before + self._sitting())
        self.saved = Path(self.world.told(lambda: str(self._write(best))))

    def _require_same_weights(self) -> None:
        """Raise a ProcessError if the processes do not hold the same weights, which they never tell each other.

        Each makes the same step on the same sums. Processors of different kinds may round it differently.
        """
        if not self.world.same(list(self.model.parameters())):
            raise ProcessError(
                f"at step {self.progress.step} the processes of this run do not hold the same weights: they must run "
                "on hardware of one kind, with the same versions of textebm and torch"
            )

    def _write(self, best: bool) -> Path:
        """Write a checkpoint."""
        with self._writing():
            return checkpoint.save(
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
        if not self.world.first:
            return
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
    """The settings that are not the same and make another run (`MAY_CHANGE`), as `key was before and is now`."""
    found = []
    for key, old in before.items():
        if isinstance(old, dict):
            found += differences(old, now[key], f"{where}{key}.")
        elif old != now[key] and where + key not in MAY_CHANGE:
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
