"""Memory and time of training over the size of the corpus: what grows with it, and what does not.

    python benchmarks/corpus_memory.py [--sizes 10000 100000 1000000 10000000] [--steps 100]

Makes corpora out of the demo corpus by repetition with variation (each sentence with one word replaced by another), and
runs `textebm train` on each as a process of its own, in a cache folder of its own, while looking at its memory. Writes
results/corpus-memory.json and docs/corpus-memory.svg. The largest corpus takes two gigabytes of disk while it runs.

Two figures are looked at: memory of the process's own (RssAnon, what it asked for and fills), and pages of files that
it has mapped (RssFile, which the system takes back when it needs the room). Linux only.
"""

import argparse
import json
import os
import random
import shlex
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from textebm import hardware
from textebm.data.registry import resolve

ROOT = Path(__file__).resolve().parents[1]
SMALL = {
    "prior.latent-dim": 8,
    "prior.width": 32,
    "prior.steps": 5,
    "generator.embedding-dim": 32,
    "generator.hidden-dim": 32,
    "inference.steps": 2,
    "evaluation.sentences": 100,
    "evaluation.active-unit-sentences": 0,
    "vocab-size": 5000,
    "batch-size": 64,
}
"""A model so small that the corpus, and not the model, is what is measured."""
LOOK_EVERY = 0.02


def make_corpus(path: Path, sentences: int) -> int:
    """Write a corpus of so many sentences; returns its size in bytes."""
    source = [sentence.split() for sentence in resolve("demo").sentences("train")]
    words = sorted({word for sentence in source for word in sentence})
    draw = random.Random(0)
    with path.open("w", encoding="utf-8") as file:
        for index in range(sentences):
            sentence = list(source[index % len(source)])
            sentence[draw.randrange(len(sentence))] = words[draw.randrange(len(words))]
            file.write(" ".join(sentence) + "\n")
    return path.stat().st_size


def memory_of(process: int) -> dict[str, int]:
    """RssAnon and RssFile of a process in bytes; empty when it is gone."""
    try:
        lines = Path(f"/proc/{process}/status").read_text(encoding="utf-8").splitlines()
    except OSError:
        return {}
    fields = dict(line.split(":", 1) for line in lines if line.startswith("Rss"))
    return {name: int(value.split()[0]) * 1024 for name, value in fields.items()}


def train(corpus: Path, folder: Path, steps: int) -> dict[str, Any]:
    """Train on a corpus, once to build its cache and once with it; peaks of memory and seconds of each run."""
    figures: dict[str, Any] = {}
    for name in ("first", "cached"):
        command = [sys.executable, "-m", "textebm", "train", "--config", "ptb-small", "--data", str(corpus)]
        command += ["--run-dir", str(folder / name), "--max-steps", str(steps), "--device", "cpu"]
        command += [word for key, value in SMALL.items() for word in (f"--{key}", str(value))]
        environment = {**os.environ, "TEXTEBM_HOME": str(folder / "home")}
        began = time.monotonic()
        with subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True) as process:
            peaks: dict[str, int] = {}
            while process.poll() is None:
                for key, value in memory_of(process.pid).items():
                    peaks[key] = max(value, peaks.get(key, 0))
                time.sleep(LOOK_EVERY)
            errors = process.stderr.read() if process.stderr else ""
        if process.returncode:
            raise SystemExit(f"training on {corpus.name} ended with {process.returncode}:\n{errors}")
        log = [json.loads(line) for line in (folder / name / "log.jsonl").read_text(encoding="utf-8").splitlines()]
        data = log[0]["data"]
        figures[name] = {
            "peak_anonymous_mb": round(peaks["RssAnon"] / 1e6, 1),
            "peak_file_mb": round(peaks["RssFile"] / 1e6, 1),
            "seconds": round(time.monotonic() - began, 1),
            "training_seconds": log[-1]["seconds"],
        }
        figures["words"] = sum(data[split]["words"] for split in ("train", "valid", "test"))
    figures["cache_mb"] = round(sum(f.stat().st_size for f in (folder / "home" / "encoded").iterdir()) / 1e6, 1)
    return figures


def plot(rows: list[dict[str, Any]], path: Path) -> None:
    """Peak memory over the number of sentences."""
    import matplotlib as mpl

    mpl.use("Agg")
    mpl.rcParams["svg.hashsalt"] = "textebm"
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(figsize=(6.4, 4), layout="constrained")
    sizes = [row["sentences"] for row in rows]
    series = {
        "size of the text file": [row["file_mb"] for row in rows],
        "own memory, encoding and training": [row["first"]["peak_anonymous_mb"] for row in rows],
        "own memory, text cached": [row["cached"]["peak_anonymous_mb"] for row in rows],
    }
    for (name, values), style in zip(series.items(), ("k:", "o-", "s--"), strict=True):
        axes.plot(sizes, values, style, label=name)
    axes.set(xscale="log", yscale="log", xlabel="sentences", ylabel="MB (peak)", title="Memory over corpus size")
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(path, metadata={"Date": None})


def main() -> None:
    """Measure every size, and write the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", type=int, nargs="+", default=[10_000, 100_000, 1_000_000, 10_000_000])
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--output", type=Path, default=ROOT / "results" / "corpus-memory.json")
    parser.add_argument("--plot", type=Path, default=ROOT / "docs" / "corpus-memory.svg")
    chosen = parser.parse_args()
    rows = []
    for size in chosen.sizes:
        with tempfile.TemporaryDirectory(prefix="textebm-corpus-") as name:
            corpus = Path(name) / "corpus.txt"
            file_mb = round(make_corpus(corpus, size) / 1e6, 1)
            rows.append({"sentences": size, "file_mb": file_mb, **train(corpus, Path(name), chosen.steps)})
        print(json.dumps(rows[-1]), flush=True)
    described = {
        "name": "corpus-memory",
        "command": shlex.join(["python", "benchmarks/corpus_memory.py", *sys.argv[1:]]),
        "steps": chosen.steps,
        "commit": hardware.commit(),
        "hardware": hardware.hardware_class(),
        "versions": hardware.versions(),
        "rows": rows,
    }
    chosen.output.write_text(json.dumps(described, indent=2) + "\n", encoding="utf-8")
    plot(rows, chosen.plot)


if __name__ == "__main__":
    main()
