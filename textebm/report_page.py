"""The page of a report: one HTML file that needs nothing else, with its charts drawn as SVG.

Charts take their colours from the page's style, and so follow light and dark. Whatever comes from a corpus is escaped.
"""

import base64
import math
from collections.abc import Iterable, Sequence
from itertools import pairwise

import jinja2
from markupsafe import Markup

from textebm._version import __version__
from textebm.charts import Chart, Line
from textebm.report import Picture, Report, to_json

WIDTH, HEIGHT = 340.0, 230.0
"""Of a chart, in pixels on a phone."""
LEFT, RIGHT, TOP, BOTTOM = 46.0, 16.0, 12.0, 34.0
"""Room around the axes."""
STYLES = 6
"""Styles of lines, each of another colour and another pattern of dashes."""
TICKS = 5
"""About so many on an axis."""


def render(report: Report) -> str:
    """A report as a page of HTML."""
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("textebm"), autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True
    )
    environment.filters |= {"svg": chart_svg, "data_uri": _data_uri}
    page = environment.get_template("report.html")
    return page.render(report=report, embedded=embedded(to_json(report)), styles=STYLES, version=__version__)


def embedded(text: str) -> Markup:
    """JSON that may stand inside a script element, whatever it says."""
    for character in "<>&\u2028\u2029":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return Markup(text)


def _data_uri(picture: Picture) -> str:
    return "data:image/png;base64," + base64.b64encode(picture.png).decode("ascii")


# ---- charts


def chart_svg(chart: Chart) -> Markup:
    """A chart as an SVG element with its title and its numbers in words."""
    across = _Axis.fit((value for line in chart.lines for value in line.x), LEFT, WIDTH - RIGHT, False)
    upright = _Axis.fit(
        (value for line in chart.lines for value in _heights(line)),
        HEIGHT - BOTTOM,
        TOP,
        chart.logarithmic and all(value > 0 for line in chart.lines for value in _heights(line)),
    )
    parts = [*_grid(across, upright), *_marks(chart, across)]
    for number, line in enumerate(chart.lines):
        parts += _drawn(line, number % STYLES, across, upright)
    label = Markup('<text class="label" x="{}" y="{}" text-anchor="middle">{}</text>').format(
        (LEFT + WIDTH - RIGHT) / 2, HEIGHT - 4, chart.x_label
    )
    return Markup(
        '<svg class="chart" viewBox="0 0 {w:g} {h:g}" role="img" aria-labelledby="{k}-title {k}-words">'
        '<title id="{k}-title">{title}</title><desc id="{k}-words">{words}</desc>{parts}{label}</svg>'
    ).format(
        w=WIDTH,
        h=HEIGHT,
        k=chart.key,
        title=chart.title,
        words=in_words(chart),
        parts=Markup("").join(parts),
        label=label,
    )


def in_words(chart: Chart) -> str:
    """What a chart shows, for those who do not see it."""
    return " ".join(_line_in_words(line, chart.x_label) for line in chart.lines)


def _line_in_words(line: Line, x_label: str) -> str:
    if line.form == "stairs":
        return f"{line.name}: {sum(line.y):g} values from {line.x[0]:.4g} to {line.x[-1]:.4g}."
    lowest, highest = min(line.y), max(line.y)
    return (
        f"{line.name}: from {line.y[0]:.4g} at {x_label} {line.x[0]:g} to {line.y[-1]:.4g} at {line.x[-1]:g}, "
        f"between {lowest:.4g} and {highest:.4g}."
    )


def _heights(line: Line) -> list[float]:
    base = [0.0] if line.form == "stairs" else []
    return [*line.y, *(line.low or []), *(line.high or []), *base]


class _Axis:
    """From values to pixels along one axis, and its ticks.

    Args:
        low, high: values at its ends.
        start, end: their pixels.
        logarithmic: whether equal ratios take equal room.
    """

    def __init__(self, low: float, high: float, start: float, end: float, logarithmic: bool) -> None:
        self.low, self.high, self.start, self.end, self.logarithmic = low, high, start, end, logarithmic

    @classmethod
    def fit(cls, values: Iterable[float], start: float, end: float, logarithmic: bool) -> "_Axis":
        """An axis that has room for values."""
        known = [value for value in values if math.isfinite(value)] or [0.0, 1.0]
        low, high = min(known), max(known)
        if low == high:
            low, high = (low / 1.5, high * 1.5) if logarithmic else (low - 0.5, high + 0.5)
        if logarithmic:
            ratio = (high / low) ** 0.04
            return cls(low / ratio, high * ratio, start, end, True)
        return cls(low, high, start, end, False)

    def at(self, value: float) -> float:
        """The pixel of a value, to a tenth."""
        low, high = self._scaled(self.low), self._scaled(self.high)
        return round(self.start + (self.end - self.start) * (self._scaled(value) - low) / (high - low), 1)

    def _scaled(self, value: float) -> float:
        return math.log(value) if self.logarithmic else value

    def ticks(self) -> list[float]:
        """Round values within it."""
        if self.logarithmic:
            powers = range(math.floor(math.log10(self.low)), math.ceil(math.log10(self.high)) + 1)
            every = [factor * 10.0**power for power in powers for factor in (1, 2, 5)]
            within = [value for value in every if self.low <= value <= self.high]
            if len(within) > 2:
                return within if len(within) <= 2 * TICKS else within[::3]
        step = _round_step((self.high - self.low) / TICKS)
        first = math.ceil(self.low / step - 1e-9)
        return [n * step for n in range(first, math.floor(self.high / step + 1e-9) + 1)]


def _round_step(step: float) -> float:
    """The next number up of 1, 2 or 5 times a power of ten."""
    power = 10.0 ** math.floor(math.log10(step))
    return next(factor * power for factor in (1, 2, 5, 10) if factor * power >= step * (1 - 1e-9))


def tick_label(value: float) -> str:
    """A tick in few characters."""
    size = abs(value)
    if size >= 1e6:
        text = f"{value / 1e6:g}M"
    elif size >= 1e4:
        text = f"{value / 1e3:g}k"
    else:
        text = f"{round(value, 10):g}"
    return text.replace("-", "−")


def _grid(across: _Axis, upright: _Axis) -> Iterable[Markup]:
    """Both axes: hairlines, ticks and labels."""
    left, right, bottom = LEFT, WIDTH - RIGHT, HEIGHT - BOTTOM
    for value in upright.ticks():
        y = upright.at(value)
        yield Markup('<line class="grid" x1="{}" x2="{}" y1="{y}" y2="{y}"/>').format(left, right, y=y)
        yield Markup('<text x="{}" y="{}" text-anchor="end">{}</text>').format(left - 5, y + 3.5, tick_label(value))
    for value in across.ticks():
        x = across.at(value)
        yield Markup('<line class="tick" x1="{x}" x2="{x}" y1="{}" y2="{}"/>').format(bottom, bottom + 4, x=x)
        yield Markup('<text x="{}" y="{}" text-anchor="middle">{}</text>').format(x, bottom + 15, tick_label(value))
    yield Markup('<line class="axis" x1="{}" x2="{}" y1="{y}" y2="{y}"/>').format(left, right, y=bottom)


def _marks(chart: Chart, across: _Axis) -> Iterable[Markup]:
    for mark in chart.marks:
        yield Markup('<line class="mark" x1="{x}" x2="{x}" y1="{}" y2="{}"/>').format(
            TOP, HEIGHT - BOTTOM, x=across.at(mark)
        )


def _drawn(line: Line, style: int, across: _Axis, upright: _Axis) -> Iterable[Markup]:
    """A line, its band, its dots; or the stairs of a histogram."""
    if line.form == "stairs":
        yield _stairs(line, style, across, upright)
        return
    if line.low is not None and line.high is not None:
        around = [*_points(line.x, line.high, across, upright), *_points(line.x, line.low, across, upright)[::-1]]
        yield Markup('<polygon class="band s{}" points="{}"/>').format(style, " ".join(around))
    points = _points(line.x, line.y, across, upright)
    yield Markup('<polyline class="line s{}" points="{}"/>').format(style, " ".join(points))
    if line.form == "dots" or len(points) == 1:
        for point in points:
            x, y = point.split(",")
            yield Markup('<circle class="dot s{}" cx="{}" cy="{}" r="2.6"/>').format(style, x, y)


def _points(xs: Sequence[float], ys: Sequence[float], across: _Axis, upright: _Axis) -> list[str]:
    return [f"{across.at(x)},{upright.at(y)}" for x, y in zip(xs, ys, strict=True) if math.isfinite(y)]


def _stairs(line: Line, style: int, across: _Axis, upright: _Axis) -> Markup:
    base = upright.at(0)
    steps = [
        f"L{across.at(left)},{upright.at(height)}L{across.at(right)},{upright.at(height)}"
        for (left, right), height in zip(pairwise(line.x), line.y, strict=True)
    ]
    path = f"M{across.at(line.x[0])},{base}{''.join(steps)}L{across.at(line.x[-1])},{base}"
    return Markup('<path class="stairs s{}" d="{}"/>').format(style, path)
