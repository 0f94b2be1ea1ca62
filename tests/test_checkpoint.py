"""The run folder: a checkpoint is there whole or not at all, and what is read is what was written."""

import contextlib
import dataclasses
import errno
import importlib.util
import json
import os
import random
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from textebm import checkpoint, whole_files
from textebm.chains import ChainMemory
from textebm.checkpoint import Progress
from textebm.config import Config, GeneratorConfig, InferenceConfig, OptimiserConfig, PriorConfig
from textebm.data.registry import Split
from textebm.data.text import encode
from textebm.data.vocabulary import build_tokenizer, load_tokenizer
from textebm.errors import CheckpointError, DamagedError
from textebm.materials.text import Splits, TextMaterial
from textebm.model.latent_model import LatentModel, ModelConfig
from textebm.model.learner import Learner

SENTENCES = ["the dog sees the cat", "a cat sleeps", "the old dog sleeps again"]
CONFIG = Config(
    prior=PriorConfig(latent_dim=2, width=4, depth=1, steps=2),
    generator=GeneratorConfig(embedding_dim=3, hidden_dim=5),
    inference=InferenceConfig(steps=2, step_size=(0.3, 0.1)),
    optimiser=OptimiserConfig(lr=0.05),
)
CONTENTS: dict[Split, str] = {"train": "a", "valid": "b", "test": "c"}


class Run:
    """A model in training, and the folder that it is saved to."""

    def __init__(self, folder: Path, config: Config = CONFIG) -> None:
        self.folder, self.config = folder, config
        self.tokenizer = build_tokenizer(SENTENCES, 100)
        self.text = encode(SENTENCES, self.tokenizer)
        self.material = TextMaterial(config, Splits(self.tokenizer, self.text, self.text, self.text))
        described = ModelConfig(self.tokenizer.get_vocab_size(), config.prior, config.generator, config.inference)
        self.model = LatentModel(described, seed=1)
        self.learner = Learner(self.model, config, steps_per_epoch=1)
        self.number = 0

    def step(self) -> None:
        self.learner.step(self.text.batch([0, 1, 2]), self.number)
        self.number += 1

    def save(self, best: bool = False, **progress: object) -> Path:
        known = Progress(step=self.number, epoch=self.number, **progress)  # type: ignore[arg-type]
        return checkpoint.save(self.folder, self.model, self.material, self.learner, self.config, known, best, CONTENTS)

    def weights(self) -> dict[str, torch.Tensor]:
        return {name: t.clone() for name, t in self.model.state_dict().items()}


@pytest.fixture
def run(tmp_path: Path) -> Run:
    return Run(tmp_path / "runs" / "one")


def saved_steps(folder: Path) -> list[str]:
    return sorted(path.name for path in (folder / "checkpoints").iterdir() if path.is_dir())


def assert_same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> None:
    assert a.keys() == b.keys()
    for name, tensor in a.items():
        assert torch.equal(tensor, b[name]), name


class TestRoundTrip:
    def test_weights_optimisers_settings_progress_and_vocabulary(self, run: Run) -> None:
        run.step()
        run.step()
        folder = run.save(batch=3, seconds=1.5, best_score=2.5, best_step=1)
        other = Run(run.folder)
        other.model.load_state_dict(LatentModel.from_pretrained(folder).state_dict())
        checkpoint.restore_optimisers(folder, other.learner)
        assert_same(other.weights(), run.weights())
        for name, optimiser in run.learner.optimisers().items():
            known, restored = optimiser.state_dict()["state"], other.learner.optimisers()[name].state_dict()["state"]
            assert known.keys() == restored.keys()
            for index in known:
                assert_same(known[index], restored[index])
        progress = Progress(step=2, epoch=2, batch=3, seconds=1.5, best_score=2.5, best_step=1)
        assert checkpoint.read_run(folder) == (CONFIG, progress)
        assert load_tokenizer(folder).get_vocab() == run.tokenizer.get_vocab()

    def test_training_goes_on_as_if_nothing_had_happened(self, run: Run) -> None:
        run.step()
        folder = run.save()
        other = Run(run.folder)
        other.model.load_state_dict(LatentModel.from_pretrained(folder).state_dict())
        checkpoint.restore_optimisers(folder, other.learner)
        other.number = 1
        for going in (run, other):
            going.step()
            going.step()
        assert_same(other.weights(), run.weights())

    def test_a_run_that_has_made_no_step_has_no_optimiser_state(self, run: Run) -> None:
        checkpoint.restore_optimisers(run.save(), run.learner)
        assert run.learner.generator_optimiser.state_dict()["state"] == {}

    def test_a_gaussian_prior_has_no_optimiser_of_its_own(self, tmp_path: Path) -> None:
        config = dataclasses.replace(CONFIG, prior=PriorConfig(kind="gaussian", latent_dim=2))
        run = Run(tmp_path / "gaussian", config)
        run.step()
        names = load_file(run.save() / checkpoint.OPTIMISER)
        assert {name.split(".")[0] for name in names} == {"generator"}

    def test_nothing_is_pickled(self, run: Run) -> None:
        run.step()
        assert {path.suffix for path in run.save().iterdir()} == {".json", ".safetensors"}


class TestPruning:
    def test_the_best_the_last_and_the_one_before_are_kept(self, run: Run) -> None:
        kept = []
        for best in (False, True, False, False, True, False):
            run.step()
            run.save(best)
            kept.append(saved_steps(run.folder))
        assert kept == [
            ["step-1"],
            ["step-1", "step-2"],
            ["step-2", "step-3"],
            ["step-2", "step-3", "step-4"],
            ["step-4", "step-5"],
            ["step-5", "step-6"],
        ]
        assert checkpoint.pointed_at(run.folder, "best") == run.folder / "checkpoints" / "step-5"
        assert checkpoint.pointed_at(run.folder, "last") == run.folder / "checkpoints" / "step-6"

    def test_what_crashes_left_is_swept_up(self, run: Run) -> None:
        leftover = run.folder / "checkpoints" / ".step-9.1234.tmp"
        leftover.mkdir(parents=True)
        run.save()
        assert saved_steps(run.folder) == ["step-0"]


class Crash(BaseException):
    """Stands for the end of the process: nothing in the program catches it."""


def crash(*_: object, **__: object) -> None:
    raise Crash


class TestCrash:
    """A crash at any moment of saving leaves a whole checkpoint in place, from which the run goes on."""

    MOMENTS = ("making the folder", "weights", "optimiser", "run.json", "rename", "last.json", "best.json", "prune")

    def break_at(self, moment: str, monkeypatch: pytest.MonkeyPatch) -> None:
        write_text = whole_files.write_text

        def write_until(path: Path, text: str) -> None:
            if path.name == moment:
                raise Crash
            write_text(path, text)

        if moment == "making the folder":
            monkeypatch.setattr(Path, "mkdir", crash)
        elif moment == "weights":
            monkeypatch.setattr(LatentModel, "save_pretrained", crash)
        elif moment == "optimiser":
            monkeypatch.setattr(checkpoint, "_optimiser_state", crash)
        elif moment == "rename":
            monkeypatch.setattr(Path, "rename", crash)
        elif moment == "prune":
            monkeypatch.setattr(checkpoint, "_prune", crash)
        else:
            monkeypatch.setattr(whole_files, "write_text", write_until)

    @pytest.mark.parametrize("moment", MOMENTS)
    def test_the_checkpoint_before_stays_or_the_new_one_is_whole(
        self, run: Run, moment: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        run.step()
        before = run.weights()
        run.save(best=True)
        run.step()
        with monkeypatch.context() as patch, pytest.raises(Crash):
            self.break_at(moment, patch)
            run.save(best=True)
        last = checkpoint.pointed_at(run.folder, "last")
        assert last is not None
        complete = moment in ("best.json", "prune")  # `last` is moved before
        assert last.name == ("step-2" if complete else "step-1")
        assert_same(LatentModel.from_pretrained(last).state_dict(), run.weights() if complete else before)
        assert checkpoint.read_run(last)[1].step == (2 if complete else 1)
        best = checkpoint.pointed_at(run.folder, "best")
        assert best is not None
        LatentModel.from_pretrained(best)
        assert run.save(best=True).name == "step-2"
        assert saved_steps(run.folder) == ["step-1", "step-2"]

    @pytest.mark.parametrize("moment", MOMENTS)
    def test_saving_the_same_step_again_risks_nothing(
        self, run: Run, moment: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        run.step()
        run.save()
        with monkeypatch.context() as patch, contextlib.suppress(Crash):
            self.break_at(moment, patch)
            run.save(best=True, best_score=1.0)
        last = checkpoint.pointed_at(run.folder, "last")
        assert last is not None
        assert_same(LatentModel.from_pretrained(last).state_dict(), run.weights())
        checkpoint.restore_optimisers(last, run.learner)
        assert checkpoint.read_run(last)[1].best_score in (None, 1.0)

    def test_saving_the_same_step_again_tells_its_new_progress(self, run: Run) -> None:
        run.save(batch=4)
        folder = run.save(best=True, best_score=3.0)
        assert checkpoint.read_run(folder)[1] == Progress(best_score=3.0)
        assert checkpoint.pointed_at(run.folder, "best") == folder

    def test_a_file_is_replaced_in_one_move(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        path = tmp_path / "last.json"
        whole_files.write_text(path, "old")
        with monkeypatch.context() as patch, pytest.raises(Crash):
            patch.setattr(os, "fsync", crash)
            whole_files.write_text(path, "new")
        assert path.read_text() == "old"
        whole_files.write_text(path, "new")
        assert path.read_text() == "new"


class TestWhole:
    """What is not as it was written is noticed, and the newest checkpoint that is goes on."""

    FILES = ("config.json", "model.safetensors", "optimiser.safetensors", "run.json")

    @pytest.fixture
    def twice(self, run: Run) -> Run:
        """A run with two checkpoints, the first of which did best."""
        run.step()
        run.save(best=True, best_score=1.0, best_step=1)
        run.step()
        run.save(best_score=1.0, best_step=1)
        return run

    def test_as_it_was_written(self, twice: Run) -> None:
        for step in saved_steps(twice.folder):
            checkpoint.verify(twice.folder / "checkpoints" / step)
        assert checkpoint.newest_whole(twice.folder) == (twice.folder / "checkpoints" / "step-2", [])

    @pytest.mark.parametrize("name", FILES)
    @given(where=st.floats(0, 1, exclude_max=True), flip=st.integers(1, 255))
    @settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
    def test_any_changed_byte_is_noticed(self, twice: Run, name: str, where: float, flip: int) -> None:
        path = twice.folder / "checkpoints" / "step-2" / name
        whole = path.read_bytes()
        place = int(where * len(whole))
        path.write_bytes(whole[:place] + bytes([whole[place] ^ flip]) + whole[place + 1 :])
        try:
            json_is_the_same = name == "run.json" and same_json(path.read_bytes(), whole)
            if not json_is_the_same:  # a blank more or less between two values changes nothing
                with pytest.raises(CheckpointError, match=re.escape(name)):  # of a later version, if it hits `format`
                    checkpoint.verify(path.parent)
        finally:
            path.write_bytes(whole)

    @pytest.mark.parametrize("name", FILES)
    @pytest.mark.parametrize("left", [0.0, 0.5, None])
    def test_a_file_that_is_cut_short_or_gone(self, twice: Run, name: str, left: float | None) -> None:
        path = twice.folder / "checkpoints" / "step-2" / name
        if left is None:
            path.unlink()
        else:
            path.write_bytes(path.read_bytes()[: int(left * path.stat().st_size)])
        found, damage = checkpoint.newest_whole(twice.folder)
        assert found == twice.folder / "checkpoints" / "step-1"
        assert len(damage) == 1 and name in damage[0]

    def test_going_back_drops_what_is_damaged_and_keeps_the_best(self, twice: Run) -> None:
        (twice.folder / "checkpoints" / "step-2" / "optimiser.safetensors").unlink()
        before = checkpoint.newest_whole(twice.folder)[0]
        checkpoint.go_back_to(before)
        assert saved_steps(twice.folder) == ["step-1"]
        assert checkpoint.pointed_at(twice.folder, "last") == checkpoint.pointed_at(twice.folder, "best") == before
        assert checkpoint.newest_whole(twice.folder) == (before, [])

    def test_a_damaged_best_gives_way_to_the_one_before(self, twice: Run) -> None:
        twice.step()
        twice.save(best=True, best_score=0.5, best_step=3)
        (twice.folder / "checkpoints" / "step-3" / "model.safetensors").write_bytes(b"")
        found = checkpoint.newest_whole(twice.folder)[0]
        assert found.name == "step-2"
        checkpoint.go_back_to(found)
        assert checkpoint.pointed_at(twice.folder, "best") is None  # step 1 was, and is not kept
        twice.save(best=True)
        assert checkpoint.pointed_at(twice.folder, "best").name == "step-3"

    @pytest.mark.parametrize("content", ["", "{", '{"folder": "step-7"}', "[]"])
    def test_a_pointer_that_points_nowhere(self, twice: Run, content: str) -> None:
        (twice.folder / "checkpoints" / "last.json").write_text(content)
        found, damage = checkpoint.newest_whole(twice.folder)
        assert found.name == "step-2"
        assert "last.json" in damage[0]
        checkpoint.go_back_to(found)
        assert checkpoint.pointed_at(twice.folder, "last") == found
        assert checkpoint.pointed_at(twice.folder, "best").name == "step-1"

    def test_nothing_whole_is_an_error_that_says_so(self, twice: Run) -> None:
        for step in saved_steps(twice.folder):
            (twice.folder / "checkpoints" / step / "model.safetensors").write_bytes(b"x")
        with pytest.raises(DamagedError, match=r"no checkpoint of .* is whole"):
            checkpoint.newest_whole(twice.folder)

    def test_a_folder_without_a_run(self, tmp_path: Path) -> None:
        assert checkpoint.newest_whole(tmp_path) == (None, [])
        assert not checkpoint.holds_run(tmp_path)

    def test_a_checkpoint_of_before_there_were_checksums_passes(self, twice: Run) -> None:
        path = twice.folder / "checkpoints" / "step-2" / "run.json"
        described = json.loads(path.read_text())
        del described["files"], described["sha256"]
        path.write_text(json.dumps(described))
        checkpoint.verify(path.parent)

    def test_a_damaged_model_is_not_sampled(self, twice: Run) -> None:
        folder = twice.folder / "checkpoints" / "step-2"
        path = folder / "model.safetensors"
        whole = bytearray(path.read_bytes())
        whole[-1] ^= 1
        path.write_bytes(whole)
        with pytest.raises(DamagedError, match=r"--model .*step-1 names another checkpoint"):
            checkpoint.verify_model(folder)
        checkpoint.verify_model(twice.folder)  # no checkpoint: nothing to go by


class FullRun(Run):
    """A run that has everything a checkpoint can hold: an average of the weights, and persistent chains."""

    def __init__(self, folder: Path) -> None:
        config = dataclasses.replace(
            CONFIG,
            inference=dataclasses.replace(CONFIG.inference, kind="persistent"),
            optimiser=dataclasses.replace(CONFIG.optimiser, ema=0.5),
        )
        super().__init__(folder, config)
        folder.mkdir(parents=True)
        self.chains = ChainMemory.begin(folder, len(SENTENCES), self.model.prior, 0)
        self.rows = np.arange(len(SENTENCES))

    def step(self) -> None:
        visited = self.chains.of(self.rows, torch.device("cpu"))
        self.learner.step(self.text.batch([0, 1, 2]), self.number, visited)
        self.number += 1

    def save(self, best: bool = False, **progress: object) -> Path:
        known = Progress(step=self.number, epoch=self.number, **progress)  # type: ignore[arg-type]
        parts = (self.learner.result, self.material, self.learner, self.config, known, best, CONTENTS, self.chains)
        return checkpoint.save(self.folder, *parts)


@pytest.fixture
def full_run(tmp_path: Path) -> FullRun:
    """A run with two checkpoints."""
    run = FullRun(tmp_path / "runs" / "full")
    for best in (True, False):
        run.step()
        run.save(best, best_score=1.0, best_step=1)
    return run


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


class TestEveryFile:
    """Whatever becomes of whichever file of a checkpoint: it is noticed, and the checkpoint before goes on."""

    FILES = (
        *("config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json", "run.json"),
        *("optimiser.safetensors", "learner.safetensors", "chains.npy"),
    )

    def test_these_are_all(self, full_run: FullRun) -> None:
        assert set(contents(full_run.folder / "checkpoints" / "step-2")) == set(self.FILES)

    @pytest.mark.parametrize("name", FILES)
    def test_bytes_flipped_and_files_cut(self, full_run: FullRun, name: str) -> None:
        path = full_run.folder / "checkpoints" / "step-2" / name
        whole, source = path.read_bytes(), random.Random(name)
        places = [0, len(whole) - 2, *(source.randrange(len(whole)) for _ in range(10))]  # the last byte is a line end
        spoilt = [whole[:at] + bytes([whole[at] ^ (1 << source.randrange(8))]) + whole[at + 1 :] for at in places]
        spoilt += [whole[: source.randrange(len(whole))] for _ in range(4)] + [b"", whole + b"\0", bytes(len(whole))]
        for content in spoilt:
            if name == "run.json" and same_json(content, whole):
                continue
            path.write_bytes(content)
            try:
                found, damage = checkpoint.newest_whole(full_run.folder)
            except CheckpointError as error:  # the number of the format was hit, and says that a later version wrote it
                assert "reads formats up to" in str(error)
                continue
            assert found == full_run.folder / "checkpoints" / "step-1"
            assert len(damage) == 1 and name in damage[0]

    def test_all_files_of_both(self, full_run: FullRun) -> None:
        for path in (full_run.folder / "checkpoints").glob("step-*/*"):
            path.write_bytes(path.read_bytes()[:-5])
        with pytest.raises(DamagedError, match=r"no checkpoint of .* is whole"):
            checkpoint.newest_whole(full_run.folder)


class FullDisk:
    """A disk that is full from a certain write on: making folders and moving files fails as well."""

    CALLS = ("open", "write_bytes", "mkdir", "rename", "replace")

    def __init__(self, patch: pytest.MonkeyPatch, full_at: int) -> None:
        self.count, self.full_at = 0, full_at
        for name in self.CALLS:
            self.watch(patch, Path, name)
        self.watch(patch, os, "fsync")

    def watch(self, patch: pytest.MonkeyPatch, owner: object, name: str) -> None:
        real = getattr(owner, name)

        def write(*arguments: object, **options: object) -> object:
            mode = options.get("mode", arguments[1] if len(arguments) > 1 else "r")
            if name != "open" or any(letter in str(mode) for letter in "wax+"):
                self.count += 1
                if self.count >= self.full_at:
                    if name == "write_bytes":  # what still finds room is written
                        real(arguments[0], bytes(arguments[1])[: len(bytes(arguments[1])) // 2])
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            return real(*arguments, **options)

        patch.setattr(owner, name, write)


class TestFullDisk:
    """The disk is full at the n-th write of a save, for every n: the run goes on from the one before, or this."""

    MOST = 200

    @pytest.mark.parametrize("again", [False, True], ids=["a new step", "the same step"])
    def test_no_run_is_lost(self, full_run: FullRun, again: bool, monkeypatch: pytest.MonkeyPatch) -> None:
        if not again:
            full_run.step()
        before = {name: contents(full_run.folder / "checkpoints" / name) for name in saved_steps(full_run.folder)}
        last, failed = f"step-{full_run.number}", 0
        spare = shutil.copytree(full_run.folder, full_run.folder.parent / "spare")
        for full_at in range(1, self.MOST):
            shutil.rmtree(full_run.folder / "checkpoints")
            shutil.copytree(spare / "checkpoints", full_run.folder / "checkpoints")
            with monkeypatch.context() as patch:
                FullDisk(patch, full_at)
                try:
                    full_run.save(best=True, best_score=0.5, best_step=full_run.number)
                except OSError:
                    failed += 1
                else:
                    break
            found, damage = checkpoint.newest_whole(full_run.folder)
            assert damage == []
            assert found.name in (last, "step-2")
            if found.name in before and not again:
                assert contents(found) == before[found.name]
            LatentModel.from_pretrained(found)
            checkpoint.restore_learner(found, full_run.learner)
            checkpoint.read_run(found)
            assert checkpoint.pointed_at(full_run.folder, "best") is not None
        assert full_at < self.MOST - 1
        assert failed >= (4 if again else 20)
        assert full_run.save(best=True).name == last  # there is room again
        assert not list((full_run.folder / "checkpoints").glob("*.tmp"))
        assert checkpoint.newest_whole(full_run.folder) == (full_run.folder / "checkpoints" / last, [])


def same_json(content: bytes, whole: bytes) -> bool:
    """Whether two files hold the same JSON."""
    try:
        return json.loads(content) == json.loads(whole)
    except ValueError:
        return False


class TestDamage:
    @pytest.mark.parametrize("content", ["", "{", "[1]", "\x00", '"step-1"'])
    def test_json_that_is_none_is_named(self, tmp_path: Path, content: str) -> None:
        path = tmp_path / "last.json"
        path.write_text(content)
        with pytest.raises(CheckpointError, match=r"last\.json"):
            checkpoint.read_json(path)

    def test_bytes_that_are_no_text(self, tmp_path: Path) -> None:
        path = tmp_path / "last.json"
        path.write_bytes(b"\xff\xfe")
        with pytest.raises(CheckpointError, match="cannot be read as JSON"):
            checkpoint.read_json(path)

    def test_a_missing_file(self, tmp_path: Path) -> None:
        with pytest.raises(CheckpointError, match="does not exist"):
            checkpoint.read_json(tmp_path / "last.json")

    def test_a_pointer_to_nothing(self, run: Run) -> None:
        shutil.rmtree(run.save())
        with pytest.raises(CheckpointError, match="points at step-0, which is not there"):
            checkpoint.pointed_at(run.folder, "last")

    @pytest.mark.parametrize("change", [lambda d: d.pop("progress"), lambda d: d["config"].update(colour="red")])
    def test_a_run_json_of_another_form(self, run: Run, change) -> None:
        folder = run.save()
        described = json.loads((folder / "run.json").read_text())
        change(described)
        (folder / "run.json").write_text(json.dumps(described))
        with pytest.raises(CheckpointError, match=r"run\.json: .*(progress|colour)"):
            checkpoint.read_run(folder)

    @pytest.mark.parametrize("kept", [0, 7, 100, -1])
    def test_weights_cut_short(self, run: Run, kept: int) -> None:
        run.step()
        folder = run.save()
        for name in ("model.safetensors", checkpoint.OPTIMISER):
            content = (folder / name).read_bytes()
            (folder / name).write_bytes(content[:kept])
        with pytest.raises(CheckpointError, match=r"model\.safetensors cannot be read"):
            LatentModel.from_pretrained(folder)
        with pytest.raises(CheckpointError, match=r"optimiser\.safetensors cannot be read"):
            checkpoint.restore_optimisers(folder, run.learner)

    def test_weights_of_another_model(self, run: Run) -> None:
        run.step()
        folder = run.save()
        weights = load_file(folder / "model.safetensors")
        weights.popitem()
        save_file(weights, folder / "model.safetensors")
        with pytest.raises(CheckpointError, match="does not fit"):
            LatentModel.from_pretrained(folder)

    def test_optimiser_states_of_another_model(self, run: Run) -> None:
        run.step()
        folder = run.save()
        states = load_file(folder / checkpoint.OPTIMISER)
        states.pop("generator.0.step"), states.pop("generator.0.exp_avg"), states.pop("generator.0.exp_avg_sq")
        save_file(states, folder / checkpoint.OPTIMISER)
        with pytest.raises(CheckpointError, match="generator states where"):
            checkpoint.restore_optimisers(folder, run.learner)

    def test_something_else_where_the_optimiser_should_be(self, run: Run) -> None:
        folder = run.save()
        shutil.copy(folder / "model.safetensors", folder / checkpoint.OPTIMISER)
        with pytest.raises(CheckpointError, match="holds no optimiser state"):
            checkpoint.restore_optimisers(folder, run.learner)

    @pytest.mark.parametrize(
        "change",
        [
            lambda states: states.pop("generator.0.exp_avg"),
            lambda states: states.update({"generator.0.exp_avg": torch.zeros(3, 1, 4)}),
            lambda states: states.update({"generator.0.step": torch.zeros(2)}),
            lambda states: states.update({"generator.999.step": states.pop("generator.0.step")}),
        ],
    )
    def test_optimiser_states_that_do_not_belong(self, run: Run, change) -> None:
        run.step()
        folder = run.save()
        states = load_file(folder / checkpoint.OPTIMISER)
        change(states)
        save_file(states, folder / checkpoint.OPTIMISER)
        with pytest.raises(CheckpointError, match="generator states"):
            checkpoint.restore_optimisers(folder, run.learner)


class TestLog:
    def test_what_was_logged_after_a_step_goes(self, tmp_path: Path) -> None:
        path = tmp_path / "log.jsonl"
        lines = [{"kind": "start", "step": 0}, {"step": 5}, {"note": "no step"}, {"step": 6}, {"step": 5, "x": "é"}]
        path.write_text("".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines) + '{"step": 4, "cu')
        checkpoint.truncate_log(path, 5)
        kept = [json.loads(line) for line in path.read_text().splitlines()]
        assert kept == [lines[0], lines[1], lines[2], lines[4]]
        assert path.read_text().endswith("\n")

    def test_a_crash_within_a_character_cost_its_line_alone(self, tmp_path: Path) -> None:
        path, whole = tmp_path / "log.jsonl", b'{"step": 1, "samples": ["caf\xc3\xa9"]}\n'
        path.write_bytes(whole + whole[:-5])
        checkpoint.truncate_log(path, 5)
        assert path.read_bytes() == whole

    def test_lines_that_a_disk_has_damaged_go_alone(self, tmp_path: Path) -> None:
        path = tmp_path / "log.jsonl"
        good = [b'{"step": 1}', b'{"step": 2, "x": "\xc3\xa9\xe2\x80\xa8"}']
        bad = [b'{"step": \xff}', b"[1]", b"3", b'{"step": null}', b'{"step": "1"}', b"[" * 100_000, b"1" * 5000]
        path.write_bytes(b"\n".join([good[0], *bad, good[1]]) + b"\n")
        checkpoint.truncate_log(path, 5)
        assert path.read_bytes() == b"\n".join(good) + b"\n"

    def test_a_log_that_is_not_there_stays_so(self, tmp_path: Path) -> None:
        checkpoint.truncate_log(tmp_path / "log.jsonl", 5)
        assert list(tmp_path.iterdir()) == []


class TestFindModel:
    @pytest.fixture
    def runs(self, tmp_path: Path) -> Path:
        """Two runs; `one` was saved to last, though it began first. Its best is not its last."""
        for name, time in (("two", 1_000), ("one", 2_000)):
            run = Run(tmp_path / "runs" / name)
            run.save(best=True)
            run.step()
            run.save()
            os.utime(run.folder / "checkpoints" / "last.json", (time, time))
        (tmp_path / "runs" / "zzz-not-a-run").mkdir()
        return tmp_path / "runs"

    def test_none_means_the_best_of_the_run_saved_to_last(self, runs: Path) -> None:
        folder, said = checkpoint.find_model(None, runs)
        assert folder == runs / "one" / "checkpoints" / "step-0"
        assert said == f"the newest run, {runs / 'one'}"
        assert checkpoint.newest_run(runs) == runs / "one"

    def test_a_run_folder_means_its_best(self, runs: Path) -> None:
        assert checkpoint.find_model(str(runs / "two"))[0] == runs / "two" / "checkpoints" / "step-0"

    def test_or_its_last_before_there_is_a_best(self, runs: Path) -> None:
        (runs / "two" / "checkpoints" / "best.json").unlink()
        assert checkpoint.find_model(str(runs / "two"))[0] == runs / "two" / "checkpoints" / "step-1"

    def test_a_model_folder_means_itself(self, runs: Path) -> None:
        folder = runs / "two" / "checkpoints" / "step-1"
        assert checkpoint.find_model(str(folder)) == (folder, str(folder))

    def test_without_a_run_the_model_that_ships(self, tmp_path: Path) -> None:
        folder, said = checkpoint.find_model(None, tmp_path / "runs")
        assert folder == Path(checkpoint.__file__).parent / "pretrained" / "demo"
        assert "demo model that ships" in said
        assert str(tmp_path / "runs") in said

    def test_a_file_is_no_model(self, runs: Path) -> None:
        path = runs / "two" / "checkpoints" / "best.json"
        with pytest.raises(CheckpointError, match=r"is a file; a run folder or a model folder is wanted"):
            checkpoint.find_model(str(path))

    def test_nothing_there(self, tmp_path: Path) -> None:
        with pytest.raises(CheckpointError, match="no run and no model folder 'nothing'"):
            checkpoint.find_model("nothing")
        with pytest.raises(CheckpointError, match="textebm train"):
            checkpoint.newest_run(tmp_path)

    def test_a_newest_run_that_is_damaged_is_an_error_not_the_demo_model(self, runs: Path) -> None:
        shutil.rmtree(runs / "one" / "checkpoints" / "step-0")
        with pytest.raises(CheckpointError, match="points at step-0"):
            checkpoint.find_model(None, runs)


@pytest.mark.slow
def test_a_run_that_is_killed_again_and_again_ends_as_if_it_never_was(root: Path, tmp_path: Path) -> None:
    """SIGKILL at seeded random moments; `scripts/kill_and_resume.py --kills 50` is the long form."""
    spec = importlib.util.spec_from_file_location("kill_and_resume", root / "scripts" / "kill_and_resume.py")
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    found = script.trial(tmp_path, kills=5, seed=1, say=False)
    assert found["kills"] == 5
    assert found["lost_runs"] == []
    assert found["differing"] == []
