"""Tables of text, Markdown or CSV."""

import csv
import io
from collections.abc import Sequence
from typing import Literal

TableFormat = Literal["text", "markdown", "csv"]


def render(header: Sequence[str], rows: Sequence[Sequence[str]], form: TableFormat) -> str:
    """A table whose first column is on the left, and the others on the right, where the format has sides."""
    if form == "csv":
        file = io.StringIO()
        csv.writer(file, lineterminator="\n").writerows([header, *rows])
        return file.getvalue().rstrip("\n")
    if form == "markdown":
        escaped = [[cell.replace("|", "\\|") for cell in row] for row in (header, *rows)]
        escaped.insert(1, ["---", *["---:"] * (len(header) - 1)])
        return "\n".join(f"| {' | '.join(row)} |" for row in escaped)
    widths = [max(len(row[column]) for row in (header, *rows)) for column in range(len(header))]
    lines = []
    for row in (header, *rows):
        cells = [row[0].ljust(widths[0]), *(c.rjust(w) for c, w in zip(row[1:], widths[1:], strict=True))]
        lines.append("  ".join(cells).rstrip())
    return "\n".join(lines)


def figure(value: float | None, digits: int = 4) -> str:
    """A count, a rate or a mean in few characters; a dash for none."""
    if value is None:
        return "-"
    return f"{value:,}" if isinstance(value, int) else f"{value:.{digits}g}"


def perplexity(value: float | None) -> str:
    """A perplexity with two digits behind the point; a dash for none."""
    return "-" if value is None else f"{value:.2f}"


def between(interval: Sequence[float] | None) -> str:
    """An interval; a dash for none."""
    return "-" if interval is None else f"{interval[0]:.2f} to {interval[1]:.2f}"
