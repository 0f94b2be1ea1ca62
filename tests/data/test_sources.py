"""Sources: what is read, in which order, and a digest that knows the content and nothing else."""

import gzip
import hashlib
import io
import json
import lzma
import tracemalloc
from pathlib import Path

import pytest

from textebm.data.registry import SPLITS, Corpus, held_out_share, resolve, settled, short_name
from textebm.data.sources import TextFiles, spool
from textebm.errors import DataError


@pytest.fixture(autouse=True)
def _own_home(monkeypatch, tmp_path):
    monkeypatch.setenv("TEXTEBM_HOME", str(tmp_path / "home"))


def write(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pack = {".gz": gzip.compress, ".xz": lzma.compress}.get(path.suffix, bytes)
    path.write_bytes(pack(text.encode()))
    return path


def sentences(count: int, what: str = "sentence") -> str:
    return "".join(f"{what} number {index}\n" for index in range(count))


class TestTextFiles:
    def test_files_are_read_in_their_order_with_blank_lines(self, tmp_path):
        plain = write(tmp_path / "b.txt", "one\n\n two  three ")
        packed = write(tmp_path / "a.jsonl.gz", '{"body": "four"}\n{"body": ""}\n')
        assert list(TextFiles((plain, packed), "body").sentences()) == ["one", "", "two three", "four", ""]

    def test_digest_of_one_file_is_that_of_sha256sum(self, tmp_path):
        path = write(tmp_path / "a.txt", sentences(9))
        assert TextFiles((path,)).digest() == hashlib.sha256(path.read_bytes()).hexdigest()

    def test_digest_knows_the_content_and_not_the_place(self, tmp_path):
        here, there = write(tmp_path / "here" / "a.txt", "one\n"), write(tmp_path / "there" / "b.txt", "one\n")
        other = write(tmp_path / "other.txt", "one \n")
        assert TextFiles((here,)).digest() == TextFiles((there,)).digest() != TextFiles((other,)).digest()
        assert TextFiles((here, other)).digest() == TextFiles((there, other)).digest()

    def test_digest_knows_order_borders_and_field(self, tmp_path):
        one, two, both = (write(tmp_path / f"{i}.txt", text) for i, text in enumerate(("one\n", "two\n", "one\ntwo\n")))
        record = write(tmp_path / "a.jsonl", '{"a": "x", "b": "y"}\n')
        as_text = write(tmp_path / "a.txt", record.read_text())
        digests = [
            TextFiles((one, two)).digest(),
            TextFiles((two, one)).digest(),
            TextFiles((both,)).digest(),
            TextFiles((record,), "a").digest(),
            TextFiles((record,), "b").digest(),
            TextFiles((as_text,)).digest(),
        ]
        assert len(set(digests)) == len(digests)
        assert TextFiles((one,), "a").digest() == TextFiles((one,), "b").digest()  # plain text has no fields

    def test_digest_and_reading_take_constant_memory(self, tmp_path):
        source = TextFiles((write(tmp_path / "a.txt", sentences(200_000)), write(tmp_path / "b.txt", sentences(9))))
        tracemalloc.start()
        try:
            source.digest()
            count = sum(1 for _ in source.sentences())
            peak = tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()
        assert count == 200_009
        assert peak < 1_000_000  # the file has 4.6 million bytes

    def test_describes_itself(self, tmp_path):
        paths = tuple(tmp_path / name for name in ("a.txt", "b\nc.txt", "d.txt"))
        assert TextFiles(paths[:1]).describe() == str(paths[0])
        assert TextFiles(paths).describe() == f"{paths[0]} to {paths[2]} (3 files)"
        assert "\n" not in TextFiles(paths[1:2]).describe()


class TestHeldOut:
    """What a split lacks is held out of train, and only that."""

    @pytest.mark.parametrize("own", [(), ("valid",), ("test",), ("valid", "test")])
    def test_every_sentence_stands_in_one_split(self, tmp_path, own):
        train = write(tmp_path / "all.txt", sentences(2000))
        others = {split: TextFiles((write(tmp_path / f"{split}.txt", sentences(5, split)),)) for split in own}
        corpus = Corpus("c", TextFiles((train,)), others.get("valid"), others.get("test"))
        assert set(corpus.held_out) == {"valid", "test"} - set(own)
        read = {split: list(corpus.sentences(split)) for split in SPLITS}
        for split in own:
            assert read[split] == sentences(5, split).splitlines()
        from_train = [s for split in SPLITS if split not in own for s in read[split]]
        assert sorted(from_train) == sorted(sentences(2000).splitlines())
        for split in corpus.held_out:
            assert read[split] == [s for s in sentences(2000).splitlines() if held_out_share(s) == split]

    def test_digest_knows_the_split_the_unknown_word_and_what_is_held_out(self, tmp_path):
        one, two = (TextFiles((write(tmp_path / name, name),)) for name in ("one.txt", "two.txt"))
        whole, held = Corpus("a", one, two, two), Corpus("b", one, None, None)
        digests = [
            whole.digest("train"),
            whole.digest("valid"),
            held.digest("train"),
            held.digest("valid"),
            held.digest("test"),
            Corpus("c", one, two, None).digest("train"),
            Corpus("d", one, two, two, unknown="UNK").digest("train"),
        ]
        assert len(set(digests)) == len(digests)
        assert whole.digest("valid") == whole.digest("test")
        assert Corpus("e", one, two, two, unknown="<unk>").digest("train") == whole.digest("train")


class TestFolderOfTextFiles:
    def test_every_text_file_in_the_order_of_paths(self, tmp_path):
        folder = tmp_path / "books"
        for name in ("b.txt", "a/z.txt.xz", "a/sub folder/deep.jsonl.gz", "Ж.txt", "a line\nbreak.txt"):
            write(folder / name, '{"text": "x"}\n' if ".jsonl" in name else f"{name}\n")
        for name in ("notes.md", ".hidden.txt", ".git/x.txt", "table.csv", "txt", "a.txt.bak"):
            write(folder / name, "not this\n")
        corpus = resolve(str(folder))
        names = [path.relative_to(folder).as_posix() for path in corpus.train.paths]
        assert names == ["a line\nbreak.txt", "a/sub folder/deep.jsonl.gz", "a/z.txt.xz", "b.txt", "Ж.txt"]
        assert corpus.name == "books"
        assert corpus.held_out == ("valid", "test")

    def test_valid_and_test_are_held_out_over_all_files(self, tmp_path):
        for index in range(3):
            write(tmp_path / "c" / f"{index}.txt", sentences(200, f"file {index}"))
        corpus = resolve(str(tmp_path / "c"))
        read = {split: list(corpus.sentences(split)) for split in SPLITS}
        assert all(read.values())
        assert sorted(s for part in read.values() for s in part) == sorted(corpus.train.sentences())

    def test_loops_of_links_end(self, tmp_path):
        folder = tmp_path / "c"
        write(folder / "a.txt", "one\n")
        (folder / "again").symlink_to(folder, target_is_directory=True)
        (folder / "itself.txt").symlink_to(folder / "itself.txt")
        (folder / "linked.txt").symlink_to(folder / "a.txt")
        assert [path.name for path in resolve(str(folder)).train.paths] == ["a.txt", "linked.txt"]


class TestPipes:
    def test_the_same_content_is_kept_once(self, tmp_path):
        raw = sentences(100_000).encode()  # more than is read at once
        kept = spool(io.BytesIO(raw))
        assert kept == tmp_path / "home" / "data" / "stdin" / f"{hashlib.sha256(raw).hexdigest()}.txt"
        assert kept.read_bytes() == raw
        assert spool(io.BytesIO(raw)) == kept
        assert [path.name for path in kept.parent.iterdir()] == [kept.name]

    def test_json_lines_where_a_field_is_named(self):
        kept = spool(io.BytesIO(b'{"body": "one two"}\n'), "body")
        assert list(resolve(str(kept), text_field="body").train.sentences()) == ["one two"]

    def test_empty_and_interrupted_leave_nothing(self, tmp_path):
        class Broken(io.BytesIO):
            def read(self, size: int | None = -1) -> bytes:
                raise KeyboardInterrupt

        with pytest.raises(DataError, match="empty"):
            spool(io.BytesIO(b""))
        with pytest.raises(KeyboardInterrupt):
            spool(Broken())
        assert list((tmp_path / "home" / "data" / "stdin").iterdir()) == []

    def test_a_terminal_is_refused_at_once(self):
        class Terminal(io.BytesIO):
            def isatty(self) -> bool:
                return True

        with pytest.raises(DataError, match="a terminal here: pipe something"):
            spool(Terminal(b"x"))

    def test_memory_is_constant(self, tmp_path):
        big = tmp_path / "big"
        big.write_bytes(b"a sentence of five words\n" * 1_000_000)
        tracemalloc.start()
        try:
            with big.open("rb") as stream:
                spool(stream)
            peak = tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()
        assert peak < 4_000_000  # of 25 million bytes

    def test_what_is_not_kept_any_more(self):
        kept = spool(io.BytesIO(b"one\n"))
        kept.unlink()
        with pytest.raises(DataError, match=r"not kept any more; pipe it in again, with --data -"):
            resolve(str(kept))

    def test_settled_leaves_other_names_alone(self):
        assert [settled(name) for name in ("ptb", "a.txt", "/no/such", "hf:x")] == ["ptb", "a.txt", "/no/such", "hf:x"]


@pytest.mark.parametrize(
    ("data", "name"),
    [
        ("ptb", "ptb"),
        ("my/folder/books.txt.gz", "books"),
        ("a file\nwith breaks.txt", "a-file-with-breaks"),
        ("корпус.jsonl", "корпус"),
        ("..", "data"),
        ("v1.2.txt", "v1"),
        ("hf:stanfordnlp/imdb", "imdb"),
    ],
)
def test_names_of_runs(data, name):
    assert short_name(data) == name


def test_names_of_runs_on_what_came_through_a_pipe():
    kept = spool(io.BytesIO(b"one\n"))
    assert short_name(str(kept)) == resolve(str(kept)).name == f"stdin-{kept.name[:12]}"


def test_json_field_that_is_missing_names_those_that_are_there(tmp_path):
    path = write(tmp_path / "a.jsonl", json.dumps({"title": "t", "body": "b"}) + "\n")
    with pytest.raises(DataError, match=r'line 1: .*field "text".*its fields: "title", "body"\. --text-field names'):
        list(resolve(str(path)).sentences("train"))
    assert list(resolve(str(path), text_field="body").train.sentences()) == ["b"]
