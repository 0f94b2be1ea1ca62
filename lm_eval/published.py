"""Published figures that ship with the package: FPPL and RPPL of the paper, and the other tables of its line."""

import json
import tomllib
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from importlib import resources
from typing import Any, Literal

from textebm.lm_eval import tables

Format = Literal["text", "markdown", "csv", "json"]


def published_rows() -> dict[str, Any]:
    """What is in `published.toml`: rows of FPPL, RPPL and NLL by corpus, and the other tables."""
    file = resources.files("textebm.lm_eval") / "published.toml"
    return tomllib.loads(file.read_text(encoding="utf-8"))


@dataclass(frozen=True)
class Published:
    """A published table of something else than FPPL and RPPL.

    Args:
        name: of the kind of table; data: of the corpus.
        title, source, note: in words.
        columns: of the figures.
        rows: the system, then its figures as they are printed.
    """

    name: str
    data: str
    title: str
    source: str
    note: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


def published_tables(name: str | None = None, data: str | None = None) -> list[Published]:
    """The published tables that ship with the package, of a kind and a corpus or of all."""
    found = []
    for entry in published_rows()["tables"]:
        if name in (None, entry["name"]) and data in (None, entry["data"]):
            columns = tuple(entry["columns"])
            rows = tuple(_padded(row, len(columns)) for row in entry["rows"])
            found.append(Published(**{**entry, "columns": columns, "rows": rows}))
    return found


def _padded(row: Sequence[Any], columns: int) -> tuple[str, ...]:
    system, *values = row
    return (system, *(str(value) for value in values), *["-"] * (columns - len(values)))


def render_published(form: Format) -> str:
    """Every published table that ships with the package."""
    known = published_rows()
    texts = [
        Published(
            "text",
            data,
            f"FPPL and RPPL: {data}",
            known["source"],
            "NLL is that of reconstruction; number of samples and decoding are not known",
            ("FPPL", "RPPL", "NLL"),
            tuple(
                (row["system"], *(tables.perplexity(row.get(key)) for key in ("fppl", "rppl", "nll")))
                for row in entry["rows"]
            ),
        )
        for data, entry in known["data"].items()
    ]
    every = [*texts, *published_tables()]
    if form == "json":
        return json.dumps({"metric": "compare", "published": [asdict(each) for each in every]}, indent=2)
    if form == "csv":
        widest = max(len(each.columns) for each in every)
        rows = [[each.title, *row, *["-"] * (widest + 1 - len(row))] for each in every for row in each.rows]
        return tables.render(("what", "system", *(f"figure {n + 1}" for n in range(widest))), rows, "csv")
    bold = "**" if form == "markdown" else ""
    return "\n\n".join(
        f"{bold}{each.title}{bold} ({each.source}; {each.note})\n\n"
        + tables.render(("", *each.columns), each.rows, form)
        for each in every
    )
