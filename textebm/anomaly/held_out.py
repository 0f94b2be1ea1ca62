"""One class held out of images: the runs that are trained without it, and their scores at the ends of epochs.

A figure is the mean over the last epochs of training. An epoch's scores are kept in the run folder:

    RUN/anomaly/epoch-N.safetensors   the parts of each test image's score
    RUN/anomaly/epoch-N.json          what they are of; written last, so what has one is whole

Scores by more samples or longer chains than the published ones stand beside them, under names that say so.
"""

import dataclasses
import functools
import json
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray

from textebm import checkpoint, evaluation, training, whole_files
from textebm.anomaly.scores import ONE_CHAIN, EpochScores, Sampling, Scores, score
from textebm.complexity import Trend, complexities
from textebm.config import Config
from textebm.data.images import EncodedImages, ImageCorpus, class_number
from textebm.errors import CheckpointError, DataError, UsageError
from textebm.materials.images import ImageMaterial
from textebm.model.latent_model import load_tensors, save_tensors

Split = Literal["A", "B"]
"""A: the images of all published splits; 80 % of those of the other classes are train, and test is the rest and all of
the class that is held out. B: the published splits, without that class in train; test is the published one."""

LAST_EPOCHS = 10
"""Over which the published figures are means."""
REFERENCE = 2000
"""Images of training that say what score is usual at a complexity."""
FORMAT = 3
"""Of kept scores."""


def last_epochs(epochs: int) -> int:
    """How many epochs at the end of a run are scored, where nothing else is asked for: as many as behind the published
    figures, or half of a shorter run.
    """
    return min(LAST_EPOCHS, (epochs + 1) // 2)


@dataclasses.dataclass(frozen=True)
class Cell:
    """What one run is for: a split, the class that is held out, and the run's seed."""

    split: Split
    held_out: str
    """The class's name."""
    number: int
    """The class's number."""
    seed: int

    @property
    def name(self) -> str:
        """Of its run folder."""
        return f"{self.split}-class-{self.number}-seed-{self.seed}"

    def config(self, settings: Config) -> Config:
        """The settings of its run: those given, with its class left out of its split, and its seed."""
        images = dataclasses.replace(settings.images, exclude_class=self.held_out, pool=self.split == "A")
        return dataclasses.replace(settings, images=images, seed=self.seed)


def cells(settings: Config, held_out: Sequence[str], splits: Sequence[Split], seeds: int) -> list[Cell]:
    """The runs that a table is made of: every split, class and seed.

    Args:
        settings: of all of them.
        held_out: names or numbers of classes; `all` is every class.
        splits: A, B, or both.
        seeds: runs of each, with seeds from that of the settings on.

    Raises:
        DataError: there is no such class, or the images have none.
        UsageError: no class is named, or the settings are of a model of text.
    """
    if settings.generator.kind != "convolutional":
        raise UsageError(
            "a class is held out of images, and the settings are of a model of text: name a run with --model, and "
            "anomalous sentences with --anomalies"
        )
    corpus = ImageMaterial.resolve(settings)
    names = list(corpus.class_names) if list(held_out) == ["all"] else list(held_out)
    if not names:
        raise UsageError("--held-out names the class to be detected, or all")
    numbers = dict.fromkeys(class_number(name, corpus.class_names, corpus.name) for name in names)
    return [
        Cell(split, corpus.class_names[number], number, settings.seed + seed)
        for split in dict.fromkeys(splits)
        for number in numbers
        for seed in range(seeds)
    ]


def grouped(found: Sequence[Cell]) -> Iterator[tuple[Split, list[Cell]]]:
    """Split and runs of each figure."""
    for split, held_out in dict.fromkeys((cell.split, cell.held_out) for cell in found):
        yield split, [c for c in found if (c.split, c.held_out) == (split, held_out)]


@dataclasses.dataclass(frozen=True)
class Test:
    """What is scored: the test split of a run.

    split, held_out: which one, and the class that is held out. images: the split's. anomalous: (images,) whether each
    is of that class. digest: of both. train: the images of training, some of which say what score is usual at a
    complexity.
    """

    split: Split
    held_out: str
    images: EncodedImages
    anomalous: NDArray[np.bool_]
    digest: str
    train: EncodedImages

    @property
    def named(self) -> dict[str, str]:
        """Which test it is, as results say it."""
        return {"split": self.split, "held_out": self.held_out}

    @property
    def facts(self) -> dict[str, object]:
        """What a signature says of it."""
        named = {"anomaly": self.held_out, "anomaly-split": self.split}
        return {**named, "test": self.digest, "images": len(self.anomalous)}

    @functools.cached_property
    def complexity(self) -> NDArray[np.float64]:
        """(images,)"""
        return complexities(self.images.pixels)

    @functools.cached_property
    def reference(self) -> NDArray[np.int64]:
        """Rows of `train` that stand for it: at even distances, since classes may lie one after the other."""
        return evaluation.spread(len(self.train), REFERENCE)

    @functools.cached_property
    def reference_complexity(self) -> NDArray[np.float64]:
        """(reference,)"""
        return complexities(self.train.pixels[self.reference])

    @staticmethod
    def of(corpus: ImageCorpus) -> "Test":
        """The test split of images with a class held out.

        Raises:
            DataError: it lacks images of the class, or of others.
        """
        images = corpus.encoded("test")
        if images.labels is None or corpus.excluded is None:
            raise DataError(f"{corpus.name}: no class is held out of it (images.exclude_class)")
        named, anomalous = corpus.class_names[corpus.excluded], images.labels == corpus.excluded
        if anomalous.all() or not anomalous.any():
            missing = "other classes than" if anomalous.all() else "the class"
            raise DataError(f"{corpus.name}: the test split holds no image of {missing} {named}, so nothing is told")
        digest = f"{images.report.digest[:12]}-{corpus.excluded}"
        return Test("A" if corpus.pool else "B", named, images, anomalous, digest, corpus.encoded("train"))


@dataclasses.dataclass(frozen=True)
class Sitting:
    """How runs are worked on: where, how long, how they are scored, and who watches.

    Args:
        runs: folder of their run folders.
        device: where to compute.
        sampling: how z is inferred from what is scored.
        last: epochs at the end of a run that are scored; None: see `last_epochs`.
        deadline: of `time.monotonic`, at which training stops; None: none.
        stop: asked around every step; true ends the sitting.
        observer: who watches the training.
        watch: told how many images are just scored.
    """

    runs: Path
    device: torch.device
    sampling: Sampling = ONE_CHAIN
    last: int | None = None
    deadline: float | None = None
    stop: Callable[[], bool] = lambda: False
    observer: training.Observer = dataclasses.field(default_factory=training.Silent)
    watch: Callable[[int], object] = lambda done: None

    def epochs(self, config: Config) -> range:
        """Those of a run that are scored."""
        last = last_epochs(config.epochs) if self.last is None else self.last
        return range(max(1, config.epochs - last + 1), config.epochs + 1)

    @property
    def minutes(self) -> float | None:
        """What is left of it."""
        return None if self.deadline is None else max((self.deadline - time.monotonic()) / 60, 1e-9)

    def is_over(self) -> bool:
        """Whether nothing is to be begun any more."""
        return self.stop() or (self.deadline is not None and time.monotonic() >= self.deadline)


def work_on(cell: Cell, settings: Config, sitting: Sitting) -> tuple[Test, list[EpochScores]] | None:
    """Train the run of a cell, and score it at the end of each of its last epochs; what is done is not done again.

    A run stops for each of these epochs and goes on from its checkpoint, so it is the run that `textebm train` makes.
    An epoch that a run has left behind unscored cannot be scored any more; it is not among what is returned.

    Returns:
        What was scored, and the scores of each epoch; None where the sitting ended before the run.

    Raises:
        DataError, CheckpointError, DivergenceError: see `training.train`.
    """
    config = cell.config(settings)
    corpus = ImageMaterial.resolve(config)
    test, run_dir = Test.of(corpus), sitting.runs / cell.name
    found: list[EpochScores] = []
    for epoch in sitting.epochs(config):
        scored = kept(run_dir, epoch, test.digest, sitting.sampling)
        if scored is None and _train_to(epoch, config, corpus, run_dir, sitting):
            scored = score_checkpoint(run_dir, test, sitting)
            keep(run_dir, scored, test.digest, sitting.sampling)
        elif scored is None and sitting.is_over():
            return None
        found += [] if scored is None else [scored]
    if not found:
        raise CheckpointError(f"{run_dir} has left its last epochs behind, and none was scored: name another --run-dir")
    return test, found


def _train_to(epoch: int, config: Config, corpus: ImageCorpus, run_dir: Path, sitting: Sitting) -> bool:
    """Train a run to the end of an epoch; whether it stands there."""
    if _position(run_dir) < (epoch, 0) and not sitting.is_over():
        limits = training.Limits(max_epochs=epoch, max_minutes=sitting.minutes, stop=sitting.stop)
        training.train(config, corpus, run_dir, limits, sitting.device, resume=True, observer=sitting.observer)
    return _position(run_dir) == (epoch, 0)


def _position(run_dir: Path) -> tuple[int, int]:
    """Epochs that the last checkpoint of a run has finished, and batches of the next one; (0, 0): there is none."""
    last = checkpoint.pointed_at(run_dir, "last")
    if last is None:
        return 0, 0
    progress = checkpoint.read_run(last)[1]
    return progress.epoch, progress.batch


def score_checkpoint(run_dir: Path, test: Test, sitting: Sitting) -> EpochScores:
    """Score the newest checkpoint of a run; never the best one.

    Args:
        run_dir: the run folder, or a model folder.
        test: what is scored.
        sitting: how.
    """
    folder = checkpoint.pointed_at(run_dir, "last") or run_dir
    config, progress = checkpoint.read_run(folder)
    model = checkpoint.load_model(folder, sitting.device)
    scores = score(model, test.images, config.seed, sitting.sampling, sitting.watch)
    seen = score(model, test.train, config.seed + 1, sitting.sampling, sitting.watch, test.reference)
    adjusted = Trend.of(test.reference_complexity, seen.total).adjust(test.complexity, scores.total)
    return EpochScores(progress.epoch, progress.step, dataclasses.replace(scores, adjusted=adjusted))


def keep(run_dir: Path, scored: EpochScores, digest: str, sampling: Sampling) -> None:
    """Write the scores of an epoch into the run folder.

    Args:
        run_dir: the run folder.
        scored: the scores.
        digest: of what was scored.
        sampling: how z was inferred.
    """
    (run_dir / "anomaly").mkdir(exist_ok=True)
    described, tensors = _files(run_dir, scored.epoch, sampling)
    save_tensors({key: torch.from_numpy(values) for key, values in scored.scores.arrays.items()}, tensors)
    sums = whole_files.sha256(tensors)
    content = {"step": scored.step, "sha256": sums, **_kind(scored.epoch, digest, sampling)}
    whole_files.write_text(described, json.dumps(content, indent=2) + "\n")


def kept(run_dir: Path, epoch: int, digest: str, sampling: Sampling) -> EpochScores | None:
    """The scores of an epoch that a run folder keeps; None: it has none, or others, or they are damaged."""
    described, tensors = _files(run_dir, epoch, sampling)
    if not (described.is_file() and tensors.is_file()):
        return None
    found = checkpoint.read_json(described)
    wanted = _kind(epoch, digest, sampling)
    whole = whole_files.sha256(tensors) == found.get("sha256")
    if not whole or {key: found.get(key) for key in wanted} != wanted:
        return None
    arrays = {key: tensor.numpy() for key, tensor in load_tensors(tensors).items()}
    return EpochScores(epoch, int(found["step"]), Scores(**arrays))


def _files(run_dir: Path, epoch: int, sampling: Sampling) -> tuple[Path, Path]:
    """Where scores are kept: those that are not as published stand beside those that are."""
    longer = "" if sampling.steps is None else f"-steps-{sampling.steps}"
    more = "" if sampling.samples == 1 else f"-samples-{sampling.samples}"
    name = f"epoch-{epoch}{longer}{more}"
    return run_dir / "anomaly" / f"{name}.json", run_dir / "anomaly" / f"{name}.safetensors"


def _kind(epoch: int, digest: str, sampling: Sampling) -> dict[str, Any]:
    """What tells kept scores from others."""
    how = {key: value for key, value in dataclasses.asdict(sampling).items() if value is not None}
    return {"format": FORMAT, "epoch": epoch, "test": digest, **how}
