"""The ablation: each option beyond the paper, alone, on one preset; one JSON file a cell, and a table of all.

    python scripts/ablation.py --config demo
    python scripts/ablation.py --config ptb-small --data-dir DATA --seeds 1 2 3 --only lebm lebm-ema -- --max-minutes 60

A cell is an option and a seed. Cells that have their file are not done again, and a run that was interrupted is gone on
with: the same command brings the table to its end. What stands behind `--` is handed to `textebm train`. Cells are
measured under one protocol: NLL and use of z on the whole of valid, FPPL and RPPL on test.
"""

import argparse
import dataclasses
import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from textebm import checkpoint, evaluation, generation, hardware, plots, whole_files
from textebm.commands.terminal import choose_device
from textebm.data.registry import resolve
from textebm.experiment import Cell, Experiment
from textebm.lm_eval import tables
from textebm.materials.text import load_splits

LATENT_SENTENCES = 200
BASE = "lebm"
ABLATION = Experiment("ablation", "each option beyond the paper, alone", {}, ())


@dataclasses.dataclass(frozen=True)
class Option:
    """What a cell is: a method to train, and how its prior is sampled when it is measured."""

    method: str
    longer: int = 1
    """Length of the prior chain at test time, in units of training's K0."""
    settings: tuple[tuple[str, Any], ...] = ()
    """Settings that are laid over the method: dotted key, value."""

    @property
    def run(self) -> str:
        """What its run is called, seed aside: cells that differ only in how they are measured share it."""
        return "-".join((self.method, *(f"{key}={value}" for key, value in self.settings)))

    def of_preset(self, preset: str, seed: int = 0) -> Cell:
        """Its run as a cell of an experiment."""
        return Cell(ABLATION, preset, self.method, seed, dict(self.settings))


OPTIONS = {
    BASE: Option(BASE),
    "sri": Option("sri"),
    "longer-prior-chain-2": Option(BASE, 2),
    "longer-prior-chain-5": Option(BASE, 5),
    **{
        name: Option(name)
        for name in (
            *(
                "lebm-decoupled",
                "lebm-decaying",
                "lebm-tempered",
                "lebm-preconditioned",
                "lebm-weight-decay",
                "lebm-ema",
            ),
            *("lebm-persistent-prior", "lebm-spectral", "lebm-logsumexp", "lebm-ratio", "damc"),
        )
    },
    "lebm-persistent-prior-longer-5": Option("lebm-persistent-prior", 5),
    "lebm-exact-softmax": Option(BASE, settings=(("inference.sampled_softmax", 0),)),
    "lebm-sampled-softmax": Option(BASE, settings=(("inference.sampled_softmax", 512),)),
}
"""The cells by name. The persistent one has a second: such a prior is learned for long chains."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Do the cells that the command line names, and print the table of all that are done."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", default="demo", help="preset or configuration file (default: demo)")
    parser.add_argument("--only", nargs="+", choices=OPTIONS, default=list(OPTIONS), help="cells (default: all)")
    parser.add_argument("--seeds", nargs="+", type=int, default=[1], help="seeds of the models (default: 1)")
    parser.add_argument("--data-dir", help="folder with local copies of named corpora; else TEXTEBM_DATA")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--runs", type=Path, default=Path("runs/ablation"), help="folder of runs")
    parser.add_argument("--results", type=Path, default=Path("results/ablation"), help="folder of results")
    parser.add_argument("--lmplz", help="KenLM's lmplz, or built-in")
    parser.add_argument("-n", type=int, help="sentences for FPPL and RPPL (default: the headline protocol's)")
    parser.add_argument("train", nargs="*", help="options of `textebm train`, behind --")
    chosen = parser.parse_args(arguments)
    place = chosen.results / Path(chosen.config).stem
    for seed in chosen.seeds:
        for name in chosen.only:
            if is_base(name, chosen.config):
                continue  # the preset has this setting already
            output = place / f"{name}-seed{seed}.json"
            if not output.exists():
                result = cell(name, seed, chosen, fixed=is_measured(OPTIONS[name].run, seed, place))
                place.mkdir(parents=True, exist_ok=True)
                whole_files.write_text(output, json.dumps(result, indent=2, ensure_ascii=False) + "\n")
            print(output, file=sys.stderr)
    print(table(place))


def textebm(*arguments: str) -> str:
    """Run a command as a user would; returns what it wrote to standard output."""
    done = subprocess.run([sys.executable, "-m", "textebm", *arguments], stdout=subprocess.PIPE, text=True, check=False)
    if done.returncode != 0:
        sys.exit(done.returncode)
    return done.stdout


def is_base(name: str, preset: str) -> bool:
    """Whether a cell that is not the base would train the base's model and measure it in the same way."""
    option = OPTIONS[name]
    same = option.of_preset(preset).config == OPTIONS[BASE].of_preset(preset).config
    return name != BASE and option.longer == 1 and same


def is_measured(run: str, seed: int, place: Path) -> bool:
    """Whether a cell of this run has its file: then others of it are measured on the model as it is."""
    cells = [name for name, option in OPTIONS.items() if option.run == run]
    return any((place / f"{name}-seed{seed}.json").exists() for name in cells)


def cell(name: str, seed: int, chosen: argparse.Namespace, fixed: bool) -> dict[str, Any]:
    """Train a cell's model, or go on with it unless it is fixed, and measure it."""
    option = OPTIONS[name]
    run_dir = chosen.runs / Path(chosen.config).stem / f"{option.run}-seed{seed}"
    data = ["--data-dir", chosen.data_dir] if chosen.data_dir else []
    settings = [*option.of_preset(chosen.config, seed).words, *chosen.train]
    if not fixed:
        textebm("train", *settings, *data, "--device", chosen.device, "--run-dir", str(run_dir), "--resume", "auto")
    return {"name": name, "command": f"textebm train {' '.join(settings)}", **measure(run_dir, option, chosen)}


def measure(run_dir: Path, option: Option, chosen: argparse.Namespace) -> dict[str, Any]:
    """Everything that is reported of a run's best checkpoint."""
    folder, _ = checkpoint.find_model(str(run_dir))
    config, progress = checkpoint.read_run(folder)
    model, tokenizer = generation.load(folder, choose_device(chosen.device))
    corpus = resolve(config.data, chosen.data_dir or config.data_dir, config.text_field)
    valid = load_splits(corpus, config, tokenizer).valid
    steps = option.longer * config.prior.steps
    scored = evaluation.validate(model, valid, config.seed, prior_steps=steps)
    use = evaluation.latent_use(model, valid, tokenizer, config.seed, LATENT_SENTENCES)
    begun = next(line for line in plots.read_log(run_dir) if line["kind"] == "start")
    return {
        "seed": config.seed,
        "prior_steps": steps,
        "commit": begun.get("commit"),
        "hardware": begun.get("hardware"),
        "versions": hardware.versions(),
        "best_step": progress.step,
        "minutes": round(checkpoint.read_run(last(run_dir))[1].seconds / 60, 1),
        "valid": {**scored.to_dict(), **use.to_dict()},
        **{metric: perplexity(metric, run_dir, steps, chosen) for metric in ("fppl", "rppl")},
    }


def last(run_dir: Path) -> Path:
    """The newest checkpoint of a run."""
    folder = checkpoint.pointed_at(run_dir, "last")
    assert folder is not None  # it was trained
    return folder


def perplexity(metric: str, run_dir: Path, steps: int, chosen: argparse.Namespace) -> dict[str, Any]:
    """FPPL or RPPL under kenlm5, as the program gives it."""
    words = ["--model", str(run_dir), "--device", chosen.device, "--prior-steps", str(steps)]
    words += ["--data-dir", chosen.data_dir] if chosen.data_dir else []
    words += ["--lmplz", chosen.lmplz] if chosen.lmplz else []
    words += ["-n", str(chosen.n)] if chosen.n else []
    found: dict[str, Any] = json.loads(textebm(metric, *words))
    return found


def table(folder: Path) -> str:
    """The cells of a folder in Markdown: the base first, then by name and seed."""
    results = [json.loads(path.read_text(encoding="utf-8")) for path in folder.glob("*.json")]
    results.sort(key=lambda result: (list(OPTIONS).index(result["name"]), result["seed"]))
    heads = ["cell", "seed", "reconstruction NLL", "NLL gap", "active units", "MI", "BLEU", "FPPL", "RPPL"]
    rows = [
        [
            result["name"],
            str(result["seed"]),
            *(f"{result['valid'][key]:.2f}" for key in ("reconstruction_nll", "nll_gap")),
            str(result["valid"]["active_units"]),
            *(tables.perplexity(result["valid"].get(key)) for key in ("mutual_information", "reconstruction_bleu")),
            *(tables.perplexity(result[metric]["score"]) for metric in ("fppl", "rppl")),
        ]
        for result in results
    ]
    return tables.render(heads, rows, "markdown")


if __name__ == "__main__":
    main()
