"""Checkpoints of former versions load and do what they did when they were written, or are refused for a reason told.

What they did stands in `expected.json` beside them, written by the code of that time (`tests/golden/README.md`).
"""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from textebm import checkpoint, generation, image_generation
from textebm.data.text import encode
from textebm.errors import CheckpointError
from textebm.interface import LatentEBM
from textebm.model.latent_model import CONFIG, read_model_config

GOLDEN = Path(__file__).parent / "golden"
RUNS = sorted(path.parent for path in GOLDEN.glob("*/expected.json"))
OLDEST = "2026-11-23-text"
"""Of before random streams were keyed as they are and sentences came in the order in which they come: its model is the
same to the last digits, but a seed draws other sentences of it, and training cannot go on from it."""


def expected(run: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((run / "expected.json").read_text(encoding="utf-8"))
    return found


TEXTS = [run for run in RUNS if expected(run)["kind"] != "images"]
IMAGES = [run for run in RUNS if run not in TEXTS]


def of(runs: list[Path]) -> Any:
    return pytest.mark.parametrize("run", runs, ids=lambda run: run.name)


def test_there_is_one_of_each_kind_and_format() -> None:
    kinds = {expected(run)["kind"] for run in RUNS}
    assert kinds == {"text", "vae", "images"}
    formats = set()
    for run in RUNS:
        described = checkpoint.read_json(checkpoint.find_model(str(run))[0] / checkpoint.RUN)
        formats.add((described.get("format", 1), "files" in described))
    assert formats == {(1, False), (2, False), (checkpoint.FORMAT, True)}


def test_their_page_names_each_with_its_commit() -> None:
    page = (GOLDEN / "README.md").read_text(encoding="utf-8")
    for run in RUNS:
        assert f"| `{run.name}` | {expected(run)['commit']} |" in page


def test_they_stay_small() -> None:
    assert sum(path.stat().st_size for path in GOLDEN.rglob("*") if path.is_file()) < 400_000


@of(TEXTS)
def test_a_model_of_text_gives_the_likelihoods_that_it_gave(run: Path) -> None:
    then = expected(run)
    model, tokenizer = generation.load(checkpoint.find_model(str(run))[0])
    sentences = (GOLDEN / "corpus" / "test.txt").read_text(encoding="utf-8").splitlines()
    text = encode(sentences, tokenizer, max_length=None)
    z = torch.linspace(-1, 1, 4 * len(sentences)).reshape(len(sentences), 4)
    likelihoods = model.log_prob(text.batch(list(range(len(sentences)))), z)
    assert likelihoods.tolist() == pytest.approx(then["log_likelihoods"], abs=1e-4)
    assert model.energy(z).tolist() == pytest.approx(then["latent_energies"], abs=1e-5)


@of([run for run in TEXTS if run.name != OLDEST])
def test_a_seed_gives_the_sentences_that_it_gave(run: Path, command) -> None:
    then = expected(run)
    n, seed = len(then["samples"]), then["seed"]
    done = command("generate", "--model", run, "-n", n, "--seed", seed, "--format", "jsonl", "--device", "cpu")
    samples = [json.loads(line) for line in done.lines]
    assert [sample["text"] for sample in samples] == [sample["text"] for sample in then["samples"]]
    energies = [sample["energy"] for sample in then["samples"]]
    assert [sample["energy"] for sample in samples] == pytest.approx(energies, abs=1e-5)


@of(IMAGES)
def test_a_model_of_images_makes_what_it_made(run: Path) -> None:
    then = expected(run)
    model = image_generation.load(checkpoint.find_model(str(run))[0])
    z = torch.linspace(-1, 1, 8).reshape(2, 4)
    torch.testing.assert_close(model.paint(z), torch.tensor(then["images"]), rtol=0, atol=1e-5)
    assert model.energy(z).tolist() == pytest.approx(then["latent_energies"], abs=1e-5)


@of(RUNS)
def test_their_runs_can_be_shared(run: Path, tmp_path: Path) -> None:
    model = LatentEBM.from_pretrained(run, device="cpu")
    model.save_pretrained(tmp_path / "shared")
    again = LatentEBM.from_pretrained(tmp_path / "shared", device="cpu")
    for name, weights in model.model.state_dict().items():
        assert torch.equal(weights, again.model.state_dict()[name])


class TestGoingOn:
    """Training goes on from them where it can."""

    @pytest.fixture
    def folder(self, tmp_path: Path) -> Iterator[Path]:
        shutil.copytree(GOLDEN / "corpus", tmp_path / "corpus")
        return tmp_path

    @of([run for run in TEXTS if run.name != OLDEST])
    def test_a_run_goes_on_to_its_end(self, run: Path, folder: Path, command) -> None:
        shutil.copytree(run, folder / "run")
        done = command("train", "--resume", "run", "--device", "cpu")
        assert done.code == 0, done.err
        last = checkpoint.pointed_at(folder / "run", "last")
        assert last is not None
        progress = checkpoint.read_run(last)[1]
        assert (progress.step, progress.epoch) == (12, 3)
        log = [json.loads(line) for line in (folder / "run" / "log.jsonl").read_text(encoding="utf-8").splitlines()]
        assert [line["kind"] for line in log if line["kind"] in ("start", "resume")] == ["start", "resume"]

    def test_one_in_which_sentences_came_in_another_order_is_refused(self, folder: Path, command) -> None:
        shutil.copytree(GOLDEN / OLDEST, folder / "run")
        before = {path: path.read_bytes() for path in (folder / "run").rglob("*") if path.is_file()}
        done = command("train", "--resume", "run", "--device", "cpu")
        assert done.code == 1
        assert done.err.splitlines()[-1] == (
            "textebm: run/checkpoints/step-10 was written by an earlier version of textebm, in which sentences came in "
            "another order: its model can be sampled and measured, but training cannot go on from it. Train anew: "
            "textebm train --config run/config.json"
        )
        assert {path: path.read_bytes() for path in before} == before


class TestLaterFormats:
    """What a later version wrote is refused by name of its format."""

    def test_of_a_model(self, tmp_path: Path) -> None:
        shutil.copytree(GOLDEN / "format-2-text" / "checkpoints" / "step-10", tmp_path / "model")
        path = tmp_path / "model" / CONFIG
        described = json.loads(path.read_text(encoding="utf-8"))
        path.write_text(json.dumps(described | {"format": 2}), encoding="utf-8")
        with pytest.raises(CheckpointError, match=r"has format 2; this version of textebm reads format 1"):
            read_model_config(tmp_path / "model")

    def test_of_a_run(self, tmp_path: Path) -> None:
        shutil.copytree(GOLDEN / "format-2-text" / "checkpoints" / "step-10", tmp_path / "model")
        path = tmp_path / "model" / checkpoint.RUN
        described = json.loads(path.read_text(encoding="utf-8"))
        path.write_text(json.dumps(described | {"format": 3}), encoding="utf-8")
        with pytest.raises(CheckpointError, match=r"has format 3; this version of textebm reads formats up to 2"):
            generation.load(tmp_path / "model")
