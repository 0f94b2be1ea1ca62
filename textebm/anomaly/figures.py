"""What scores come to: how well they tell anomalies, over epochs, seeds and classes."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from textebm import ranking
from textebm._version import __version__
from textebm.anomaly.scores import EpochScores, RankedBy, Sampling
from textebm.complexity import COMPRESSOR
from textebm.config import Config, to_dict
from textebm.lm_eval.bootstrap import ends
from textebm.lm_eval.published import published_tables
from textebm.lm_eval.signature import Signature

METRIC = "auprc"
RANKED: dict[RankedBy, str] = {
    "joint": "-log p(x, z), z a posterior sample, without the prior's log Z and the constant of its Gaussian",
    "prior": "-log p(z), z a posterior sample, without the prior's log Z and the constant of its Gaussian",
    "likelihood": "-log p(x|z), z a posterior sample",
    "adjusted": "-log p(x, z), in spreads above what is usual of images of training that are as complex",
}
"""What is ranked, by its name."""
BINS, POINTS = 60, 400
"""Bars of a histogram, and most points of a curve."""
AXES: dict[RankedBy, str] = {
    "joint": "−log p(x, z), nats",
    "prior": "−log p(z), nats",
    "likelihood": "−log p(x|z), nats",
    "adjusted": "−log p(x, z), spreads above the usual",
}
"""What scores are called beside an axis."""


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


# ---- results


@dataclasses.dataclass
class Findings:
    """What was found, class by class, on its way to one JSON object.

    Args:
        settings: of the runs.
        data: name of the data.
        sampling: how z was inferred.
        by: what was ranked.
        per_token: whether the scores of sentences were divided by their tokens.
        resamples: resampled tests behind each interval.
    """

    settings: Config
    data: str
    sampling: Sampling
    by: RankedBy = "joint"
    per_token: bool = False
    resamples: int = 1000
    cells: list[dict[str, Any]] = dataclasses.field(default_factory=list)
    drawn: list[tuple[str | None, NDArray[np.float64]]] = dataclasses.field(default_factory=list)
    unfinished: list[str] = dataclasses.field(default_factory=list)
    """Runs that were cut."""
    warnings: list[str] = dataclasses.field(default_factory=list)

    def add(
        self,
        anomalous: NDArray[np.bool_],
        runs: Sequence[tuple[int, Sequence[EpochScores]]],
        facts: dict[str, object],
        where: dict[str, Any],
    ) -> None:
        """Take in the scores of a class and split, or of a text.

        Args:
            anomalous: (samples,) which samples are anomalies.
            runs: seed of each run, and its scores at each epoch.
            facts: what the signature says of the test.
            where: what the figures say of it.
        """
        found = detect(anomalous, runs, self.by, self.resamples, number=len(self.cells))
        described = where | found.described
        self.cells.append(described | {"signature": self._signature(facts, [described])})
        self.drawn.append((where.get("split"), found.drawn))

    def _signature(self, facts: dict[str, object], cells: list[dict[str, Any]]) -> str:
        seeds = sorted({run["seed"] for cell in cells for run in cell["runs"]})
        epochs = max(len(run["epochs"]) for cell in cells for run in cell["runs"])
        most, inference, sampling = self.settings.images.max_images, self.settings.inference, self.sampling
        how = {
            "metric": METRIC,
            "data": self.data,
            **facts,
            **({} if most is None else {"max-images": most}),
            "inference": inference.kind,
            "steps": sampling.steps or inference.steps,
            **({} if sampling.precision == "fp32" else {"chain-precision": sampling.precision}),
            "posterior-samples": sampling.samples,
            "ranked-by": self.by + "-per-token" * self.per_token + f"-{COMPRESSOR}" * (self.by == "adjusted"),
            "last-epochs": epochs,
            "run-seeds": ",".join(map(str, seeds)),
            "interval": f"bootstrap-{self.resamples}",
            "version": __version__,
        }
        return str(Signature(how))

    def result(self) -> dict[str, Any]:
        """The mean over the classes of the first split, and everything behind it, in JSON types."""
        first = self.cells[0].get("split")
        cells = [cell for cell in self.cells if cell.get("split") == first]
        drawn = np.mean([each for split, each in self.drawn if split == first], axis=0)
        signature = cells[0]["signature"]
        if len(cells) > 1:
            named = {"anomaly": ",".join(cell["held_out"] for cell in cells), "anomaly-split": first}
            signature = self._signature(named, cells)
        return {
            "metric": METRIC,
            "score": float(np.mean([cell["auprc"]["mean"] for cell in cells])),
            "interval": list(ends(drawn)),
            "signature": signature,
            METRIC: {cell["held_out"]: {key: cell["auprc"][key] for key in ("mean", "sd")} for cell in cells},
            "details": {
                "score": RANKED[self.by],
                "cells": self.cells,
                "published": [dataclasses.asdict(table) for table in published_tables("anomaly", self.data)],
                "unfinished": self.unfinished,
                "warnings": self.warnings,
                "settings": to_dict(self.settings),
            },
        }
