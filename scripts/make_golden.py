"""Write a checkpoint for the tests by the code of a former commit, and what that code made of it.

    python scripts/make_golden.py COMMIT KIND tests/golden/NAME

KIND is text, vae (a text model with an encoder) or images. The code is taken from git and run, in this environment, in
a folder of its own: it trains a small run on `tests/golden/corpus` (or on pictures drawn here), and then says which
sentences that model writes, their energies, and log-likelihoods at fixed points of the latent space. These stand in
`expected.json`; the tests load the checkpoint with the code of today and compare.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
CORPUS = ROOT / "tests" / "golden" / "corpus"
SENTENCES, SEED = 6, 3

TEXT = """\
data: corpus
prior: {latent_dim: 4, width: 8, steps: 5}
generator: {embedding_dim: 6, hidden_dim: 12}
inference: {steps: 4, step_size: 0.3}
optimiser: {lr: 0.05}
batch_size: 15
epochs: 3
precision: fp32
"""
CONFIGS = {
    "text": TEXT,
    "vae": TEXT.replace("inference: {steps: 4, step_size: 0.3}", "inference: {kind: amortised}")
    .replace("prior: {latent_dim: 4, width: 8, steps: 5}", "prior: {kind: gaussian, latent_dim: 4}")
    .replace("generator:", "encoder: {embedding_dim: 6, hidden_dim: 8}\ngenerator:"),
    "images": """\
data: pictures
prior: {latent_dim: 4, width: 8, steps: 5}
generator: {kind: convolutional, convolution: {width: 4, start: 4, multiples: [2], sigma: 0.3, loss: squared-error}}
inference: {steps: 4, step_size: 0.1}
optimiser: {lr: 0.02, betas: [0.5, 0.999]}
evaluation: {sentences: 8, active_unit_sentences: 4, active_unit_chains: 3, samples: 4}
batch_size: 8
epochs: 2
precision: fp32
""",
}
STEPS = {"text": "10", "vae": "10", "images": "4"}

OF_TEXT = """\
import json, sys, torch
from pathlib import Path
from textebm import generation
from textebm.data.text import encode
model, tokenizer = generation.load(Path(sys.argv[1]))
sentences = Path("corpus/test.txt").read_text().splitlines()
text = encode(sentences, tokenizer, max_length=None)
z = torch.linspace(-1, 1, 4 * len(sentences)).reshape(len(sentences), 4)
likelihoods = model.log_prob(text.batch(list(range(len(sentences)))), z)
print(json.dumps({"log_likelihoods": likelihoods.tolist(), "latent_energies": model.energy(z).tolist()}))
"""
OF_IMAGES = """\
import json, sys, torch
from pathlib import Path
from textebm import image_generation
model = image_generation.load(Path(sys.argv[1]))
z = torch.linspace(-1, 1, 8).reshape(2, 4)
print(json.dumps({"images": model.paint(z).tolist(), "latent_energies": model.energy(z).tolist()}))
"""


def main() -> None:
    """Write one golden checkpoint."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("commit", help="whose code writes it")
    parser.add_argument("kind", choices=CONFIGS)
    parser.add_argument("target", type=Path, help="folder to write, which is not there yet")
    chosen = parser.parse_args()
    target = chosen.target.resolve()
    commit = git("rev-parse", "--short", chosen.commit)
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        unpack(commit, folder / "code")
        shutil.copytree(CORPUS, folder / "corpus")
        draw_pictures(folder / "pictures")
        (folder / "tiny.yaml").write_text(CONFIGS[chosen.kind], encoding="utf-8")
        steps = ["--max-steps", STEPS[chosen.kind]]  # within an epoch, so that there is training to go on with
        textebm(folder, "train", "--config", "tiny.yaml", "--run-dir", "run", "--device", "cpu", *steps)
        last = json.loads((folder / "run" / "checkpoints" / "last.json").read_text(encoding="utf-8"))["folder"]
        model = f"run/checkpoints/{last}"
        expected = {"commit": commit, "kind": chosen.kind, "checkpoint": last, **record(folder, chosen.kind, model)}
        keep(folder / "run", last, target)
        (target / "expected.json").write_text(json.dumps(expected, indent=1) + "\n", encoding="utf-8")
    print(target)


def git(*words: str) -> str:
    """What a git command prints."""
    return subprocess.run(["git", *words], cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True).stdout.strip()


def unpack(commit: str, folder: Path) -> None:
    """The package as it was at a commit, laid out as it is installed."""
    folder.mkdir()
    archive = subprocess.run(
        ["git", "archive", commit, "textebm", "lm_eval", "data"], cwd=ROOT, stdout=subprocess.PIPE, check=True
    )
    subprocess.run(["tar", "-x", "-C", str(folder)], input=archive.stdout, check=True)
    for name in ("lm_eval", "data"):
        (folder / name).rename(folder / "textebm" / name)


def draw_pictures(folder: Path) -> None:
    """Pictures of one bright square each on a dark ground, 8 by 8 pixels, grey."""
    import numpy as np
    from PIL import Image

    source = np.random.default_rng(0)
    for split, count in {"train": 24, "valid": 8, "test": 8}.items():
        (folder / split).mkdir(parents=True)
        for number in range(count):
            pixels = np.full((8, 8), 20, np.uint8)
            top, left = source.integers(0, 5, 2)
            pixels[top : top + 4, left : left + 4] = source.integers(150, 256)
            Image.fromarray(pixels).save(folder / split / f"{number:03}.png")


def python(folder: Path, *words: str) -> str:
    """What the code in a folder prints, run with this environment's libraries."""
    environment = os.environ | {"PYTHONPATH": str(folder / "code"), "TEXTEBM_HOME": str(folder / "home")}
    done = subprocess.run(
        [sys.executable, *words], cwd=folder, env=environment, stdout=subprocess.PIPE, text=True, check=True
    )
    return done.stdout


def textebm(folder: Path, *words: str) -> str:
    """What a command of that code prints."""
    return python(folder, "-m", "textebm", *words)


def record(folder: Path, kind: str, model: str) -> dict[str, Any]:
    """What that code makes of its model."""
    if kind == "images":
        return dict(json.loads(python(folder, "-c", OF_IMAGES, model)))
    drawn = ["-n", str(SENTENCES), "--seed", str(SEED), "--format", "jsonl", "--device", "cpu"]
    written = textebm(folder, "generate", "--model", model, *drawn)
    samples = [json.loads(line) for line in written.splitlines()]
    return {"seed": SEED, "samples": samples, **json.loads(python(folder, "-c", OF_TEXT, model))}


def keep(run: Path, last: str, target: Path) -> None:
    """Copy a run's settings, log and last checkpoint."""
    checkpoints = target / "checkpoints"
    shutil.copytree(run / "checkpoints" / last, checkpoints / last)
    (checkpoints / "last.json").write_text(json.dumps({"folder": last}) + "\n", encoding="utf-8")
    (checkpoints / "best.json").write_text(json.dumps({"folder": last}) + "\n", encoding="utf-8")
    for name in ("config.json", "log.jsonl"):
        shutil.copy(run / name, target)


if __name__ == "__main__":
    main()
