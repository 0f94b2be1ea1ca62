"""Corpora of one's own, from the command line: vocabularies, text policies, changed text, older runs, full disks."""

import json
import math
import re
import shutil
import signal
import time
from pathlib import Path
from typing import Any

import pytest

from textebm import checkpoint
from textebm.data.vocabulary import is_word_level, load_tokenizer
from textebm.home import VARIABLE, home

QUICK = ("--max-steps", 5, "--evaluation.active-unit-sentences", 0)


def start_of(run: Path) -> dict[str, Any]:
    """The first line of a run's log."""
    described: dict[str, Any] = json.loads((run / "log.jsonl").read_text(encoding="utf-8").splitlines()[0])
    return described


def last_valid(run: Path) -> dict[str, Any]:
    lines = [json.loads(line) for line in (run / "log.jsonl").read_text(encoding="utf-8").splitlines()]
    return [line for line in lines if line["kind"] == "valid"][-1]


@pytest.fixture
def mixed(corpus_folder: Path, tmp_path: Path) -> Path:
    """The corpus with capitals and numbers: every third sentence begins with `The 1,234`."""
    folder = tmp_path / "mixed"
    folder.mkdir()
    for split in ("train", "valid", "test"):
        lines = (corpus_folder / f"{split}.txt").read_text(encoding="utf-8").splitlines()
        changed = [f"The {1234 + n:,} {line}" if n % 3 == 0 else line for n, line in enumerate(lines)]
        (folder / f"{split}.txt").write_text("\n".join(changed) + "\n", encoding="utf-8")
    return folder


@pytest.fixture
def pairs(tiny_config: Path, command, tmp_path: Path) -> Path:
    """The folder of a run with a vocabulary of byte pairs."""
    options = ("--tokenizer", "bpe", "--vocab-size", 320, "--max-steps", 12, "--overlong", "cut", "--max-length", 5)
    done = command("train", "--config", tiny_config, "--run-dir", "pairs", *options)
    assert done.code == 0, done.err
    assert "vocabulary of 320 entries (byte pairs); on cpu" in done.err
    return tmp_path / "pairs"


class TestBytePairs:
    def test_a_protocol_that_counts_words_is_refused(self, pairs: Path, command) -> None:
        done = command("fppl", "--model", pairs, "--protocol", "fang2019", "--lmplz", "built-in")
        assert done.code == 2
        assert "fang2019 has sentences of at most 80 words, and the model writes parts of words" in done.err

    def test_figures_are_a_word_so_that_they_compare(self, pairs: Path) -> None:
        data, valid = start_of(pairs)["data"], last_valid(pairs)
        assert data["valid"]["tokens"] > data["valid"]["words"] and data["valid"]["cut"] > 0
        assert valid["tokens"] > valid["words"] > valid["sentences"]
        for kind in ("reconstruction", "prior", "gaussian"):
            by_hand = math.exp(valid[f"{kind}_nll"] * valid["sentences"] / valid["words"])
            assert valid[f"{kind}_perplexity"] == pytest.approx(by_hand, rel=1e-9)

    def test_it_is_sampled_and_measured_like_any_other(self, pairs: Path, command, tmp_path: Path) -> None:
        assert not is_word_level(load_tokenizer(checkpoint.find_model(str(pairs))[0]))
        done = command("generate", "--model", pairs, "-n", 3)
        assert (done.code, len(done.lines)) == (0, 3)
        text = tmp_path / "text.txt"
        text.write_text("the old dog sees\nsnark \u2603 x\n", encoding="utf-8")
        assert len(command("reconstruct", text, "--model", pairs).lines) == 2
        for metric in ("fppl", "rppl"):
            done = command(metric, "--model", pairs)
            assert done.code == 0, done.err
            score = json.loads(done.out)
            words = sum(len(line.split()) + 1 for line in (tmp_path / "corpus.test").read_text().splitlines())
            assert score["details"]["real_row"]["tokens"] == words
            assert "|vocabulary:train-" in score["signature"]

    @pytest.fixture(autouse=True)
    def _test_text(self, corpus_folder: Path, tmp_path: Path) -> None:
        shutil.copy(corpus_folder / "test.txt", tmp_path / "corpus.test")

    def test_too_small_a_vocabulary(self, command, tiny_config: Path) -> None:
        done = command("train", "--config", tiny_config, "--tokenizer", "bpe", "--vocab-size", 100)
        assert done.code == 2
        assert "vocab_size is 100: it must be at least 260" in done.err


class TestPolicies:
    def test_lower_case_and_numbers_hold_from_training_to_measuring(
        self, mixed: Path, tiny_config: Path, command, tmp_path: Path
    ) -> None:
        options = ("--data", mixed, "--lowercase", True, "--numbers", "N", *QUICK)
        assert command("train", "--config", tiny_config, "--run-dir", "run", *options).code == 0
        words = load_tokenizer(checkpoint.find_model(str(tmp_path / "run"))[0]).get_vocab()
        assert "n" in words and not any(re.search(r"[0-9A-Z]", word) for word in words)
        done = command("rppl", "--model", "run", "-n", 50)
        assert done.code == 0, done.err
        with_policy = json.loads(done.out)
        assert "|text:lower+numbers-N|" in with_policy["signature"]
        assert with_policy["details"]["real"]["out_of_vocabulary"] == 0
        changed = tmp_path / "changed"
        changed.mkdir()
        for split in ("train", "valid", "test"):
            text = re.sub(r"\b1,[0-9]{3}\b", "n", (mixed / f"{split}.txt").read_text(encoding="utf-8").lower())
            (changed / f"{split}.txt").write_text(text, encoding="utf-8")
        samples = next((tmp_path / "run" / "samples").glob("*.txt"))
        done = command("rppl", "--samples", samples, "--data", changed)
        by_hand = json.loads(done.out)
        assert with_policy["score"] == pytest.approx(by_hand["score"], rel=1e-9)
        assert with_policy["details"]["real_row"] == {
            **by_hand["details"]["real_row"],
            "text": with_policy["details"]["real_row"]["text"],
        }

    def test_coverage_and_unknown_rates_are_said(self, tiny_config: Path, command, tmp_path: Path) -> None:
        done = command("train", "--config", tiny_config, "--run-dir", "run", "--vocab-size", 12, *QUICK)
        assert done.code == 0, done.err
        data = start_of(tmp_path / "run")["data"]
        rates = {split: data[split]["unknown_words"] / data[split]["words"] for split in ("train", "valid", "test")}
        assert 0.2 < rates["train"] < 0.8
        assert f"vocabulary of 12 entries, covers {1 - rates['train']:.2%} of the training words" in done.err
        for split, rate in rates.items():
            assert re.search(rf"  {split}: \d+ sentences, [\d,]+ words, {rate:.2%} <unk>", done.err)

    def test_a_smallest_count(self, tiny_config: Path, command, tmp_path: Path) -> None:
        done = command("train", "--config", tiny_config, "--run-dir", "run", "--min-count", 100, *QUICK)
        assert done.code == 0, done.err
        assert 4 < start_of(tmp_path / "run")["data"]["vocabulary"] < 20
        done = command("train", "--config", tiny_config, "--min-count", 10_000)
        assert done.code == 2
        assert "no word occurs 10000 times" in done.err and "Lower min_count" in done.err

    def test_unknown_words_are_refused_or_their_sentences_dropped(
        self, tiny_config: Path, command, tmp_path: Path
    ) -> None:
        small = ("--vocab-size", 24, "--unknown-words")
        done = command("train", "--config", tiny_config, *small, "refuse")
        assert done.code == 2
        assert re.search(r"train\.txt \(train\): the word '\w+' is not in the vocabulary \(in: .+\)", done.err)
        done = command("train", "--config", tiny_config, "--run-dir", "run", *small, "drop", *QUICK)
        assert done.code == 0, done.err
        report = start_of(tmp_path / "run")["data"]["train"]
        assert report["dropped_unknown"] > 0 and report["unknown_words"] == 0
        assert f"{report['dropped_unknown']:,} dropped for an unknown word" in done.err

    def test_a_vocabulary_of_one_word(self, tiny_config: Path, command, tmp_path: Path) -> None:
        done = command("train", "--config", tiny_config, "--run-dir", "run", "--vocab-size", 5, *QUICK)
        assert done.code == 0, done.err
        done = command("generate", "--model", "run", "-n", 5)
        assert {word for line in done.lines for word in line.split()} <= {"the", "<unk>", "a", "no", "every"}

    @pytest.mark.parametrize("split", ["train", "valid", "test"])
    def test_a_split_without_a_usable_sentence(
        self, split: str, corpus_folder: Path, tiny_config: Path, command, tmp_path: Path
    ) -> None:
        shutil.copytree(corpus_folder, tmp_path / "copy")
        (tmp_path / "copy" / f"{split}.txt").write_text("one " * 50 + "\n\n", encoding="utf-8")
        limits = ("--data", tmp_path / "copy", "--max-length", 20)
        done = command("train", "--config", tiny_config, "--run-dir", "run", *limits)
        assert done.code == 2
        assert f"{split}.txt ({split}): no sentence is left: 1 blank lines, 1 sentences longer than" in done.err
        assert not (tmp_path / "run").exists()


class TestReproduction:
    def test_a_config_with_every_text_option_trains_the_same_model_again(
        self, mixed: Path, tiny_config: Path, command, tmp_path: Path
    ) -> None:
        options = ("--lowercase", True, "--numbers", "digits", "--min-count", 2, "--overlong", "cut", "--max-length", 7)
        done = command("train", "--config", tiny_config, "--data", mixed, "--run-dir", "a", *options, "--max-steps", 12)
        assert done.code == 0, done.err
        done = command("train", "--config", tmp_path / "a" / "config.json", "--run-dir", "b", "--max-steps", 12)
        assert done.code == 0, done.err
        first, second = (checkpoint.find_model(str(tmp_path / name))[0] for name in "ab")
        for name in ("model.safetensors", "optimiser.safetensors", "tokenizer.json"):
            assert (first / name).read_bytes() == (second / name).read_bytes()


class TestGoingOn:
    @pytest.fixture
    def run(self, trained_run: Path, corpus_folder: Path, tiny_config: Path, command, tmp_path: Path) -> Path:
        """A run on a copy of the corpus, stopped early."""
        shutil.copytree(corpus_folder, tmp_path / "copy")
        stop = ("--data", tmp_path / "copy", "--max-steps", 7)
        assert command("train", "--config", tiny_config, "--run-dir", "run", *stop).code == 0
        return tmp_path / "run"

    def test_other_text_under_the_same_name_is_noticed(self, run: Path, command, tmp_path: Path) -> None:
        with (tmp_path / "copy" / "valid.txt").open("a", encoding="utf-8") as file:
            file.write("one more\n")
        done = command("train", "--resume", run)
        assert done.code == 1
        assert "was trained on other text than there is now in" in done.err
        assert "valid.txt (valid). Bring the former text back" in done.err

    def test_the_same_text_elsewhere_will_do(self, run: Path, command, tmp_path: Path) -> None:
        for path in (tmp_path / "copy").iterdir():
            path.touch()
        assert command("train", "--resume", run, "--max-steps", 9).code == 0

    def test_a_run_of_an_earlier_version_is_a_model_but_cannot_go_on(self, run: Path, command) -> None:
        path = run / "checkpoints" / "step-7" / "run.json"
        described = json.loads(path.read_text(encoding="utf-8"))
        path.write_text(json.dumps({key: described[key] for key in ("config", "progress")}), encoding="utf-8")
        done = command("train", "--resume", run)
        assert done.code == 1
        assert "was written by an earlier version of textebm" in done.err
        assert f"textebm train --config {run}/config.json" in done.err
        assert command("generate", "--model", run, "-n", 1).code == 0
        assert command("fppl", "--model", run, "-n", 40).code == 0

    @pytest.mark.parametrize("written", [3, "x"])
    def test_a_run_of_a_later_version_says_so(self, written: object, run: Path, command) -> None:
        path = run / "checkpoints" / "step-7" / "run.json"
        described = json.loads(path.read_text(encoding="utf-8"))
        path.write_text(json.dumps({**described, "format": written}), encoding="utf-8")
        for words in (("train", "--resume", run), ("fppl", "--model", run)):
            done = command(*words)
            assert done.code == 1
            assert f"has format {written!r}; this version of textebm reads formats up to 2: upgrade textebm" in done.err


class TestFullDisk:
    """A limit on the size of files stands in for a full disk: both end a write with an error of the system."""

    def test_in_training_loses_nothing_that_was_saved(
        self, tiny_config: Path, trained_run: Path, process, command, tmp_path: Path
    ) -> None:
        assert command("train", "--config", tiny_config, "--run-dir", "run", "--max-steps", 10).code == 0
        done = process("train", "--resume", "run", largest_file_kb=8)
        assert done.code == 1
        said = done.err.splitlines()[-1]
        assert said.startswith(
            "textebm: run cannot be written at step 20: File too large. run/checkpoints/step-10 is saved"
        )
        assert said.endswith("make room there, then go on with: textebm train --resume run")
        assert not list((tmp_path / "run" / "checkpoints").glob(".*.tmp"))
        assert command("train", "--resume", "run").code == 0
        finished, straight = (checkpoint.find_model(str(run))[0] for run in (tmp_path / "run", trained_run))
        assert (finished / "model.safetensors").read_bytes() == (straight / "model.safetensors").read_bytes()

    def test_before_the_first_checkpoint(self, tiny_config: Path, process) -> None:
        done = process("train", "--config", tiny_config, "--run-dir", "run", largest_file_kb=8)
        assert done.code == 1
        assert "No checkpoint had been saved yet: make room there and start again" in done.err
        assert "Traceback" not in done.err

    def test_in_the_cache(self, tiny_config: Path, process, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        text = tmp_path / "mine.txt"
        text.write_text("\n".join(f"{n} is number {n + 1} of them" for n in range(3000)), encoding="utf-8")
        done = process("train", "--config", tiny_config, "--data", text, "--run-dir", "run", largest_file_kb=8)
        assert done.code == 2
        assert "the cache of encoded text in" in done.err and "TEXTEBM_HOME" in done.err
        assert text.stat().st_size > 8192
        assert not (tmp_path / "run").exists()

    def test_of_samples(self, trained_run: Path, process, tmp_path: Path) -> None:
        (tmp_path / "out.txt").write_text("what was there\n", encoding="utf-8")
        words = ("generate", "--model", trained_run, "-n", 2000, "--output", "out.txt")
        done = process(*words, largest_file_kb=8)
        assert done.code == 2
        assert "--output out.txt cannot be written: File too large" in done.err
        assert (tmp_path / "out.txt").read_text(encoding="utf-8") == "what was there\n"


@pytest.mark.parametrize("which", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupt_while_a_long_text_is_encoded(
    which: signal.Signals, start_process, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It ends at once, and leaves nothing half done: the next run begins where there is nothing."""
    monkeypatch.setenv(VARIABLE, str(tmp_path / "home"))  # in which no other test encodes meanwhile
    text = tmp_path / "long.txt"
    with text.open("w", encoding="utf-8") as file:
        file.writelines(f"sentence {n} is one of {which.name} many that {n % 977} follow\n" for n in range(600_000))
    process = start_process("train", "--data", text, "--run-dir", "run")
    encoded = home() / "encoded"
    waited_until = time.monotonic() + 60
    while not [*encoded.glob("*.lock")] and time.monotonic() < waited_until:
        time.sleep(0.05)
    time.sleep(0.3)
    process.send_signal(which)
    began = time.monotonic()
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130, err
    assert time.monotonic() - began < 10
    assert err.endswith("interrupted\n") and "Traceback" not in err
    assert not (tmp_path / "run").exists()
    assert {path.suffix for path in encoded.iterdir()} == {".lock"}
