"""What compares with what: signatures in words, and scores put into tables of those that may stand side by side."""

import json
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from textebm import plain_json
from textebm.errors import DataError, UsageError
from textebm.lm_eval import tables
from textebm.lm_eval.protocols import PROTOCOLS
from textebm.lm_eval.published import Format, published_rows
from textebm.lm_eval.signature import Signature

METRICS = ("fppl", "rppl")
APART = ("metric", "test", "valid", "held-out", "discounts")
"""Decisive facts in which the two scores of one row differ by their nature: FPPL is of no test split, and the judges of
either are trained on different texts."""


# ----------------------------------------------------------------------------------------------------------- signatures


@dataclass(frozen=True)
class Said:
    """The same in words and as JSON."""

    text: str
    facts: dict[str, Any]


def explanation(signature: Signature) -> Said:
    """A signature, fact by fact."""
    explained = signature.explain()
    width = max(len(f"{key}:{value}") for key, value, _ in explained)
    lines = [f"{f'{key}:{value}'.ljust(width)}  {meaning}" for key, value, meaning in explained]
    facts: dict[str, Any] = {
        "signature": str(signature),
        "facts": [{"key": key, "value": value, "meaning": meaning} for key, value, meaning in explained],
    }
    protocol = PROTOCOLS.get(signature.get("judge", ""))
    if protocol is not None:
        lines += ["", f"{protocol.name}: {protocol.description} ({protocol.source})"]
        lines += [f"quirk: {quirk}" for quirk in protocol.quirks]
        facts["protocol"] = {"description": protocol.description, "quirks": list(protocol.quirks)}
    return Said("\n".join(lines), facts)


def verdict(first: Signature, second: Signature) -> Said:
    """Whether the scores of two signatures compare, and the facts in which they differ."""
    found = first.compare(second)
    if first == second:
        text = "the scores compare: the signatures are the same"
    elif found.comparable:
        text = "the scores compare: the signatures agree in all that decides a score"
    else:
        text = f"the scores do not compare: they differ in {', '.join(found.decisive)}"
    lines = [text]
    why = {
        "decisive": "decides the score",
        "implementation": "another program; scores should agree but for rounding",
        "uncertainty": "changes the interval, or the seed",
    }
    for weight, reason in why.items():
        for key in getattr(found, weight):
            lines.append(f"  {key}: {first.get(key, '(absent)')} / {second.get(key, '(absent)')}  ({reason})")
    facts = {
        "comparable": found.comparable,
        **{weight: {key: [first.get(key), second.get(key)] for key in getattr(found, weight)} for weight in why},
    }
    return Said("\n".join(lines), facts)


# --------------------------------------------------------------------------------------------------------------- tables


@dataclass(frozen=True)
class Item:
    """A score out of a file."""

    name: str
    metric: str
    score: float
    interval: tuple[float, float] | None
    signature: Signature
    headline: bool
    real: float | None = None
    """What real text scores in the place of samples, where that was measured."""

    @property
    def place(self) -> tuple[tuple[str, str], ...]:
        """What must agree in one table."""
        facts = self.signature.decisive
        return tuple(sorted((key, value) for key, value in facts.items() if key not in APART))


@dataclass
class Table:
    """Scores that compare.

    Args:
        items: row -> metric -> score.
        published: published rows beside them.
    """

    items: dict[str, dict[str, Item]]
    published: list[dict[str, Any]]

    def of(self, metric: str | None = None) -> list[Item]:
        """The scores, of one metric or of both."""
        return [item for row in self.items.values() for item in row.values() if metric in (None, item.metric)]

    def takes(self, item: Item) -> bool:
        """Whether a score compares with all that are here."""
        return all(other.place == item.place for other in self.of()) and all(
            other.signature.compare(item.signature).comparable for other in self.of(item.metric)
        )

    @property
    def facts(self) -> dict[str, str]:
        """Decisive facts on which the scores agree, or which only one metric has."""
        facts: dict[str, str] = {}
        for item in self.of():
            facts |= {key: value for key, value in item.signature.decisive.items() if key not in facts}
        return {key: value for key, value in facts.items() if key != "metric"}

    @property
    def title(self) -> str:
        """What one sees first."""
        named = [f"{key} {self.facts[key]}" for key in ("data", "judge", "n", "decoding") if key in self.facts]
        return ", ".join(named)

    def rows(self) -> list[list[str]]:
        """One row a system: name, FPPL, its interval, RPPL, its interval, main table."""
        rows = []
        for name, scores in self.items.items():
            row = [name]
            for metric in METRICS:
                item = scores.get(metric)
                row += ["-", "-"] if item is None else [tables.perplexity(item.score), tables.between(item.interval)]
            headline = all(item.headline for item in scores.values())
            rows.append([*row, "yes" if headline else "no"])
        for entry in self.published:
            figures = [cell for metric in METRICS for cell in (tables.perplexity(entry.get(metric)), "-")]
            rows.append([f"{entry['system']} (published)", *figures, "-"])
        return rows


HEADER = ("", "FPPL", "95 % interval", "RPPL", "95 % interval", "main table")


@dataclass(frozen=True)
class Comparison:
    """Tables, each of scores that compare, and what must be said of them."""

    tables: list[Table]
    warnings: list[str]
    source: str

    def render(self, form: Format) -> str:
        """The tables in a format; the warnings are part of every one but CSV."""
        if form == "json":
            return json.dumps(self.as_dict(), ensure_ascii=False, indent=2)
        if form == "csv":  # one file: the table's number and what it is come first
            rows = [[str(n), t.title, *row] for n, t in enumerate(self.tables, start=1) for row in t.rows()]
            return tables.render(("table", "what", "name", *HEADER[1:]), rows, "csv")
        parts = [
            f"{'**' if form == 'markdown' else ''}{table.title}{'**' if form == 'markdown' else ''}\n\n"
            + tables.render(HEADER, table.rows(), form)
            for table in self.tables
        ]
        if any(table.published for table in self.tables):
            parts.append(f"published: {self.source}; number of samples and decoding are not known")
        parts += [f"warning: {warning}" for warning in self.warnings]
        return "\n\n".join(parts)

    def as_dict(self) -> dict[str, Any]:
        """The tables in JSON types."""
        return {
            "metric": "compare",
            "tables": [
                {
                    "title": table.title,
                    "facts": table.facts,
                    "rows": [
                        {
                            "name": name,
                            **{
                                metric: {
                                    "score": item.score,
                                    "interval": item.interval and list(item.interval),
                                    "signature": str(item.signature),
                                    "headline": item.headline,
                                }
                                for metric, item in scores.items()
                            },
                        }
                        for name, scores in table.items.items()
                    ],
                    "published": table.published,
                }
                for table in self.tables
            ],
            "warnings": self.warnings,
        }


def compare_files(paths: Sequence[Path], *, published: bool = False) -> Comparison:
    """The scores of some files, in tables of those that compare.

    Args:
        paths: results of `fppl`, `rppl` or `evaluate`, or any JSON that holds such.
        published: whether published rows are wanted where the data and the judge compare.

    Raises:
        DataError: a file is no JSON, or holds no score.
    """
    return compare_items([item for path in paths for item in read_items(path)], published=published)


def read_items(path: Path) -> list[Item]:
    """The scores in a file, named after it; where it names its rows, after those.

    Raises:
        DataError: it is no JSON, or holds no score.
    """
    return items_in(plain_json.read(path, DataError), path)


def items_in(content: object, path: Path) -> list[Item]:
    """The scores in what a file held.

    Raises:
        DataError: there is none, or one is not as textebm writes it.
    """
    try:
        items = items_of(content, path.name.removesuffix(".json"))
    except (KeyError, TypeError, ValueError, RecursionError, UsageError) as error:
        raise DataError(f"{path}: a score in it is not as textebm writes it ({error})") from None
    if not items:
        raise DataError(f"{path}: no score in it; wanted is what fppl, rppl or evaluate write as JSON")
    return items


def items_of(content: object, name: str) -> list[Item]:
    """The scores in what was read from JSON, named so unless it names its rows.

    Raises:
        KeyError, TypeError, ValueError, UsageError: a score is not as textebm writes it.
    """
    return list(_items(content, name, named=False))


def _items(value: object, name: str, *, named: bool) -> Iterable[Item]:
    """Every object with metric fppl or rppl, a score and a signature, wherever it stands."""
    if isinstance(value, list):
        for element in value:
            yield from _items(element, name, named=named)
    if not isinstance(value, Mapping):
        return
    if value.get("metric") in METRICS and "signature" in value:
        yield _item(value, name)
        return
    if isinstance(value.get("name"), str):
        name, named = value["name"], True
    for element in value.values():
        yield from _items(element, name, named=named)


def _item(value: Mapping[str, Any], name: str) -> Item:
    """A score, as `fppl`, `rppl` and `evaluate` write it.

    Raises:
        KeyError, TypeError, ValueError, UsageError: it is none.
    """
    interval, details = value.get("interval"), value.get("details", value) or {}
    if not isinstance(value["signature"], str) or not isinstance(details, Mapping):
        raise TypeError("its signature is no text, or its details are no object")
    if interval is not None and not (isinstance(interval, list) and len(interval) == 2):
        raise TypeError("its interval is not of two numbers")
    real = details.get("real_row") or {}
    if not isinstance(real, Mapping):
        raise TypeError("its real_row is no object")
    perplexity = real.get("perplexity")
    return Item(
        name,
        value["metric"],
        _number(value["score"]),
        None if interval is None else (_number(interval[0]), _number(interval[1])),
        Signature.parse(value["signature"]),
        bool(details.get("headline", False)),
        None if perplexity is None else _number(perplexity),
    )


def _number(value: object) -> float:
    """A finite number out of JSON.

    Raises:
        ValueError: it is none.
    """
    if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) < sys.float_info.max:
        raise ValueError(f"{str(value)[:40]} is no number")
    return float(value)


def compare_items(items: Sequence[Item], *, published: bool = False) -> Comparison:
    """Scores in tables of those that compare; see `compare_files`."""
    found: list[Table] = []
    warnings: list[str] = []
    for metric in reversed(METRICS):  # FPPL is of no test split, so it joins the table of every one
        for item in items:
            if item.metric != metric:
                continue
            fitting = [table for table in found if table.takes(item)]
            if not fitting:
                fitting = [Table({}, [])]
                found += fitting
            for table in fitting if metric == "fppl" else fitting[:1]:
                row = table.items.setdefault(item.name, {})
                if metric in row and row[metric] != item:
                    warnings.append(f"{item.name} has two scores {metric} of one kind: the first is shown")
                row.setdefault(metric, item)
    warnings += _apart(found) + _unlike(found)
    rows = published_rows()
    if published:
        warnings += _add_published(found, rows)
    return Comparison(found, warnings, rows["source"])


def _apart(found: Sequence[Table]) -> list[str]:
    """Why there are several tables."""
    if len(found) < 2:
        return []
    keys = dict.fromkeys(key for table in found for key in table.facts)
    differing = [key for key in keys if len({table.facts.get(key) for table in found}) > 1]
    values = "; ".join(f"{key}: {' / '.join(table.facts.get(key, '-') for table in found)}" for key in differing)
    return [f"these scores do not compare and share no table; they differ in {values}"]


def _unlike(found: Sequence[Table]) -> list[str]:
    """Within a table: other programs, and scores that are not of the headline protocol."""
    warnings = []
    for table in found:
        for metric in METRICS:
            chosen = table.of(metric)
            keys = {key for item in chosen[1:] for key in chosen[0].signature.compare(item.signature).implementation}
            if keys:
                warnings.append(
                    f"{table.title}: the {metric} scores come from different programs ({', '.join(sorted(keys))})"
                )
        if names := sorted({item.name for item in table.of() if not item.headline}):
            warnings.append(f"{table.title}: not for the main table: {', '.join(names)}")
    return warnings


def _add_published(found: Sequence[Table], rows: Mapping[str, Any]) -> list[str]:
    """Put published rows beside what they compare with; what is said where they do not."""
    warnings = []
    for table in found:
        reason = why_apart_from_published(table, rows)
        if reason is None:
            table.published = list(rows["data"][table.facts["data"]]["rows"])
        else:
            warnings.append(f"{table.title}: published rows are left out: {reason}")
    return warnings


def why_apart_from_published(table: Table, rows: Mapping[str, Any]) -> str | None:
    """Why published FPPL and RPPL may not stand beside a table's; None where they may."""
    if table.facts.get("judge") != rows["judge"]:
        return f"their judge was an LSTM, and only {rows['judge']} reconstructs it"
    if not is_published_data(table, rows):
        return OTHER_DATA
    if table.facts.get("recipe") != f"{rows['judge']}-{table.facts['data']}" or "text" in table.facts:
        return "the judge or its text is not as the protocol has it"
    if not all(item.headline for item in table.of()):
        return "some score is not of the headline protocol"
    return None


OTHER_DATA = "they were measured on other data"


def is_published_data(table: Table, rows: Mapping[str, Any]) -> bool:
    """Whether a table's training split is the one of the published rows."""
    known = rows["data"].get(table.facts.get("data", ""), {}).get("train")
    return known is not None and known == table.facts.get("train")
