"""Pictures of the latent space: maps, and the energy over a plane. All they show is in `latent_space`."""

from pathlib import Path
from typing import Any

import numpy as np

from textebm.latent_space import Landscape, LatentMap
from textebm.plots import require_matplotlib, save

STYLE: dict[Any, Any] = {"font.size": 9, "axes.spines.top": False, "axes.spines.right": False, "svg.fonttype": "none"}
PRIOR, POSTERIOR = "#d55e00", "#0072b2"
"""Vermilion and blue, which the colour-blind tell apart too."""
MOST_CLASSES = 20
"""That a legend can tell; more are coloured on a scale."""
LEVELS = 14
"""Contours of a landscape, about."""
DARKEST = 0.5
"""Of the greys between them, from 0 (white) to 1 (black): samples must be seen on it."""
REACH = (2.0, 90.0)
"""Percentiles of the values that the contours span: at the corners they are far larger than anywhere a sample is."""
TITLES = {"length": "tokens", "energy": "energy −f(z), nats", "label": "class"}
"""Of colour bars and legends."""


def latent_map(found: LatentMap, colour: str, output: Path) -> None:
    """Draw points of the latent space.

    Args:
        found: the points.
        colour: length, energy or label, which the points must have.
        output: PNG, SVG or PDF file to write.

    Raises:
        UsageError: matplotlib is not installed, or cannot write such a file.
    """
    require_matplotlib()
    import matplotlib
    from matplotlib.figure import Figure

    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(6.4, 5.2), layout="constrained")
        axes = figure.subplots()
        if colour == "label" and found.labels is not None and len(set(found.labels)) <= MOST_CLASSES:
            _draw_classes(axes, found, found.labels)
        else:
            _draw_scale(figure, axes, found, colour)
        if found.shares is None:
            axes.set(xticks=[], yticks=[], xlabel="UMAP", ylabel="UMAP")
        else:
            _name_directions(axes, found.shares)
            axes.set_aspect("equal", adjustable="datalim")
        axes.set_title(
            f"posterior means of z, {len(found.names):,} {'images' if found.lengths is None else 'sentences'}"
        )
        save(figure, output)


def _draw_classes(axes: Any, found: LatentMap, labels: list[str]) -> None:  # noqa: ANN401
    """A colour a class, in the order of their names."""
    import matplotlib

    classes = sorted(set(labels))
    colours = matplotlib.colormaps["tab10" if len(classes) <= 10 else "tab20"]
    of_point, positions = np.array(labels), found.positions.numpy()
    for number, name in enumerate(classes):
        here = positions[of_point == name]
        axes.scatter(here[:, 0], here[:, 1], s=12, alpha=0.8, linewidths=0, color=colours(number), label=name)
    axes.legend(frameon=False, title=TITLES["label"], loc="center left", bbox_to_anchor=(1, 0.5), fontsize=8)


def _draw_scale(figure: Any, axes: Any, found: LatentMap, colour: str) -> None:  # noqa: ANN401
    """Colours on a scale, from dark to light."""
    numbers: dict[str, list[float] | list[int]] = {"energy": found.energies.tolist()}
    if found.lengths is not None:
        numbers["length"] = found.lengths
    if found.labels is not None:
        classes = sorted(set(found.labels))
        numbers["label"] = [classes.index(label) for label in found.labels]
    x, y = found.positions.T.numpy()
    drawn = axes.scatter(x, y, c=numbers[colour], s=12, alpha=0.85, linewidths=0, cmap="viridis")
    figure.colorbar(drawn, ax=axes, label=TITLES[colour], shrink=0.8)


def landscape(found: Landscape, output: Path) -> None:
    """Draw the energy and −log p(z) over the plane of the first two principal directions, with samples.

    Args:
        found: the values and the samples.
        output: PNG, SVG or PDF file to write.

    Raises:
        UsageError: matplotlib is not installed, or cannot write such a file.
    """
    require_matplotlib()
    import matplotlib
    from matplotlib.colors import ListedColormap
    from matplotlib.figure import Figure

    values = (
        ("energy −f(z), nats", found.energy.numpy()),
        ("−log p(z) + constant, nats", found.potential.numpy()),
    )
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(10.4, 4.6), layout="constrained")
        greys = ListedColormap(matplotlib.colormaps["Greys"](np.linspace(0, DARKEST, 256)))
        plane = (found.first.numpy(), found.second.numpy())
        for axes, (title, surface) in zip(figure.subplots(1, 2), values, strict=True):
            drawn = axes.contourf(*plane, surface, levels=_levels(surface), cmap=greys, extend="both")
            for samples, colour, marker, label in (
                (found.prior, PRIOR, "^", "prior samples"),
                (found.posterior, POSTERIOR, "o", "posterior samples"),
            ):
                x, y = samples.T.numpy()
                axes.scatter(x, y, s=9, marker=marker, color=colour, alpha=0.7, linewidths=0, label=label)
            figure.colorbar(drawn, ax=axes, shrink=0.85)
            axes.set_title(title)
            _name_directions(axes, found.shares)
        figure.axes[0].legend(loc="upper left", fontsize=8, framealpha=0.9, markerscale=2)
        save(figure, output)


def _levels(surface: Any) -> Any:  # noqa: ANN401
    """Where contours run, at round numbers."""
    from matplotlib.ticker import MaxNLocator

    low, high = np.percentile(surface, REACH)
    if not high > low:  # a Gaussian prior has no energy: one flat colour
        low, high = low - 0.5, low + 0.5
    return MaxNLocator(LEVELS).tick_values(low, high)


def _name_directions(axes: Any, shares: list[float]) -> None:  # noqa: ANN401
    first, second = shares
    axes.set_xlabel(f"first principal direction ({first:.1%} of the variance)")
    axes.set_ylabel(f"second ({second:.1%})")
