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
from textebm.comparison.runs import Result, by_row, mean_and_spread
from textebm.config import load_config, method_names, preset_names, to_dict
from textebm.errors import DataError, UsageError
from textebm.lm_eval import tables
from textebm.lm_eval.bootstrap import Difference
from textebm.lm_eval.bootstrap import difference as sentences_difference
from textebm.lm_eval.compare import (
    METRICS,
    OTHER_DATA,
    Item,
    Table,
    compare_items,
    is_published_data,
    items_in,
    why_apart_from_published,
)
from textebm.lm_eval.kept import KeptScores, kept_scores
from textebm.lm_eval.protocols import PROTOCOLS
from textebm.lm_eval.published import Format, published_rows, published_tables
from textebm.lm_eval.seeds import LEAST_SEEDS, SeedsDifference, seeds_difference
from textebm.lm_eval.signature import Signature

Places = tuple[tuple[str, ...], ...]
"""Where a figure may stand in a result; the first that is there counts."""

NO_OTHER_MODEL = ("seed", "on_divergence", "data_dir")
"""Settings in which runs of one row may differ: the seed, what is done about an exploding chain, where the text is."""

FIGURES: dict[str, Places] = {
    "reconstruction NLL": (("test", "reconstruction_nll"),),
    "NLL, z from the prior": (("test", "prior_nll"),),
    "marginal NLL": (("likelihood", "score"), ("test", "nll")),
    "KL": (("likelihood", "details", "reconstruction", "kl"),),
    "active units": (("valid", "active_units"),),
}
"""Columns beside FPPL and RPPL; NLL and KL in nats a sentence. A plain language model has the figure of `likelihood`
too, of the same sentences as the other rows. The KL is of the posterior from the prior, with log Z."""
FIT: dict[str, Places] = {
    "perplexity": (("likelihood", "perplexity"), ("test", "perplexity")),
    "reconstruction NLL": FIGURES["reconstruction NLL"],
    "active units": FIGURES["active units"],
    "KL": FIGURES["KL"],
}
"""The same for the columns of the published table of text VAEs."""
OF_LIKELIHOOD = ("perplexity", "marginal NLL", "KL")
"""Columns that `textebm likelihood` fills, of sentences of its own."""
DOUBTFUL = " †"
"""Behind figures of which `textebm likelihood` warns."""

STATISTICS = (
    "mean ± standard deviation over model seeds. Differences: hierarchical bootstrap over pairs of runs of one seed, "
    "judges and groups of consecutive sentences (RPPL: the same test sentences for both methods; FPPL: each run's own "
    "samples), 95 % intervals, widened for the small number of seeds. ratio: perplexity of the method over that of the "
    "other, in geometric means"
)


@dataclass(frozen=True)
class Run(Result):
    """A result.

    Args:
        content: all of it.
        items: its scores.
        folder: in which the result lies.
    """

    content: Mapping[str, Any]
    items: tuple[Item, ...]
    folder: Path

    def within(self, place: Sequence[str]) -> Any:  # noqa: ANN401 (whatever stands there)
        """What stands at a place of the result; None where nothing does."""
        value: Any = self.content
        for key in place:
            value = value.get(key) if isinstance(value, Mapping) else None
        return value

    def figure(self, places: Places) -> float | None:
        """A figure of the result; None where it has none."""
        for place in places:
            value = self.within(place)
            if isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < sys.float_info.max:
                return value
        return None

    @property
    def doubts(self) -> list[str]:
        """What `textebm likelihood` warned of."""
        warnings = self.within(("likelihood", "details", "warnings"))
        return list(map(str, warnings)) if isinstance(warnings, list) else []

    @property
    def own_settings(self) -> dict[str, Any]:
        """Those that are neither its preset's nor its method's; none where these do not ship."""
        if self.preset not in preset_names() or self.method not in method_names():
            return {}
        shipped = dict(_leaves(to_dict(load_config(self.preset, self.method))))
        return {key: value for key, value in self.settings.items() if value != shipped.get(key, value)}

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
    content = plain_json.read(path, DataError)
    items = items_in(content, path)
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

    def cell(self, figure: str, places: Places) -> str:
        """Mean and spread of a figure, marked where it is doubtful."""
        said = mean_and_spread([run.figure(places) for run in self.runs])
        doubtful = figure in OF_LIKELIHOOD and any(run.doubts for run in self.runs)
        return said + DOUBTFUL if doubtful else said

    def unlike(self, other: "Row") -> int:
        """In how many settings it differs from another row; one that came later, and only one of them has, is none."""
        ours, theirs = self.runs[0].settings, other.runs[0].settings
        return sum(value != theirs[key] for key, value in ours.items() if key in theirs)


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

    @classmethod
    def over_sentences(cls, first: str, second: str, metric: str, judges: int, found: Difference) -> "Against":
        """Of one seed, from a bootstrap over sentences."""
        one_seed = f"one-seed, {found.method}"
        return cls(first, second, metric, 1, judges, None, None, found.difference, found.interval, one_seed)

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
        against: methods from which differences are taken; none for no differences. Of several, a row is compared with
            the one that it shares most settings with, and with the first of those that it shares as many with.
        published: whether published rows are wanted.
        resamples: of the bootstrap.

    Raises:
        UsageError: there is no run of a method of `against`.
        DataError: two runs have one name.
    """

    def __init__(
        self,
        runs: Sequence[Run],
        *,
        against: Sequence[str] = (),
        published: bool = False,
        resamples: int = 1000,
    ) -> None:
        self.runs, self.against, self.published = list(runs), tuple(against), published
        self.resamples = resamples
        names = [run.name for run in runs]
        if twice := sorted({name for name in names if names.count(name) > 1}):
            raise DataError(f"two results have the name {', '.join(twice)}: compare needs each once")
        methods = dict.fromkeys(run.method for run in runs)
        for method in against:
            if method not in methods:
                raise UsageError(f"--against {method}: there is no run of it; methods: {', '.join(methods)}")
        compared = compare_items([item for run in runs for item in run.items])
        self.tables = compared.tables
        self.known = published_rows()
        self._warnings = [*compared.warnings, *self._unlike_settings(), *self._own_settings(), *self._absent_scores()]

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
        for (preset, method), of_row in by_row(self.runs).items():
            values: dict[str, list[Any]] = {}
            for run in of_row:  # a setting that a run does not name came later: then it had no other value
                for key, value in run.settings.items():
                    values.setdefault(key, []).append(value)
            if unlike := [key for key, each in values.items() if any(value != each[0] for value in each)]:
                said.append(
                    f"{method} on {preset}: its runs were trained with different settings ({', '.join(unlike)})"
                )
        return said

    def _own_settings(self) -> list[str]:
        """Rows that differ from others in more than their methods."""
        own = {row: of_row[0].own_settings for row, of_row in by_row(self.runs).items()}
        said = []
        for (preset, method), settings in own.items():
            others = [those for (of, _), those in own.items() if of == preset]
            unlike = [key for key in settings if any(those.get(key) != settings[key] for those in others)]
            if unlike:
                values = ", ".join(f"{key} {settings[key]}" for key in sorted(unlike))
                said.append(f"{method} on {preset}: it differs from other rows in more than its method: {values}")
        return said

    def rows(self, table: Table) -> list[Row]:
        """The rows of a table: methods, on each preset."""
        there = [run for run in self.runs if run.name in table.items]
        presets = {run.preset for run in there}
        return [
            Row(f"{method} ({preset})" if len(presets) > 1 else method, preset, method, tuple(of_row))
            for (preset, method), of_row in by_row(there).items()
        ]

    # ---- differences

    @cached_property
    def differences(self) -> list[list[Against]]:
        """Of each table, the differences that can be told."""
        return [found for found, _ in self._told]

    @cached_property
    def _told(self) -> list[tuple[list[Against], list[str]]]:
        """Of each table, its differences and what must be said of them."""
        return [self._differences(table) for table in self.tables]

    def _differences(self, table: Table) -> tuple[list[Against], list[str]]:
        rows = self.rows(table)
        found: list[Against] = []
        of_reason: dict[str, dict[str, list[str]]] = {}
        """Reason -> pair -> metrics."""
        for row in rows if self.against else ():
            bases = [
                base for method in self.against for base in rows if (base.preset, base.method) == (row.preset, method)
            ]
            if row in bases:
                continue
            if not bases:
                reason = f"no run of {' or '.join(self.against)} beside it"
                of_reason.setdefault(reason, {})[row.label] = []
                continue
            base = min(bases, key=row.unlike)
            for metric in METRICS:
                difference, reasons = self._difference(table, row, base, metric)
                found += [] if difference is None else [difference]
                for reason in reasons:
                    of_reason.setdefault(reason, {}).setdefault(f"{row.label} − {base.label}", []).append(
                        metric.upper()
                    )
        said = []
        for reason, pairs in of_reason.items():
            whats = [f"{pair} ({', '.join(metrics)})" if metrics else pair for pair, metrics in pairs.items()]
            said.append(f"{table.title}: {', '.join(whats)}: {reason}")
        return found, said

    def _difference(self, table: Table, row: Row, base: Row, metric: str) -> tuple[Against | None, list[str]]:
        """The difference, where there is one, and what must be said of it."""
        scores = [each.scores(table, metric) for each in (row, base)]
        seeds = sorted(scores[0].keys() & scores[1].keys())
        said = []
        if left := sorted(scores[0].keys() ^ scores[1].keys()):
            said.append(f"only one of them has the seeds {', '.join(map(str, left))}: left out")
        if not seeds:
            return None, [*said, "there is no seed that both have scores of"]
        try:
            kept = [
                {run.seed: self._kept(run, of_row[run.seed]).runs for run in each.runs if run.seed in seeds}
                for each, of_row in zip((row, base), scores, strict=True)
            ]
            paired = metric == "rppl"
            if len(seeds) >= LEAST_SEEDS:
                over_seeds = seeds_difference(kept[0], kept[1], paired=paired, resamples=self.resamples)
                return Against.over_seeds(row.label, base.label, metric, over_seeds), said
            first, second = (of_seed[seeds[0]] for of_seed in kept)
            of_one = sentences_difference(first, second, paired=paired, resamples=self.resamples)
        except (DataError, UsageError) as error:
            return None, [*said, f"no interval: {error}"]
        said.append("one seed: the interval is over sentences, and says nothing about the next seed")
        return Against.over_sentences(row.label, base.label, metric, len(first), of_one), said

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
        of_differences = [line for _, said in self._told for line in said]
        return [*self._warnings, *of_differences, *self._doubts(), *self._published_apart()]

    def _doubts(self) -> list[str]:
        """Rows whose marginal NLL is doubtful, with the first reason that is given."""
        said = []
        for (preset, method), of_row in by_row(self.runs).items():
            if doubtful := [run for run in of_row if run.doubts]:
                seeds = ", ".join(str(run.seed) for run in doubtful)
                said.append(f"†: marginal NLL and KL of {method} on {preset}, seeds {seeds}: {doubtful[0].doubts[0]}")
        return said

    def _measured_on(self, table: Table) -> str:
        """Of which sentences the figures beside FPPL and RPPL are; nothing where no run says it."""
        runs = [run for row in self.rows(table) for run in row.runs]
        found: dict[tuple[str, str], set[float]] = {}
        """What of which split -> numbers of sentences."""
        for run in runs:
            if (count := run.figure((("test", "sentences"),))) is not None:
                found.setdefault(("reconstruction NLL and NLL, z from the prior", "test"), set()).add(count)
            signature = run.within(("likelihood", "signature"))
            count = run.figure((("likelihood", "details", "sentences"),))
            if isinstance(signature, str) and count is not None:
                split = Signature.parse(signature).get("scored", "held-out text")
                found.setdefault(("marginal NLL and KL", split), set()).add(count)
        return "; ".join(
            f"{what}: {' or '.join(f'{count:,.0f}' for count in sorted(counts))} sentences of {split}"
            for (what, split), counts in found.items()
        )

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
            if measured_on := self._measured_on(table):
                parts.append(measured_on)
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
            figures = [row.cell(name, places) for name, places in FIGURES.items()]
            seeds = ", ".join(str(run.seed) for run in sorted(row.runs, key=lambda run: run.seed))
            rows.append([row.label, seeds, *map(mean_and_spread, scores), *figures])
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
                    rows.append([row.label, *(row.cell(name, places) for name, places in FIT.items())])
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


def _published_cells(rows: Sequence[Mapping[str, Any]], mark: str) -> list[list[str]]:
    """Rows of FPPL, RPPL and reconstruction NLL under the header of our tables."""
    rest = ["-"] * (len(FIGURES) - 1)
    return [
        [f"{row['system']}{mark}", "-", *(tables.perplexity(row.get(key)) for key in ("fppl", "rppl", "nll")), *rest]
        for row in rows
    ]
