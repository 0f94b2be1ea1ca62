"""Pictures of the latent space, drawn from the JSON objects that commands print: every number in them is there."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from textebm.plots import plain_ticks, require_matplotlib, save

PANEL = (4.2, 3.4)
"""Width and height of a panel, in inches."""
COLUMNS = 3
"""Panels side by side."""
WIDE = 5
"""Ratio of the largest to the smallest score from which scores are drawn on a logarithmic axis."""
LONG = 200
"""Steps beyond which a chain is drawn on a logarithmic axis: what happens at its start is not to vanish."""


def transition(details: dict[str, Any], output: Path) -> None:
    """Draw what was seen of prior chains: energy, norm and displacement over steps; quality and diagnostics if known.

    Args:
        details: the `details` of `textebm transition`: those of `analysis.Transition.as_dict`, and `quality` and
            `diagnostics` where they were measured.
        output: PNG, SVG or PDF file to write.

    Raises:
        UsageError: matplotlib is not installed, or cannot write such a file.
    """
    require_matplotlib()
    import matplotlib
    from matplotlib.figure import Figure

    panels = [_energy, _norm]
    panels += [_quality] if details.get("quality") else []
    panels += [_histograms, _acceptance] if details.get("diagnostics") else []
    columns = min(COLUMNS, len(panels))
    rows = -(-len(panels) // columns)
    with matplotlib.rc_context({"font.size": 9, "axes.grid": True, "grid.alpha": 0.3, "axes.spines.top": False}):
        figure = Figure(figsize=(PANEL[0] * columns, PANEL[1] * rows), layout="constrained")
        places = figure.subplots(rows, columns, squeeze=False).flatten()
        for place, draw in zip(places, panels, strict=False):
            draw(place, details)
            place.legend(frameon=False, fontsize=8)
        for place in places[len(panels) :]:
            place.remove()
        save(figure, output)


def numbers(details: dict[str, Any]) -> Iterator[tuple[str, float, float, float | None, float | None]]:
    """Every number of that picture, a row each.

    Returns:
        The series; x (a step, or the middle of a bar); the value; its lower and upper end, where there are some: a
        standard deviation on either side over chains, a 95 % interval of a score, the borders of a bar.
    """
    for name in ("energy", "norm", "displacement"):
        for step, (mean, sd) in enumerate(zip(details[name]["mean"], details[name]["sd"], strict=True)):
            yield name, step, mean, mean - sd, mean + sd
    if (quality := details.get("quality")) is not None:
        for point in quality["points"]:
            low, high = point["interval"] or (None, None)
            yield quality["metric"], point["steps"], point["score"], low, high
    if (found := details.get("diagnostics")) is not None:
        beside = found["short_and_long"]
        for kind, counts in _kinds(beside):
            for count, low, high in zip(counts, beside["edges"], beside["edges"][1:], strict=False):
                yield f"energies of {kind}", (low + high) / 2, count, low, high
        for chains in filter(None, (found["prior"], found["posterior"])):
            for step, share in enumerate(chains["acceptance"] or [], start=1):
                yield f"acceptance of {chains['target']} steps", step, share, None, None


def _energy(axes: Any, details: dict[str, Any]) -> None:  # noqa: ANN401
    _trace(axes, details["energy"], "energy −f(z)", "tab:blue")
    for number, mark in enumerate(details["marks"]):
        axes.axvline(mark, color="tab:grey", linewidth=0.8, linestyle=":", label="marks" if number == 0 else None)
    axes.set(title="energy along prior chains, nats", xlabel="step")
    _steps(axes, details["steps"])


def _norm(axes: Any, details: dict[str, Any]) -> None:  # noqa: ANN401
    _trace(axes, details["norm"], "norm ‖z‖", "tab:blue")
    _trace(axes, details["displacement"], "displacement from the start", "tab:orange")
    axes.set(title="where the chains are", xlabel="step")
    axes.set_ylim(bottom=0)
    _steps(axes, details["steps"])


def _quality(axes: Any, details: dict[str, Any]) -> None:  # noqa: ANN401
    quality = details["quality"]
    points = quality["points"]
    steps, scores = [point["steps"] for point in points], [point["score"] for point in points]
    name = quality["metric"].upper() if quality["metric"] in ("fppl", "fid") else quality["metric"]
    axes.plot(steps, scores, color="tab:blue", marker="o", label=f"{quality['samples']:,} samples each")
    for point in points:
        if point["interval"] is not None:
            axes.vlines(point["steps"], *point["interval"], color="tab:blue", alpha=0.6)
    if quality["real"] is not None:
        axes.axhline(quality["real"], color="tab:grey", linestyle="--", label=f"real text ({quality['real']:.1f})")
    if max(scores) > WIDE * min(scores) > 0:
        axes.set_yscale("log")
        plain_ticks(axes)
    axes.set(title=f"{name} over prior steps (lower is better)", xlabel="steps of the prior chain")
    _steps(axes, max(steps))


def _histograms(axes: Any, details: dict[str, Any]) -> None:  # noqa: ANN401
    beside = details["diagnostics"]["short_and_long"]
    for (kind, counts), colour in zip(_kinds(beside), ("tab:blue", "tab:orange", "tab:green"), strict=False):
        shares = [count / sum(counts) for count in counts]
        axes.stairs(shares, beside["edges"], fill=True, alpha=0.4, color=colour, label=f"{kind} ({sum(counts):,})")
    axes.set(title="energies of samples", xlabel="energy −f(z), nats", ylabel="share")


def _kinds(beside: dict[str, Any]) -> list[tuple[str, list[int]]]:
    """The histograms by what they are of."""
    named = {
        "short-run samples": beside["short"],
        f"ends of {beside['long_steps']:,} steps": beside["long"],
        "posterior samples": beside["posterior"],
    }
    return [(name, counts) for name, counts in named.items() if counts is not None]


def _acceptance(axes: Any, details: dict[str, Any]) -> None:  # noqa: ANN401
    found, longest = details["diagnostics"], 1
    for chains, colour in ((found["prior"], "tab:blue"), (found["posterior"], "tab:green")):
        if chains is not None and chains["acceptance"] is not None:
            shares = chains["acceptance"]
            longest = max(longest, len(shares))
            axes.plot(range(1, len(shares) + 1), shares, color=colour, linewidth=0.8, label=f"{chains['target']} steps")
    axes.set(title="acceptance that Metropolis's choice would have", xlabel="step", ylim=(0, 1.02))
    _steps(axes, longest)


def _trace(axes: Any, trace: dict[str, list[float]], label: str, colour: str) -> None:  # noqa: ANN401
    """The mean over chains, and a standard deviation on either side."""
    steps = range(len(trace["mean"]))
    low, high = ([mean + side * sd for mean, sd in zip(trace["mean"], trace["sd"], strict=True)] for side in (-1, 1))
    axes.plot(steps, trace["mean"], color=colour, label=label)
    axes.fill_between(steps, low, high, color=colour, alpha=0.2, linewidth=0)


def _steps(axes: Any, longest: int) -> None:  # noqa: ANN401
    """The axis of steps."""
    from matplotlib.ticker import ScalarFormatter

    if longest > LONG:
        axes.set_xscale("symlog", linthresh=10)
        axes.xaxis.set_major_formatter(ScalarFormatter())
        return
    axes.set_xlim(-0.02 * longest, 1.02 * longest)
