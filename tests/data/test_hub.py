"""Data sets through `datasets`: local ones of every form; the hub when it cannot be asked. No test uses the network."""

import contextlib
import hashlib
import json
import os
import re
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from textebm.data import hub
from textebm.data.hub import Reference
from textebm.data.registry import SPLITS, held_out_share, resolve, short_name
from textebm.errors import DataError

datasets = pytest.importorskip("datasets")

TEXTS = [f"sentence  number {index}" for index in range(400)]
READ = [" ".join(text.split()) for text in TEXTS]


@pytest.fixture(autouse=True)
def _own_cache(tmp_path, monkeypatch):
    """Whatever `datasets` builds of local files goes into the test's folder."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("TEXTEBM_OFFLINE", raising=False)


def table(texts: list[str | None] = TEXTS, column: str = "text") -> "datasets.Dataset":
    return datasets.Dataset.from_dict({column: texts, "label": list(range(len(texts)))})


def write_parquet(folder: Path, **splits: list[str]) -> Path:
    folder.mkdir()
    for split, texts in splits.items():
        table(texts).to_parquet(folder / f"{split}.parquet")
    return folder


def write_csv(folder: Path) -> Path:
    folder.mkdir()
    table().to_csv(folder / "train.csv", index=False)
    return folder


def write_jsonl(folder: Path) -> Path:
    folder.mkdir()
    table().to_json(folder / "train.jsonl")
    return folder


def write_text(folder: Path) -> Path:
    folder.mkdir()
    (folder / "train.txt").write_text("\n".join(TEXTS))
    return folder


def write_saved(folder: Path) -> Path:
    table().save_to_disk(folder)
    return folder


def write_saved_splits(folder: Path) -> Path:
    datasets.DatasetDict({"train": table()}).save_to_disk(folder)
    return folder


def images(folder: Path) -> Path:
    image = pytest.importorskip("PIL.Image")
    for split, count in {"train": 3, "test": 2}.items():
        for label in ("cat", "dog"):
            (folder / split / label).mkdir(parents=True)
            for index in range(count):
                image.new("RGB", (4, 4), (index, 0, 0)).save(folder / split / label / f"{index}.png")
    return folder


class TestLocal:
    @pytest.mark.parametrize(
        "write",
        [write_csv, write_jsonl, write_text, write_saved, write_saved_splits, lambda f: write_parquet(f, train=TEXTS)],
    )
    def test_every_form_gives_the_same_sentences_and_digest(self, tmp_path, write):
        corpus = resolve(f"hf:{write(tmp_path / 'mine')}")
        assert list(corpus.train.sentences()) == READ
        assert corpus.name == "mine"
        expected = hashlib.sha256(b"".join(len(t).to_bytes(8, "big") + t.encode() for t in TEXTS)).hexdigest()
        assert corpus.train.digest() == expected
        assert corpus.describe("train") == f"hf:{tmp_path / 'mine'}, column text, split train"

    @pytest.mark.parametrize("ending", ["parquet", "csv", "jsonl", "txt", "tsv"])
    def test_a_single_file(self, tmp_path, ending):
        path = tmp_path / f"mine.{ending}"
        if ending == "txt":
            path.write_text("\n".join(TEXTS))
        else:
            write = {"parquet": table().to_parquet, "jsonl": table().to_json}.get(ending)
            write(path) if write else table().to_csv(path, index=False, sep="\t" if ending == "tsv" else ",")
        corpus = resolve(f"hf:{path}")
        assert list(corpus.train.sentences()) == READ
        assert corpus.name == "mine"

    @pytest.mark.parametrize(
        "own", [("train",), ("train", "validation"), ("train", "test"), ("train", "validation", "test")]
    )
    def test_missing_splits_are_held_out_of_train(self, tmp_path, own):
        texts = {"train": READ, "validation": ["a valid text"], "test": ["a test text", "and another"]}
        corpus = resolve(f"hf:{write_parquet(tmp_path / 'mine', **{split: texts[split] for split in own})}")
        read = {split: list(corpus.sentences(split)) for split in SPLITS}
        assert read["valid"] == (texts["validation"] if "validation" in own else of_share("valid"))
        assert read["test"] == (texts["test"] if "test" in own else of_share("test"))
        held = {"valid", "test"} - {"valid" if split == "validation" else split for split in own}
        assert read["train"] == [text for text in READ if held_out_share(text) not in held]

    def test_several_lines_are_one_sentence_and_nothing_is_a_blank_one(self, tmp_path):
        datasets.Dataset.from_dict({"text": ["one\n two", None, " ", "three"]}).to_parquet(tmp_path / "a.parquet")
        corpus = resolve(f"hf:{tmp_path / 'a.parquet'}")
        assert list(corpus.train.sentences()) == ["one two", "", "", "three"]

    def test_one_split_of_another_name_is_train(self, tmp_path):
        datasets.DatasetDict({"unsupervised": table()}).save_to_disk(tmp_path / "mine")
        assert len(list(resolve(f"hf:{tmp_path / 'mine'}").train.sentences())) == len(TEXTS)

    def test_several_splits_without_train(self, tmp_path):
        datasets.DatasetDict({"a": table(), "b": table()}).save_to_disk(tmp_path / "mine")
        with pytest.raises(DataError, match="no split named train; its splits: a, b"):
            resolve(f"hf:{tmp_path / 'mine'}")

    def test_a_nul_character_names_column_and_row(self, tmp_path):
        table(["fine", "not\0fine"]).save_to_disk(tmp_path / "mine")
        with pytest.raises(DataError, match=r"column text, split train, row 2: a NUL"):
            list(resolve(f"hf:{tmp_path / 'mine'}").train.sentences())


def of_share(split: str) -> list[str]:
    return [text for text in READ if held_out_share(text) == split]


class TestColumns:
    def save(self, folder: Path, **columns: list[object]) -> str:
        datasets.Dataset.from_dict(columns).save_to_disk(folder)
        return f"hf:{folder}"

    def test_text_wins_then_the_only_one_of_strings(self, tmp_path):
        data = self.save(tmp_path / "a", text=["t"], title=["h"])
        assert list(resolve(data).train.sentences()) == ["t"]
        assert list(resolve(data, text_field="title").train.sentences()) == ["h"]
        assert list(resolve(self.save(tmp_path / "b", body=["b"], n=[1])).train.sentences()) == ["b"]

    def test_digest_is_of_the_column(self, tmp_path):
        data = self.save(tmp_path / "a", text=["t"], title=["h"])
        other = self.save(tmp_path / "b", text=["h"], n=[1])
        digests = [resolve(data).digest("train"), resolve(data, text_field="title").digest("train")]
        assert digests[0] != digests[1] == resolve(other).digest("train")

    @pytest.mark.parametrize(
        ("columns", "field", "said"),
        [
            ({"a": ["x"], "b": ["y"]}, None, r"several columns of strings.*--text-field.*a \(string\), b \(string\)"),
            ({"n": [1]}, None, r"no column of strings, and text is wanted; its columns: n \(int64\)"),
            ({"a": ["x"], "n": [1]}, "body", r"no column of strings named 'body'; its columns: a \(string\), n"),
            ({"a": ["x"], "n": [1]}, "n", r"no column of strings named 'n'"),
        ],
    )
    def test_otherwise_the_columns_are_named(self, tmp_path, columns, field, said):
        with pytest.raises(DataError, match=said):
            resolve(self.save(tmp_path / "a", **columns), text_field=field)

    def test_images_are_told_from_text(self, tmp_path):
        folder = images(tmp_path / "pets")
        found = hub.load(Reference.parse(f"hf:{folder}"))
        assert found.kind == "image"
        assert found.columns == {"image": "image", "label": "classlabel"}
        assert {split: len(rows) for split, rows in found.splits.items()} == {"train": 6, "test": 4}
        with pytest.raises(DataError, match=r"is an image data set, and text is wanted; its columns: image \(image\)"):
            resolve(f"hf:{folder}")


class TestReference:
    @pytest.mark.parametrize(
        ("text", "parts", "short"),
        [
            ("hf:imdb", ("imdb", None, None), "imdb"),
            ("hf:stanfordnlp/imdb", ("stanfordnlp/imdb", None, None), "imdb"),
            ("hf:Salesforce/wikitext:wikitext-2-raw-v1", ("Salesforce/wikitext", None, "wikitext-2-raw-v1"), None),
            ("hf:a/b@refs/convert/parquet", ("a/b", "refs/convert/parquet", None), "b"),
            ("hf:a/b.c@v1.0:x_y", ("a/b.c", "v1.0", "x_y"), "b-c-x_y"),
        ],
    )
    def test_forms(self, text, parts, short):
        reference = Reference.parse(text)
        assert (reference.name, reference.revision, reference.config) == parts
        assert str(reference) == text
        assert short_name(text) == (short or "wikitext-wikitext-2-raw-v1")

    @pytest.mark.parametrize("text", ["hf:", "hf:a/b/c", "hf:a b", "hf:a/b:", "hf:@x"])
    def test_other_forms_are_refused(self, text):
        with pytest.raises(DataError, match=r"is no data set: give hf:NAME"):
            resolve(text)

    @pytest.mark.parametrize("text", ["hf:./nowhere", "hf:/no/such", "hf:../nowhere.csv"])
    def test_a_path_that_leads_nowhere_is_never_looked_for_on_the_hub(self, text):
        with pytest.raises(DataError, match="no such file or folder"):
            resolve(text)

    def test_a_local_folder_wins_over_the_hub(self, tmp_path, monkeypatch):
        write_parquet(tmp_path / "imdb", train=["local"])
        monkeypatch.chdir(tmp_path)
        assert list(resolve("hf:imdb").train.sentences()) == ["local"]


class TestBroken:
    @pytest.mark.parametrize(
        ("name", "raw", "said"),
        [
            ("train.parquet", b"PAR1\x15 nothing more", "cannot be loaded"),
            ("train.jsonl", b'{"text": "a"}\n{"text"\n', "cannot be loaded"),
            ("train.csv", b"text\n\xff\xfe\xfa\n", "cannot be loaded"),
            ("notes.md", b"nothing to load", "cannot be loaded"),
        ],
    )
    def test_files(self, tmp_path, name, raw, said):
        folder = tmp_path / "mine"
        folder.mkdir()
        (folder / name).write_bytes(raw)
        with pytest.raises(DataError, match=rf"hf:{folder}.*{said}") as caught:
            resolve(f"hf:{folder}")
        assert "\n" not in str(caught.value)

    def test_an_ending_without_a_reader(self, tmp_path):
        (tmp_path / "a.xlsx").touch()
        with pytest.raises(DataError, match=r"ends in none of \.parquet, "):
            resolve(f"hf:{tmp_path / 'a.xlsx'}")

    def test_an_unknown_configuration_names_the_known(self, tmp_path, monkeypatch):
        write_parquet(tmp_path / "mine", train=["a"])
        reference = Reference("mine", config="nonsuch")  # the name of a folder, as a name on the hub would be
        monkeypatch.chdir(tmp_path)
        with pytest.raises(DataError, match=r"'nonsuch' not found. Available: \['default'\].*hf:mine:CONFIG"):
            hub.load(reference)


LOAD = """
import sys, time
from textebm.data import hub
import datasets
start = time.perf_counter()
try:
    found = hub.load(hub.Reference.parse(sys.argv[1]))
    print(*hub.Column(found.name, "text", "train", found.splits["train"]).sentences())
except hub.DataError as error:
    print(error)
print(time.perf_counter() - start)
"""


def ask_the_hub(tmp_path: Path, name: str = "hf:someone/tiny", **environment: str) -> tuple[str, float]:
    """What comes of asking for a data set with this environment, and after how many seconds."""
    kept = {k: v for k, v in os.environ.items() if k not in ("HF_HUB_OFFLINE", "TEXTEBM_OFFLINE", "HF_ENDPOINT")}
    kept |= {"HF_HOME": str(tmp_path / "hf"), "NO_PROXY": "127.0.0.1"}
    command = [sys.executable, "-c", LOAD, name]
    done = subprocess.run(command, env=kept | environment, capture_output=True, text=True, check=True)
    assert done.stderr == ""
    said, seconds = done.stdout.strip().rsplit("\n", 1)
    return said, float(seconds)


class StandIn(BaseHTTPRequestHandler):
    """As much of a hub as the libraries ask of one that holds a single data set, someone/tiny, of one file."""

    content = b'{"text": "one two"}\n{"text": "three"}\n'
    commit = "a" * 40
    etag = hashlib.sha1(content).hexdigest()

    def do_GET(self) -> None:
        path = self.path.split("?")[0]
        if re.fullmatch(r"/api/datasets/someone/tiny(/revision/\w+)?", path):
            about = {"id": "someone/tiny", "sha": self.commit, "private": False, "gated": False, "tags": []}
            self.answer(200, json.dumps({**about, "siblings": [{"rfilename": "train.jsonl"}]}).encode())
        elif path.startswith("/api/datasets/someone/tiny/tree/"):
            file = {"type": "file", "path": "train.jsonl", "size": len(self.content), "oid": self.etag}
            self.answer(200, json.dumps([file]).encode())
        elif path.startswith("/datasets/someone/tiny/") and path.endswith("/train.jsonl"):
            self.answer(200, self.content, ETag=f'"{self.etag}"')
        elif path == "/":
            self.answer(200, b"{}")
        else:
            there = path.startswith(("/datasets/someone/tiny/", "/api/datasets/someone/tiny/"))
            self.answer(404, b"", **{"X-Error-Code": "EntryNotFound" if there else "RepoNotFound"})

    def do_HEAD(self) -> None:
        self.do_GET()

    def answer(self, code: int, body: bytes, **headers: str) -> None:
        self.send_response(code)
        for name, value in {"X-Repo-Commit": self.commit, "Content-Length": str(len(body)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def log_message(self, *ignored: object) -> None:
        pass


@contextlib.contextmanager
def a_hub() -> Iterator[str]:
    """The address of a hub on this machine."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), StandIn)
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        server.server_close()


class TestOnTheHub:
    def test_what_was_loaded_once_serves_without_network(self, tmp_path):
        with a_hub() as endpoint:
            assert ask_the_hub(tmp_path, HF_ENDPOINT=endpoint)[0] == "one two three"
        for without in ({"HF_HUB_OFFLINE": "1"}, {"TEXTEBM_OFFLINE": "1"}, {"HF_ENDPOINT": endpoint}):
            said, seconds = ask_the_hub(tmp_path, **without)
            assert said == "one two three"
            assert seconds < 4

    def test_a_name_that_is_not_there(self, tmp_path):
        with a_hub() as endpoint:
            said, _ = ask_the_hub(tmp_path, "hf:someone/else", HF_ENDPOINT=endpoint)
        assert re.search(
            r"^hf:someone/else: .*someone/else.* (doesn't|does not) exist.*Check the name; a private", said
        )


class TestWithoutNetwork:
    @pytest.mark.parametrize("variable", ["HF_HUB_OFFLINE", "TEXTEBM_OFFLINE"])
    def test_offline_fails_at_once(self, tmp_path, variable):
        message, seconds = ask_the_hub(tmp_path, **{variable: "1"})
        assert f"not in the cache ({tmp_path / 'hf'}), and the hub cannot be asked ({variable} is set)" in message
        assert "--data hf:./FOLDER" in message
        assert seconds < 2

    def test_a_refused_connection_fails_at_once(self, tmp_path):
        with socket.socket() as closed:  # bound, and nobody listens
            closed.bind(("127.0.0.1", 0))
            endpoint = f"http://127.0.0.1:{closed.getsockname()[1]}"
            message, seconds = ask_the_hub(tmp_path, HF_ENDPOINT=endpoint)
        assert f"the hub cannot be asked ({endpoint} does not answer: " in message
        assert seconds < 4

    def test_a_hub_that_never_answers_fails_within_seconds(self, tmp_path):
        with socket.socket() as silent:
            silent.bind(("127.0.0.1", 0))
            silent.listen()
            endpoint = f"http://127.0.0.1:{silent.getsockname()[1]}"
            message, seconds = ask_the_hub(tmp_path, HF_ENDPOINT=endpoint)
        assert f"{endpoint} does not answer: " in message
        assert hub.CONNECT_SECONDS - 1 < seconds < hub.CONNECT_SECONDS + 5

    def test_settings_of_the_libraries_are_left_as_they_were(self, tmp_path, monkeypatch):
        import huggingface_hub

        def state() -> list[object]:
            return [
                datasets.config.HF_HUB_OFFLINE,
                huggingface_hub.constants.HF_HUB_OFFLINE,
                datasets.logging.get_verbosity(),
                datasets.are_progress_bars_disabled(),
            ]

        monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
        before = state()
        start = time.perf_counter()
        monkeypatch.setenv("TEXTEBM_OFFLINE", "1")
        with pytest.raises(DataError, match="cannot be asked"):
            resolve("hf:stanfordnlp/imdb")
        assert state() == before
        assert time.perf_counter() - start < 2


def test_without_the_library_the_extra_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(DataError, match=r"needs the library datasets: pip install 'textebm\[hub\]'"):
        resolve(f"hf:{tmp_path}")
