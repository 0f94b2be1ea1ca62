"""One whole experiment: train, measure, sample, FPPL and RPPL; everything in one JSON file.

    python scripts/experiment.py --config ptb-small --name ptb-small --data-dir DATA -- --max-minutes 60

What stands behind `--` is handed to `textebm train`. A run that is there already is gone on with, and one that is done
is only measured. The file holds the command, the seed, the commit, the hardware class, the end of the learning curve,
figures on valid and test, 20 samples, and FPPL and RPPL with their signatures. `textebm experiment` does this for every
cell of a table.
"""

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from textebm import checkpoint, measures, whole_files
from textebm.commands.terminal import choose_device
from textebm.data.registry import resolve


def main() -> None:
    """Run the experiment that the command line describes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", required=True, help="preset or configuration file")
    parser.add_argument("--name", required=True, help="name of the run and of the results file")
    parser.add_argument("--data-dir", help="folder with local copies of named corpora; else TEXTEBM_DATA")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--runs", type=Path, default=Path("runs"), help="folder of runs")
    parser.add_argument("--results", type=Path, default=Path("results"), help="folder of results")
    parser.add_argument("-n", type=int, help="sentences for FPPL and RPPL (default: the headline protocol's)")
    parser.add_argument("train", nargs="*", help="options of `textebm train`, behind --")
    chosen = parser.parse_args()
    run_dir = chosen.runs / chosen.name
    if chosen.train or not (run_dir / "checkpoints" / "last.json").exists():
        folder = ["--run-dir", str(run_dir), "--resume", "auto"]
        data = ["--data-dir", chosen.data_dir] if chosen.data_dir else []
        textebm("train", "--config", chosen.config, *folder, *data, "--device", chosen.device, *chosen.train)
    result = measure(run_dir, chosen)
    output = chosen.results / f"{chosen.name}.json"
    output.parent.mkdir(parents=True, exist_ok=True)
    whole_files.write_text(output, json.dumps(result, indent=2, ensure_ascii=False) + "\n")
    print(output)


def textebm(*arguments: str) -> str:
    """Run a command as a user would; returns what it wrote to standard output."""
    command = [sys.executable, "-m", "textebm", *arguments]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
    if done.returncode != 0:
        sys.exit(done.returncode)
    return done.stdout


def measure(run_dir: Path, chosen: argparse.Namespace) -> dict[str, Any]:
    """Everything that is reported of a run's best checkpoint."""
    config, _ = checkpoint.read_run(checkpoint.find_model(str(run_dir))[0])
    device = choose_device(chosen.device)
    corpus = resolve(config.data, chosen.data_dir or config.data_dir, config.text_field)
    asked = ["--model", str(run_dir), "--device", str(device)]
    asked += ["--data-dir", chosen.data_dir] if chosen.data_dir else []
    asked += ["-n", str(chosen.n)] if chosen.n else []
    return {
        "name": chosen.name,
        "command": f"textebm train --config {chosen.config} {' '.join(chosen.train)}".strip(),
        "seed": config.seed,
        **measures.figures(run_dir, corpus, device),
        "fppl": json.loads(textebm("fppl", *asked)),
        "rppl": json.loads(textebm("rppl", *asked)),
    }


if __name__ == "__main__":
    main()
