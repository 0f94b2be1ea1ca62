"""Make the model folder that ships with the package from a run: float16 weights, no optimiser state, and a card.

textebm train --data demo --epochs 10 --inference.annealing-steps 1000 --run-dir runs/shipped
python scripts/ship_model.py runs/shipped textebm/pretrained/demo
"""

import dataclasses
import json
import shutil
import sys
from pathlib import Path

import torch

from textebm import checkpoint, evaluation, generation, whole_files
from textebm.config import to_dict
from textebm.data.registry import resolve
from textebm.data.vocabulary import save_tokenizer
from textebm.materials.text import load_splits

CARD = """# The demo model

A latent space energy-based prior model of the embedded demo corpus; what `textebm generate` uses when there is no run.
Made by `scripts/ship_model.py` from a run of `textebm train`; its settings stand in `run.json`. Weights are float16.

| of these weights, on the validation split | |
|---|---|
| learning steps | {steps} |
| perplexity, z from the posterior chain | {reconstruction:.1f} |
| perplexity, z from the EBM prior's chain | {prior:.1f} |
| perplexity, z from the reference Gaussian | {gaussian:.1f} |

Licence: MIT, as the project; the corpus it was trained on is described in `data/demo/README.md`.
"""


def main(run: Path, target: Path) -> None:
    """Write the shipped form of a run's best checkpoint into `target`."""
    folder, _ = checkpoint.find_model(str(run))
    config, progress = checkpoint.read_run(folder)
    config = dataclasses.replace(config, data_dir=None)
    model, tokenizer = generation.load(folder)
    shutil.rmtree(target, ignore_errors=True)
    model.save_pretrained(target, torch.float16)
    save_tokenizer(tokenizer, target)
    described = {"config": to_dict(config), "progress": dataclasses.asdict(progress)}
    whole_files.write_text(target / checkpoint.RUN, json.dumps(described, indent=2) + "\n")
    shipped, _ = generation.load(target)
    splits = load_splits(resolve(config.data, config.data_dir, config.text_field), config, tokenizer)
    valid = evaluation.validate(shipped, splits.valid, config.seed)
    card = CARD.format(
        steps=progress.step,
        reconstruction=valid.reconstruction_perplexity,
        prior=valid.prior_perplexity,
        gaussian=valid.gaussian_perplexity,
    )
    whole_files.write_text(target / "README.md", card)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
