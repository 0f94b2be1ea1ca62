"""What can be wrong with data, through the program: one message that says what, where and what to do, and a code."""

import gzip
import io
import lzma
import os
import re
import sys
import threading
import tracemalloc
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

from textebm.config import load_config
from textebm.data.registry import DATA_DIR_VARIABLE
from textebm.errors import DataError
from textebm.lm_eval import corpus as reading
from textebm.lm_eval.corpus import read_sentences

LINES = "".join(f"sentence number {index}\n" for index in range(400))


@pytest.fixture(autouse=True)
def _own_home(monkeypatch, tmp_path):
    monkeypatch.setenv("TEXTEBM_HOME", str(tmp_path / "home"))
    monkeypatch.delenv(DATA_DIR_VARIABLE, raising=False)


@pytest.fixture
def refused(command, tmp_path) -> Callable[..., str]:
    """Run a command that must end with this code; the message it ends with, which must be one line."""

    def run(*words: object, code: int = 2) -> str:
        done = command(*words)
        assert done.code == code, done.err
        assert "Traceback" not in done.err
        said = [line for line in done.err.splitlines() if line.startswith("textebm: ")]
        assert len(said) == 1
        assert done.err.endswith(f"{said[0]}\n")  # nothing comes after it, and it is not torn
        assert not (tmp_path / "run").exists()
        return said[0]

    return run


@pytest.fixture
def training(refused) -> Callable[[object], str]:
    """What training on this data says when it refuses."""
    return lambda data, *more: refused("train", "--data", data, "--run-dir", "run", *more)


BROKEN_TEXT = {
    "not UTF-8": (b"good\nbad \xe9\n", r"line 2: not UTF-8 \(byte 5\); convert the file with iconv"),
    "a NUL byte": (b"good\ngood\na\0b\n", r"line 3: a NUL byte"),
    "UTF-16": ("good\n".encode("utf-16"), r"not UTF-8 text but UTF-16 .*iconv -f UTF-16 -t UTF-8"),
    "UTF-16, the other way": (b"\xfe\xff\0g\0o", r"UTF-16 .*iconv"),
    "UTF-32": ("good\n".encode("utf-32"), r"UTF-32 .*iconv -f UTF-32"),
    "gzip without .gz": (gzip.compress(b"good\n"), r"gzip data; give the file a name that ends in \.gz"),
    "xz without .xz": (lzma.compress(b"good\n"), r"xz data; give the file a name that ends in \.xz"),
    "bzip2": (b"BZh91AY&SY\0\1", "bzip2 data; unpack it"),
    "Zstandard": (b"\x28\xb5\x2f\xfd\0", "Zstandard data; unpack it"),
    "PNG": (b"\x89PNG\r\n\x1a\n\0", "a PNG image"),
    "JPEG": (b"\xff\xd8\xff\xe0", "a JPEG image"),
    "PDF": (b"%PDF-1.7\n", "a PDF document"),
    "Parquet": (b"PAR1\x15\x04", "a Parquet file; .*--data hf:FILE"),
    "Arrow": (b"ARROW1\0\0", "an Arrow file; .*--data hf:FOLDER"),
    "a program": (b"\x7fELF\2", "a program"),
    "empty": (b"", "holds no sentence: it is empty or has blank lines only. Give a file with text"),
    "blank lines only": (b" \n\n\t\n", "holds no sentence: it is empty or has blank lines only"),
}


class TestText:
    @pytest.mark.parametrize("fault", BROKEN_TEXT)
    def test_bytes_that_are_no_text(self, fault, training, tmp_path):
        raw, said = BROKEN_TEXT[fault]
        (tmp_path / "mine.txt").write_bytes(raw)
        assert re.search(rf"^textebm: mine\.txt.*{said}", training("mine.txt"))

    def test_a_zip_and_a_tar_archive(self, training, tmp_path):
        import tarfile

        (tmp_path / "a.txt").write_text(LINES)
        with zipfile.ZipFile(tmp_path / "mine.zip", "w") as archive:
            archive.write(tmp_path / "a.txt", "a.txt")
        with tarfile.open(tmp_path / "mine.tar.gz", "w:gz") as archive:
            archive.add(tmp_path / "a.txt", "a.txt")
        for name in ("mine.zip", "mine.tar.gz"):
            said = training(name)
            assert f"{name} holds no picture" in said
            assert "text in an archive must be unpacked first" in said
        (tmp_path / "mine.zip").rename(tmp_path / "mine.txt")
        assert "mine.txt: not UTF-8 text but a zip archive; unpack it" in training("mine.txt")

    @pytest.mark.parametrize(("ending", "pack"), [(".gz", gzip.compress), (".xz", lzma.compress)])
    def test_a_damaged_archive(self, ending, pack, training, tmp_path):
        raw = pack("".join(f"{n} {n * n}\n" for n in range(9999)).encode())
        (tmp_path / f"cut.txt{ending}").write_bytes(raw[: len(raw) // 2])
        (tmp_path / f"other.txt{ending}").write_bytes(b"nothing of the kind\n")
        assert re.search(r"cut\.txt.*after line \d+: cannot be read .*copy it again", training(f"cut.txt{ending}"))
        assert re.search(r"other\.txt.*: cannot be read .*-t, and copy it again", training(f"other.txt{ending}"))

    @pytest.mark.parametrize(
        ("line", "said"),
        [
            ('{"text": "a"', "line 2: not JSON"),
            ('["a"]', 'line 2: must be an object with a field "text" that is a string, and is no object'),
            ('{"body": "a", "n": 1}', 'line 2: .* its fields: "body", "n". --text-field names another'),
            ('{"text": 3}', "line 2: .*; its field holds int"),
            ('{"text": "a\\u0000"}', "line 2: a NUL character"),
            ('{"text": "a\\ud800"}', "line 2: half of a surrogate pair"),
            ("[" * 100_000, "line 2: .*(nested too deeply|not JSON)"),
        ],
    )
    def test_json_lines(self, line, said, training, tmp_path):
        (tmp_path / "mine.jsonl").write_text(f'{{"text": "good"}}\n{line}\n')
        assert re.search(rf"^textebm: mine\.jsonl, {said}", training("mine.jsonl"))

    def test_a_fault_in_valid_names_it_before_training_begins(self, training, tmp_path):
        for split in ("train", "valid", "test"):
            (tmp_path / f"{split}.txt").write_bytes(LINES.encode() + (b"\xff\n" if split == "valid" else b""))
        assert re.search(r"valid\.txt.* \(valid\): .*line 401: not UTF-8", training(tmp_path))


class TestLongLines:
    def test_ten_megabytes_are_a_sentence_like_another(self, command, tmp_path):
        long = "word " * 2_000_000
        (tmp_path / "mine.txt").write_text(LINES + long)
        counted = command("data", "check", "mine.txt")
        assert counted.code == 0, counted.err
        assert "longest 2,000,000 words" in counted.out

    def test_and_are_left_out_by_the_longest_sentence_allowed(self, command, tiny_config, tmp_path):
        corpus = tmp_path / "corpus"
        corpus.mkdir()
        for split in ("train", "valid", "test"):
            (corpus / f"{split}.txt").write_text(LINES + ("word " * 2_000_000 if split == "train" else ""))
        words = ("--config", tiny_config, "--data", corpus, "--run-dir", "run", "--max-steps", 1, "--max-length", 10)
        done = command("train", *words)
        assert done.code == 0, done.err
        assert "400 sentences, 1,200 words, 0.00% <unk>, 1 dropped as too long" in done.err

    @pytest.mark.parametrize("ending", ["", ".gz", ".xz"])
    def test_a_file_without_line_breaks_does_not_fill_the_memory(self, ending, training, tmp_path, monkeypatch):
        monkeypatch.setattr(reading, "LONGEST_LINE", 1 << 20)
        path = tmp_path / f"mine.txt{ending}"
        opener = {"": open, ".gz": gzip.open, ".xz": lzma.open}[ending]
        with opener(path, "wb") as file:
            for _ in range(40):
                file.write(b"a word " * 150_000)  # 42 megabytes in all
        tracemalloc.start()
        try:
            with pytest.raises(DataError, match="longer than 1 MiB"):
                list(read_sentences(path))
            peak = tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()
        assert peak < 16 << 20
        assert f"mine.txt{ending}, line 1: longer than 1 MiB; one sentence a line is wanted" in training(path)

    def test_the_limit_is_64_mebibytes(self):
        assert reading.LONGEST_LINE == 64 * 2**20


class TestFiles:
    @pytest.mark.parametrize(
        ("data", "said"),
        [
            ("nowhere.txt", "'nowhere.txt' is neither a file, nor a folder, nor a named corpus"),
            ("pbt", "did you mean 'ptb'?"),
            ("ptb", "Where to get it: Mikolov"),
            ("snli", "no folder with a copy is named. Where to get it: Bowman"),
        ],
    )
    def test_missing(self, data, said, training):
        assert said in training(data)

    def test_a_path_too_long_for_the_system(self, training):
        assert "cannot be looked at (File name too long)" in training("a" * 5000)

    def test_a_link_that_leads_nowhere_and_one_that_leads_to_itself(self, training, tmp_path):
        (tmp_path / "dangling.txt").symlink_to("gone.txt")
        (tmp_path / "loop.txt").symlink_to("loop.txt")
        for name in ("dangling.txt", "loop.txt"):
            assert f"{name} is a symbolic link that leads nowhere" in training(name)

    def test_a_file_that_may_not_be_read(self, training, tmp_path, monkeypatch):
        path = tmp_path / "mine.txt"
        path.write_text(LINES)
        path.chmod(0)
        if os.access(path, os.R_OK):  # root may read anything: say no in the system's place
            plain = Path.open

            def refuse(self: Path, *rest: object, **more: object) -> object:
                if self.name == path.name:
                    raise PermissionError(13, "Permission denied", str(self))
                return plain(self, *rest, **more)

            monkeypatch.setattr(Path, "open", refuse)
        assert "mine.txt: may not be read (permission denied)" in training("mine.txt")

    @pytest.mark.skipif(not Path("/proc/self/mem").exists(), reason="no /proc")
    def test_a_file_whose_reading_fails(self, training):
        assert re.search(r"/proc/self/mem: cannot be read \(.*Input/output error", training("/proc/self/mem"))

    @pytest.mark.skipif(sys.platform == "win32", reason="file names are text there")
    def test_a_name_that_is_not_utf8(self, training, tmp_path):
        name = os.fsdecode(b"m\xffine.txt")
        (tmp_path / name).write_text(LINES)
        assert "the name holds bytes that are not UTF-8; rename it" in training(name)

    @pytest.mark.parametrize("name", ["my corpus.txt", "a line\nbreak.txt", "мой корпус.txt", "語料.txt", "-x.txt"])
    def test_names_of_every_kind_train(self, name, command, tiny_config, tmp_path):
        (tmp_path / name).write_text(LINES)
        done = command("train", "--config", tiny_config, f"--data={name}", "--max-steps", 1)
        assert done.code == 0, done.err
        (run,) = (tmp_path / "runs").iterdir()
        assert re.fullmatch(r"[\w-]+", run.name)
        assert load_config(str(run / "config.json")).data == name

    def test_a_message_is_not_torn_by_a_name(self, training, tmp_path):
        (tmp_path / "a line\nbreak.txt").write_bytes(b"\xff\n")
        assert r"'a line\nbreak.txt', line 1: not UTF-8" in training("a line\nbreak.txt")

    @pytest.mark.parametrize("ending", ["csv", "tsv", "json", "parquet", "arrow"])
    def test_a_table_given_as_text(self, ending, training, tmp_path):
        (tmp_path / f"mine.{ending}").write_text("text,n\na,1\n")
        assert f"--data hf:mine.{ending} reads a column of it" in training(f"mine.{ending}")


class TestFolders:
    def test_without_text(self, training, tmp_path):
        folder = tmp_path / "folder"
        folder.mkdir()
        assert "'folder' is empty: it holds neither text (names in .txt or .jsonl) nor pictures" in training("folder")
        (folder / "notes.md").write_text(LINES)
        assert "'folder' holds no text file: no name in it ends in .txt or .jsonl" in training("folder")
        (folder / "train.parquet").touch()
        assert "it holds train.parquet: --data hf:folder reads a data set" in training("folder")

    def test_with_half_of_the_splits(self, training, tmp_path):
        (tmp_path / "folder").mkdir()
        (tmp_path / "folder" / "train.txt").write_text(LINES)
        assert "'folder' has no valid file: expected valid.txt" in training("folder")

    def test_with_a_loop_of_links(self, command, tmp_path):
        (tmp_path / "folder").mkdir()
        (tmp_path / "folder" / "a.txt").write_text(LINES)
        (tmp_path / "folder" / "again").symlink_to(tmp_path / "folder", target_is_directory=True)
        (tmp_path / "loop").symlink_to("loop")
        assert command("data", "check", "folder").code == 0
        assert "leads nowhere" in command("data", "check", "loop").err

    def test_too_small_to_hold_out(self, training, tmp_path):
        (tmp_path / "mine.txt").write_text("one sentence\n" * 100)
        assert "too small to hold out of it: none of its sentences falls to valid" in training("mine.txt")

    @pytest.mark.parametrize("how", ["copy", "hard link", "symbolic link"])
    def test_the_same_text_as_two_splits_is_warned_of(self, how, command, tiny_config, tmp_path):
        corpus = tmp_path / "corpus"
        corpus.mkdir()
        for split in ("train", "test"):
            (corpus / f"{split}.txt").write_text(LINES + split)
        {
            "copy": lambda to: to.write_bytes((corpus / "train.txt").read_bytes()),
            "hard link": lambda to: to.hardlink_to(corpus / "train.txt"),
            "symbolic link": lambda to: to.symlink_to(corpus / "train.txt"),
        }[how](corpus / "valid.txt")
        for words in (
            ("train", "--config", tiny_config, "--data", corpus, "--max-steps", 1),
            ("data", "check", corpus),
        ):
            done = command(*words)
            assert done.code == 0, done.err
            assert done.err.count("warning: ") == 1
            assert re.search(r"warning: train and valid are the same text \(.*train\.txt, .*valid\.txt\)", done.err)


class TestModelsAndText:
    def test_a_run_a_model_and_its_weights_given_as_data(self, training, trained_run, trained_model):
        assert f"'{trained_run}' is a run or model folder, and --data wants text: --model" in training(trained_run)
        assert "is a run or model folder" in training(trained_model)
        assert "holds the weights of a model" in training(trained_model / "model.safetensors")

    def test_a_model_given_as_text_to_rewrite_or_to_score(self, refused, trained_run):
        assert "is a folder, where a text file is wanted" in refused("reconstruct", trained_run)
        assert "is a folder, where a text file is wanted" in refused("fppl", "--samples", trained_run)

    @pytest.mark.parametrize("name", ["generate", "fppl"])
    def test_text_given_as_a_model(self, name, refused, corpus_folder, trained_model):
        assert "--data" in refused(name, "--model", corpus_folder / "train.txt", code=1)
        assert re.search(
            r"is no model folder: it holds text, .*--data .* names it as a corpus",
            refused(name, "--model", corpus_folder, code=1),
        )
        weights = trained_model / "model.safetensors"
        assert f"it is the folder that is meant: {trained_model}" in refused(name, "--model", weights, code=1)


class TestStandardInput:
    def give(self, monkeypatch: pytest.MonkeyPatch, raw: bytes) -> None:
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(raw)))

    def test_a_run_on_it_can_be_resumed_without_it(self, command, tiny_config, monkeypatch, tmp_path):
        self.give(monkeypatch, LINES.encode())
        words = ("train", "--config", tiny_config, "--data", "-", "--run-dir", "run")
        done = command(*words, "--max-steps", 1)
        assert done.code == 0, done.err
        kept = Path(load_config(str(tmp_path / "run")).data)
        assert kept.parent == tmp_path / "home" / "data" / "stdin"
        assert kept.read_text() == LINES
        self.give(monkeypatch, b"")
        done = command("train", "--resume", "run", "--max-steps", 2)
        assert done.code == 0, done.err
        self.give(monkeypatch, LINES.encode())
        done = command(*words, "--resume", "auto", "--max-steps", 3)
        assert done.code == 0, done.err
        self.give(monkeypatch, LINES.encode() + b"more\n")
        done = command(*words, "--resume", "auto", "--max-steps", 4)
        assert done.code == 1
        assert "was trained with other settings" in done.err

    def test_the_run_is_named_after_its_content(self, command, tiny_config, monkeypatch, tmp_path):
        self.give(monkeypatch, LINES.encode())
        assert command("train", "--config", tiny_config, "--data", "-", "--max-steps", 1).code == 0
        (run,) = (tmp_path / "runs").iterdir()
        assert re.fullmatch(r"stdin-[0-9a-f]{12}-\d{8}-\d{6}", run.name)

    @pytest.mark.parametrize("name", ["-", "/dev/stdin"])
    def test_it_can_be_checked(self, name, command, monkeypatch):
        self.give(monkeypatch, LINES.encode() + b"\xff\n")
        done = command("data", "check", name)
        assert done.code == 1
        assert "line 401: not UTF-8" in done.out

    def test_empty(self, training, monkeypatch):
        self.give(monkeypatch, b"")
        assert "standard input, which is empty: did the command before it fail?" in training("-")

    def test_a_terminal(self, training, monkeypatch):
        class Terminal(io.BytesIO):
            def isatty(self) -> bool:
                return True

        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(Terminal()))
        assert "standard input, which is a terminal here: pipe something into the command" in training("-")

    @pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no pipes with names here")
    def test_a_pipe_with_a_name(self, command, tiny_config, tmp_path):
        """What a shell makes of `--data <(command)`: it can be read but once."""
        os.mkfifo(tmp_path / "pipe")
        writer = threading.Thread(target=lambda: (tmp_path / "pipe").write_text(LINES))
        writer.start()
        done = command("train", "--config", tiny_config, "--data", "pipe", "--run-dir", "run", "--max-steps", 1)
        writer.join()
        assert done.code == 0, done.err
        assert Path(load_config(str(tmp_path / "run")).data).read_text() == LINES


class TestDataSets:
    def test_one_trains(self, command, tiny_config, tmp_path):
        pytest.importorskip("datasets")
        (tmp_path / "mine").mkdir()
        (tmp_path / "mine" / "train.csv").write_text(
            "body,label\n" + "".join(f"{line},a\n" for line in LINES.splitlines())
        )
        words = ("train", "--config", tiny_config, "--data", "hf:./mine", "--text-field", "body", "--max-steps", 1)
        done = command(*words)
        assert done.code == 0, done.err
        (run,) = (tmp_path / "runs").iterdir()
        assert run.name.startswith("mine-")
        config = load_config(str(run / "config.json"))
        assert (config.data, config.text_field) == ("hf:./mine", "body")

    @pytest.mark.parametrize(
        ("data", "said"),
        [
            ("hf:./nowhere", "hf:./nowhere: no such file or folder"),
            ("hf:a b", "hf:a b is no data set: give hf:NAME"),
            ("hf:stanfordnlp/imdb", "the hub cannot be asked (HF_HUB_OFFLINE is set)"),
        ],
    )
    def test_one_that_is_not_there(self, data, said, training):
        pytest.importorskip("datasets")
        assert said in training(data)

    def test_without_the_library(self, training, tmp_path, monkeypatch):
        monkeypatch.setitem(sys.modules, "datasets", None)
        assert "pip install 'textebm[hub]'" in training(f"hf:{tmp_path}")
