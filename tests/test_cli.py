"""The command line: help, exit codes, messages without tracebacks, and the scores of generated text."""

import contextlib
import dataclasses
import gzip
import io
import json
import lzma
import math
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from textebm import cli, generation, lm_eval
from textebm.commands.training import OWN_CORPUS_PRESET
from textebm.config import load_config, to_dict
from textebm.errors import DataError
from textebm.lm_eval import protocols

COMMANDS = [
    *("train", "generate", "reconstruct", "interpolate", "score", "map", "neighbours", "arithmetic"),
    *("fppl", "rppl", "evaluate", "likelihood", "fid", "transition", "anomaly"),
    *("calibrate", "signature", "compare", "experiment", "data", "plot", "report", "share", "app", "env"),
]


@pytest.fixture(autouse=True)
def no_settings_of_this_machine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("TEXTEBM_DATA", raising=False)
    monkeypatch.setenv("TEXTEBM_HOME", str(tmp_path / "home"))


class TestHelp:
    @pytest.mark.parametrize("words", [("--help",), ("-h",)])
    def test_lists_every_command(self, words, command) -> None:
        done = command(*words)
        assert done.code == 0
        assert re.findall(r"^  (\w+)  +\S", done.out.split("commands:")[1].split("examples:")[0], re.M) == COMMANDS

    def test_nothing_is_wrong_usage_and_gets_the_help(self, command) -> None:
        done = command()
        assert done.code == 2
        assert "commands:" in done.out

    @pytest.mark.parametrize("name", COMMANDS)
    def test_of_each_command_has_examples_to_copy(self, name: str, command) -> None:
        done = command(name, "--help")
        assert done.code == 0
        assert f"textebm {name}" in done.out.split("examples:")[1]

    def test_version(self, command) -> None:
        done = command("--version")
        assert done.code == 0
        assert re.fullmatch(r"textebm \d+\.\d+\.\d+\S*\n", done.out)

    def test_imports_nothing_heavy(self) -> None:
        heavy = "{'torch', 'numpy', 'tokenizers', 'transformers', 'matplotlib', 'kenlm', 'sacrebleu', 'safetensors'}"
        program = f"import sys, textebm.cli; print(*({heavy} & sys.modules.keys()))"
        done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
        assert done.stdout == "\n"


class TestWrongUsage:
    @pytest.mark.parametrize(
        ("name", "nearest"), [("trian", "train"), ("gen", "generate"), ("FPPL", None), ("frobnicate", None)]
    )
    def test_an_unknown_command(self, name: str, nearest: str | None, command) -> None:
        done = command(name)
        assert done.code == 2
        assert f"no command {name!r}" in done.err
        assert (f"did you mean {nearest!r}?" if nearest else "textebm --help lists them") in done.err

    @pytest.mark.parametrize(
        ("words", "nearest"),
        [
            (("train", "--optimiser.lrr", "1"), "--optimiser.lr"),
            (("train", "--inference.stepsize", "1"), "--inference.step-size"),
            (("train", "--priorsteps", "3"), "--prior.steps"),
            (("train", "--checkpoint-evry", "3"), "--checkpoint-every"),
            (("generate", "--temprature", "1"), "--temperature"),
            (("reconstruct", "file", "--beamsize", "1"), "--beam-size"),
            (("fppl", "--smples", "x"), "--samples"),
            (("plot", "--ouput", "x"), "--output"),
        ],
    )
    def test_an_unknown_option_is_answered_with_the_nearest(self, words, nearest: str, command) -> None:
        done = command(*words)
        assert done.code == 2
        assert words[-2] in done.err
        assert nearest in done.err.split(words[-2], 1)[1]

    def test_an_unknown_key_of_a_file_too(self, command, tmp_path: Path) -> None:
        (tmp_path / "mine.yaml").write_text("prior:\n  latent_dims: 4\n")
        done = command("train", "--config", "mine.yaml")
        assert done.code == 2
        assert done.err == (
            "textebm: mine.yaml: unknown configuration key 'prior.latent_dims'; the nearest known key is 'latent_dim'\n"
        )

    @pytest.mark.parametrize(
        ("options", "said"),
        [
            (("--epochs", 0), "epochs is 0"),
            (("--epochs", "three"), "three"),
            (("--optimiser.lr", -1), "optimiser.lr is -1"),
            (("--prior.step-size", 0.1, 0), "prior.step_size is (0.1, 0.0)"),
            (("--inference.step-size",), "inference.step_size is ()"),
            (("--inference.temperature", "warm"), "warm"),
            (("--prior.kind", "gausian"), "gaussian"),
            (("--generator.dropout", 1), "generator.dropout is 1"),
            (("--generator.cell", "gru", "--generator.z-to-cell", "True"), "GRU"),
            (("--generator.z-to-cell", "maybe"), "maybe"),
            (("--precision", "fp8"), "fp8"),
            (("--seed", -1), "seed is -1"),
            (("--max-length", 0), "max_length is 0"),
            (("--config", "nowhere.yaml"), "no preset and no file 'nowhere.yaml'; presets: celeba128, celeba64"),
        ],
    )
    def test_wrong_values(self, options, said: str, command, tmp_path: Path) -> None:
        done = command("train", "--run-dir", "run", *options)
        assert done.code == 2
        assert said in done.err.replace("\n│ ", "")
        assert not (tmp_path / "run").exists()

    @pytest.mark.parametrize(
        ("options", "said"),
        [
            (("--data", "nowhere.txt"), "'nowhere.txt' is neither a file, nor a folder, nor a named corpus"),
            (("--data", "pbt"), "did you mean 'ptb'?"),
            (("--data", "ptb"), "Where to get it"),
            (("--data", "ptb", "--data-dir", "nowhere"), "'nowhere', which is no folder"),
            (("--data", "folder"), "is empty: it holds neither text"),
            (("--data", "empty.txt"), "empty.txt"),
            (("--data", "bytes.txt"), "not UTF-8"),
        ],
    )
    def test_missing_data(self, options, said: str, command, tmp_path: Path) -> None:
        (tmp_path / "folder").mkdir()
        (tmp_path / "empty.txt").touch()
        (tmp_path / "bytes.txt").write_bytes(b"\xff\xfe\xfa")
        done = command("train", "--run-dir", "run", *options)
        assert done.code == 2
        assert said in done.err
        assert not (tmp_path / "run").exists()

    def test_a_device_without_64_bits(self, trained_run: Path, command) -> None:
        done = command("generate", "--model", trained_run, "--device", "mps")
        assert done.code == 2
        assert re.search("--device mps cannot be used", done.err)

    @pytest.mark.parametrize("name", ["cuda:7", "abacus"])
    def test_a_device_that_is_not_there(self, name: str, tiny_config: Path, trained_run: Path, command) -> None:
        if name == "cuda:7" and torch.cuda.device_count() > 7:
            pytest.skip("there is a cuda:7 here")
        for words in (("train", "--config", tiny_config), ("generate", "--model", trained_run)):
            done = command(*words, "--device", name)
            assert done.code == 2
            reason = re.search(rf"textebm: --device {name} cannot be used here: (.+)\n", done.err)
            assert reason is not None
            assert 10 < len(reason[1]) < 300

    @pytest.mark.parametrize("name", ["generate", "fppl", "rppl"])
    @pytest.mark.parametrize(
        ("model", "said"), [("nowhere", "no run and no model folder 'nowhere'"), (".", "is no model folder")]
    )
    def test_a_model_that_is_not_there(self, name: str, model: str, said: str, command) -> None:
        done = command(name, "--model", model)
        assert done.code == 1
        assert said in done.err or "run.json does not exist" in done.err

    def test_a_checkpoint_cut_short(self, trained_run: Path, command, tmp_path: Path) -> None:
        run = shutil.copytree(trained_run, tmp_path / "run")
        weights = run / "checkpoints" / "step-30" / "model.safetensors"
        weights.write_bytes(weights.read_bytes()[:1000])
        done = command("generate", "--model", "run")
        assert done.code == 1
        assert "step-30/model.safetensors is not as it was written; --model run/checkpoints/step-2" in done.err


class TestErrors:
    def test_debug_lets_the_traceback_through(self, command) -> None:
        assert command("train", "--data", "nowhere.txt").code == 2
        for words in (("--debug", "train"), ("train", "--debug")):
            with pytest.raises(DataError):
                command(*words, "--data", "nowhere.txt")

    def test_of_the_system_are_told_in_a_line(self, trained_run: Path, command, monkeypatch) -> None:
        def full(*_: object) -> None:
            raise OSError(28, "No space left on device", "samples.txt")

        monkeypatch.setattr(generation, "generate", full)
        done = command("generate", "--model", trained_run)
        assert done.code == 1
        assert done.err.endswith("textebm: [Errno 28] No space left on device: 'samples.txt'\n")
        with pytest.raises(OSError, match="No space left"):
            command("generate", "--model", trained_run, "--debug")

    def test_an_interrupt_ends_with_130(self, trained_run: Path, command, monkeypatch) -> None:
        def interrupted(*_: object) -> None:
            raise KeyboardInterrupt

        monkeypatch.setattr(generation, "generate", interrupted)
        done = command("generate", "--model", trained_run)
        assert done.code == 130
        assert done.err.endswith("interrupted\n")

    def test_the_real_program_shows_a_traceback_only_with_debug(self, process) -> None:
        plain, debug = (process("generate", "--model", "nowhere", *extra) for extra in ((), ("--debug",)))
        assert (plain.code, debug.code) == (1, 1)
        assert plain.err == "textebm: no run and no model folder 'nowhere'\n"
        assert "Traceback" in debug.err

    @pytest.mark.parametrize("n", [3, 3000])
    def test_a_reader_that_leaves_is_no_error_worth_a_traceback(self, n: int, trained_run: Path, start_process) -> None:
        """`textebm generate | head -1`, for output that does and that does not fit in a buffer."""
        process = start_process("generate", "--model", trained_run, "-n", n)
        process.stdout.close()
        err = process.stderr.read()
        assert process.wait(timeout=120) == 141
        process.stderr.close()
        assert err.splitlines() == [f"model: {trained_run}", "device: cpu (no CUDA device was found)"]


class TestSettings:
    def chosen(self, command, *options: object) -> dict:
        done = command("train", *options, "--print-config")
        assert done.code == 0, done.err
        return json.loads(done.out)

    def test_without_a_word_it_is_the_demo(self, command) -> None:
        assert self.chosen(command) == to_dict(load_config("demo"))

    @pytest.mark.parametrize("form", [("--data", "ptb"), ("--data=ptb",), ("--config", "ptb"), ("--config=ptb",)])
    def test_a_corpus_has_the_preset_of_its_name(self, form, command) -> None:
        assert self.chosen(command, *form) == to_dict(load_config("ptb"))

    def test_a_corpus_of_ones_own_has_the_small_preset(self, command, corpus_folder: Path) -> None:
        expected = to_dict(load_config(OWN_CORPUS_PRESET)) | {"data": str(corpus_folder)}
        assert self.chosen(command, "--data", corpus_folder) == expected

    def test_options_win_over_the_file_which_wins_over_the_defaults(self, command, tmp_path: Path) -> None:
        (tmp_path / "mine.yaml").write_text("data: snli\nepochs: 9\nprior: {steps: 11, width: 12}\n")
        found = self.chosen(command, "--config", "mine.yaml", "--prior.steps", 13)
        assert found["data"] == "snli"
        assert found["epochs"] == 9
        assert found["prior"]["width"] == 12
        assert found["prior"]["steps"] == 13
        assert found["batch_size"] == 64
        assert self.chosen(command, "--config", "mine.yaml", "--data", "yahoo")["data"] == "yahoo"

    def test_a_schedule_is_one_number_or_several(self, command) -> None:
        found = self.chosen(command, "--inference.step-size", 0.8, 0.5, 0.2, "--prior.step-size", 0.3)
        assert found["inference"]["step_size"] == [0.8, 0.5, 0.2]
        assert found["prior"]["step_size"] in (0.3, [0.3])

    @pytest.mark.parametrize(("given", "known"), [("True", True), ("False", False)])
    def test_a_switch_is_what_it_is_set_to(self, given: str, known: bool, command) -> None:
        """argparse's `type=bool` would take any word for true."""
        assert self.chosen(command, "--generator.z-to-cell", given)["generator"]["z_to_cell"] is known
        assert self.chosen(command, "--generator.z-to-input", given)["generator"]["z_to_input"] is known

    def test_print_config_is_a_valid_config(self, command, tmp_path: Path) -> None:
        printed = self.chosen(command, "--data", "yahoo", "--prior.step-size", 0.4, 0.2)
        (tmp_path / "c.json").write_text(json.dumps(printed))
        assert self.chosen(command, "--config", "c.json") == printed


class TestTerminal:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    def test_training_shows_speed_and_time_left(self, tiny_config: Path, tmp_path: Path) -> None:
        screen = self.Terminal()
        with contextlib.redirect_stderr(screen), contextlib.chdir(tmp_path):
            assert cli.main(["train", "--config", str(tiny_config), "--run-dir", "run"]) == 0
        shown = screen.getvalue()
        assert re.search(r"\d+/30 \[\d\d:\d\d<\d\d:\d\d, .*nll \d+\.\d, [\d,]+ tokens/s", shown)
        assert "valid perplexity" in shown

    def test_encoding_shows_what_is_read(
        self, tiny_config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("TEXTEBM_HOME", str(tmp_path / "home"))  # where nothing is cached
        screen = self.Terminal()
        with contextlib.redirect_stderr(screen), contextlib.chdir(tmp_path):
            assert cli.main(["train", "--config", str(tiny_config), "--run-dir", "run", "--max-steps", "1"]) == 0
        for what in ("vocabulary", "train", "valid", "test"):
            assert re.search(rf"\r{what}: \d+ sentences \[", screen.getvalue()), what

    def test_nothing_moves_where_there_is_no_terminal(self, trained_run: Path, command) -> None:
        done = command("generate", "--model", trained_run, "-n", 3)
        assert done.err.splitlines() == [f"model: {trained_run}", "device: cpu (no CUDA device was found)"]

    def test_training_says_what_it_does(self, tiny_config: Path, command) -> None:
        done = command("train", "--config", tiny_config, "--run-dir", "run", "--max-steps", 2)
        assert done.out == ""
        said = done.err
        assert f"settings: {tiny_config}; run folder: run" in said
        assert "train: 300 sentences" in said
        assert re.search(r"valid perplexity [\d.]+ reconstructing, [\d.]+ under prior samples", said)
        assert "(best so far)" in said
        assert len(re.findall(r"^  \| ", said, re.M)) == 3


def test_env_says_versions_device_and_judge(command) -> None:
    done = command("env")
    assert done.code == 0
    assert f"torch {torch.__version__}" in done.out
    for what in ("textebm", "python", "CPU: ", "GPU: ", "n-gram judge: "):
        assert re.search(rf"^{what}", done.out, re.M), what


class TestPerplexity:
    """`textebm fppl` and `textebm rppl`."""

    @pytest.fixture(scope="class")
    def run(self, trained_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
        """A run of its own for these tests: samples are kept in it."""
        return Path(shutil.copytree(trained_run, tmp_path_factory.mktemp("scored") / "run"))

    def score(self, command, *words: object) -> dict:
        done = command(*words, "--lmplz", "built-in")
        assert done.code == 0, done.err
        return json.loads(done.out)

    @pytest.mark.parametrize("metric", ["fppl", "rppl"])
    def test_of_a_run_under_the_headline_protocol(self, metric: str, run: Path, command) -> None:
        found = self.score(command, metric, "--model", run)
        assert {"metric", "score", "interval", "signature", "details"} <= found.keys()
        assert found["metric"] == metric
        assert found["interval"][0] < found["score"] < found["interval"][1]
        signature = dict(part.split(":", 1) for part in found["signature"].split("|"))
        assert signature["n"] == "300"  # as many as there are training sentences
        assert signature["decoding"] == "sample-t1"
        assert signature["data"] == "corpus"
        assert found["details"]["warnings"] == []
        assert found["details"]["real_row"]["perplexity"] < found["score"]  # the grammar itself is far ahead

    def test_both_score_the_same_samples_drawn_once(self, run: Path, corpus_folder: Path, command) -> None:
        forward = self.score(command, "fppl", "--model", run)
        (path,) = (run / "samples").glob("*-n300-seed0.txt")
        written = path.stat().st_mtime_ns
        reverse = self.score(command, "rppl", "--model", run)
        assert path.stat().st_mtime_ns == written
        assert forward["details"]["samples"]["sha256"] == reverse["details"]["samples"]["sha256"]
        train, test = (
            (corpus_folder / f"{split}.txt").read_text(encoding="utf-8").splitlines() for split in ("train", "test")
        )
        drawn = lm_eval.Corpus(path, keep_blank=True)
        assert forward["score"] == pytest.approx(lm_eval.fppl(drawn, train, lmplz="built-in").score)
        assert reverse["score"] == pytest.approx(lm_eval.rppl(drawn, test, train, lmplz="built-in").score)

    def test_real_text_scores_as_real_text(self, corpus_folder: Path, command) -> None:
        """FPPL of the test split, and RPPL from the training split, are the row of real text itself."""
        for metric, split in (("fppl", "test"), ("rppl", "train")):
            found = self.score(command, metric, "--samples", corpus_folder / f"{split}.txt", "--data", corpus_folder)
            assert found["score"] == pytest.approx(found["details"]["real_row"]["perplexity"])

    def test_a_better_text_scores_better(self, run: Path, corpus_folder: Path, command) -> None:
        for metric in ("fppl", "rppl"):
            ours = self.score(command, metric, "--model", run)
            real = self.score(command, metric, "--samples", corpus_folder / "valid.txt", "--data", corpus_folder)
            assert real["score"] < ours["score"]

    def test_fewer_than_the_headline_warn(self, run: Path, command) -> None:
        done = command("fppl", "--model", run, "-n", 50, "--lmplz", "built-in")
        assert done.code == 0
        assert "warning: 50 sentences, fewer than the headline protocol's 300" in done.err
        found = json.loads(done.out)
        assert "|n:50|" in found["signature"]
        assert len(found["details"]["warnings"]) == 1

    def test_a_protocol_draws_the_samples_that_it_prescribes(self, run: Path, command, monkeypatch) -> None:
        """fang2019: greedily, at most 80 words; 1,280 of them are made 40 here, to save time."""
        few = dataclasses.replace(protocols.PROTOCOLS["fang2019"], n=40)
        monkeypatch.setitem(protocols.PROTOCOLS, "fang2019", few)
        found = self.score(command, "fppl", "--model", run, "--protocol", "fang2019")
        assert len(list((run / "samples").glob("*-n40-seed0-greedy-max80.txt"))) == 1
        signature = found["signature"].split("|")
        assert {"n:40", "decoding:greedy", "judge:fang2019", "eos:no", "unk:skipped"} <= set(signature)
        assert found["details"]["warnings"] == [] or "below the real row" in found["details"]["warnings"][0]
        assert not found["details"]["headline"]
        reverse = self.score(command, "rppl", "--model", run, "--protocol", "fang2019")
        assert reverse["details"]["samples"]["sha256"] == found["details"]["samples"]["sha256"]

    def test_samples_of_other_lengths_than_the_protocols_are_told(self, run: Path, command) -> None:
        done = command("fppl", "--model", run, "-n", 50, "--protocol", "arae-ngram", "--lmplz", "built-in")
        assert "50 sentences, fewer than the protocol arae-ngram's 100,000" in done.err

    def test_files_alone_are_enough(self, corpus_folder: Path, command, tmp_path: Path) -> None:
        """Neither a model nor a corpus, plain or compressed or JSON lines: the same score as of the corpus."""
        names = ("valid", "train", "test")
        texts = {name: (corpus_folder / f"{name}.txt").read_text(encoding="utf-8") for name in names}
        (tmp_path / "s.txt.gz").write_bytes(gzip.compress(texts["valid"].encode()))
        (tmp_path / "train.txt.xz").write_bytes(lzma.compress(texts["train"].encode()))
        lines = "".join(json.dumps({"text": line}) + "\n" for line in texts["test"].splitlines())
        (tmp_path / "test.jsonl").write_text(lines, encoding="utf-8")
        for metric in ("fppl", "rppl"):
            files = ("--samples", "s.txt.gz", "--reference", "test.jsonl", "--train", "train.txt.xz")
            alone = self.score(command, metric, *files)
            corpus = self.score(command, metric, "--samples", corpus_folder / "valid.txt", "--data", corpus_folder)
            assert (alone["score"], alone["interval"]) == (corpus["score"], corpus["interval"])
            assert alone["signature"].replace("train.txt.xz", "corpus") == corpus["signature"]

    def test_what_is_said_of_samples_stands_in_the_signature(self, corpus_folder: Path, command) -> None:
        given = ("fppl", "--samples", corpus_folder / "train.txt", "--data", corpus_folder, "--decoding", "sample-t1")
        found = self.score(command, *given, "--filtering", "no duplicates", "--max-length", 3)
        assert {"filtering:no duplicates", "max_length:3"} <= set(found["signature"].split("|"))
        assert len(found["details"]["headline_reasons"]) == 2

    def test_a_neural_judge(self, run: Path, command, tmp_path: Path) -> None:
        words = ("--model", run, "--protocol", "lstm-sentence", "--recipe", "tiny", "--repeats", 2)
        done = command("rppl", *words)
        assert done.code == 0, done.err
        found = json.loads(done.out)
        repeats = found["details"]["repeats"]
        assert found["score"] == repeats["mean"] == pytest.approx(sum(repeats["scores"]) / 2)
        assert repeats["sd"] > 0
        assert "LSTM judge: tiny, " in done.err
        assert "the judge's recipe is tiny" in done.err
        assert f"mean of 2 judges, sd {repeats['sd']:.2f}" in command("rppl", *words, "--format", "text").out
        assert "LSTM judge: trained before" in command("rppl", *words).err

    def test_a_damaged_judge_is_trained_again_and_that_is_said(self, run: Path, command, tmp_path: Path) -> None:
        words = ("fppl", "--model", run, "--protocol", "lstm-sentence", "--recipe", "tiny")
        first = command(*words)
        kept = [path for path in (tmp_path / "home" / "judges").rglob("*") if path.suffix == ".safetensors"]
        for path in kept:
            path.write_bytes(path.read_bytes()[:-100])
        again = command(*words)
        assert "is damaged and is trained again" in again.err
        assert json.loads(again.out)["score"] == json.loads(first.out)["score"]

    def test_decoding_of_samples_stands_in_the_signature(self, corpus_folder: Path, command) -> None:
        given = ("fppl", "--samples", corpus_folder / "train.txt", "--data", corpus_folder)
        assert "|decoding:unknown|" in self.score(command, *given)["signature"]
        assert "|decoding:greedy|" in self.score(command, *given, "--decoding", "greedy")["signature"]

    def test_words_outside_the_vocabulary_of_the_model_are_unknown(self, run: Path, command, tmp_path: Path) -> None:
        (tmp_path / "samples.txt").write_text("the zebra sees a dog\n" * 4)
        found = self.score(command, "fppl", "--samples", "samples.txt", "--model", run)
        assert found["details"]["samples"]["unknown_rate"] == pytest.approx(1 / 5)

    def test_text_and_output(self, run: Path, command, tmp_path: Path) -> None:
        plain = command("rppl", "--model", run, "--lmplz", "built-in", "--format", "text")
        assert re.match(r"RPPL \d+\.\d\d  \(95 % interval \d+\.\d\d to \d+\.\d\d\)\n", plain.out)
        assert "signature: metric:rppl|" in plain.out
        done = command("rppl", "--model", run, "--lmplz", "built-in", "--format", "text", "--output", "score.txt")
        assert done.out == ""
        assert (tmp_path / "score.txt").read_text(encoding="utf-8") == plain.out
        assert [path.name for path in tmp_path.iterdir()] == ["score.txt"]

    @pytest.mark.parametrize(
        ("options", "said"),
        [
            (("--samples", "nowhere.txt"), "nowhere.txt does not exist"),
            (("--samples", "."), "is a folder, where a text file is wanted"),
            (("--samples", "samples.txt", "-n", 3), "does not go with --samples"),
            (("-n", 0), "at least 1"),
            (("--seed", -1), "seed is -1"),
            (("--samples", "samples.txt", "--lmplz", "nowhere"), "lmplz: the option names 'nowhere'"),
            (("--samples", "samples.txt", "--vocab-size", 4), "vocab_size is 4"),
            (("--samples", "bytes.txt"), "not UTF-8"),
            (("--samples", "empty.txt"), "empty.txt"),
            (("--data", "nowhere"), "'nowhere' is neither a file"),
            (("--samples", "/dev/null"), "is no regular file"),
            (("--samples", "blank.txt"), "every sentence in it is empty"),
            (("--samples", "nul.txt"), "line 2: a NUL byte"),
            (("--samples", "mixed.txt"), "line 2: not UTF-8"),
            (("--samples", "wide.txt"), "wide.txt: not UTF-8 text but UTF-16"),
            (("--samples", "samples.txt", "--protocol", "kenlm"), "did you mean 'kenlm5'?"),
            (("--samples", "samples.txt", "--protocol", "lstm-sentence", "--recipe", "tini"), "no recipe 'tini'"),
            (("--samples", "samples.txt", "--recipe", "tiny"), "are of judges that are trained"),
            (("--samples", "samples.txt", "--repeats", 0), "repeats is 0"),
            (("--samples", "samples.txt", "--resamples", 0), "resamples is 0"),
            (("--decoding", "greedy"), "--decoding says what --samples are"),
            (("--samples", "samples.txt", "--train", "samples.txt", "--data", "ptb"), "give one of them"),
            (("--samples", "samples.txt", "--reference", "samples.txt"), "stand beside --train"),
            (("--samples", "samples.txt", "--train", "nowhere.txt"), "--train: nowhere.txt does not exist"),
            (("--samples", "samples.txt", "--train", "blank.txt", "--reference", "samples.txt"), "train: no sentence"),
        ],
    )
    def test_wrong_usage(self, options, said: str, run: Path, command, tmp_path: Path) -> None:
        (tmp_path / "samples.txt").write_text("the dog sees a king\n")
        (tmp_path / "bytes.txt").write_bytes(b"\xff\xfe\xfa")
        (tmp_path / "empty.txt").touch()
        (tmp_path / "blank.txt").write_text("\n \n")
        (tmp_path / "nul.txt").write_bytes(b"the dog\nthe \0 king\n")
        (tmp_path / "mixed.txt").write_bytes("the café\n".encode() + "the café\n".encode("latin-1"))
        (tmp_path / "wide.txt").write_bytes("the dog\n".encode("utf-16"))
        for metric in ("fppl", "rppl"):
            done = command(metric, "--model", run, *options)
            assert done.code == 2, done.err
            assert said in done.err
            assert done.out == ""

    def test_rppl_without_a_test_text(self, command, corpus_folder: Path) -> None:
        train = corpus_folder / "train.txt"
        done = command("rppl", "--samples", train, "--train", train)
        assert done.code == 2
        assert "name it with --reference" in done.err

    @pytest.mark.parametrize("protocol", ["kenlm5", "arae-ngram", "fang2019"])
    @pytest.mark.parametrize(
        "text", ["king", "king\n\n\n", "qwer tyui\n", "<unk>\n", "<s> the </s> king <unk>\nthe <unk>\n</s>\n"]
    )
    def test_little_or_strange_text_is_no_error(
        self, protocol: str, text: str, corpus_folder: Path, command, tmp_path: Path
    ) -> None:
        """With lmplz where there is one: it refuses <s>, </s> and <unk> in a text."""
        (tmp_path / "strange.txt").write_text(text)
        for metric in ("fppl", "rppl"):
            given = ("--samples", "strange.txt", "--data", corpus_folder, "--protocol", protocol)
            done = command(metric, *given)
            assert done.code == 0, done.err
            assert 1 < json.loads(done.out)["score"] < 1e7
            assert ("no word of strange.txt occurs" in done.err) == (text in ("qwer tyui\n",))

    def test_strange_real_text_is_no_error_either(self, command, tmp_path: Path) -> None:
        (tmp_path / "train.txt").write_text("<s> the <unk> </s>\nthe king <s>\nthe king\n" * 9)
        (tmp_path / "test.txt").write_text("the <unk> king\n<s> the\n")
        for metric in ("fppl", "rppl"):
            files = ("--train", "train.txt", "--reference", "test.txt", "--samples", "test.txt")
            done = command(metric, *files)
            assert done.code == 0, done.err

    def test_test_equal_to_train_is_warned_of(self, command, corpus_folder: Path) -> None:
        train = corpus_folder / "train.txt"
        files = ("--train", train, "--reference", train, "--samples", corpus_folder / "valid.txt")
        assert "warning: test and train hold the same sentences" in command("fppl", *files, "--lmplz", "built-in").err


class TestEvaluate:
    """`textebm evaluate`."""

    def test_of_several_files(self, corpus_folder: Path, command, tmp_path: Path) -> None:
        (tmp_path / "dull.txt").write_text("the old dog sees a king\n" * 300)
        texts = ("--samples", corpus_folder / "valid.txt", "dull.txt", "--data", corpus_folder, "--lmplz", "built-in")
        done = command("evaluate", *texts, "--format", "json", "--resamples", 50)
        assert done.code == 0, done.err
        found = json.loads(done.out)
        assert {"metric", "score", "interval", "signature", "details"} <= found.keys()
        assert [row["name"] for row in found["details"]["rows"]] == [
            *("valid.txt", "dull.txt", "the judge as a generator", "real text")
        ]
        assert found["score"]["valid.txt"]["rppl"] < found["score"]["dull.txt"]["rppl"]
        assert "warning: valid.txt: 60 sentences, fewer than the headline protocol's 300" in done.err
        for form, expected in (("text", "FPPL"), ("markdown", "| FPPL |"), ("csv", "FPPL,")):
            shown = command("evaluate", *texts, "--format", form, "--resamples", 50, "--no-limits")
            assert expected in shown.out
            assert "the judge as a generator" not in shown.out

    def test_of_a_model(self, trained_run: Path, command, tmp_path: Path) -> None:
        run = shutil.copytree(trained_run, tmp_path / "run")
        done = command("evaluate", "--model", run, "--lmplz", "built-in", "--resamples", 50, "--output", "report.txt")
        assert done.code == 0, done.err
        assert done.out == ""
        report = (tmp_path / "report.txt").read_text(encoding="utf-8")
        assert "FPPL" in report
        assert "use of z, on 60 test sentences: active units" in report
        assert "nats under posterior samples" in report
        assert len(list((run / "samples").glob("*-n300-seed0.txt"))) == 1

    def test_of_a_model_with_another_chain_and_its_use_of_z(self, trained_run: Path, command, tmp_path: Path) -> None:
        run = shutil.copytree(trained_run, tmp_path / "run")
        words = ("--model", run, "--lmplz", "built-in", "--resamples", 50, "--no-limits", "--format", "json")
        done = command("evaluate", *words, "--prior-steps", 9, "--latent-sentences", 30, "--log-normaliser", 0.5)
        assert done.code == 0, done.err
        found = json.loads(done.out)
        (signatures,) = found["signature"].values()
        assert all("decoding:sample-t1+prior-steps-9" in signature for signature in signatures.values())
        assert "decoding is sample-t1+prior-steps-9, and the headline protocol's is sample-t1" in done.err
        assert len(list((run / "samples").glob("*-n300-seed0-prior9.txt"))) == 1
        latents = found["details"]["latents"]
        assert latents["nll_gap"] == pytest.approx(latents["prior_nll"] - latents["reconstruction_nll"])
        assert latents["latent_sentences"] == 30
        assert latents["density"] == "fitted-gaussian"
        assert -0.1 < latents["mutual_information"] <= math.log(30)
        assert {"active_units", "reconstruction_bleu", "kl"} <= latents.keys()
        same = command("fppl", *words[:6], "--prior-steps", 5)  # as in training
        assert same.code == 0, same.err
        assert "prior-steps" not in json.loads(same.out)["signature"]
        none = json.loads(command("evaluate", *words, "--latent-sentences", 0).out)
        assert "latents" not in none["details"]

    @pytest.mark.parametrize(
        ("words", "said"),
        [
            (("--latent-sentences", -1), "--latent-sentences is -1"),
            (("--samples", "a.txt", "--prior-steps", 3), "does not go with --samples"),
            (("--prior-steps", -3), "--prior-steps is a chain's length"),
            (("--samples", "nowhere.txt"), "nowhere.txt does not exist"),
            (("--samples", "a.txt", "--train", "a.txt"), "name it with --reference"),
            (("--samples", "a.txt", "--protocol", "arae"), "unknown protocol 'arae': did you mean"),
        ],
    )
    def test_wrong_usage(self, words, said: str, command, tmp_path: Path) -> None:
        (tmp_path / "a.txt").write_text("a b\n")
        done = command("evaluate", *words)
        assert done.code == 2
        assert said in done.err


class TestSignatures:
    """`textebm signature` and `textebm compare`."""

    FPPL = "metric:fppl|data:ptb|n:42068|judge:fang2019|eos:no"

    def test_one_is_explained(self, command) -> None:
        done = command("signature", self.FPPL)
        assert done.code == 0
        assert re.search(r"^n:42068 +number of generated sentences, or images$", done.out, re.M)
        assert "quirk: RPPL is the perplexity of the training file" in done.out
        read = json.loads(command("signature", self.FPPL, "--format", "json").out)
        assert [fact["key"] for fact in read["facts"]] == ["metric", "data", "n", "judge", "eos"]

    def test_two_are_compared(self, command) -> None:
        done = command("signature", self.FPPL, self.FPPL.replace("42068", "10"))
        assert done.out.startswith("the scores do not compare: they differ in n\n  n: 42068 / 10")
        assert "are the same" in command("signature", self.FPPL, self.FPPL).out
        read = json.loads(command("signature", self.FPPL, self.FPPL + "|seed:1", "--format", "json").out)
        assert read == {"comparable": True, "decisive": {}, "implementation": {}, "uncertainty": {"seed": [None, "1"]}}

    @pytest.mark.parametrize(
        ("words", "said"),
        [
            ((), "one signature or two"),
            (("a:1", "b:1", "c:1"), "one signature or two"),
            (("fppl 12.3",), "not a signature"),
        ],
    )
    def test_wrong_signatures(self, words, said: str, command) -> None:
        done = command("signature", *words)
        assert done.code == 2
        assert said in done.err

    def test_scores_are_put_into_tables(self, corpus_folder: Path, command, tmp_path: Path) -> None:
        for name, text in (("a", "valid"), ("b", "test")):
            words = ("--samples", corpus_folder / f"{text}.txt", "--data", corpus_folder, "--lmplz", "built-in")
            assert command("fppl", *words, "--output", f"{name}.json").code == 0
        done = command("compare", "a.json", "b.json", "--format", "markdown")
        assert done.code == 0, done.err
        assert done.out.count("| a |") == done.out.count("| b |") == done.out.count("95 % interval | RPPL") == 1
        (tmp_path / "c.json").write_text((tmp_path / "b.json").read_text().replace("|n:60|", "|n:61|"))
        done = command("compare", "a.json", "c.json", "--published", "--output", "table.txt")
        assert "warning: these scores do not compare and share no table; they differ in n: 60 / 61" in done.err
        assert "published rows are left out: their judge was an LSTM" in done.err
        assert "do not compare" in (tmp_path / "table.txt").read_text(encoding="utf-8")

    @pytest.mark.parametrize(
        ("words", "said"),
        [((), "no file is given"), (("nowhere.json",), "does not exist"), (("x.json",), "no score in it")],
    )
    def test_nothing_to_compare(self, words, said: str, command, tmp_path: Path) -> None:
        (tmp_path / "x.json").write_text("{}")
        done = command("compare", *words)
        assert done.code == 2
        assert said in done.err
