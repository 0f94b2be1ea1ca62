"""Kill a training run with SIGKILL at random moments, go on with it each time, and compare it with one never stopped.

    python scripts/kill_and_resume.py --kills 50 --output results/kill-and-resume.json

The model is small and is saved after every step, so that many kills fall into a save. A run that ends is followed by
another, in a folder of its own, until the kills are spent. What is counted: runs that could not go on, files of the
last checkpoint that differ by a bit from those of the run that was never stopped, log lines missing or doubled.
"""

import argparse
import json
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from textebm import checkpoint, hardware, whole_files

SETTINGS: dict[str, object] = {
    "vocab-size": 300,
    "generator.embedding-dim": 8,
    "generator.hidden-dim": 16,
    "prior.steps": 3,
    "prior.width": 8,
    "inference.steps": 2,
    "evaluation.sentences": 20,
    "evaluation.active-unit-sentences": 0,
    "evaluation.samples": 0,
    "batch-size": 1024,
    "epochs": 2,
    "checkpoint-every": 1,
}
SMALL = [
    "--config",
    "demo",
    "--device",
    "cpu",
    *(w for key, value in SETTINGS.items() for w in (f"--{key}", str(value))),
]
FILES = ("model.safetensors", "optimiser.safetensors", "tokenizer.json", "config.json")


def command(run_dir: Path) -> list[str]:
    """What begins the run in a folder, or goes on with it."""
    return [sys.executable, "-m", "textebm", "train", *SMALL, "--run-dir", str(run_dir), "--resume", "auto"]


def start(run_dir: Path) -> "subprocess.Popen[str]":
    """A process that trains in a folder."""
    return subprocess.Popen(command(run_dir), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)


def differing(run_dir: Path, straight: Path) -> list[str]:
    """The files of the last checkpoint, and the log, that are not those of the run that was never stopped."""
    folders = [checkpoint.pointed_at(folder, "last") for folder in (run_dir, straight)]
    assert folders[0] is not None
    assert folders[1] is not None
    found = [name for name in FILES if (folders[0] / name).read_bytes() != (folders[1] / name).read_bytes()]
    if losses(run_dir) != losses(straight):
        found.append("log.jsonl")
    return found


def losses(run_dir: Path) -> list[dict[str, Any]]:
    """What was logged of steps and validations, without the time."""
    lines = [json.loads(line) for line in (run_dir / "log.jsonl").read_text(encoding="utf-8").splitlines()]
    return [
        {key: value for key, value in line.items() if key != "seconds"}
        for line in lines
        if line["kind"] in ("train", "valid")
    ]


def trial(folder: Path, kills: int, seed: int, say: bool = True) -> dict[str, Any]:
    """Kill runs so many times.

    Args:
        folder: an empty one for the runs.
        kills: how many kills there are to be.
        seed: of the moments.
        say: whether each run is reported on standard error.

    Returns:
        Counts, and what went wrong in words.
    """
    straight = folder / "straight"
    began = time.monotonic()
    subprocess.run(command(straight), check=True, capture_output=True)
    whole = time.monotonic() - began  # a process that is killed later than this has ended, if the machine is as fast
    moments = random.Random(seed)
    done, finished, lost, changed, in_a_save = 0, 0, [], [], 0
    while done < kills:
        run_dir = folder / f"run-{finished}"
        of_run = 0
        while True:
            began, process = time.monotonic(), start(run_dir)
            try:
                _, said = process.communicate(timeout=moments.uniform(0, whole) if done < kills else None)
            except subprocess.TimeoutExpired:
                process.send_signal(signal.SIGKILL)
                process.communicate()
                done, of_run = done + 1, of_run + 1
                in_a_save += bool([*run_dir.glob("checkpoints/.*")])
                continue
            if process.returncode != 0:
                lost.append(f"{run_dir.name} after {of_run} kills: {said.strip().splitlines()[-1]}")
            if of_run == 0:
                whole = time.monotonic() - began
            break
        if process.returncode == 0 and (files := differing(run_dir, straight)):
            changed.append(f"{run_dir.name} after {of_run} kills: {', '.join(files)}")
        finished += 1
        if say:
            print(f"{run_dir.name}: {of_run} kills, {done} of {kills} in all", file=sys.stderr, flush=True)
    counted = {"kills": done, "kills_in_a_save": in_a_save, "runs": finished}
    return {**counted, "lost_runs": lost, "differing": changed, "seconds_a_run": round(whole, 1)}


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    parser.add_argument("--output", type=Path, help="JSON file for what was found")
    chosen = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        found = trial(Path(folder), chosen.kills, chosen.seed)
    result = {
        "name": "kill-and-resume",
        "command": f"python scripts/kill_and_resume.py --kills {chosen.kills} --seed {chosen.seed}",
        "settings": " ".join(SMALL),
        "commit": hardware.commit(),
        "hardware": hardware.hardware_class("cpu"),
        "versions": hardware.versions(),
        **found,
    }
    written = json.dumps(result, indent=2) + "\n"
    print(written, end="")
    if chosen.output is not None:
        whole_files.write_text(chosen.output, written)
    return 1 if found["lost_runs"] or found["differing"] else 0


if __name__ == "__main__":
    sys.exit(main())
