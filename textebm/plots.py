"""Pictures of a run, drawn from its log."""

import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from textebm import plain_json
from textebm.charts import Chart, learning_charts, write_csv
from textebm.errors import CheckpointError, UsageError


def read_log(run_dir: Path) -> list[dict[str, Any]]:
    """The lines of a run's log. Names of figures are kept once for all of them: they would be half of the memory.

    Raises:
        CheckpointError: there is no log, or a line of it is damaged.
    """
    path = run_dir / "log.jsonl"

    def interned(pairs: plain_json.Pairs) -> dict[str, Any]:
        return {sys.intern(key): value for key, value in pairs}

    try:
        with path.open("rb") as log:
            lines = [plain_json.parse(line, interned) for line in log]
    except FileNotFoundError:
        raise CheckpointError(f"{run_dir} is no run folder: it holds no log.jsonl") from None
    except ValueError as error:
        raise CheckpointError(f"{path} is damaged: {error}") from None
    for number, line in enumerate(lines, start=1):
        step = line.get("step") if isinstance(line, dict) else None
        if not isinstance(step, int) or isinstance(step, bool) or not isinstance(line.get("kind"), str):
            raise CheckpointError(f"{path} is damaged: line {number} has no kind and step")
    return lines


def learning_curves(run_dir: Path, output: Path) -> None:
    """Draw likelihood, energies and norms over learning steps; of a plain language model the likelihood alone.

    Args:
        run_dir: the run folder.
        output: PNG, SVG or PDF file to write.

    Raises:
        CheckpointError: the run has no readable log, or nothing was logged yet.
        UsageError: matplotlib is not installed, or cannot write such a file.
    """
    require_matplotlib()
    import matplotlib
    from matplotlib.figure import Figure

    lines = read_log(run_dir)
    train = [line for line in lines if line["kind"] == "train"]
    valid = [line for line in lines if line["kind"] == "valid"]
    if not train or not valid:
        raise CheckpointError(f"{run_dir} has logged no training or no validation yet: there is nothing to draw")
    with matplotlib.rc_context({"font.size": 9, "axes.grid": True, "grid.alpha": 0.3, "axes.spines.top": False}):
        if "perplexity" in valid[0]:
            figure = Figure(figsize=(3.7, 3.6), layout="constrained")
            _draw_perplexity(figure.subplots(), valid)
        else:
            figure = Figure(figsize=(11, 3.6), layout="constrained")
            _draw_latent(figure.subplots(1, 3), train, valid)
        for axes in figure.axes:
            axes.legend(frameon=False, fontsize=8)
        save(figure, output)


def every_curve(run_dir: Path, folder: Path) -> list[Path]:
    """Draw each chart of a run's log, as a PNG of its own.

    Args:
        run_dir: the run folder.
        folder: where NAME.png are written, made if need be.

    Returns:
        The files.

    Raises:
        CheckpointError: the run has no readable log, or nothing was logged yet.
        UsageError: matplotlib is not installed, or a file cannot be written.
    """
    require_matplotlib()
    import matplotlib
    from matplotlib.figure import Figure

    charts = _charts_of(run_dir)
    folder.mkdir(parents=True, exist_ok=True)
    with matplotlib.rc_context({"font.size": 9, "axes.grid": True, "grid.alpha": 0.3, "axes.spines.top": False}):
        for chart in charts:
            figure = Figure(figsize=(4.8, 3.6), layout="constrained")
            axes = figure.subplots()
            for line in chart.lines:
                axes.plot(line.x, line.y, label=line.name, marker="o" if line.form == "dots" else None, markersize=3)
            axes.set(title=chart.title, xlabel=chart.x_label)
            if chart.logarithmic and all(value > 0 for line in chart.lines for value in line.y):
                axes.set_yscale("log")
                _plain_ticks(axes)
            axes.legend(frameon=False, fontsize=8)
            save(figure, folder / f"{chart.key}.png")
    return [folder / f"{chart.key}.png" for chart in charts]


def write_numbers(run_dir: Path, output: Path) -> None:
    """Write the numbers of those charts as CSV: chart, line, x, y.

    Raises:
        CheckpointError: the run has no readable log, or nothing was logged yet.
        OSError: the file cannot be written.
    """
    write_csv(_charts_of(run_dir), output)


def _charts_of(run_dir: Path) -> list[Chart]:
    """The charts of a log that have lines."""
    lines = read_log(run_dir)
    train, valid = ([line for line in lines if line["kind"] == kind] for kind in ("train", "valid"))
    charts = [chart for chart in learning_charts(train, valid) if chart.lines]
    if not charts:
        raise CheckpointError(f"{run_dir} has logged no training or no validation yet: there is nothing to draw")
    return charts


def anomalies(found: dict[str, Any], folder: Path, name: str) -> None:
    """Draw the scores of normal and anomalous samples, and the precision–recall curve.

    Args:
        found: the numbers (see `anomaly.figures.curves`).
        folder: where NAME-scores.png and NAME-precision-recall.png are written.
        name: of the files.

    Raises:
        UsageError: matplotlib is not installed, or the folder cannot be written.
    """
    require_matplotlib()
    import matplotlib
    from matplotlib.figure import Figure

    with matplotlib.rc_context({"font.size": 9, "axes.grid": True, "grid.alpha": 0.3, "axes.spines.top": False}):
        for ending, draw in (("scores", _draw_scores), ("precision-recall", _draw_precision_recall)):
            figure = Figure(figsize=(4.4, 3.6), layout="constrained")
            axes = figure.subplots()
            draw(axes, found)
            axes.legend(frameon=False, fontsize=8)
            save(figure, folder / f"{name}-{ending}.png")


def _draw_scores(axes: Any, found: dict[str, Any]) -> None:  # noqa: ANN401
    """Share of the normal, and of the anomalous samples, in each bar."""
    edges = found["histogram"]["edges"]
    for side, colour in (("normal", "tab:blue"), ("anomalous", "tab:red")):
        counts = found["histogram"][side]
        shares = [count / sum(counts) for count in counts]
        axes.stairs(shares, edges, fill=True, alpha=0.5, color=colour, label=f"{side} ({sum(counts):,})")
    axes.set(title="scores in the test", xlabel=found["score"], ylabel="share")


def _draw_precision_recall(axes: Any, found: dict[str, Any]) -> None:  # noqa: ANN401
    """Precision over recall, and what chance would give."""
    curve, base_rate = found["precision_recall"], found["base_rate"]
    axes.plot(curve["recall"], curve["precision"], color="tab:blue", label="anomalies by score")
    axes.axhline(base_rate, color="tab:grey", linestyle="--", label=f"chance ({base_rate:.3f})")
    axes.set(title="precision and recall", xlabel="recall", ylabel="precision", xlim=(0, 1), ylim=(0, 1.02))


def require_matplotlib() -> None:
    """Check that pictures can be drawn.

    Raises:
        UsageError: they cannot.
    """
    if find_spec("matplotlib") is None:
        raise UsageError("plots need matplotlib: pip install 'textebm[plot]'")


def save(figure: Any, output: Path) -> None:  # noqa: ANN401
    """Write a figure to a file of the kind that its name says.

    Raises:
        UsageError: it cannot be written.
    """
    try:
        figure.savefig(output, dpi=150)
    except (OSError, ValueError) as error:
        raise UsageError(f"{output} cannot be written: {error}") from None


def _draw_perplexity(axes: Any, valid: list[dict[str, Any]]) -> None:  # noqa: ANN401
    """The one panel of a plain language model."""
    _line(axes, valid, "perplexity", "exact: nothing is latent", "tab:blue", marker="o")
    axes.set(title="perplexity on valid", xlabel="step", yscale="log")
    _plain_ticks(axes)


def _draw_latent(panels: Any, train: list[dict[str, Any]], valid: list[dict[str, Any]]) -> None:  # noqa: ANN401
    """The three panels of a model with z: likelihood, energies, norms."""
    likelihood, energy, norm = panels
    measure, named = ("mse", "MSE") if "reconstruction_mse" in valid[0] else ("perplexity", "perplexity")
    for key, label, colour in (
        ("reconstruction", "posterior samples", "tab:blue"),
        ("prior", "prior samples", "tab:orange"),
        ("gaussian", "Gaussian samples", "tab:green"),
    ):
        _line(likelihood, valid, f"{key}_{measure}", label, colour, marker="o")
    likelihood.set(title=f"{named} on valid, by where z comes from", xlabel="step", yscale="log")
    _plain_ticks(likelihood)
    for key, label, colour in (
        ("posterior_energy", "posterior", "tab:blue"),
        ("prior_energy", "prior", "tab:orange"),
    ):
        _line(energy, train, key, f"{label} (train)", colour, alpha=0.4)
        _line(energy, valid, key, f"{label} (valid)", colour, marker="o")
    energy.set(title="energy −f(z), nats", xlabel="step")
    for key, label, colour in (
        ("posterior_norm", "‖z‖ posterior", "tab:blue"),
        ("prior_norm", "‖z‖ prior", "tab:orange"),
        ("posterior_displacement", "moved by the posterior chain", "tab:purple"),
    ):
        _line(norm, train, key, label, colour)
    norm.set(title="chains", xlabel="step")


def _plain_ticks(axes: Any) -> None:  # noqa: ANN401
    """Numbers in full on a logarithmic axis."""
    from matplotlib.ticker import ScalarFormatter

    axes.yaxis.set_major_formatter(ScalarFormatter())
    axes.yaxis.set_minor_formatter(ScalarFormatter())


def _line(axes: Any, lines: list[dict[str, Any]], key: str, label: str, colour: str, **style: Any) -> None:  # noqa: ANN401
    known = [line for line in lines if isinstance(line[key], int | float)]  # a log has what is no number as text
    axes.plot([line["step"] for line in known], [line[key] for line in known], label=label, color=colour, **style)
