"""Live views of a run: what stands in its log, sent to TensorBoard, Weights & Biases or Trackio as it is written.

A tracker watches: it sees lines of the log and draws no random number, so that a run is the same to the last bit with
it and without. Where it fails, that is said once and the run goes on.
"""

import dataclasses
import json
import secrets
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any, ClassVar, Literal

from textebm import checkpoint, plots, whole_files
from textebm.config import Config, flat
from textebm.errors import CheckpointError, UsageError
from textebm.training import Observer

Name = Literal["tensorboard", "wandb", "trackio"]
PROJECT = "textebm"
"""Under which runs stand in trackers that sort runs by project."""
STATE = "tracking.json"
"""File of the run folder that says how far each tracker has come."""
KINDS = ("train", "phase", "valid")
"""Lines of the log that are tracked. At one step there is at most one of each."""


def require(names: Sequence[Name]) -> None:
    """Check that trackers are installed.

    Raises:
        UsageError: one is not.
    """
    for name in names:
        missing = [package for package in ("accelerate", name) if find_spec(package) is None]
        if missing:
            others = "" if name == "tensorboard" else f" {name}"
            raise UsageError(
                f"--track {name} needs {' and '.join(missing)}, which is not installed: "
                f"pip install 'textebm[track]'{others}"
            )


class Tracking:
    """An observer of a run that passes everything on to another one, and the log to trackers.

    Every line reaches a tracker once, over all sittings of a run: a resumed run does not send again what it repeats,
    and a tracker that is asked for later, or that failed in an earlier sitting, gets what it has missed.

    Args:
        view: the other observer.
        names: trackers, none of which may be missing (see `require`).
        run_dir: the run folder.
        config: the run's configuration, told as its hyper-parameters.
        warn: told what has failed, once for each tracker.
    """

    def __init__(
        self, view: Observer, names: Sequence[Name], run_dir: Path, config: Config, warn: Callable[[str], None]
    ) -> None:
        self.view, self.names, self.run_dir, self.config, self.warn = view, tuple(names), run_dir, config, warn
        self.feeds: dict[Name, _Feed] = {}
        self.marks: dict[str, _Mark] = {}

    def __enter__(self) -> "Tracking":
        return self

    def __exit__(self, *ignored: object) -> None:
        for name, feed in list(self.feeds.items()):
            self._safely(name, feed.finish)

    def prepare(self, what: str, samples: int) -> None:
        """Passed on."""
        self.view.prepare(what, samples)

    def begin(self, steps: int, done: int) -> None:
        """Passed on."""
        self.view.begin(steps, done)

    def step(self, units: int) -> None:
        """Passed on."""
        self.view.step(units)

    def record(self, line: dict[str, Any]) -> None:
        """Pass a line on, and send it to the trackers."""
        self.view.record(line)
        if line["kind"] in ("start", "resume"):
            self.marks = {} if line["kind"] == "start" else self._read_marks()
            for name in dict.fromkeys(self.names):
                self._safely(name, lambda name=name: self._start(name, line))  # type: ignore[misc]
        else:
            self._send(line)

    def _start(self, name: Name, line: Mapping[str, Any]) -> None:
        """Start a tracker at the step of a first line, and send what it has missed."""
        kind, before = FEEDS[name], self.marks.get(name)
        mark = before or _Mark(secrets.token_hex(4))
        if kind.rewinds and mark.step > line["step"]:  # what it saw after that step is taken back, and is sent again
            mark = dataclasses.replace(mark, step=line["step"], kinds=KINDS)
        self.marks[name] = mark
        feed = self.feeds[name] = kind(self.run_dir, mark.identity, line["step"])
        if before is None:
            made_by = {f"run.{key}": str(line[key]) for key in ("commit", "hardware", "device", "precision")}
            feed.configure(flat(self.config) | made_by)
        for earlier in plots.read_log(self.run_dir):
            self._send_to(name, earlier)

    def _send(self, line: Mapping[str, Any]) -> None:
        for name in list(self.feeds):
            self._safely(name, lambda name=name: self._send_to(name, line))  # type: ignore[misc]

    def _send_to(self, name: Name, line: Mapping[str, Any]) -> None:
        """Send a line, unless the tracker has had it, or it is of a kind that is not tracked."""
        if line["kind"] not in KINDS or not self.marks[name].is_before(line):
            return
        kind, step, feed = line["kind"], line["step"], self.feeds[name]
        feed.log(scalars(line), step)
        if line.get("samples"):
            show = feed.show_images if self.config.generator.kind == "convolutional" else feed.show_sentences
            show(f"{kind}/samples", line["samples"], step)
        self.marks[name] = self.marks[name].at(line)
        state = {name: dataclasses.asdict(mark) for name, mark in self.marks.items()}
        whole_files.write_text(self.run_dir / STATE, json.dumps(state, indent=2) + "\n")

    def _read_marks(self) -> "dict[str, _Mark]":
        path = self.run_dir / STATE
        if not path.exists():
            return {}
        try:
            return {name: _Mark(**mark) for name, mark in checkpoint.read_json(path).items()}
        except (CheckpointError, TypeError):
            self.warn(f"warning: {path} is damaged: trackers show this run from its beginning, under a new name")
            return {}

    def _safely(self, name: Name, act: Callable[[], None]) -> None:
        """Do something with a tracker; go on without it, and say so, where it fails."""
        try:
            act()
        except Exception as error:  # of software that is not ours, and that must not cost anybody a run
            self.feeds.pop(name, None)
            reason = " ".join(str(error).split()) or type(error).__name__
            self.warn(
                f"warning: {name} failed ({reason}). The run goes on without it; {self.run_dir / 'log.jsonl'} has "
                "every figure, and a resumed run sends what is missing"
            )


def scalars(line: Mapping[str, Any]) -> dict[str, float]:
    """The figures of a line of the log, by kind and name, as in `valid/reconstruction_nll`."""
    given = {f"{line['kind']}/{key}": value for key, value in line.items() if key != "step"}
    return {k: v for k, v in given.items() if isinstance(v, int | float) and not isinstance(v, bool)}


@dataclasses.dataclass(frozen=True)
class _Mark:
    """How far a tracker has come."""

    identity: str
    """What tells this run from others of its name."""
    step: int = -1
    """Step of the last line that it got."""
    kinds: Sequence[str] = ()
    """Kinds of the lines of that step that it got."""

    def is_before(self, line: Mapping[str, Any]) -> bool:
        """Whether a line has not been sent yet."""
        return line["step"] > self.step or (line["step"] == self.step and line["kind"] not in self.kinds)

    def at(self, line: Mapping[str, Any]) -> "_Mark":
        """The mark when that line has been sent."""
        earlier = self.kinds if line["step"] == self.step else ()
        return dataclasses.replace(self, step=line["step"], kinds=(*earlier, line["kind"]))


class _Feed(ABC):
    """A tracker of accelerate's, and what differs between trackers.

    Args:
        run_dir: the run folder, by whose name the run is known.
        identity: what tells it from others of that name.
        step: where this sitting begins.
    """

    rewinds: ClassVar[bool] = False
    """Whether what was logged after `step` is taken back."""

    def __init__(self, run_dir: Path, identity: str, step: int) -> None:
        self.run_dir = run_dir
        self.tracker = self.make(run_dir, f"{run_dir.resolve().name}-{identity}", step)
        self.tracker.start()

    @abstractmethod
    def make(self, run_dir: Path, name: str, step: int) -> Any:  # noqa: ANN401
        """The tracker, not started."""

    @abstractmethod
    def show_sentences(self, key: str, sentences: Sequence[str], step: int) -> None:
        """Show what was written."""

    @abstractmethod
    def show_images(self, key: str, files: Sequence[str], step: int) -> None:
        """Show what was drawn: files of the run folder."""

    def configure(self, values: Mapping[str, Any]) -> None:
        """Tell the hyper-parameters."""
        self.tracker.store_init_configuration(values)

    def log(self, values: Mapping[str, float], step: int) -> None:
        """Tell figures."""
        self.tracker.log(values, step=step)

    def finish(self) -> None:
        """Nothing more will come in this sitting."""
        self.tracker.finish()

    def pictures(self, files: Sequence[str]) -> list[Any]:
        """The files, read."""
        from PIL import Image

        return [Image.open(self.run_dir / file).convert("RGB") for file in files]


class _TensorBoard(_Feed):
    rewinds = True

    def make(self, run_dir: Path, name: str, step: int) -> Any:  # noqa: ANN401
        from accelerate.tracking import TensorBoardTracker

        _wait_for_a_later_name(run_dir / "tensorboard")
        return TensorBoardTracker("tensorboard", str(run_dir), purge_step=step + 1)

    def show_sentences(self, key: str, sentences: Sequence[str], step: int) -> None:
        # Indented, Markdown shows them as they are: <unk> is no element of HTML then.
        self.tracker.log({key: "\n".join(f"    {sentence}" for sentence in sentences)}, step=step)

    def show_images(self, key: str, files: Sequence[str], step: int) -> None:
        import numpy as np

        grids = {key: np.stack([np.asarray(picture) for picture in self.pictures(files)])}
        self.tracker.log_images(grids, step=step, dataformats="NHWC")


def _wait_for_a_later_name(folder: Path) -> None:
    """Wait, a second at most, until a new file of events sorts after those of earlier sittings.

    TensorBoard reads them by name, and a name begins with the second in which its file was made: of two sittings in
    one second, the later one could be read first.
    """
    made = [file.name.split(".")[3] for file in folder.rglob("events.out.tfevents.*")]
    latest = max((int(second) for second in made if second.isdigit()), default=0)
    if latest >= int(time.time()):
        time.sleep(min(1.0, latest + 1 - time.time()))


class _WandB(_Feed):
    def make(self, run_dir: Path, name: str, step: int) -> Any:  # noqa: ANN401
        from accelerate.tracking import WandBTracker

        return WandBTracker(PROJECT, name=run_dir.resolve().name, id=name, dir=str(run_dir), resume="allow")

    def show_sentences(self, key: str, sentences: Sequence[str], step: int) -> None:
        self.tracker.log_table(key, columns=["sentence"], data=[[sentence] for sentence in sentences], step=step)

    def show_images(self, key: str, files: Sequence[str], step: int) -> None:
        self.tracker.log_images({key: self.pictures(files)}, step=step)


class _Trackio(_Feed):
    def make(self, run_dir: Path, name: str, step: int) -> Any:  # noqa: ANN401
        from accelerate.tracking import TrackioTracker

        return TrackioTracker(PROJECT, name=name, resume="allow")

    def show_sentences(self, key: str, sentences: Sequence[str], step: int) -> None:
        self.tracker.log({key: "\n".join(sentences)}, step=step)

    def show_images(self, key: str, files: Sequence[str], step: int) -> None:
        """Not shown: accelerate's tracker has no way to send them. They stand in the run folder."""


FEEDS: dict[Name, type[_Feed]] = {"tensorboard": _TensorBoard, "wandb": _WandB, "trackio": _Trackio}
