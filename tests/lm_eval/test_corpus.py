"""Reading: every form of a file gives the same sentences, bad input says where it is, memory stays constant."""

import gzip
import json
import lzma
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import pytest

from textebm.errors import DataError
from textebm.lm_eval.corpus import Corpus, Vocabulary, read_sentences, sha256_of

SENTENCES = ["a cat", "", "naïve <unk> façade", "a cat"]


def write(folder: Path, name: str, content: bytes | str) -> Path:
    path = folder / name
    raw = content.encode() if isinstance(content, str) else content
    compress = {".gz": gzip.compress, ".xz": lzma.compress}.get(path.suffix)
    path.write_bytes(raw if compress is None else compress(raw))
    return path


PLAIN = "".join(f"{s}\n" for s in SENTENCES)
JSON = "".join(json.dumps({"text": s, "id": n}) + "\n" for n, s in enumerate(SENTENCES))


class TestReading:
    @pytest.mark.parametrize("name", ["a.txt", "a.txt.gz", "a.txt.xz", "a.jsonl", "a.jsonl.gz", "a.jsonl.xz", "a"])
    def test_every_form_gives_the_same_sentences_and_digest(self, tmp_path: Path, name: str) -> None:
        path = write(tmp_path, name, JSON if "jsonl" in name else PLAIN)
        assert list(read_sentences(path, keep_blank=True)) == SENTENCES
        assert list(read_sentences(str(path))) == [s for s in SENTENCES if s]
        assert sha256_of(path, keep_blank=True) == sha256_of(SENTENCES)
        assert sha256_of(path) == sha256_of([s for s in SENTENCES if s]) != sha256_of(SENTENCES)

    def test_digest_knows_where_sentences_end(self) -> None:
        assert sha256_of(["a b", "c"]) != sha256_of(["a", "b c"]) != sha256_of(["a b c"])

    @pytest.mark.parametrize(
        ("raw", "sentences"),
        [
            ("\ufeffa b\n", ["a b"]),
            ("a b\r\nc\r\n", ["a b", "c"]),
            ("  a \t b  \n \n", ["a b", ""]),
            ("a\u00a0b\u2028c\u3000d\x0ce\n", ["a b c d e"]),
            ("a\nb", ["a", "b"]),
            ("", []),
        ],
        ids=["byte order mark", "Windows", "blanks", "spaces of Unicode", "no last line break", "empty"],
    )
    def test_white_space(self, tmp_path: Path, raw: str, sentences: list[str]) -> None:
        assert list(read_sentences(write(tmp_path, "a.txt", raw), keep_blank=True)) == sentences

    def test_a_blank_line_is_no_record(self, tmp_path: Path) -> None:
        path = write(tmp_path, "a.jsonl", '{"text": "a"}\n\n{"text": ""}\n')
        assert list(read_sentences(path, keep_blank=True)) == ["a", ""]

    def test_memory_is_constant(self, tmp_path: Path) -> None:
        path = write(tmp_path, "a.txt.gz", "one two three four five six seven eight\n" * 50_000)  # 2 MB of text
        tracemalloc.start()
        try:
            n = sum(1 for _ in read_sentences(path))
            _, peak = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
        assert n == 50_000
        assert peak < 300_000


class TestBadInput:
    @pytest.mark.parametrize(
        ("name", "raw", "said"),
        [
            ("a.txt", b"good\nbad \xe9\n", "line 2: not UTF-8"),
            ("a.txt", "a b\n".encode("utf-16"), "UTF-16 .*iconv"),
            ("a.txt", b"good\ngood\na\0b\n", "line 3: a NUL"),
            ("a.txt.xz", b"good\n\xff\n", "line 2: not UTF-8"),
            ("a.jsonl", '{"text": "a"}\n{"text"\n', "line 2: not JSON"),
            ("a.jsonl", '["a"]\n', 'line 1: .*field "text"'),
            ("a.jsonl", '{"sentence": "a"}\n', 'line 1: .*field "text"'),
            ("a.jsonl", '{"text": 3}\n', 'line 1: .*field "text"'),
            ("a.jsonl", '{"text": "a\\u0000"}\n', "line 1: a NUL"),
            ("a.jsonl", '{"text": "a\\ud800"}\n', "line 1: half of a surrogate"),
        ],
    )
    def test_says_what_and_where(self, tmp_path: Path, name: str, raw: bytes | str, said: str) -> None:
        path = write(tmp_path, name, raw)
        with pytest.raises(DataError, match=said) as caught:
            list(read_sentences(path))
        assert str(path) in str(caught.value)

    @pytest.mark.parametrize("suffix", [".gz", ".xz"])
    @pytest.mark.parametrize("damage", [lambda raw: raw[: len(raw) // 2], lambda raw: b"nothing of the kind"])
    def test_damaged_archive(self, tmp_path: Path, suffix: str, damage: Callable[[bytes], bytes]) -> None:
        path = write(tmp_path, f"a.txt{suffix}", "".join(f"{n} {n * n}\n" for n in range(9999)))
        path.write_bytes(damage(path.read_bytes()))
        with pytest.raises(DataError, match="cannot be read"):
            list(read_sentences(path))

    def test_missing_file_and_folder(self, tmp_path: Path) -> None:
        with pytest.raises(DataError, match="no such file"):
            list(read_sentences(tmp_path / "none.txt"))
        with pytest.raises(DataError, match="is a folder, where a text file"):
            list(read_sentences(tmp_path))

    @pytest.mark.parametrize("sentence", ["a\0", "a\ud800"])
    def test_given_sentences_are_checked_too(self, sentence: str) -> None:
        with pytest.raises(DataError, match="mine, sentence 2"):
            Corpus(["a", sentence], "mine")

    @pytest.mark.parametrize(("given", "said"), [([], "no sentence"), (["", " "], "every sentence in it is empty")])
    def test_nothing_to_measure(self, tmp_path: Path, given: list[str], said: str) -> None:
        with pytest.raises(DataError, match=said):
            Corpus(given, keep_blank=True).require_words()
        path = write(tmp_path, "a.txt", "".join(f"{s}\n" for s in given))
        with pytest.raises(DataError, match=str(path)):
            Corpus(path, keep_blank=True).require_words()
        Corpus([*given, "word"]).require_words()


class TestCorpus:
    def test_can_be_read_again_even_from_a_generator(self, tmp_path: Path) -> None:
        path = write(tmp_path, "a.txt", PLAIN)
        for corpus in (Corpus(path, keep_blank=True), Corpus((s for s in SENTENCES), keep_blank=True)):
            assert list(corpus) == list(corpus) == SENTENCES
            assert corpus.sha256 == sha256_of(SENTENCES)
        assert Corpus(path).name == "a.txt"

    def test_a_function_gives_the_sentences_anew(self) -> None:
        given = 0

        def sentences() -> list[str]:
            nonlocal given
            given += 1
            return ["a  b", "", "_UNK"]

        corpus = Corpus(sentences, "mine", keep_blank=True, unknown="_UNK")
        assert given == 0  # nothing is kept, so nothing is read before it is asked for
        assert list(corpus) == list(corpus) == ["a b", "", "<unk>"]
        assert given == 2
        assert corpus.sha256 == sha256_of(["a b", "", "<unk>"]) == sha256_of(lambda: iter(["a b", "", "<unk>"]))
        with pytest.raises(DataError, match="mine, sentence 1"):
            list(Corpus(lambda: ["a\0"], "mine"))

    def test_blank_sentences_count_only_where_asked(self) -> None:
        assert list(Corpus(["a  b", " ", "c"])) == ["a b", "c"]
        assert list(Corpus(["a  b", " ", "c"], keep_blank=True)) == ["a b", "", "c"]

    def test_the_unknown_word_is_renamed_as_a_whole_word_only(self, tmp_path: Path) -> None:
        lines = ["a _UNK b", "_UNK", "a_UNK _UNK_ _unk"]
        expected = ["a <unk> b", "<unk>", "a_UNK _UNK_ _unk"]
        path = write(tmp_path, "a.txt", "\n".join(lines))
        assert list(Corpus(lines, unknown="_UNK")) == list(Corpus(path, unknown="_UNK")) == expected


class TestVocabulary:
    def test_holds_the_words_and_the_unknown_one(self) -> None:
        vocabulary = Vocabulary.from_sentences(["b a", "", "b c"])
        assert list(vocabulary) == ["<unk>", "a", "b", "c"]
        assert len(vocabulary) == 4
        assert "a" in vocabulary
        assert "d" not in vocabulary
        assert len(Vocabulary.from_sentences(["a <unk>"])) == 2

    def test_maps_and_counts_what_is_outside(self) -> None:
        vocabulary = Vocabulary(["a", "b"])
        assert vocabulary.map(["a", "x", "<unk>", "b", "x"]) == (["a", "<unk>", "<unk>", "b", "<unk>"], 2)
        assert vocabulary.map([]) == ([], 0)
