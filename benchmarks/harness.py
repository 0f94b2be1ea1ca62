"""What every benchmark shares: paired and interleaved timing, the form of a row, the table, the file of results.

A benchmark compares our way with a reference in one run. Both are run in turn, and the ratio is the median of the
pairs' own ratios, so that a machine that is slower for a while is slower for both.
"""

import ctypes
import json
import platform
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from textebm import hardware

RESULTS = Path(__file__).resolve().parents[1] / "results"

M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4  # of glibc's malloc.h

Work = Callable[[], object]
Row = dict[str, Any]


def seconds(work: Work, device: torch.device) -> float:
    """How long `work` takes, until the device is done."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    begin = time.perf_counter()
    work()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - begin


def rounds(works: Sequence[Work], repeats: int, device: torch.device) -> list[list[float]]:
    """Seconds of every work in each round, after one run of each that does not count; who goes first changes."""
    for work in works:
        seconds(work, device)
    measured = []
    for number in range(repeats):
        times = [0.0] * len(works)
        for place in range(len(works)):
            which = (place + number) % len(works)
            times[which] = seconds(works[which], device)
        measured.append(times)
    return measured


def figures(pairs: Sequence[tuple[float, float]]) -> dict[str, float | int]:
    """What a row says about pairs of (our seconds, the reference's)."""
    ratios = [theirs / mine for mine, theirs in pairs]
    return {
        "ours_s": statistics.median(mine for mine, _ in pairs),
        "reference_s": statistics.median(theirs for _, theirs in pairs),
        "ratio": statistics.median(ratios),
        "min": min(ratios),
        "max": max(ratios),
        "repeats": len(pairs),
    }


def keep_memory() -> None:
    """Let the C library keep what is freed, for both ways alike: else fresh pages are timed as well as arithmetic."""
    if platform.libc_ver()[0] == "glibc":
        library = ctypes.CDLL(None)
        library.mallopt(M_MMAP_MAX, 0)
        library.mallopt(M_TRIM_THRESHOLD, 2**31 - 1)


def devices(named: str) -> list[torch.device]:
    """What `--device` names: cpu, cuda, or all, the CPU and then a GPU where there is one; says what is skipped.

    Args:
        named: on the command line.
    """
    wanted = ["cpu", "cuda"] if named == "all" else [named]
    found = [name for name in wanted if not name.startswith("cuda") or torch.cuda.is_available()]
    for name in wanted:
        if name not in found:
            print(f"skipped: {name}, torch sees no CUDA device here")
    return [torch.device(name) for name in found]


class Bench:
    """Collects the rows of one suite and writes them into the file of the hardware class."""

    def __init__(self, suite: str, device: torch.device, repeats: int) -> None:
        """An empty table.

        Args:
            suite: what the names of all rows begin with; rows of other suites in the file are left alone.
            device: where it is measured.
            repeats: pairs a row.
        """
        self.suite, self.device, self.repeats = suite, device, repeats
        self.rows: list[Row] = []
        self.skipped: list[str] = []

    def compare(
        self,
        name: str,
        ours: Work,
        reference: Work,
        dtype: str,
        shapes: dict[str, Any],
        repeats: int | None = None,
        **details: Any,  # noqa: ANN401
    ) -> Row:
        """Measure a pair, add its row and print it."""
        pairs = [(mine, theirs) for mine, theirs in rounds([ours, reference], repeats or self.repeats, self.device)]
        return self.add(name, dtype, shapes, **figures(pairs), **details)

    def compare_all(self, reference: Work, variants: Sequence[tuple[str, Work, str, dict[str, Any]]]) -> None:
        """Measure several ways (name, work, dtype, shapes) against one reference, which runs once a round."""
        measured = rounds([reference, *(work for _, work, _, _ in variants)], self.repeats, self.device)
        for index, (name, _, dtype, shapes) in enumerate(variants, start=1):
            self.add(name, dtype, shapes, **figures([(times[index], times[0]) for times in measured]))

    def add(self, name: str, dtype: str, shapes: dict[str, Any], **values: Any) -> Row:  # noqa: ANN401
        """Add a row measured elsewhere; what a row has no figure for is None."""
        row: Row = {
            "name": f"{self.suite}/{name}",
            "device": self.device.type,
            "dtype": dtype,
            **dict.fromkeys(("ours_s", "reference_s", "ratio", "min", "max", "repeats")),
            "threads": torch.get_num_threads(),
            "shapes": shapes,
            **values,
            "hardware": hardware.hardware_class(self.device),
            "versions": hardware.versions(),
            "commit": hardware.commit(),
        }
        self.rows.append(row)
        print(describe(row), flush=True)
        return row

    def skip(self, name: str, why: str) -> None:
        """Name what was not measured, and why."""
        self.skipped.append(f"{self.suite}/{name}: {why}")
        print(f"{self.suite + '/' + name:44s}  skipped: {why}", flush=True)

    def write(self, path: Path | None = None, only: str = "") -> Path:
        """Put the rows into the file, in place of this suite's earlier ones of the device; of a part, of those of the
        same names.
        """
        path = path or RESULTS / f"bench-{hardware.hardware_class(self.device)}.json"
        known = json.loads(path.read_text(encoding="utf-8")) if path.exists() else []
        measured = {row["name"] for row in self.rows}
        kept = [
            row
            for row in known
            if not row["name"].startswith(f"{self.suite}/")
            or row["device"] != self.device.type
            or (only and row["name"] not in measured)
        ]
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(kept + self.rows, indent=1) + "\n", encoding="utf-8")
        return path


HEADER = f"{'':44s}{'dtype':>8s}{'ours':>12s}{'reference':>12s}{'ratio':>8s}   min to max"


def describe(row: Row) -> str:
    """A row as a line of the table."""

    def time_of(value: float | None) -> str:
        return "" if value is None else f"{value * 1e3:.1f} ms" if value < 10 else f"{value:.1f} s"

    ratio = "" if row["ratio"] is None else f"{row['ratio']:.2f}"
    spread = "" if row["min"] is None else f"   {row['min']:.2f} to {row['max']:.2f}"
    remark = f"  {row['remark']}" if row.get("remark") else ""
    times = f"{time_of(row['ours_s']):>12s}{time_of(row['reference_s']):>12s}"
    return f"{row['name']:44s}{row['dtype']:>8s}{times}{ratio:>8s}{spread}{remark}"


def linear_fit(sizes: Sequence[float], times: Sequence[float]) -> float:
    """The exponent of the power law through the first and the last point: 1 is linear, below 1 is better."""
    import math

    return math.log(times[-1] / times[0]) / math.log(sizes[-1] / sizes[0])
