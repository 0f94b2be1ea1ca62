"""Runs of an experiment, one row a method: mean and spread over seeds, and how sure a difference is.

A run is a result as `textebm experiment` writes it: a JSON file with a `method`, a `preset`, a `seed`, scores with
their signatures, and the place, beside it, of the scores of sentences. What may share a table is decided as in
`compare`.
"""

import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from textebm import plain_json
from textebm.errors import DataError, UsageError
from textebm.lm_eval import tables
from textebm.lm_eval.bootstrap import difference as sentences_difference
from textebm.lm_eval.compare import (
    METRICS,
    OTHER_DATA,
    Item,
    Table,
    compare_items,
    is_published_data,
    read_items,
    why_apart_from_published,
)
from textebm.lm_eval.kept import KeptScores, kept_scores
from textebm.lm_eval.protocols import PROTOCOLS
from textebm.lm_eval.published import Format, published_rows, published_tables
from textebm.lm_eval.seeds import LEAST_SEEDS, SeedsDifference, seeds_difference

Places = tuple[tuple[str, ...], ...]
"""Where a figure may stand in a result; the first that is there counts."""

NO_OTHER_MODEL = ("seed", "on_divergence")
"""Settings in which runs of one row may differ: the seed, and what is done about chains that explode, if one does."""

FIGURES: dict[str, Places] = {
    "reconstruction NLL": (("test", "reconstruction_nll"),),
    "NLL, z from the prior": (("test", "prior_nll"),),
    "marginal NLL": (("likelihood", "score"), ("test", "nll")),
    "active units": (("valid", "active_units"),),
}
"""Columns beside FPPL and RPPL; NLL in nats a sentence. A plain language model has the figure of `likelihood` too, of
the same sentences as the other rows."""
FIT: dict[str, Places] = {
    "perplexity": (("likelihood", "perplexity"), ("test", "perplexity")),
    "reconstruction NLL": (("test", "reconstruction_nll"),),
    "active units": (("valid", "active_units"),),
    "KL": (("test", "kl"),),
}
"""The same for the columns of the published table of text VAEs."""

STATISTICS = (
    "mean ± standard deviation over model seeds. Differences: hierarchical bootstrap over pairs of runs of one seed, "
    "judges and groups of consecutive sentences (RPPL: the same test sentences for both methods; FPPL: each run's own "
    "samples), 95 % intervals, widened for the small number of seeds. ratio: perplexity of the method over that of the "
    "other, in geometric means"
)


@dataclass(frozen=True)
class Run:
    """A result.

    Args:
        name: of the run.
        preset, method, seed: what it is a run of.
        content: all of it.
        items: its scores.
        folder: in which the result lies.
    """

    name: str
    preset: str
    method: str
    seed: int
    content: Mapping[str, Any]
    items: tuple[Item, ...]
    folder: Path

    def figure(self, places: Places) -> float | None:
        """A figure of the result; None where it has none."""
        for place in places:
            value: Any = self.content
            for key in place:
                value = value.get(key) if isinstance(value, Mapping) else None
            if isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < sys.float_info.max:
                return value
        return None

    @property
    def settings(self) -> dict[str, Any]:
        """What the run was trained with, by dotted keys, but for `NO_OTHER_MODEL`; empty where the result is silent."""
        return {key: value for key, value in _leaves(self.content.get("config")) if key not in NO_OTHER_MODEL}


def _leaves(config: object) -> Iterator[tuple[str, Any]]:
    """Values within mappings within mappings, however deep, by dotted keys."""
    waiting: list[tuple[str, object]] = [("", config)]
    while waiting:
        key, value = waiting.pop()
        if isinstance(value, Mapping):
            waiting += [(f"{key}.{name}" if key else name, inner) for name, inner in value.items()]
        elif key:
            yield key, value


def read_run(path: Path) -> Run:
    """The run in a file.

    Raises:
        DataError: it holds none.
    """
    items = read_items(path)
    content = plain_json.parse(path.read_text(encoding="utf-8"))
    try:
        facts = content["name"], content["preset"], content["method"], content["seed"]
        if not (all(isinstance(fact, str) for fact in facts[:3]) and type(facts[3]) is int):
            raise TypeError("names are text, and a seed is a whole number")
    except (KeyError, TypeError):
        raise DataError(
            f"{path}: no run of an experiment: it must say name, preset, method and seed, as the results of textebm "
            "experiment do"
        ) from None
    return Run(*facts, content, tuple(items), path.parent)


@dataclass(frozen=True)
class Row:
    """The runs of a method on a preset, whose scores stand in one table."""

    label: str
    preset: str
    method: str
    runs: tuple[Run, ...]

    def scores(self, table: Table, metric: str) -> dict[int, Item]:
        """Seed -> score."""
        of_runs = {run.seed: table.items.get(run.name, {}).get(metric) for run in self.runs}
        return {seed: item for seed, item in sorted(of_runs.items()) if item is not None}


@dataclass(frozen=True)
class Against:
    """A method against another, in one metric.

    Args:
        first, second: rows.
        metric: `fppl` or `rppl`.
        seeds, judges: numbers of either.
        ratio, ratio_interval: of the perplexities; None where one seed leaves only the sentences to be drawn.
        difference, difference_interval: first minus second, in perplexity.
        method: how the interval was made.
    """

    first: str
    second: str
    metric: str
    seeds: int
    judges: int
    ratio: float | None
    ratio_interval: tuple[float, float] | None
    difference: float
    difference_interval: tuple[float, float]
    method: str

    @classmethod
    def over_seeds(cls, first: str, second: str, metric: str, found: SeedsDifference) -> "Against":
        """From a hierarchical bootstrap."""
        return cls(
            first,
            second,
            metric,
            found.seeds,
            found.judges,
            found.ratio,
            found.ratio_interval,
            found.difference,
            found.difference_interval,
            f"hierarchical-bootstrap, {found.method}",
        )

    def cells(self) -> list[str]:
        """As a row of a table."""
        low, high = self.difference_interval
        return [
            f"{self.first} − {self.second}",
            self.metric.upper(),
            str(self.seeds),
            str(self.judges),
            "-" if self.ratio is None else f"{self.ratio:.4f}",
            "-" if self.ratio_interval is None else "{:.4f} to {:.4f}".format(*self.ratio_interval),
            f"{self.difference:+.2f}",
            f"{low:+.2f} to {high:+.2f}",
        ]


AGAINST_HEADER = ("", "", "seeds", "judges", "ratio", "95 % interval", "difference", "95 % interval")


class Systems:
    """Runs in tables of those that compare, one row a method, and the differences from one of them.

    Args:
        runs: the runs, in the order of their rows.
        against: the method from which the others' differences are taken; None for no differences.
        published: whether published rows are wanted.
        resamples: of the bootstrap.

    Raises:
        UsageError: there is no run of the method `against`.
        DataError: two runs have one name.
    """

    def __init__(
        self,
        runs: Sequence[Run],
        *,
        against: str | None = None,
        published: bool = False,
        resamples: int = 1000,
    ) -> None:
        self.runs, self.against, self.published = list(runs), against, published
        self.resamples = resamples
        names = [run.name for run in runs]
        if twice := sorted({name for name in names if names.count(name) > 1}):
            raise DataError(f"two results have the name {', '.join(twice)}: compare needs each once")
        methods = dict.fromkeys(run.method for run in runs)
        if against is not None and against not in methods:
            raise UsageError(f"--against {against}: there is no run of it; methods: {', '.join(methods)}")
        compared = compare_items([item for run in runs for item in run.items])
        self.tables = compared.tables
        self.known = published_rows()
        self._warnings = [*compared.warnings, *self._unlike_settings(), *self._absent_scores()]

    def _absent_scores(self) -> list[str]:
        """Rows in which a score of some seed is missing: it stands in another table, or was not measured."""
        said = []
        for table in self.tables:
            for row in self.rows(table):
                for metric in METRICS:
                    there = row.scores(table, metric)
                    if absent := sorted({run.seed for run in row.runs} - there.keys()):
                        seeds = ", ".join(map(str, absent))
                        said.append(f"{table.title}: {row.label} has no {metric.upper()} here of the seeds {seeds}")
        return said

    def _unlike_settings(self) -> list[str]:
        """Rows whose runs are not of the same settings, so that their mean is of nothing."""
        said = []
        for preset, method in dict.fromkeys((run.preset, run.method) for run in self.runs):
            of_row = [run for run in self.runs if (run.preset, run.method) == (preset, method)]
            values: dict[str, list[Any]] = {}
            for run in of_row:  # a setting that a run does not name came later: then it had no other value
                for key, value in run.settings.items():
                    values.setdefault(key, []).append(value)
            if unlike := [key for key, each in values.items() if any(value != each[0] for value in each)]:
                said.append(
                    f"{method} on {preset}: its runs were trained with different settings ({', '.join(unlike)})"
                )
        return said

    def rows(self, table: Table) -> list[Row]:
        """The rows of a table: methods, on each preset."""
        there = [run for run in self.runs if run.name in table.items]
        presets = {run.preset for run in there}
        grouped: dict[tuple[str, str], list[Run]] = {}
        for run in there:
            grouped.setdefault((run.preset, run.method), []).append(run)
        return [
            Row(f"{method} ({preset})" if len(presets) > 1 else method, preset, method, tuple(of_row))
            for (preset, method), of_row in grouped.items()
        ]

    # ---- differences

    @cached_property
    def differences(self) -> list[list[Against]]:
        """Of each table, the differences that can be told; what keeps others from it is a warning."""
        return [[*self._differences(table)] if self.against else [] for table in self.tables]

    def _differences(self, table: Table) -> list[Against]:
        rows = self.rows(table)
        bases = {row.preset: row for row in rows if row.method == self.against}
        found = []
        for row in rows:
            base = bases.get(row.preset)
            if row.method == self.against:
                continue
            if base is None:
                self._warnings.append(f"{table.title}: {row.label} has no run of {self.against} beside it")
                continue
            for metric in METRICS:
                try:
                    difference = self._difference(table, row, base, metric)
                except (DataError, UsageError) as error:
                    self._warnings.append(f"{row.label} − {base.label}, {metric.upper()}: no interval: {error}")
                else:
                    found += [] if difference is None else [difference]
        return found

    def _difference(self, table: Table, row: Row, base: Row, metric: str) -> Against | None:
        scores = [each.scores(table, metric) for each in (row, base)]
        seeds = sorted(scores[0].keys() & scores[1].keys())
        what = f"{row.label} − {base.label}, {metric.upper()}"
        if left := sorted(scores[0].keys() ^ scores[1].keys()):
            self._warnings.append(f"{what}: only one of them has the seeds {', '.join(map(str, left))}: left out")
        if not seeds:
            self._warnings.append(f"{what}: there is no seed that both have scores of")
            return None
        kept = [
            {run.seed: self._kept(run, of_row[run.seed]).runs for run in each.runs if run.seed in seeds}
            for each, of_row in zip((row, base), scores, strict=True)
        ]
        paired = metric == "rppl"
        if len(seeds) >= LEAST_SEEDS:
            over_seeds = seeds_difference(kept[0], kept[1], paired=paired, resamples=self.resamples)
            return Against.over_seeds(row.label, base.label, metric, over_seeds)
        self._warnings.append(f"{what}: one seed: its interval is over sentences, and says nothing about the next seed")
        first, second = (of_seed[seeds[0]][0] for of_seed in kept)
        found = sentences_difference(first, second, paired=paired, resamples=self.resamples)
        return Against(
            row.label,
            base.label,
            metric,
            1,
            1,
            None,
            None,
            found.difference,
            found.interval,
            f"one-seed, {found.method}",
        )

    def _kept(self, run: Run, item: Item) -> KeptScores:
        """The scores of sentences behind a score, in groups.

        Raises:
            DataError: they are missing, or of another score.
        """
        place = run.content.get("sentence_scores")
        if not isinstance(place, str):
            raise DataError(f"{run.name} does not say where its scores of sentences are")
        path = run.folder / place / f"{item.signature.get('judge')}-{item.metric}.npz"
        kept = kept_scores(path)
        if kept.signature != item.signature or not np.isclose(kept.score, item.score, rtol=1e-9):
            raise DataError(f"{path} is not of the score in the result of {run.name}: measure it again")
        return kept

    @property
    def warnings(self) -> list[str]:
        """What must be said of the tables."""
        _ = self.differences
        return [*self._warnings, *self._published_apart()]

    def _published_apart(self) -> list[str]:
        if not self.published:
            return []
        reasons = [(table, why_apart_from_published(table, self.known)) for table in self.tables]
        said = [f"{table.title}: published rows do not compare: {reason}" for table, reason in reasons if reason]
        for data in self._corpora():
            if not any(
                is_published_data(table, self.known) for table in self.tables if table.facts.get("data", "") == data
            ):
                said.append(f"data {data}: published figures of fit do not compare: {OTHER_DATA}")
        return said

    def _corpora(self) -> list[str]:
        return list(dict.fromkeys(table.facts.get("data", "") for table in self.tables))

    # ---- as text

    def render(self, form: Format) -> str:
        """Tables, differences, published rows and warnings in a format; CSV has the tables alone."""
        if form == "json":
            return json.dumps(self.as_dict(), ensure_ascii=False, indent=2)
        if form == "csv":
            rows = [[str(n), t.title, *row] for n, t in enumerate(self.tables, start=1) for row in self._cells(t)]
            return tables.render(("table", "what", *self._header()), rows, "csv")
        bold = "**" if form == "markdown" else ""
        parts = []
        for table, differences in zip(self.tables, self.differences, strict=True):
            parts.append(f"{bold}{table.title}{bold}")
            parts.append(tables.render(self._header(), self._cells(table), form))
            if differences:
                parts.append(tables.render(AGAINST_HEADER, [each.cells() for each in differences], form))
            judge = PROTOCOLS.get(table.facts.get("judge", ""))
            if judge is not None and judge.judge == "ngram":
                parts.append(f"{table.facts['judge']} is deterministic: there is one judge, and no judge seed")
        parts.append(STATISTICS)
        if self.published:
            parts += self._published_parts(form, bold)
        parts += [f"warning: {warning}" for warning in self.warnings]
        return "\n\n".join(parts)

    @staticmethod
    def _header() -> tuple[str, ...]:
        return ("", "seeds", "FPPL", "RPPL", *FIGURES)

    def _cells(self, table: Table) -> list[list[str]]:
        rows = []
        for row in self.rows(table):
            scores: list[list[float]] = [
                [item.score for item in row.scores(table, metric).values()] for metric in METRICS
            ]
            figures = [[run.figure(places) for run in row.runs] for places in FIGURES.values()]
            seeds = ", ".join(str(run.seed) for run in sorted(row.runs, key=lambda run: run.seed))
            rows.append([row.label, seeds, *map(mean_and_spread, scores), *map(mean_and_spread, figures)])
        real = [next((item.real for item in table.of(metric) if item.real is not None), None) for metric in METRICS]
        rows.append(["real text", "-", *map(tables.perplexity, real), *["-"] * len(FIGURES)])
        if self.published and why_apart_from_published(table, self.known) is None:
            rows += _published_cells(self.known["data"][table.facts["data"]]["rows"], " (published)")
        return rows

    def _published_parts(self, form: Format, bold: str) -> list[str]:
        """Published rows that do not compare with ours, and the published table of fit beside our figures of it."""
        parts = []
        assert form in ("text", "markdown")
        for data in self._corpora():
            of_data = [table for table in self.tables if table.facts.get("data", "") == data]
            entry = self.known["data"].get(data)
            if entry and any(why_apart_from_published(table, self.known) for table in of_data):
                parts.append(f"{bold}published, {data}: {self.known['source']}{bold}")
                parts.append(tables.render(self._header(), _published_cells(entry["rows"], ""), form))
            for published in published_tables("text-vae", data):
                rows = []
                for row in {row.label: row for table in of_data for row in self.rows(table)}.values():
                    figures = [[run.figure(places) for run in row.runs] for places in FIT.values()]
                    rows.append([row.label, *map(mean_and_spread, figures)])
                rows += [[f"{name} (published)", *cells] for name, *cells in published.rows]
                parts.append(f"{bold}{published.title}{bold} ({published.source}; {published.note})")
                parts.append(tables.render(("", *FIT), rows, form))
        return parts

    def as_dict(self) -> dict[str, Any]:
        """The tables in JSON types."""
        return {
            "metric": "compare",
            "tables": [
                {
                    "title": table.title,
                    "facts": table.facts,
                    "rows": [self._row_as_dict(table, row) for row in self.rows(table)],
                    "differences": [asdict(each) for each in differences],
                }
                for table, differences in zip(self.tables, self.differences, strict=True)
            ],
            "statistics": STATISTICS,
            "warnings": self.warnings,
        }

    @staticmethod
    def _row_as_dict(table: Table, row: Row) -> dict[str, Any]:
        scores = {
            metric: {str(seed): item.score for seed, item in row.scores(table, metric).items()} for metric in METRICS
        }
        figures = {name: [run.figure(places) for run in row.runs] for name, places in FIGURES.items()}
        return {"preset": row.preset, "method": row.method, "scores": scores, "figures": figures}


def mean_and_spread(values: Sequence[float | None]) -> str:
    """The mean over runs that have the figure, with the standard deviation where there are several; of how many runs,
    where others have none; a dash where none has.
    """
    given = [value for value in values if value is not None]
    if not given:
        return "-"
    spread = f" ± {np.std(given, ddof=1):.2f}" if len(given) > 1 else ""
    share = f" ({len(given)} of {len(values)})" if len(given) < len(values) else ""
    return f"{np.mean(given):.2f}{spread}{share}"


def _published_cells(rows: Sequence[Mapping[str, Any]], mark: str) -> list[list[str]]:
    """Rows of FPPL, RPPL and reconstruction NLL under the header of our tables."""
    rest = ["-"] * (len(FIGURES) - 1)
    return [
        [f"{row['system']}{mark}", "-", *(tables.perplexity(row.get(key)) for key in ("fppl", "rppl", "nll")), *rest]
        for row in rows
    ]
