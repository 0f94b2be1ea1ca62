"""Speed of training over the number of processes, on one machine, at one thread each.

    python benchmarks/processes.py [--counts 1 2] [--config demo] [--steps 120] [--repeats 3]

Runs `textebm train` on the demo corpus, by itself and under torchrun, in turn, and reads from each run's log how long
a step takes. Start, validation and saving are left out. Two tables in one: `strong`, in which the batch stays as it is
and processes share it, and `weak`, in which it grows with their number. Writes results/scaling-HARDWARE.json.
"""

import argparse
import json
import os
import shlex
import statistics
import subprocess
import sys
import tempfile
from itertools import pairwise
from pathlib import Path
from typing import Any

import harness

from textebm import hardware
from textebm.config import load_config

QUICK = {
    "prior.width": 16,
    "prior.steps": 2,
    "generator.embedding-dim": 8,
    "generator.hidden-dim": 8,
    "inference.steps": 2,
    "vocab-size": 200,
}
"""Sizes that show that it works, and nothing else."""


def launcher(count: int) -> list[str]:
    """What starts so many processes."""
    if count == 1:
        return [sys.executable, "-m", "textebm"]
    run = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(count)]
    return [*run, "-m", "textebm"]


def step_seconds(count: int, batch: int, config: str, steps: int, settings: dict[str, Any]) -> float:
    """Median seconds of a learning step of a run, over stretches of its log in which nothing but steps was made."""
    with tempfile.TemporaryDirectory(prefix="textebm-scaling-") as name:
        run = Path(name) / "run"
        command = [*launcher(count), "train", "--config", config, "--run-dir", str(run), "--device", "cpu"]
        command += ["--max-steps", str(steps), "--batch-size", str(batch)]
        little = {"samples": 0, "active-unit-sentences": 0, "sentences": 20}
        command += [word for key, value in little.items() for word in (f"--evaluation.{key}", str(value))]
        command += [word for key, value in settings.items() for word in (f"--{key}", str(value))]
        done = subprocess.run(
            command, env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True, check=False
        )
        if done.returncode:
            raise SystemExit(f"training with {count} processes ended with {done.returncode}:\n{done.stderr}")
        log = [json.loads(line) for line in (run / "log.jsonl").read_text(encoding="utf-8").splitlines()]
    stretches = [(a, b) for a, b in pairwise(log) if a["kind"] == b["kind"] == "train"]
    return statistics.median((b["seconds"] - a["seconds"]) / (b["step"] - a["step"]) for a, b in stretches)


def measure(chosen: argparse.Namespace) -> list[dict[str, Any]]:
    """A row for each number of processes and each table."""
    settings = QUICK if chosen.quick else {}
    base = load_config(chosen.config).batch_size
    cells = [("strong", count, base) for count in chosen.counts]
    cells += [("weak", count, base * count) for count in chosen.counts if count > 1]
    seconds: list[list[float]] = [[] for _ in cells]
    for number in range(chosen.repeats):
        for place in range(len(cells)):  # who goes first changes
            which = (place + number) % len(cells)
            _, count, batch = cells[which]
            seconds[which].append(step_seconds(count, batch, chosen.config, chosen.steps, settings))
    rows = []
    for (table, count, batch), times in zip(cells, seconds, strict=True):
        ratios = [batch / base * alone / mine for alone, mine in zip(seconds[0], times, strict=True)]
        row = {
            "table": table,
            "processes": count,
            "batch": batch,
            "step_s": statistics.median(times),
            "samples_a_second": batch / statistics.median(times),
            "speedup": statistics.median(ratios),
            "min": min(ratios),
            "max": max(ratios),
            "repeats": len(times),
        }
        print(
            f"{table:8s}{count:4d} processes, batch {batch:5d}: {row['step_s'] * 1e3:8.1f} ms a step, "
            f"{row['samples_a_second']:8.1f} sentences a second, {row['speedup']:.2f} times one process "
            f"({row['min']:.2f} to {row['max']:.2f})",
            flush=True,
        )
        rows.append(row)
    return rows


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--counts", type=int, nargs="+", default=[1, 2], help="numbers of processes; 1 comes first")
    parser.add_argument("--config", default="demo", help="preset of a model of text")
    parser.add_argument("--steps", type=int, default=120, help="learning steps of each run, at least 60")
    parser.add_argument("--repeats", type=int, default=3, help="runs of each row")
    parser.add_argument("--quick", action="store_true", help="a small model, one run each")
    parser.add_argument("--output", type=Path, default=None, help="default: results/scaling-HARDWARE.json")
    parser.add_argument("--no-write", action="store_true", help="print the table only")
    chosen = parser.parse_args()
    if chosen.counts[0] != 1 or chosen.steps < 60:
        parser.error("--counts begins with 1, which the others are compared with, and --steps is at least 60")
    if chosen.quick:
        chosen.steps, chosen.repeats = 60, 1
    rows = measure(chosen)
    if chosen.no_write:
        return 0
    described = {
        "name": f"scaling-{hardware.hardware_class()}",
        "command": shlex.join(["python", "benchmarks/processes.py", *sys.argv[1:]]),
        "config": chosen.config,
        "steps": chosen.steps,
        "threads": 1,
        "commit": hardware.commit(),
        "hardware": hardware.hardware_class(),
        "versions": hardware.versions(),
        "rows": rows,
    }
    path = chosen.output or harness.RESULTS / f"scaling-{hardware.hardware_class()}.json"
    path.write_text(json.dumps(described, indent=2) + "\n", encoding="utf-8")
    print(f"written: {path.name}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
