"""Charts as data: what a picture, a page, a CSV file and JSON say alike."""

import csv
import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

Form = Literal["line", "dots", "stairs"]


@dataclasses.dataclass(frozen=True)
class Line:
    """Numbers that a chart shows under one name."""

    name: str
    x: list[float]
    """Places; of stairs their borders, one more than there are heights."""
    y: list[float]
    low: list[float] | None = None
    """Lower border of a band around the line."""
    high: list[float] | None = None
    """Upper border of it."""
    form: Form = "line"
    """A line, a line with a dot at each place, or the stairs of a histogram."""


@dataclasses.dataclass(frozen=True)
class Chart:
    """Lines over one axis."""

    key: str
    """By which the page and the JSON know it."""
    title: str
    x_label: str
    lines: list[Line]
    logarithmic: bool = False
    """Of the vertical axis."""
    marks: list[float] = dataclasses.field(default_factory=list)
    """Places on the horizontal axis that are marked."""


POINTS = 2000
"""Of a line on a page: more than a screen has pixels across, and a page of a few MB however long the run was."""


def thinned(chart: Chart, most: int = POINTS) -> Chart:
    """A chart whose lines have so many points at most: those at even distances, the first and the last among them."""

    def thin(line: Line) -> Line:
        if len(line.x) <= most:
            return line
        kept = [round(place * (len(line.x) - 1) / (most - 1)) for place in range(most)]
        parts = {name: getattr(line, name) for name in ("x", "y", "low", "high")}
        chosen = {name: None if values is None else [values[place] for place in kept] for name, values in parts.items()}
        return dataclasses.replace(line, **chosen)  # type: ignore[arg-type]

    return dataclasses.replace(chart, lines=[thin(line) for line in chart.lines])


def learning_charts(train: Sequence[Mapping[str, Any]], valid: Sequence[Mapping[str, Any]]) -> list[Chart]:
    """Charts over learning steps, from lines of a log; one whose figures were not logged has no lines."""

    def of(lines: Sequence[Mapping[str, Any]], key: str, name: str, form: Form = "line", sign: int = 1) -> list[Line]:
        known = [line for line in lines if isinstance(line.get(key), int | float)]
        drawn = Line(name, [line["step"] for line in known], [sign * line[key] for line in known], form=form)
        return [drawn] if known else []

    sources = (("reconstruction", "posterior samples"), ("prior", "prior samples"), ("gaussian", "Gaussian samples"))

    def by_source(measure: str) -> list[Line]:
        return [line for key, name in sources for line in of(valid, f"{key}_{measure}", name, "dots")]

    step, both = "learning step", (("posterior", "posterior"), ("prior", "prior"))
    return [
        Chart("perplexity", "Perplexity on valid, by where z comes from", step, by_source("perplexity"), True),
        Chart(
            "perplexity-exact", "Perplexity on valid, exact", step, of(valid, "perplexity", "perplexity", "dots"), True
        ),
        Chart("mse", "Mean squared error on valid, pixels in [−1, 1]", step, by_source("mse"), True),
        Chart(
            "likelihood",
            "−log p(x|z), nats a sample",
            step,
            of(train, "log_prob", "train", sign=-1) + of(valid, "reconstruction_nll", "valid", "dots"),
        ),
        Chart(
            "energy",
            "Energy −f(z), nats",
            step,
            [line for key, name in both for line in of(train, f"{key}_energy", f"{name}, train")]
            + [line for key, name in both for line in of(valid, f"{key}_energy", f"{name}, valid", "dots")],
        ),
        Chart(
            "norm",
            "Norms of z, and how far posterior chains move",
            step,
            [line for key, name in both for line in of(train, f"{key}_norm", f"‖z‖, {name}")]
            + of(train, "posterior_displacement", "moved by the posterior chain"),
        ),
        Chart(
            "gradient",
            "Norms of gradients, before clipping",
            step,
            of(train, "gradient_norm", "generator") + of(train, "energy_gradient_norm", "energy"),
            True,
        ),
        Chart("gap", "NLL gap, prior less posterior samples, nats", step, of(valid, "nll_gap", "gap", "dots")),
        Chart("units", "Active units of z", step, of(valid, "active_units", "active units", "dots")),
        Chart(
            "information",
            "Mutual information of x and z, nats",
            step,
            of(valid, "mutual_information", "mutual information", "dots"),
        ),
    ]


def write_csv(charts: Sequence[Chart], path: Path) -> None:
    """Write the numbers of charts, one a line: chart, line, place on the horizontal axis, value.

    Raises:
        OSError: it cannot be written.
    """
    with path.open("w", encoding="utf-8", newline="") as stream:
        rows = csv.writer(stream, lineterminator="\n")
        rows.writerow(("chart", "line", "x", "y"))
        for chart in charts:
            for line in chart.lines:
                rows.writerows((chart.key, line.name, x, y) for x, y in zip(line.x, line.y, strict=False))
