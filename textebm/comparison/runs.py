"""What runs of text and of images have in common in a table: whose they are, their rows, the figures in a cell."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np

R = TypeVar("R", bound="Result")


@dataclass(frozen=True)
class Result:
    """A result of `textebm experiment`.

    Args:
        name: of the run.
        preset, method, seed: what it is a run of.
    """

    name: str
    preset: str
    method: str
    seed: int


def by_row(runs: Sequence[R]) -> dict[tuple[str, str], list[R]]:
    """Preset and method -> the runs of both, in the order in which they come."""
    grouped: dict[tuple[str, str], list[R]] = {}
    for run in runs:
        grouped.setdefault((run.preset, run.method), []).append(run)
    return grouped


def mean_and_spread(values: Sequence[float | None], mean: str = ".2f", deviation: str = ".2f") -> str:
    """The mean over runs that have the figure, with the standard deviation where there are several; of how many runs,
    where others have none; a dash where none has.

    Args:
        values: of each run.
        mean, deviation: formats of both.
    """
    given = [value for value in values if value is not None]
    if not given:
        return "-"
    spread = f" ± {np.std(given, ddof=1):{deviation}}" if len(given) > 1 else ""
    share = f" ({len(given)} of {len(values)})" if len(given) < len(values) else ""
    return f"{np.mean(given):{mean}}{spread}{share}"
