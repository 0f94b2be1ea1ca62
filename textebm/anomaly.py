"""Anomaly detection: what a model gives little probability to, it has not learned from.

The score of x is −log p(x, z) at a posterior sample z, up to a constant: energy(z) + ‖z‖²/2σ² − log p(x|z), in nats.
Left out are the prior's log Z and the Gaussian's ½ d log 2πσ², the same for every x. A larger score is more anomalous.
Source: Pang et al., NeurIPS 2020, section 4.4, after Zenati et al. 2018 and Kumar et al. 2019: a class of images is
held out of training, and is to be told from the others by the area under the precision–recall curve. A figure is the
mean over the last ten epochs of training, whose scores are kept in the run folder:

    RUN/anomaly/epoch-N.safetensors   the parts of each test image's score
    RUN/anomaly/epoch-N.json          what they are of; written last, so what has one is whole
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

from textebm import checkpoint, evaluation, ranking, training, whole_files
from textebm.complexity import Trend, complexities
from textebm.config import Config
from textebm.data.dataset import Dataset
from textebm.data.images import EncodedImages, ImageCorpus, class_number
from textebm.errors import CheckpointError, DataError, UsageError
from textebm.hardware import precision_on
from textebm.lm_eval.bootstrap import ends
from textebm.materials.images import ImageMaterial
from textebm.model.inference import Request
from textebm.model.latent_model import LatentModel, load_tensors, save_tensors
from textebm.model.random import stream
from textebm.model.softmax import Precision

Split = Literal["A", "B"]
"""A: the images of all published splits; 80 % of those of the other classes are train, and test is the rest and all of
the class that is held out. B: the published splits, without that class in train; test is the published one."""

RankedBy = Literal["joint", "prior", "likelihood", "adjusted"]
"""joint: −log p(x, z), the published score; prior: −log p(z) alone, how odd z is; likelihood: −log p(x|z) alone, how
badly x is made again; all up to constants. adjusted: of images, the joint score beside those of images of training that
are as complex (`complexity`)."""

METRIC = "auprc"
BATCH = 256
"""Samples scored at once; part of what a seed means, since each batch has its own random streams."""
LAST_EPOCHS = 10
"""Over which the published figures are means."""


def last_epochs(epochs: int) -> int:
    """How many epochs at the end of a run are scored, where nothing else is asked for: as many as behind the published
    figures, or half of a shorter run.
    """
    return min(LAST_EPOCHS, (epochs + 1) // 2)


REFERENCE = 2000
"""Images of training that say what score is usual at a complexity."""
FORMAT = 3
"""Of kept scores."""


@dataclasses.dataclass(frozen=True, eq=False)
class Scores:
    """The parts of −log p(x, z) of each sample of x, means over its posterior samples, in nats.

    energy: (samples,) −f(z). gaussian: (samples,) ‖z‖²/2σ². nll: (samples,) −log p(x|z). adjusted: (samples,) their
    sum, in spreads above what is usual at the image's complexity; None for sentences.
    """

    energy: NDArray[np.float64]
    gaussian: NDArray[np.float64]
    nll: NDArray[np.float64]
    adjusted: NDArray[np.float64] | None = None

    @property
    def total(self) -> NDArray[np.float64]:
        """(samples,) the score: a larger one is more anomalous."""
        return self.energy + self.gaussian + self.nll

    @property
    def rankings(self) -> dict[RankedBy, NDArray[np.float64]]:
        """Everything that samples can be ranked by, (samples,) each."""
        found: dict[RankedBy, NDArray[np.float64]] = {
            "joint": self.total,
            "prior": self.energy + self.gaussian,
            "likelihood": self.nll,
        }
        return found if self.adjusted is None else found | {"adjusted": self.adjusted}

    @property
    def parts(self) -> dict[str, NDArray[np.float64]]:
        """Each part of the sum by name."""
        return {"energy": self.energy, "gaussian": self.gaussian, "nll": self.nll}

    @property
    def arrays(self) -> dict[str, NDArray[np.float64]]:
        """Everything that is kept."""
        return self.parts if self.adjusted is None else self.parts | {"adjusted": self.adjusted}

    def per_token(self, tokens: NDArray[np.int64]) -> "Scores":
        """Those of sentences, divided by the tokens of each, (samples,)."""
        return Scores(*(part / tokens for part in self.parts.values()))


@dataclasses.dataclass(frozen=True)
class Sampling:
    """How z is inferred from what is scored.

    samples: of the posterior for each x, by as many chains; the score is their mean (published: 1). steps: of a chain;
    None: as many as in training (published). precision: of the products in the chains; whatever it is, the parts of a
    score are computed in fp32.
    """

    samples: int = 1
    steps: int | None = None
    precision: Precision = "fp32"


def score(
    model: LatentModel,
    data: Dataset,
    seed: int,
    sampling: Sampling | None = None,
    watch: Callable[[int], object] = lambda done: None,
    rows: NDArray[np.int64] | None = None,
) -> Scores:
    """Score samples of x, images or sentences.

    Args:
        model: the model, on its device.
        data: what is scored.
        seed: of the posterior chains.
        sampling: how z is inferred; None: by one chain of training, in fp32.
        watch: told how many samples of x are just done.
        rows: which of the data, in this order; None: all.

    Raises:
        CheckpointError: a score is not finite.
    """
    sampling = sampling or Sampling()
    rows = np.arange(len(data), dtype=np.int64) if rows is None else rows
    found = np.empty((3, len(rows)))
    for number, places in enumerate(data.groups(rows, BATCH)):
        found[:, places] = _score_batch(model, data, rows[places], (seed, number), sampling).cpu().numpy()
        watch(len(places))
    if broken := int((~np.isfinite(found).all(axis=0)).sum()):
        raise CheckpointError(
            f"{broken} of {len(rows)} scores are not finite: posterior chains exploded, or the model is broken"
        )
    return Scores(*found)


def _score_batch(
    model: LatentModel, data: Dataset, rows: NDArray[np.int64], key: tuple[int, int], sampling: Sampling
) -> torch.Tensor:
    """(3, batch) the parts of the scores of one batch, in float64. key: seed and number of the batch."""
    (seed, number), inference = key, model.config.inference
    if sampling.steps is not None:
        inference = dataclasses.replace(inference, steps=sampling.steps)
    x = data.batch(rows).to(model.device)
    total = torch.zeros(3, len(rows), dtype=torch.float64, device=model.device)
    with torch.no_grad():
        conditioned = model.condition(x)
        wide = sampling.precision == "fp32"
        walked = conditioned if wide else model.condition(x, precision=sampling.precision)
        for sample in range(sampling.samples):
            if model.has_latent:
                noise = stream(seed, "anomaly", number, sample, device=model.device)
                z = model.posterior(Request(x, walked, inference, noise)).z
            else:  # a plain language model: its likelihood is exact
                z = model.prior.origin.expand(len(rows), -1)
            gaussian = z.double().square().sum(1) / (2 * model.config.prior.sigma**2)
            total += torch.stack([model.energy(z).double(), gaussian, -conditioned.log_prob(z).double()])
    return total / sampling.samples


# ---- one class held out of images


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


@dataclasses.dataclass(frozen=True)
class Test:
    """What is scored: the test split of a run.

    images: the split. anomalous: (images,) whether each is of the class that is held out. digest: of both. train: the
    images of training, some of which say what score is usual at a complexity.
    """

    images: EncodedImages
    anomalous: NDArray[np.bool_]
    digest: str
    train: EncodedImages

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
        anomalous = images.labels == corpus.excluded
        if anomalous.all() or not anomalous.any():
            missing = "other classes than" if anomalous.all() else "the class"
            named = corpus.class_names[corpus.excluded]
            raise DataError(f"{corpus.name}: the test split holds no image of {missing} {named}, so nothing is told")
        return Test(images, anomalous, f"{images.report.digest[:12]}-{corpus.excluded}", corpus.encoded("train"))


@dataclasses.dataclass(frozen=True)
class EpochScores:
    """The scores of a run at the end of an epoch."""

    epoch: int
    step: int
    scores: Scores


@dataclasses.dataclass(frozen=True)
class Sitting:
    """How runs are worked on: where, how long, how they are scored, and who watches.

    Args:
        runs: folder of their run folders.
        device: where to compute.
        samples: posterior samples of each image.
        steps: of the chains that score; None: as many as in training.
        last: epochs at the end of a run that are scored; None: see `last_epochs`.
        deadline: of `time.monotonic`, at which training stops; None: none.
        stop: asked around every step; true ends the sitting.
        observer: who watches the training.
        watch: told how many images are just scored.
    """

    runs: Path
    device: torch.device
    samples: int = 1
    steps: int | None = None
    last: int | None = None
    deadline: float | None = None
    stop: Callable[[], bool] = lambda: False
    observer: training.Observer = dataclasses.field(default_factory=training.Silent)
    watch: Callable[[int], object] = lambda done: None

    def sampling(self, config: Config) -> Sampling:
        """How images are scored by a model of these settings: in the precision of its training."""
        return Sampling(self.samples, self.steps, precision_on(config.precision, self.device))

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
    last = last_epochs(config.epochs) if sitting.last is None else sitting.last
    sampling = sitting.sampling(config)
    for epoch in range(max(1, config.epochs - last + 1), config.epochs + 1):
        scored = kept(run_dir, epoch, test.digest, sampling)
        if scored is None and _train_to(epoch, config, corpus, run_dir, sitting):
            scored = score_checkpoint(run_dir, test, sitting)
            keep(run_dir, scored, test.digest, sampling)
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
    sampling = sitting.sampling(config)
    scores = score(model, test.images, config.seed, sampling, sitting.watch)
    seen = score(model, test.train, config.seed + 1, sampling, sitting.watch, test.reference)
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
    folder = run_dir / "anomaly"
    folder.mkdir(exist_ok=True)
    name = f"epoch-{scored.epoch}"
    save_tensors({key: torch.from_numpy(v) for key, v in scored.scores.arrays.items()}, folder / f"{name}.safetensors")
    sums = whole_files.sha256(folder / f"{name}.safetensors")
    described = {"step": scored.step, "sha256": sums, **_kind(scored.epoch, digest, sampling)}
    whole_files.write_text(folder / f"{name}.json", json.dumps(described, indent=2) + "\n")


def kept(run_dir: Path, epoch: int, digest: str, sampling: Sampling) -> EpochScores | None:
    """The scores of an epoch that a run folder keeps; None: it has none, or others, or they are damaged."""
    described, tensors = (run_dir / "anomaly" / f"epoch-{epoch}.{ending}" for ending in ("json", "safetensors"))
    if not (described.is_file() and tensors.is_file()):
        return None
    found = checkpoint.read_json(described)
    wanted = _kind(epoch, digest, sampling)
    whole = whole_files.sha256(tensors) == found.get("sha256")
    if not whole or {key: found.get(key) for key in wanted} != wanted:
        return None
    arrays = {key: tensor.numpy() for key, tensor in load_tensors(tensors).items()}
    return EpochScores(epoch, int(found["step"]), Scores(**arrays))


def _kind(epoch: int, digest: str, sampling: Sampling) -> dict[str, Any]:
    """What tells kept scores from others."""
    how = {key: value for key, value in dataclasses.asdict(sampling).items() if value is not None}
    return {"format": FORMAT, "epoch": epoch, "test": digest, **how}


# ---- figures


@dataclasses.dataclass(frozen=True)
class Spread:
    """Figures of several runs at several epochs.

    mean: over runs and epochs. sd: over the same; None: there is one figure. sd_epochs: within runs. sd_seeds: of the
    runs' means; None: there is one run.
    """

    mean: float
    sd: float | None
    sd_epochs: float | None
    sd_seeds: float | None

    @staticmethod
    def of(figures: Sequence[Sequence[float]]) -> "Spread":
        """Of the figures of each run."""
        every = np.concatenate([np.asarray(run) for run in figures])
        within = [np.var(run, ddof=1) for run in figures if len(run) > 1]
        means = [float(np.mean(run)) for run in figures]
        return Spread(
            float(every.mean()),
            float(every.std(ddof=1)) if len(every) > 1 else None,
            float(np.sqrt(np.mean(within))) if within else None,
            float(np.std(means, ddof=1)) if len(means) > 1 else None,
        )


@dataclasses.dataclass(frozen=True, eq=False)
class Detection:
    """How well anomalies are told: of one class and split over runs and epochs, or of one model.

    described: the figures, in JSON types. drawn: (resamples,) mean AUPRC in resampled tests.
    """

    described: dict[str, Any]
    drawn: NDArray[np.float64]

    @property
    def interval(self) -> tuple[float, float]:
        """Of the mean AUPRC, 95 %."""
        return ends(self.drawn)


def detect(
    anomalous: NDArray[np.bool_],
    runs: Sequence[tuple[int, Sequence[EpochScores]]],
    by: RankedBy = "joint",
    resamples: int = 1000,
    number: int = 0,
) -> Detection:
    """How well scores tell anomalies: AUPRC (anomalies being positive) and AUROC, with what they are held against.

    Args:
        anomalous: (samples,) which samples are.
        runs: seed of each run, and its scores at each epoch, all of the same samples.
        by: what is ranked.
        resamples: resampled tests behind the interval.
        number: of the test, which has its own resamples.
    """
    every_ranking = {
        name: [[ranking.Ranking(e.scores.rankings[name], anomalous) for e in epochs] for _, epochs in runs]
        for name in runs[0][1][0].scores.rankings
    }
    precisions = {name: [[each.average_precision() for each in r] for r in of] for name, of in every_ranking.items()}
    rankings, auprc = every_ranking[by], precisions[by]
    auroc = [[each.auroc() for each in run] for run in rankings]
    every = [each for run in rankings for each in run]
    drawn = ranking.resampled(every, ranking.Ranking.average_precision, resamples, 0, number)
    base_rate = float(anomalous.mean())
    described = {
        "samples": len(anomalous),
        "anomalies": int(anomalous.sum()),
        "base_rate": base_rate,
        "auprc": dataclasses.asdict(Spread.of(auprc)),
        "auroc": dataclasses.asdict(Spread.of(auroc)),
        "interval": list(ends(drawn)),
        "auprc_by": {name: Spread.of(of).mean for name, of in precisions.items()},
        "chance": {"auprc": base_rate, "auroc": 0.5},
        "worst": {"auprc": ranking.lowest_average_precision(anomalous), "auroc": 0.0},
        "runs": [
            {"seed": seed, "epochs": [_epoch(e, anomalous, *figures) for e, *figures in zip(epochs, a, r, strict=True)]}
            for (seed, epochs), a, r in zip(runs, auprc, auroc, strict=True)
        ],
    }
    return Detection(described, drawn)


def _epoch(found: EpochScores, anomalous: NDArray[np.bool_], auprc: float, auroc: float) -> dict[str, Any]:
    """The figures of one epoch, and the mean of each part of the scores."""
    sides = {"normal": ~anomalous, "anomalous": anomalous}
    parts = {
        side: {name: float(values[rows].mean()) for name, values in found.scores.parts.items()}
        for side, rows in sides.items()
    }
    return {"epoch": found.epoch, "step": found.step, "auprc": auprc, "auroc": auroc, "mean_scores": parts}


# ---- curves


BINS, POINTS = 60, 400
"""Bars of a histogram, and most points of a curve."""


AXES: dict[RankedBy, str] = {
    "joint": "−log p(x, z), nats",
    "prior": "−log p(z), nats",
    "likelihood": "−log p(x|z), nats",
    "adjusted": "−log p(x, z), spreads above the usual",
}
"""What scores are called beside an axis."""


def curves(
    totals: NDArray[np.float64], anomalous: NDArray[np.bool_], by: RankedBy = "joint", per_token: bool = False
) -> dict[str, Any]:
    """Every number of the two pictures: histograms of the scores, and the precision–recall curve.

    The bars cover the middle 99 % of the scores, and whatever lies outside is in the outermost ones.

    Args:
        totals: (samples,) scores.
        anomalous: (samples,) which samples are anomalies.
        by: what scores they are.
        per_token: whether they are divided by the tokens of a sentence.
    """
    low, high = np.quantile(totals, [0.005, 0.995])
    edges = np.linspace(low, max(high, low + 1e-9), BINS + 1)
    inside = np.clip(totals, edges[0], edges[-1])
    precision, recall = ranking.Ranking(totals, anomalous).precision_recall()
    shown = np.unique(np.searchsorted(recall, np.linspace(0, 1, POINTS)).clip(0, len(recall) - 1))
    return {
        "score": f"{AXES[by]}{' a token' * per_token}{', up to a constant' * (by != 'adjusted')}",
        "histogram": {
            "edges": edges.tolist(),
            "normal": np.histogram(inside[~anomalous], edges)[0].tolist(),
            "anomalous": np.histogram(inside[anomalous], edges)[0].tolist(),
        },
        "precision_recall": {"recall": recall[shown].tolist(), "precision": precision[shown].tolist()},
        "base_rate": float(anomalous.mean()),
    }


def grouped(found: Sequence[Cell]) -> Iterator[tuple[Split, str, list[Cell]]]:
    """Split, class and runs of each figure."""
    for split, held_out in dict.fromkeys((cell.split, cell.held_out) for cell in found):
        yield split, held_out, [c for c in found if (c.split, c.held_out) == (split, held_out)]
