"""The training loop, through the command line: what it writes, when it ends, how it goes on, how it fails."""

import dataclasses
import json
import math
import os
import shutil
import signal
import subprocess
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from safetensors.torch import load_file

from textebm import checkpoint, evaluation, training
from textebm.config import load_config, to_dict
from textebm.data.registry import resolve
from textebm.errors import CheckpointError, ConfigError
from textebm.model import langevin
from textebm.model.learner import Learner

STEPS, EPOCH = 30, 10  # of the tiny configuration
TRAIN_FIGURES = {
    "log_prob",
    "posterior_energy",
    "prior_energy",
    "posterior_norm",
    "prior_norm",
    "posterior_displacement",
    "gradient_norm",
    "energy_gradient_norm",
    "exploded_chains",
    "tokens",
}
VALID_FIGURES = {
    "sentences",
    "tokens",
    "reconstruction_nll",
    "prior_nll",
    "gaussian_nll",
    "posterior_energy",
    "prior_energy",
    "gaussian_energy",
    "posterior_norm",
    "prior_norm",
    "posterior_displacement",
    "prior_displacement",
    "reconstruction_perplexity",
    "prior_perplexity",
    "gaussian_perplexity",
    "active_units",
}


def log_of(run: Path, *kinds: str) -> list[dict[str, Any]]:
    """The lines of a run's log, of certain kinds only if any is named."""
    lines = [json.loads(line) for line in (run / "log.jsonl").read_text(encoding="utf-8").splitlines()]
    return [line for line in lines if not kinds or line["kind"] in kinds]


def comparable(run: Path) -> list[dict[str, Any]]:
    """The log without the time and without what says that a run was started or resumed."""
    lines = log_of(run, "train", "valid")
    return [{key: value for key, value in line.items() if key != "seconds"} for line in lines]


def weights(run: Path, which: str = "last") -> bytes:
    folder = checkpoint.pointed_at(run, which)
    assert folder is not None
    return (folder / "model.safetensors").read_bytes()


def last_step(run: Path) -> int:
    folder = checkpoint.pointed_at(run, "last")
    assert folder is not None
    return checkpoint.read_run(folder)[1].step


def assert_same_checkpoint(a: Path, b: Path) -> None:
    """Equal weights, optimiser states and progress, bit by bit; seconds apart."""
    folders = [checkpoint.pointed_at(run, "last") for run in (a, b)]
    assert folders[0] is not None
    assert folders[1] is not None
    for name in ("model.safetensors", "optimiser.safetensors", "tokenizer.json"):
        assert (folders[0] / name).read_bytes() == (folders[1] / name).read_bytes(), name
    (config_a, progress_a), (config_b, progress_b) = map(checkpoint.read_run, folders)
    assert config_a == config_b
    assert dataclasses.replace(progress_a, seconds=0) == dataclasses.replace(progress_b, seconds=0)


class TestRunFolder:
    def test_holds_what_the_documentation_says(self, trained_run: Path) -> None:
        files = {p.name for p in trained_run.iterdir() if not p.name.startswith(".")}
        assert files == {"config.json", "log.jsonl", "checkpoints"}
        last, previous, best = (checkpoint.pointed_at(trained_run, name) for name in ("last", "previous", "best"))
        assert last.name == f"step-{STEPS}"
        kept = {p.name for p in (trained_run / "checkpoints").iterdir() if p.is_dir()}
        assert kept == {last.name, previous.name, best.name}

    def test_the_log_has_every_figure_and_each_is_finite(self, trained_run: Path) -> None:
        train, valid = log_of(trained_run, "train"), log_of(trained_run, "valid")
        assert [line["step"] for line in valid] == [EPOCH, 2 * EPOCH, STEPS]
        assert [line["epoch"] for line in valid] == [1.0, 2.0, 3.0]
        for lines, figures in ((train, TRAIN_FIGURES), (valid, VALID_FIGURES)):
            for line in lines:
                assert figures <= line.keys()
                assert all(math.isfinite(line[name]) for name in figures)
        for line in valid:
            assert len(line["samples"]) == 3
            assert all(isinstance(sample, str) for sample in line["samples"])
            assert 0 <= line["active_units"] <= 4
            assert line["nll_gap"] == pytest.approx(line["prior_nll"] - line["reconstruction_nll"])
            assert 0 <= line["reconstruction_bleu"] <= 100
            assert -0.1 < line["mutual_information"] <= math.log(line["latent_sentences"])
            assert line["density"] == "fitted-gaussian"
            assert "kl" not in line  # log Z of the prior is not known

    def test_figures_agree_with_each_other(self, trained_run: Path) -> None:
        for line in log_of(trained_run, "valid"):
            assert line["sentences"] == 40
            for name in ("reconstruction", "prior", "gaussian"):
                a_token = line[f"{name}_nll"] * line["sentences"] / line["tokens"]
                assert line[f"{name}_perplexity"] == pytest.approx(math.exp(a_token))

    def test_tokens_of_an_epoch_are_words_and_ends_of_sentence(self, trained_run: Path) -> None:
        data = log_of(trained_run, "start")[0]["data"]
        seen = sum(line["tokens"] for line in log_of(trained_run, "train") if line["epoch"] <= 1)
        assert seen == data["train"]["words"] + data["train"]["sentences"]

    def test_the_model_has_learned(self, trained_run: Path) -> None:
        valid = log_of(trained_run, "valid")
        assert valid[-1]["reconstruction_perplexity"] < valid[0]["reconstruction_perplexity"] - 2
        assert [line["best"] for line in valid] == [True, True, True]

    def test_the_start_says_what_it_was_made_with(self, trained_run: Path) -> None:
        start = log_of(trained_run)[0]
        assert start["kind"] == "start"
        assert start["data"]["name"] == "corpus"
        assert start["data"]["train"]["sentences"] == 300
        assert start["device"] == "cpu"
        assert start["hardware"].startswith("cpu")
        assert start["precision"] == "fp32"

    def test_its_config_trains_the_same_model_again(self, trained_run: Path, command, tmp_path: Path) -> None:
        done = command("train", "--config", trained_run / "config.json", "--run-dir", "again")
        assert done.code == 0, done.err
        assert weights(tmp_path / "again") == weights(trained_run)
        assert comparable(tmp_path / "again") == comparable(trained_run)

    def test_another_seed_trains_another_model(self, trained_run: Path, command, tmp_path: Path) -> None:
        other = ("--seed", 1, "--run-dir", "b", "--max-steps", 1)
        done = command("train", "--config", trained_run / "config.json", *other)
        assert done.code == 0
        assert weights(tmp_path / "b") != weights(trained_run)

    def test_the_default_run_folder_is_named_by_data_and_time(self, tiny_config: Path, command, tmp_path: Path) -> None:
        assert command("train", "--config", tiny_config, "--max-steps", 1).code == 0
        (run,) = (tmp_path / "runs").iterdir()
        assert run.name.startswith("corpus-2")
        assert checkpoint.newest_run(tmp_path / "runs") == run

    def test_a_second_run_does_not_overwrite_the_first(self, trained_run: Path, tiny_config: Path, command) -> None:
        before = {p: p.stat().st_mtime_ns for p in trained_run.rglob("*")}
        done = command("train", "--config", tiny_config, "--run-dir", trained_run)
        assert done.code == 1
        assert "--resume auto" in done.err
        assert {p: p.stat().st_mtime_ns for p in trained_run.rglob("*")} == before

    @pytest.mark.parametrize("place", ["file", "file/below"])
    def test_a_run_folder_that_cannot_be_made(self, tiny_config: Path, command, tmp_path: Path, place: str) -> None:
        (tmp_path / "file").write_text("not a folder")
        done = command("train", "--config", tiny_config, "--run-dir", place)
        assert done.code == 2
        assert f"the run folder {place} cannot be written" in done.err

    def test_a_run_folder_without_permission(self, tiny_config: Path, command, tmp_path: Path) -> None:
        closed = tmp_path / "closed"
        closed.mkdir(mode=0o500)
        if os.access(closed, os.W_OK):
            pytest.skip("this user may write anywhere (root)")
        done = command("train", "--config", tiny_config, "--run-dir", closed / "run")
        assert done.code == 2
        assert "cannot be written: Permission denied" in done.err


class TestLimits:
    @pytest.mark.parametrize(
        ("limit", "step"),
        [(("--max-steps", 3), 3), (("--max-epochs", 1), EPOCH), (("--epochs", 1), EPOCH)],
    )
    def test_end_a_run_early_and_cleanly(self, limit, step: int, tiny_config: Path, command, tmp_path: Path) -> None:
        done = command("train", "--config", tiny_config, "--run-dir", "run", *limit)
        assert done.code == 0, done.err
        assert last_step(tmp_path / "run") == step
        assert [line["step"] for line in log_of(tmp_path / "run", "valid")] == [step]
        assert checkpoint.pointed_at(tmp_path / "run", "best") is not None
        assert "textebm generate" in done.err

    def test_max_minutes(self, tiny_config: Path, command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """A step that takes 30 seconds: 2 minutes are over after the fifth."""
        clock, step = 0.0, Learner.step

        def slow(*arguments):
            nonlocal clock
            clock += 30
            return step(*arguments)

        monkeypatch.setattr(Learner, "step", slow)
        monkeypatch.setattr(training, "time", SimpleNamespace(monotonic=lambda: clock))
        for done in (5, 10):  # the time of each sitting counts by itself
            command("train", "--config", tiny_config, "--run-dir", "run", "--resume", "auto", "--max-minutes", 2)
            assert last_step(tmp_path / "run") == done
        assert log_of(tmp_path / "run")[-1]["seconds"] == 300

    @pytest.mark.parametrize("option", ["--max-steps", "--max-epochs", "--max-minutes", "--checkpoint-every"])
    @pytest.mark.parametrize("value", [0, -1])
    def test_must_be_positive(self, option: str, value: int, tiny_config: Path, command, tmp_path: Path) -> None:
        done = command("train", "--config", tiny_config, "--run-dir", "run", option, value)
        assert done.code == 2
        assert f"is {value}" in done.err.replace(".0", "")
        assert "must be positive" in done.err
        assert not (tmp_path / "run").exists()

    def test_checkpoint_every(self, tiny_config: Path, command, monkeypatch: pytest.MonkeyPatch) -> None:
        saved, save = [], checkpoint.save

        def recorded(*what):
            saved.append(next(part for part in what if isinstance(part, checkpoint.Progress)).step)
            return save(*what)

        monkeypatch.setattr(checkpoint, "save", recorded)
        every = ("--checkpoint-every", 4, "--max-steps", 13)
        assert command("train", "--config", tiny_config, "--run-dir", "run", *every).code == 0
        assert saved == [4, 8, EPOCH, 12, 13]


class StopAt(training.Silent):
    """Ends a run as an interrupt does, after so many steps: an observer, and what `Limits.stop` asks."""

    def __init__(self, step: int) -> None:
        self.left = step

    def step(self, tokens: int) -> None:
        self.left -= 1

    def __call__(self) -> bool:
        return self.left <= 0


class TestResume:
    @pytest.mark.parametrize("step", [7, EPOCH, 13, 20, STEPS - 1, STEPS])
    def test_after_an_interrupt_everything_is_as_if_there_had_been_none(
        self, step: int, trained_run: Path, tiny_config: Path, tmp_path: Path
    ) -> None:
        """Weights, optimisers, validations and their samples; losses too, from the next common reading on."""
        config, run = load_config(str(tiny_config)), tmp_path / "run"
        corpus, stop = resolve(config.data), StopAt(step)
        training.train(config, corpus, run, training.Limits(stop=stop), observer=stop)
        assert last_step(run) == step
        training.train(config, corpus, run, resume=True)
        assert_same_checkpoint(run, trained_run)
        wanted, found = comparable(trained_run), comparable(run)
        after = [line for line in found if line["kind"] == "valid"]
        assert after == [line for line in wanted if line["kind"] == "valid"]
        later = (step // EPOCH + 1) * EPOCH
        assert [x for x in found if x["step"] > later] == [x for x in wanted if x["step"] > later]

    def test_the_log_is_the_same_line_by_line_where_losses_were_read_at_the_same_steps(
        self, tiny_config: Path, command, tmp_path: Path
    ) -> None:
        every = ("train", "--config", tiny_config, "--checkpoint-every", 7)
        assert command(*every, "--run-dir", "straight").code == 0
        assert command(*every, "--run-dir", "halting", "--max-steps", 14).code == 0
        done = command(*every, "--run-dir", "halting", "--resume", "auto")
        assert done.code == 0, done.err
        straight, halting = comparable(tmp_path / "straight"), comparable(tmp_path / "halting")
        extra = [line for line in halting if line["kind"] == "valid" and line["step"] == 14]
        assert len(extra) == 1  # a limit validates where it ends
        assert [line for line in halting if line not in extra] == straight
        assert weights(tmp_path / "halting") == weights(tmp_path / "straight")
        kinds = [line["kind"] for line in log_of(tmp_path / "halting", "start", "resume")]
        assert kinds == ["start", "resume"]

    def test_losses_are_read_at_the_same_steps_in_epochs_that_last(self, tiny_config: Path, tmp_path: Path) -> None:
        """With 60 steps an epoch, losses are read at steps 20 and 40, also after an interrupt at step 7."""
        config = dataclasses.replace(load_config(str(tiny_config)), batch_size=5)
        corpus, stop = resolve(config.data), StopAt(7)
        training.train(config, corpus, tmp_path / "halting", training.Limits(stop=stop), observer=stop)
        training.train(config, corpus, tmp_path / "halting", training.Limits(max_steps=41), resume=True)
        training.train(config, corpus, tmp_path / "straight", training.Limits(max_steps=41))
        assert [line["step"] for line in log_of(tmp_path / "straight", "train")] == [20, 40, 41]
        assert [line["step"] for line in log_of(tmp_path / "halting", "train")] == [7, 20, 40, 41]
        assert comparable(tmp_path / "halting")[2:] == comparable(tmp_path / "straight")[1:]

    def test_a_crash_loses_only_what_came_after_the_last_checkpoint(
        self, trained_run: Path, tiny_config: Path, command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        class Crash(BaseException):
            pass

        def crash(*_: object, **__: object) -> None:
            raise Crash

        with monkeypatch.context() as patch, pytest.raises(Crash):
            patch.setattr(evaluation, "latent_use", crash)  # in the validation at the end of the first epoch
            command("train", "--config", tiny_config, "--run-dir", "run", "--checkpoint-every", 8)
        assert last_step(tmp_path / "run") == 8
        assert command("train", "--run-dir", "run", "--resume", "auto").code == 0
        assert_same_checkpoint(tmp_path / "run", trained_run)

    def test_a_finished_run_has_nothing_to_do(self, trained_run: Path, command, tmp_path: Path) -> None:
        shutil.copytree(trained_run, tmp_path / "run")
        done = command("train", "--resume", "run")
        assert done.code == 0
        assert comparable(tmp_path / "run") == comparable(trained_run)
        assert_same_checkpoint(tmp_path / "run", trained_run)

    def test_auto_starts_where_there_is_nothing_to_go_on_with(self, tiny_config: Path, command, tmp_path: Path) -> None:
        done = command("train", "--config", tiny_config, "--run-dir", "new", "--resume", "auto", "--max-steps", 1)
        assert done.code == 0
        assert last_step(tmp_path / "new") == 1

    def test_auto_without_a_folder_goes_on_with_the_newest_run_of_this_data(
        self, tiny_config: Path, trained_run: Path, command, tmp_path: Path
    ) -> None:
        names = ("corpus-20260101-000000", "corpus-20260102-000000", "corpus-big-20260103-000000", "corpus-mine")
        for age, name in enumerate(names):
            shutil.copytree(trained_run, tmp_path / "runs" / name)
            os.utime(tmp_path / "runs" / name / "checkpoints" / "last.json", (1000 + age, 1000 + age))
        done = command("train", "--config", tiny_config, "--resume", "auto")
        assert done.code == 0
        assert "runs/corpus-20260102-000000" in done.err
        assert {path.name for path in (tmp_path / "runs").iterdir()} == set(names)

    def test_other_settings_are_refused_by_name(self, trained_run: Path, command, tmp_path: Path) -> None:
        shutil.copytree(trained_run, tmp_path / "run")
        done = command("train", "--resume", "run", "--epochs", 4, "--prior.step-size", 0.1, 0.2)
        assert done.code == 1
        assert "prior.step_size was 0.4 and is [0.1, 0.2]" in done.err
        assert "epochs was 3 and is 4" in done.err

    def test_the_same_settings_may_be_given_again(self, trained_run: Path, command, tmp_path: Path) -> None:
        shutil.copytree(trained_run, tmp_path / "run")
        again = ("--epochs", 3, "--prior.steps", 5, "--inference.step-size", 0.3)
        assert command("train", "--run-dir", "run", "--resume", "auto", *again).code == 0

    def test_the_library_refuses_another_configuration(self, trained_run: Path, tmp_path: Path) -> None:
        shutil.copytree(trained_run, tmp_path / "run")
        config = load_config(str(trained_run))
        with pytest.raises(CheckpointError, match="seed was 0 and is 1"):
            training.train(dataclasses.replace(config, seed=1), resolve(config.data), tmp_path / "run", resume=True)

    def test_the_folder_with_the_data_may_move(
        self, tiny_config: Path, corpus_folder: Path, command, tmp_path: Path
    ) -> None:
        copies = tmp_path / "copies" / "ptb"
        copies.mkdir(parents=True)
        for split in ("train", "valid", "test"):
            shutil.copy(corpus_folder / f"{split}.txt", copies / f"ptb.{split}.txt")
        given = ("--config", tiny_config, "--data", "ptb", "--run-dir", "run")
        done = command("train", *given, "--data-dir", "copies", "--max-steps", 1)
        assert done.code == 0, done.err
        done = command("train", "--resume", "run", "--max-steps", 2)  # without naming the folder again
        assert done.code == 0, done.err
        (tmp_path / "copies").rename(tmp_path / "moved")
        done = command("train", "--resume", "run", "--max-steps", 3)
        assert done.code == 2
        assert "copies" in done.err
        done = command("train", "--resume", "run", "--data-dir", "moved", "--max-steps", 3)
        assert done.code == 0, done.err
        assert last_step(tmp_path / "run") == 3

    def test_a_folder_without_a_run(self, command) -> None:
        done = command("train", "--resume", "nowhere")
        assert done.code == 1
        assert "--resume nowhere: there is no checkpoint" in done.err


def wait_for_training(process: subprocess.Popen[str], log: Path) -> None:
    """Until the run has logged its first losses."""
    end = time.monotonic() + 120
    while not (log.exists() and '"kind": "train"' in log.read_text(encoding="utf-8")):
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < end, "no loss was logged in two minutes"
        time.sleep(0.05)


class TestInterrupt:
    @pytest.mark.parametrize("which", [signal.SIGINT, signal.SIGTERM])
    def test_saves_says_how_to_go_on_and_leaves_with_130(
        self, which: signal.Signals, tiny_config: Path, command, start_process, tmp_path: Path
    ) -> None:
        longer = tmp_path / "long.yaml"
        longer.write_text(tiny_config.read_text().replace("epochs: 3", "epochs: 10000"))
        process = start_process("train", "--config", longer, "--run-dir", "run")
        try:
            wait_for_training(process, tmp_path / "run" / "log.jsonl")
            process.send_signal(which)
            _, err = process.communicate(timeout=120)
        finally:
            process.kill()
        assert process.returncode == 130, err
        assert "Traceback" not in err
        assert "textebm train --resume run" in err
        step = last_step(tmp_path / "run")
        assert step > 0
        for name, resume in (("run", ("--resume", "auto")), ("straight", ())):
            done = command("train", "--config", longer, "--run-dir", name, *resume, "--max-steps", step + 3)
            assert done.code == 0, done.err
        assert weights(tmp_path / "run") == weights(tmp_path / "straight")


class TestDamage:
    """What happens to a run folder, and to a run in it."""

    @pytest.mark.parametrize("name", ["model.safetensors", "optimiser.safetensors", "run.json", "last.json"])
    def test_a_damaged_checkpoint_is_said_and_the_run_ends_as_if_there_were_none(
        self, name: str, tiny_config: Path, command, tmp_path: Path
    ) -> None:
        cut = ("--config", tiny_config, "--run-dir", "run", "--checkpoint-every", 2)
        assert command("train", *cut, "--max-steps", EPOCH + 2).code == 0
        last = checkpoint.pointed_at(tmp_path / "run", "last")
        path = last.parent / name if name == "last.json" else last / name
        whole = bytearray(path.read_bytes())
        whole[len(whole) // 2] ^= 0x10
        path.write_bytes(whole)
        done = command("train", "--resume", "run", "--checkpoint-every", 2)
        assert done.code == 0, done.err
        assert f"{name} " in done.err
        assert "the newest checkpoint that is whole" in done.err
        assert command("train", *cut, "--run-dir", "straight").code == 0
        assert_same_checkpoint(tmp_path / "run", tmp_path / "straight")
        logs = [comparable(tmp_path / run) for run in ("run", "straight")]
        stopped = EPOCH + 2  # where the run was validated because it was cut there
        assert [line for line in logs[0] if (line["kind"], line["step"]) != ("valid", stopped)] == logs[1]

    def test_two_processes_do_not_train_in_one_folder(
        self, tiny_config: Path, command, start_process, tmp_path: Path
    ) -> None:
        longer = tmp_path / "long.yaml"
        longer.write_text(tiny_config.read_text().replace("epochs: 3", "epochs: 10000"))
        process = start_process("train", "--config", longer, "--run-dir", "run")
        try:
            wait_for_training(process, tmp_path / "run" / "log.jsonl")
            before = (tmp_path / "run" / "config.json").stat().st_mtime_ns
            done = command("train", "--run-dir", "run", "--config", tiny_config, "--resume", "auto")
            assert done.code == 1
            assert "another process trains in run" in done.err
            assert (tmp_path / "run" / "config.json").stat().st_mtime_ns == before
        finally:
            process.kill()
            process.communicate()
        again = ("--config", longer, "--run-dir", "run", "--resume", "auto", "--max-steps", 1)
        assert command("train", *again).code == 0  # a killed process holds nothing, whether it had saved or not

    def test_a_run_that_does_not_begin_leaves_no_folder(self, tiny_config: Path, command, tmp_path: Path) -> None:
        assert command("train", "--config", tiny_config, "--data", "nowhere.txt", "--run-dir", "run").code != 0
        assert not (tmp_path / "run").exists()


class TestDivergence:
    def test_of_the_chain_is_seen_before_anything_is_saved(self, tiny_config: Path, command, tmp_path: Path) -> None:
        done = command("train", "--config", tiny_config, "--run-dir", "run", "--inference.step-size", 1e6)
        assert done.code == 3
        assert "no checkpoint had been saved yet" in done.err
        assert "smaller --inference.step-size" in done.err
        assert "Traceback" not in done.err
        assert not (tmp_path / "run" / "checkpoints").exists()

    @pytest.mark.parametrize("option", ["--inference.step-size", "--prior.step-size"])
    def test_chains_that_explode_are_put_back_and_counted_where_that_is_asked_for(
        self, option: str, tiny_config: Path, command, tmp_path: Path
    ) -> None:
        given = ("--config", tiny_config, "--run-dir", "run", option, 1e6, "--max-steps", 4)
        done = command("train", *given)
        assert done.code == 3
        assert "chains a step exploded (a norm above 1000" in done.err
        assert "--on-divergence reject puts such chains back" in done.err
        shutil.rmtree(tmp_path / "run", ignore_errors=True)
        done = command("train", *given, "--on-divergence", "reject", "--evaluation.sentences", 5)
        assert done.code in (0, 3)  # the validation's chains are not contained
        assert "warning: chains explode" in done.err
        (line,) = log_of(tmp_path / "run", "train")
        size = load_config(str(tiny_config)).batch_size
        assert 0 < line["exploded_chains"] <= size
        assert all(math.isfinite(value) for value in line.values() if isinstance(value, float))
        assert line["posterior_norm"] < 10 and line["prior_norm"] < 10

    def test_a_run_that_was_stopped_by_a_chain_goes_on_without_it(
        self, tiny_config: Path, command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        assert command("train", "--config", tiny_config, "--run-dir", "run", "--max-steps", 2).code == 0
        monkeypatch.setattr(langevin, "LARGEST_NORM", 1.0)  # of some posterior samples
        on = ("train", "--resume", "run", "--max-steps", 4)
        stopped = command(*on)
        assert stopped.code == 3
        assert last_step(tmp_path / "run") == 2
        done = command(*on, "--on-divergence", "reject")
        assert done.code == 0, done.err
        assert last_step(tmp_path / "run") == 4
        assert load_config(str(tmp_path / "run" / "config.json")).on_divergence == "reject"
        steps = [line["step"] for line in log_of(tmp_path / "run", "train")]
        assert steps == [2, 4]
        done = command("train", "--resume", "run", "--max-steps", 6)
        assert done.code == 0, done.err  # it is the run's own setting from now on

    def test_keeps_the_last_good_checkpoint(self, tiny_config: Path, command, tmp_path: Path) -> None:
        """The EBM's rate rises by 0.2 a step: energies run away after the first epoch."""
        rates = ("--optimiser.energy-lr", 2000, "--optimiser.warmup-steps", 10_000, "--optimiser.energy-clip", 0)
        done = command("train", "--config", tiny_config, "--run-dir", "run", *rates, "--checkpoint-every", 2)
        assert done.code == 3
        assert "_energy is" in done.err
        run = tmp_path / "run"
        last = checkpoint.pointed_at(run, "last")
        assert last is not None
        assert f"the last good checkpoint is {last.relative_to(tmp_path)}" in done.err
        diverged_at = log_of(run, "train")[-1]["step"]
        assert EPOCH <= last_step(run) < diverged_at
        assert all(tensor.isfinite().all() for tensor in load_file(last / "model.safetensors").values())
        done = command("generate", "--model", "run", "-n", 2)
        assert done.code == 0
        assert len(done.lines) == 2

    def test_of_a_validation_is_not_saved_as_the_best(
        self, tiny_config: Path, command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        validate = evaluation.validate

        def broken(*args, **more):
            return dataclasses.replace(validate(*args, **more), reconstruction_nll=math.nan)

        monkeypatch.setattr(evaluation, "validate", broken)
        done = command("train", "--config", tiny_config, "--run-dir", "run", "--checkpoint-every", 4)
        assert done.code == 3
        assert "reconstruction_nll is nan" in done.err
        assert checkpoint.pointed_at(tmp_path / "run", "best") is None
        assert last_step(tmp_path / "run") == 8


class TestVariants:
    """Every switch of the model trains from the command line, and reaches the model."""

    def start(self, command, tiny_config: Path, *options: object) -> None:
        done = command("train", "--config", tiny_config, "--run-dir", "run", "--max-steps", 3, *options)
        assert done.code == 0, done.err

    def test_gaussian_prior(self, command, tiny_config: Path, tmp_path: Path) -> None:
        self.start(command, tiny_config, "--prior.kind", "gaussian")
        (valid,) = log_of(tmp_path / "run", "valid")
        assert valid["posterior_energy"] == valid["prior_energy"] == valid["gaussian_energy"] == 0
        assert math.isfinite(valid["kl"])
        names = load_file(tmp_path / "run" / "checkpoints" / "step-3" / "model.safetensors")
        assert not [name for name in names if name.startswith("prior")]

    def test_gru(self, command, tiny_config: Path, tmp_path: Path) -> None:
        self.start(command, tiny_config, "--generator.cell", "gru")
        names = load_file(tmp_path / "run" / "checkpoints" / "step-3" / "model.safetensors")
        assert names["generator.rnn.weight_hh_l0"].shape == (3 * 16, 16)

    @pytest.mark.parametrize(
        ("options", "key", "value"),
        [
            (("--inference.step-size", 0.8, 0.5, 0.2), "inference.step_size", [0.8, 0.5, 0.2]),
            (("--inference.temperature", 0.1, 1), "inference.temperature", [0.1, 1.0]),
            (("--prior.step-size", 0.4, 0.1, "--prior.temperature", 0.5), "prior.step_size", [0.4, 0.1]),
            (
                ("--inference.dropout-mask", "step", "--generator.dropout", 0.3),
                "inference.dropout_mask",
                "step",
            ),
            (("--generator.dropout", 0.3), "generator.dropout", 0.3),
            (("--generator.z-to-cell", "True"), "generator.z_to_cell", True),
            (("--generator.z-to-input", "False"), "generator.z_to_input", False),
            (("--inference.annealing-start", 0, "--inference.annealing-steps", 2), "inference.annealing_steps", 2),
            (("--optimiser.schedule", "exponential", "--optimiser.decay", 0.5), "optimiser.schedule", "exponential"),
            (("--optimiser.schedule", "linear"), "optimiser.schedule", "linear"),
            (("--optimiser.schedule", "cosine", "--optimiser.warmup-steps", 2), "optimiser.schedule", "cosine"),
            (("--precision", "bf16"), "precision", "bf16"),
            (("--max-length", 6), "max_length", 6),
            (("--max-length", 6, "--overlong", "cut"), "overlong", "cut"),
            (("--vocab-size", 12), "vocab_size", 12),
            (("--evaluation.select-by", "prior_nll"), "evaluation.select_by", "prior_nll"),
        ],
    )
    def test_option(
        self, options, key: str, value: object, command, tiny_config: Path, trained_run: Path, tmp_path: Path
    ) -> None:
        self.start(command, tiny_config, *options)
        found = to_dict(load_config(str(tmp_path / "run")))
        for part in key.split("."):
            found = found[part]
        assert found == value
        if "evaluation" not in key:  # it changes what is learned
            start = log_of(trained_run, "train")[0]
            assert log_of(tmp_path / "run", "train")[0]["log_prob"] != start["log_prob"]

    def test_what_is_dropped_and_cut_is_counted_and_said(self, command, tiny_config: Path, tmp_path: Path) -> None:
        for overlong, other in (("drop", "cut"), ("cut", "drop")):
            length = ("--max-length", 6, "--overlong", overlong, "--max-steps", 1)
            done = command("train", "--config", tiny_config, "--run-dir", overlong, *length)
            report = log_of(tmp_path / overlong, "start")[0]["data"]["train"]
            words = {"drop": "dropped", "cut": "cut"}
            assert report[words[overlong]] > 0
            assert report[words[other]] == 0
            assert f"{report[words[overlong]]:,} {words[overlong]} as too long" in done.err

    def test_no_validation_samples_and_no_active_units(self, command, tiny_config: Path, tmp_path: Path) -> None:
        self.start(command, tiny_config, "--evaluation.samples", 0, "--evaluation.active-unit-sentences", 0)
        (valid,) = log_of(tmp_path / "run", "valid")
        assert valid["samples"] == []
        assert "active_units" not in valid


class TestDamagedRun:
    """A run whose only checkpoint was damaged ends with exit code 1 and names the file."""

    @pytest.fixture
    def run(self, trained_run: Path, tmp_path: Path) -> Path:
        run = Path(shutil.copytree(trained_run, tmp_path / "run"))
        for folder in (run / "checkpoints").glob("step-*"):
            if folder.name != f"step-{STEPS}":
                shutil.rmtree(folder)
        return run

    @pytest.mark.parametrize(
        "file", ["model.safetensors", "optimiser.safetensors", "run.json", "tokenizer.json", "config.json"]
    )
    @pytest.mark.parametrize("how", ["cut", "gone"])
    def test_resume_names_the_file(self, run: Path, file: str, how: str, command) -> None:
        path = run / "checkpoints" / f"step-{STEPS}" / file
        content = path.read_bytes()
        path.unlink()
        if how == "cut":
            path.write_bytes(content[: len(content) // 2])
        done = command("train", "--resume", "run")
        assert done.code == 1
        assert file in done.err
        assert "no checkpoint of run is whole" in done.err

    def test_a_pointer_to_nothing(self, run: Path, command) -> None:
        shutil.rmtree(run / "checkpoints" / f"step-{STEPS}")
        done = command("train", "--resume", "run")
        assert done.code == 1
        assert "there is no checkpoint to go on from" in done.err

    def test_settings_that_do_not_parse(self, run: Path, command) -> None:
        (run / "config.json").write_text("{")
        done = command("train", "--resume", "run")
        assert done.code == 2
        assert "config.json" in done.err


class TestLibrary:
    def test_limits_are_checked(self) -> None:
        with pytest.raises(ConfigError, match="max_steps is 0"):
            training.Limits(max_steps=0)
        with pytest.raises(ConfigError, match="max_minutes is nan"):
            training.Limits(max_minutes=math.nan)

    def test_an_observer_sees_every_step_and_line(self, tiny_config: Path, tmp_path: Path) -> None:
        class Watch(training.Silent):
            def __init__(self) -> None:
                self.steps, self.tokens, self.lines = 0, 0, []
                self.begun: tuple[int, int] | None = None

            def begin(self, steps: int, done: int) -> None:
                self.begun = (steps, done)

            def step(self, tokens: int) -> None:
                self.steps += 1
                self.tokens += tokens

            def record(self, line: dict[str, Any]) -> None:
                self.lines.append(line)

        config, watch = load_config(str(tiny_config)), Watch()
        last = training.train(
            config, resolve(config.data), tmp_path / "run", training.Limits(max_epochs=1), observer=watch
        )
        assert last == tmp_path / "run" / "checkpoints" / f"step-{EPOCH}"
        assert watch.begun == (EPOCH, 0)
        assert watch.steps == EPOCH
        assert watch.lines == log_of(tmp_path / "run")
        assert watch.tokens == sum(line["tokens"] for line in log_of(tmp_path / "run", "train"))
