"""Reading text files, and the vocabulary that both sides of a comparison share."""

import gzip
import hashlib
import lzma
import os
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import IO

from textebm import plain_json
from textebm.errors import DataError
from textebm.lm_eval.xz import open_xz

UNKNOWN = "<unk>"
"""What stands for every word outside the vocabulary."""

BYTE_ORDER_MARK = b"\xef\xbb\xbf"
LONGEST_LINE = 64 << 20
"""Bytes of the longest line that is read: a longer one is a file without line breaks, not a sentence."""
ARCHIVE_TESTS = {".gz": "gzip -t", ".xz": "xz -t"}
TAR_MARK_AT = 257
NO_TEXT: dict[bytes, tuple[str, str]] = {
    b"\xff\xfe\0\0": ("UTF-32 (its byte order mark says so)", "convert it with iconv -f UTF-32 -t UTF-8"),
    b"\0\0\xfe\xff": ("UTF-32 (its byte order mark says so)", "convert it with iconv -f UTF-32 -t UTF-8"),
    b"\xff\xfe": ("UTF-16 (its byte order mark says so)", "convert it with iconv -f UTF-16 -t UTF-8"),
    b"\xfe\xff": ("UTF-16 (its byte order mark says so)", "convert it with iconv -f UTF-16 -t UTF-8"),
    b"\x1f\x8b": ("gzip data", "give the file a name that ends in .gz"),
    b"\xfd7zXZ\0": ("xz data", "give the file a name that ends in .xz"),
    b"BZh91AY&SY": ("bzip2 data", "unpack it with bunzip2"),
    b"\x28\xb5\x2f\xfd": ("Zstandard data", "unpack it with zstd -d"),
    b"PK\x03\x04": ("a zip archive", "unpack it"),
    b"PAR1\x15": ("a Parquet file", "a data set of such files is read with --data hf:FILE"),
    b"ARROW1\0\0": ("an Arrow file", "a data set of such files is read with --data hf:FOLDER"),
    b"\x89PNG": ("a PNG image", "give a text file"),
    b"\xff\xd8\xff": ("a JPEG image", "give a text file"),
    b"%PDF-": ("a PDF document", "extract its text, one sentence a line"),
    b"\x7fELF": ("a program", "give a text file"),
}
"""How files that are no text begin, what they are, and what to do about it. The longer beginnings stand first."""

Sentences = str | os.PathLike[str] | Iterable[str] | Callable[[], Iterable[str]]
"""A file to read (plain, .gz, .xz, .jsonl), the sentences themselves, or what gives them anew at each call."""


def read_sentences(
    path: str | os.PathLike[str], *, keep_blank: bool = False, text_field: str = "text"
) -> Iterator[str]:
    """The sentences of a file, one a line, in constant memory; words are separated by single spaces.

    Args:
        path: plain text, or JSON lines (`.jsonl`); either may end in `.gz` or `.xz`.
        keep_blank: give a blank line as an empty sentence (generated text may hold such), instead of skipping it.
        text_field: the field of a JSON line that holds the text.

    Raises:
        DataError: the file is missing, damaged or no text at all, a line is not UTF-8, holds a NUL byte, is longer than
            64 MiB, or is no such JSON object.
    """
    path = Path(path)
    as_json = holds_json_lines(path)
    for number, line in _lines(path):
        if as_json and not line.strip():
            continue  # nobody's sentence: in JSON lines an empty one is {"text": ""}
        sentence = " ".join((_json_text(line, path, number, text_field) if as_json else line).split())
        if sentence or keep_blank:
            yield sentence


def holds_json_lines(path: Path) -> bool:
    """Whether a file's name says that it holds JSON lines."""
    return path.name.removesuffix(".gz").removesuffix(".xz").endswith(".jsonl")


def shown(path: str | os.PathLike[str]) -> str:
    """A path for a message: as it is, or quoted and escaped where a line break or the like would tear the message."""
    name = str(path)
    return name if name.isprintable() else repr(name)


@contextmanager
def readable(path: Path) -> Iterator[None]:
    """Say in a DataError why a file cannot be opened."""
    try:
        yield
    except FileNotFoundError:
        raise DataError(f"{shown(path)}: no such file") from None
    except IsADirectoryError:
        raise DataError(f"{shown(path)}: is a folder, where a text file is wanted") from None
    except PermissionError:
        raise DataError(f"{shown(path)}: may not be read (permission denied); chmod u+r would allow it") from None


def open_unpacked(path: Path) -> IO[bytes]:
    """A file's bytes, unpacked where its name ends in `.gz` or `.xz`."""
    if path.suffix == ".gz":
        return gzip.open(path, "rb")  # type: ignore[return-value]
    return open_xz(path) if path.suffix == ".xz" else path.open("rb")


def _lines(path: Path) -> Iterator[tuple[int, str]]:
    """Line numbers, from 1, and lines."""
    number = 0
    try:
        with readable(path), open_unpacked(path) as file:
            # A bound on what is read at once: a file without line breaks must not fill the memory.
            for number, raw in enumerate(iter(partial(file.readline, LONGEST_LINE + 1), b""), start=1):
                line = _first_line(raw, path) if number == 1 else raw
                yield number, _decode(line, path, number)
    except (OSError, EOFError, lzma.LZMAError, zlib.error) as error:
        where = f"{shown(path)}, after line {number}" if number else shown(path)
        tested = ARCHIVE_TESTS.get(path.suffix)
        hint = f"; the file is damaged or cut short: test it with {tested}, and copy it again" if tested else ""
        raise DataError(f"{where}: cannot be read ({error}){hint}") from error


def _first_line(raw: bytes, path: Path) -> bytes:
    """The first line without a byte order mark; refused where it begins as no text does."""
    for beginning, (what, advice) in NO_TEXT.items():
        if raw.startswith(beginning):
            raise DataError(f"{shown(path)}: not UTF-8 text but {what}; {advice}")
    if raw[TAR_MARK_AT:].startswith(b"ustar"):
        raise DataError(f"{shown(path)}: not UTF-8 text but a tar archive; unpack it with tar")
    return raw.removeprefix(BYTE_ORDER_MARK)


def _decode(line: bytes, path: Path, number: int) -> str:
    if len(line) > LONGEST_LINE:
        raise DataError(
            f"{shown(path)}, line {number}: longer than {LONGEST_LINE >> 20} MiB; one sentence a line is wanted, and "
            "this file has no line breaks where they belong"
        )
    if b"\0" in line:
        raise DataError(f"{shown(path)}, line {number}: a NUL byte; this is not a text file in UTF-8")
    try:
        return line.decode()
    except UnicodeDecodeError as error:
        raise DataError(
            f"{shown(path)}, line {number}: not UTF-8 (byte {error.start + 1}); convert the file with "
            "iconv -f ENCODING -t UTF-8"
        ) from None


def _json_text(line: str, path: Path, number: int, field: str) -> str:
    where = f"{shown(path)}, line {number}"
    try:
        record = plain_json.parse(line)
    except ValueError as error:
        raise DataError(f"{where}: not JSON ({getattr(error, 'msg', error)})") from None
    text = record.get(field) if isinstance(record, dict) else None
    if isinstance(text, str):
        return check_text(text, where)
    wanted = f'{where}: must be an object with a field "{field}" that is a string'
    if not isinstance(record, dict):
        raise DataError(f"{wanted}, and is no object")
    if field in record:
        raise DataError(f"{wanted}; its field holds {type(text).__name__}")
    there = ", ".join(f'"{name}"' for name in list(record)[:20]) or "none"
    raise DataError(f"{wanted}; its fields: {there}. --text-field names another")


def check_text(text: str, where: str) -> str:
    """The text itself, if a file can hold it.

    Raises:
        DataError: it holds a NUL character, or half of a surrogate pair (JSON escapes and Python strings can).
    """
    if "\0" in text:
        raise DataError(f"{where}: a NUL character, which no text file holds")
    if not text.isascii():
        try:
            text.encode()
        except UnicodeEncodeError:
            raise DataError(f"{where}: half of a surrogate pair, which UTF-8 cannot hold") from None
    return text


def sha256_of(source: Sentences, *, keep_blank: bool = False) -> str:
    """SHA-256 of the sentences as they are read: a file and its compressed copy agree."""
    digest = hashlib.sha256()
    if isinstance(source, str | os.PathLike):
        sentences: Iterable[str] = read_sentences(source, keep_blank=keep_blank)
    else:
        sentences = source() if callable(source) else source
    for sentence in sentences:
        digest.update(sentence.encode() + b"\n")
    return digest.hexdigest()


class Corpus:
    """Sentences that can be gone through several times, from a file (in constant memory) or given.

    Args:
        source: a file; the sentences themselves, which are normalised as a file's are; or a function that gives them
            anew each time, in constant memory too.
        name: what messages and signatures call it; the file's name by default.
        keep_blank: whether an empty sentence counts.
        unknown: how this text spells the unknown word; it becomes `<unk>`.
    """

    def __init__(
        self, source: Sentences, name: str | None = None, *, keep_blank: bool = False, unknown: str = UNKNOWN
    ) -> None:
        self.keep_blank = keep_blank
        self.unknown = unknown
        self._sha256: str | None = None
        self._path: Path | None = None
        self._read: Callable[[], Iterable[str]]
        if isinstance(source, str | os.PathLike):
            path = self._path = Path(source)
            self.name = name or path.name
            self._read = lambda: read_sentences(path, keep_blank=keep_blank)
        elif callable(source):
            again = source
            self.name = name or "given sentences"
            self._read = lambda: self._normalised(again())
        else:
            self.name = name or "given sentences"
            given = list(self._normalised(source))
            self._read = lambda: given

    def _normalised(self, sentences: Iterable[str]) -> Iterator[str]:
        for number, given in enumerate(sentences, start=1):
            sentence = " ".join(check_text(given, f"{self.name}, sentence {number}").split())
            if sentence or self.keep_blank:
                yield sentence

    def __iter__(self) -> Iterator[str]:
        sentences = iter(self._read())
        return sentences if self.unknown == UNKNOWN else map(self._rename_unknown, sentences)

    def _rename_unknown(self, sentence: str) -> str:
        if self.unknown not in sentence:
            return sentence
        return " ".join(UNKNOWN if word == self.unknown else word for word in sentence.split())

    @property
    def sha256(self) -> str:
        """SHA-256 of the sentences, as `sha256_of` computes it."""
        if self._sha256 is None:
            self._sha256 = sha256_of(iter(self))
        return self._sha256

    def require_words(self) -> None:
        """Check that there is something to measure.

        Raises:
            DataError: there is no sentence, or every sentence is empty.
        """
        empty = True
        for sentence in self:
            if sentence:
                return
            empty = False
        raise DataError(
            f"{self._path or self.name}: " + ("no sentence in it" if empty else "every sentence in it is empty")
        )


class Vocabulary:
    """The words of the real training split and `<unk>`, which stands for every other word.

    Args:
        words: the words; `<unk>` is added where it is missing.
    """

    def __init__(self, words: Iterable[str]) -> None:
        self.words: tuple[str, ...] = tuple(sorted({*words, UNKNOWN}))
        self._known = frozenset(self.words)

    @classmethod
    def from_sentences(cls, sentences: Iterable[str]) -> "Vocabulary":
        """The vocabulary of a text."""
        words: set[str] = set()
        for sentence in sentences:
            words.update(sentence.split())
        return cls(words)

    def __len__(self) -> int:
        return len(self.words)

    def __contains__(self, word: str) -> bool:
        return word in self._known

    def __iter__(self) -> Iterator[str]:
        return iter(self.words)

    def map(self, words: Sequence[str]) -> tuple[list[str], int]:
        """The words with `<unk>` in place of those outside the vocabulary, and how many those are."""
        mapped = [word if word in self._known else UNKNOWN for word in words]
        return mapped, sum(word not in self._known for word in words)
