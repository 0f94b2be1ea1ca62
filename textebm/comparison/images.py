"""Runs of an experiment on images, one row a method: mean and spread over seeds, and how sure a difference is.

A run is a result as `textebm experiment images` writes it: a JSON file with a `preset`, a `method`, a `seed`, and the
scores `mse` and `frechet` with their signatures.
"""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from textebm import plain_json
from textebm.comparison.runs import Result, by_row, mean_and_spread
from textebm.errors import DataError, UsageError
from textebm.lm_eval import tables
from textebm.lm_eval.bootstrap import LEVEL
from textebm.lm_eval.published import Format
from textebm.lm_eval.seeds import LEAST_SEEDS, student_quantile
from textebm.lm_eval.signature import Signature

METRICS = ("mse", "frechet")
TITLE = ("data", "n", "real-n")
"""Facts of a Fréchet distance that a table is named by."""
OF_RUN = ("inference", "steps", "seed", "prior-steps", "version")
"""Facts in a signature that may differ between the methods of a table: how z is inferred is what is compared."""
STATISTICS = (
    "mean ± standard deviation over model seeds. Differences: means over pairs of runs of one seed, which share the "
    "order of the data and the test images; 95 % intervals by Student's t over the pairs. MSE of test images, pixels "
    "in [−1, 1]"
)


@dataclass(frozen=True)
class ImageRun(Result):
    """A result.

    Args:
        scores: metric -> score.
        measured: metric -> the facts of its signature that must agree in one table.
        minutes: that its training took.
    """

    scores: Mapping[str, float]
    measured: Mapping[str, Mapping[str, str]]
    minutes: float | None


def is_image_run(path: Path) -> bool:
    """Whether a file holds the result of an experiment on images.

    Raises:
        DataError: it is no JSON file.
    """
    content = plain_json.read(path, DataError)
    return isinstance(content, dict) and all(metric in content for metric in METRICS)


def read_image_run(path: Path) -> ImageRun:
    """The run in a file.

    Raises:
        DataError: it holds none.
    """
    content = plain_json.read(path, DataError)
    try:
        signatures = {metric: Signature.parse(content[metric]["signature"]) for metric in METRICS}
        scores = {metric: float(content[metric]["score"]) for metric in METRICS}
        facts = str(content["name"]), str(content["preset"]), str(content["method"]), int(content["seed"])
        minutes = content.get("minutes")
        if not all(map(math.isfinite, (*scores.values(), minutes or 0))):
            raise ValueError("a figure is no number")
        if any("metric" not in each for each in signatures.values()):
            raise KeyError("metric")
        if missing := [key for key in TITLE if key not in signatures["frechet"]]:
            raise KeyError(missing[0])
    except (KeyError, TypeError, ValueError, OverflowError, AttributeError, UsageError):
        raise DataError(
            f"{path}: no run of an experiment on images: it must say name, preset, method, seed, and the scores "
            f"{' and '.join(METRICS)} with their signatures"
        ) from None
    measured = {
        metric: {key: value for key, value in signature.items() if key not in OF_RUN}
        for metric, signature in signatures.items()
    }
    return ImageRun(*facts, scores, measured, minutes)


@dataclass(frozen=True)
class Difference:
    """A method minus another in one metric.

    Args:
        preset: on which.
        first, second: methods.
        metric: `mse` or `frechet`.
        seeds: pairs of runs.
        difference: mean over them.
        interval: by Student's t over the pairs; None of fewer than two.
    """

    preset: str
    first: str
    second: str
    metric: str
    seeds: int
    difference: float
    interval: tuple[float, float] | None


def paired_difference(first: Sequence[float], second: Sequence[float]) -> tuple[float, tuple[float, float] | None]:
    """Mean difference of pairs, and its interval by Student's t.

    Args:
        first, second: scores of runs, pair by pair.

    Returns:
        The mean, and its 95 % interval; None of fewer than two pairs.
    """
    differences = np.subtract(first, second)
    mean = float(differences.mean())
    if len(differences) < LEAST_SEEDS:
        return mean, None
    error = float(differences.std(ddof=1)) / math.sqrt(len(differences))
    margin = student_quantile((1 + LEVEL) / 2, len(differences) - 1) * error
    return mean, (mean - margin, mean + margin)


class ImageSystems:
    """Runs in a table a preset, one row a method, and the differences from one of them.

    Args:
        runs: the runs, in the order of their rows.
        against: methods from each of which the others' differences are taken; none for no differences.

    Raises:
        UsageError: there is no run of a method of `against`.
        DataError: two runs have one name, or runs of one preset were not measured alike.
    """

    def __init__(self, runs: Sequence[ImageRun], *, against: Sequence[str] = ()) -> None:
        self.runs, self.against = list(runs), tuple(dict.fromkeys(against))
        self._rows = by_row(self.runs)
        names = [run.name for run in runs]
        if twice := sorted({name for name in names if names.count(name) > 1}):
            raise DataError(f"two results have the name {', '.join(twice)}: compare needs each once")
        methods = dict.fromkeys(run.method for run in runs)
        for missing in [method for method in self.against if method not in methods]:
            raise UsageError(f"--against {missing}: there is no run of it; methods: {', '.join(methods)}")
        for preset in self.presets:
            for metric in METRICS:
                self._require_alike(preset, metric)

    def _require_alike(self, preset: str, metric: str) -> None:
        first, *rest = [run for run in self.runs if run.preset == preset]
        for run in rest:
            ours, theirs = first.measured[metric], run.measured[metric]
            unlike = [key for key in {**ours, **theirs} if ours.get(key) != theirs.get(key)]
            if unlike:
                raise DataError(
                    f"{metric} of {first.name} and of {run.name} do not compare: they differ in {', '.join(unlike)}"
                )

    @property
    def presets(self) -> list[str]:
        """In the order in which they first occur."""
        return list(dict.fromkeys(preset for preset, _ in self._rows))

    def row(self, preset: str, method: str) -> dict[int, ImageRun]:
        """Seed -> run."""
        found = {run.seed: run for run in self._rows.get((preset, method), ())}
        return dict(sorted(found.items()))

    def methods(self, preset: str) -> list[str]:
        """Of a preset, in the order in which they first occur."""
        return [method for of, method in self._rows if of == preset]

    @property
    def differences(self) -> list[Difference]:
        """Of every method from those that they are taken from, where both have runs of one seed; each pair once."""
        return [
            each for preset in self.presets for pair in self._pairs(preset) for each in self._between(preset, *pair)
        ]

    def _pairs(self, preset: str) -> list[tuple[str, str]]:
        """A method, and another from which its differences are taken."""
        found: list[tuple[str, str]] = []
        for base in self.against:
            others = [method for method in self.methods(preset) if method != base]
            found += [(method, base) for method in others if (base, method) not in found]
        return found

    def _between(self, preset: str, first: str, second: str) -> list[Difference]:
        rows = [self.row(preset, method) for method in (first, second)]
        seeds = sorted(rows[0].keys() & rows[1].keys())
        found = []
        for metric in METRICS if seeds else ():
            scores = [[row[seed].scores[metric] for seed in seeds] for row in rows]
            mean, interval = paired_difference(*scores)
            found.append(Difference(preset, first, second, metric, len(seeds), mean, interval))
        return found

    @property
    def warnings(self) -> list[str]:
        """What must be said of the tables."""
        said = []
        for each in self.differences:
            both = self.row(each.preset, each.first).keys() ^ self.row(each.preset, each.second).keys()
            if both and each.metric == METRICS[0]:
                seeds = ", ".join(map(str, sorted(both)))
                said.append(
                    f"{each.preset}: of {each.first} and {each.second} one only has the seeds {seeds}: left out"
                )
            if each.interval is None:
                said.append(f"{each.preset}, {each.first} − {each.second}: one seed says nothing about the next one")
        return list(dict.fromkeys(said))

    def named(self, metric: str) -> str:
        """What a metric is called: whose features a Fréchet distance is of."""
        return self.runs[0].measured[metric]["metric"]

    def render(self, form: Format) -> str:
        """Tables, differences and warnings in a format; CSV has the tables alone."""
        if form == "json":
            return json.dumps(self.as_dict(), ensure_ascii=False, indent=2)
        header = ("", "seeds", *(self.named(metric) for metric in METRICS), "minutes")
        if form == "csv":
            rows = [[preset, *cells] for preset in self.presets for cells in self._cells(preset)]
            return tables.render(("preset", "method", *header[1:]), rows, "csv")
        bold, parts = "**" if form == "markdown" else "", []
        for preset in self.presets:
            facts = next(run for run in self.runs if run.preset == preset).measured["frechet"]
            parts.append(
                f"{bold}{preset}: {facts['data']}, {facts['n']} generated images against {facts['real-n']} of "
                f"{facts.get('against', 'it')}{bold}"
            )
            parts.append(tables.render(header, self._cells(preset), form))
            rows = [_difference_cells(each) for each in self.differences if each.preset == preset]
            if rows:
                parts.append(tables.render(("", "", "seeds", "difference", "95 % interval"), rows, form))
        return "\n\n".join([*parts, STATISTICS, *(f"warning: {warning}" for warning in self.warnings)])

    def _cells(self, preset: str) -> list[list[str]]:
        rows = []
        for method in self.methods(preset):
            row = self.row(preset, method)
            figures = [[run.scores[metric] for run in row.values()] for metric in METRICS]
            figures.append([run.minutes for run in row.values() if run.minutes is not None])
            rows.append([method, ", ".join(map(str, row)), *(mean_and_spread(each, ".4g", ".2g") for each in figures)])
        return rows

    def as_dict(self) -> dict[str, Any]:
        """The tables in JSON types."""
        return {
            "metric": "compare",
            "tables": [
                {
                    "preset": preset,
                    "rows": {
                        method: {str(seed): dict(run.scores) for seed, run in self.row(preset, method).items()}
                        for method in self.methods(preset)
                    },
                    "measured": next(dict(run.measured) for run in self.runs if run.preset == preset),
                }
                for preset in self.presets
            ],
            "differences": [asdict(each) for each in self.differences],
            "warnings": self.warnings,
        }


def _difference_cells(each: Difference) -> list[str]:
    between = "-" if each.interval is None else f"{each.interval[0]:+.4g} to {each.interval[1]:+.4g}"
    return [f"{each.first} − {each.second}", each.metric, str(each.seeds), f"{each.difference:+.4g}", between]
