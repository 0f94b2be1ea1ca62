"""Does a long job grow? Memory, open files, threads and log of a long training run; memory of a long generation.

    python scripts/long_run.py --output results/long-run.json

It trains a tiny model for many steps through the loop of `textebm train`, on sentences of every length, so that what is
kept for each shape shows; then that model writes many sentences, and these are measured; and a log of many bytes is
drawn. Memory is what the system counts as resident (Linux: it is read from /proc).

Memory counts as flat when its trend over the last 80 % of the steps is below BOUND.
"""

import argparse
import gc
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from textebm import hardware, memory, training, whole_files
from textebm.config import Config, load_config
from textebm.materials.text import TextMaterial

BOUND = 1.0
"""MB in 1,000 steps: a run of a million steps then grows by less than 1 GB."""
SETTLED = 0.2
"""Part of the steps over which a process may still fill its caches."""
LONGEST, WORDS, BATCH, STEPS_AN_EPOCH = 24, 500, 4, 1000
PAGE = os.sysconf("SC_PAGE_SIZE")
MB = 1e6
OUTPUT = "sentences.txt"

SETTINGS = f"""\
prior: {{latent_dim: 8, width: 16, steps: 2}}
generator: {{embedding_dim: 16, hidden_dim: 32}}
inference: {{steps: 1, step_size: 0.3}}
optimiser: {{lr: 0.002}}
evaluation: {{sentences: 60, active_unit_sentences: 5, active_unit_chains: 3, samples: 5}}
batch_size: {BATCH}
"""


class Watch(training.Silent):
    """Measures this process now and then, as steps are made."""

    def __init__(self, run_dir: Path, every: int) -> None:
        self.log, self.every, self.steps = run_dir / "log.jsonl", every, 0
        self.measured: list[dict[str, float]] = []

    def step(self, units: int) -> None:
        """One more step."""
        self.steps += 1
        if self.steps % self.every == 0:
            log = self.log.stat().st_size if self.log.exists() else 0
            self.measured.append({"step": self.steps, **measure_process(), "log_bytes": log})


def measure_process() -> dict[str, float]:
    """Resident memory in MB, open files and threads of this process."""
    own = Path("/proc/self")
    resident = int((own / "statm").read_text(encoding="ascii").split()[1]) * PAGE
    files, threads = (len([*(own / name).iterdir()]) for name in ("fd", "task"))
    return {"memory_mb": round(resident / MB, 2), "open_files": files, "threads": threads}


def write_corpus(folder: Path) -> None:
    """Sentences of every length up to LONGEST, of words whose frequencies fall as those of a language do."""
    source = random.Random(0)
    words, weights = [f"word{rank}" for rank in range(WORDS)], [1 / (rank + 1) for rank in range(WORDS)]
    folder.mkdir()
    for split, count in {"train": BATCH * STEPS_AN_EPOCH, "valid": 400, "test": 400}.items():
        lines = (" ".join(source.choices(words, weights, k=source.randint(1, LONGEST))) for _ in range(count))
        (folder / f"{split}.txt").write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")


def train(folder: Path, steps: int, every: int, precision: str) -> dict[str, Any]:
    """A long run, measured every so many steps; its folder is `run`."""
    write_corpus(folder / "corpus")
    settings = f"data: {folder / 'corpus'}\nepochs: {-(-steps // STEPS_AN_EPOCH)}\nprecision: {precision}\n"
    (folder / "long.yaml").write_text(SETTINGS + settings, encoding="utf-8")
    config: Config = load_config(str(folder / "long.yaml"))
    corpus = TextMaterial.resolve(config)
    run_dir, began = folder / "run", time.monotonic()
    watch = Watch(run_dir, every)
    training.train(config, corpus, run_dir, training.Limits(max_steps=steps), observer=watch)
    seconds = time.monotonic() - began
    return {
        "settings": " ".join(SETTINGS.split()) + f" precision: {precision}",
        "steps": watch.steps,
        "seconds": round(seconds, 1),
        **verdict(watch.measured),
        "memory_mb_given_back_by_the_allocator": given_back(),
        "measured": watch.measured,
    }


def verdict(measured: Sequence[dict[str, float]]) -> dict[str, Any]:
    """Whether a run grows, from what was measured of it."""
    settled = measured[int(SETTLED * len(measured)) :]
    steps, resident = (np.array([each[name] for each in settled]) for name in ("step", "memory_mb"))
    trend = float(np.polyfit(steps / 1000, resident, 1)[0])
    return {
        "memory_mb_in_1000_steps": round(trend, 3),
        "bound_mb_in_1000_steps": BOUND,
        "memory_is_flat": trend < BOUND,
        "open_files": sorted({int(each["open_files"]) for each in settled}),
        "threads": sorted({int(each["threads"]) for each in settled}),
        "log_bytes_a_step": round(measured[-1]["log_bytes"] / measured[-1]["step"], 1),
    }


def given_back() -> float:
    """MB that the C library's allocator held though nobody used them: what is left is in use."""
    gc.collect()
    before = measure_process()["memory_mb"]
    memory.give_back()
    return round(before - measure_process()["memory_mb"], 1)


def run(folder: Path, *words: str) -> dict[str, float]:
    """A command as a process of its own: seconds, processor seconds and the most memory that it held.

    What `wait4` says of memory begins with that of the process that started it, so the system is asked while it runs.
    """
    began, most = time.monotonic(), 0.0
    process = subprocess.Popen([sys.executable, "-m", "textebm", *words], cwd=folder, stdout=subprocess.DEVNULL)
    ended = 0
    while not ended:
        time.sleep(0.02)
        most = max(most, most_memory(process.pid))
        ended, status, used = os.wait4(process.pid, os.WNOHANG)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode != 0:
        raise SystemExit(f"textebm {' '.join(words)} ended with {process.returncode}")
    return {
        "seconds": round(time.monotonic() - began, 1),
        "processor_seconds": round(used.ru_utime + used.ru_stime, 1),
        "most_memory_mb": round(most, 1),
    }


def most_memory(process: int) -> float:
    """The most memory in MB that a process has held; 0 of one that has ended."""
    for line in Path(f"/proc/{process}/status").read_text(encoding="ascii", errors="replace").splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024 / MB
    return 0.0


def generate(folder: Path, n: int) -> dict[str, float]:
    """n sentences into a file."""
    found = run(folder, "generate", "-n", str(n), *SHORT, "--output", OUTPUT)
    with (folder / OUTPUT).open(encoding="utf-8") as written:
        lines = sum(1 for _ in written)
    if lines != n:
        raise SystemExit(f"{lines} sentences were written, and {n} were asked for")
    return {"sentences": n, **found}


SHORT = ("--model", "run", "--max-length", "6", "--device", "cpu")
"""Of the sentences that are written: the tiny model has learned long ones."""


def fppl(folder: Path, n: int) -> dict[str, float]:
    """Forward perplexity of the sentences that were written last."""
    text = ("--train", "corpus/train.txt", "--reference", "corpus/test.txt")
    return {"sentences": n, **run(folder, "fppl", "--samples", OUTPUT, *text, "--output", "fppl.json")}


def interrupt(folder: Path) -> dict[str, Any]:
    """A generation that is interrupted when it has begun to write: what is left of it."""
    output = folder / "interrupted.txt"
    words = ["generate", "-n", "1000000", *SHORT, "--output", output.name]
    process = subprocess.Popen([sys.executable, "-m", "textebm", *words], cwd=folder, stderr=subprocess.DEVNULL)
    sizes: list[int] = []
    while len({size for size in sizes if size}) < 3 and process.poll() is None:
        sizes += [path.stat().st_size for path in folder.glob(f".{output.name}.*.tmp")]
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)  # SIGINT is ignored by what a shell starts in the background
    code = process.wait()
    left = sorted(path.name for path in folder.iterdir() if output.name in path.name)
    return {"bytes_written_before": max(sizes, default=0), "exit_code": code, "files_left": left}


def long_log(folder: Path, size: int) -> dict[str, float]:
    """Learning curves out of a log of some bytes: that of the run, over and over, as if it had gone on."""
    (folder / "long").mkdir()
    lines = [json.loads(line) for line in (folder / "run" / "log.jsonl").read_text(encoding="utf-8").splitlines()]
    last, written, begin = lines[-1]["step"], 0, 0
    with (folder / "long" / "log.jsonl").open("w", encoding="utf-8") as log:
        while written < size:
            for line in lines:
                written += log.write(json.dumps(line | {"step": begin + line["step"]}, ensure_ascii=False) + "\n")
            begin += last
    return {"bytes": written, "steps": begin, **run(folder, "plot", "long", "--output", "curves.png")}


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=10_000)
    parser.add_argument("--every", type=int, default=250, help="steps between two measurements")
    parser.add_argument("--precision", choices=("fp32", "bf16"), default="fp32")
    parser.add_argument("--sentences", type=int, nargs="+", default=[10_000, 100_000, 1_000_000])
    parser.add_argument("--log", type=int, default=100_000_000, help="bytes of a log that is drawn")
    parser.add_argument("--output", type=Path, help="JSON file for what was found")
    chosen = parser.parse_args()
    options = f"--steps {chosen.steps} --every {chosen.every} --precision {chosen.precision}"
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        trained = train(folder, chosen.steps, chosen.every, chosen.precision)
        generated, measured = [], []
        for n in chosen.sentences:
            generated.append(generate(folder, n))
            measured.append(fppl(folder, n))
        interrupted = interrupt(folder)
        plotted = long_log(folder, chosen.log)
    result = {
        "name": "long-run",
        "command": f"python scripts/long_run.py {options} --sentences {' '.join(map(str, chosen.sentences))} "
        f"--log {chosen.log}",
        "commit": hardware.commit(),
        "hardware": hardware.hardware_class("cpu"),
        "versions": hardware.versions(),
        "training": trained,
        "generate": generated,
        "fppl": measured,
        "interrupted": interrupted,
        "plot_of_a_long_log": plotted,
    }
    written = json.dumps(result, indent=2) + "\n"
    print(written, end="")
    if chosen.output is not None:
        whole_files.write_text(chosen.output, written)
    return 0 if trained["memory_is_flat"] else 1


if __name__ == "__main__":
    sys.exit(main())
