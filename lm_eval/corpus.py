"""Reading text files, and the vocabulary that both sides of a comparison share."""

import gzip
import hashlib
import json
import lzma
import os
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import IO

from textebm.errors import DataError

UNKNOWN = "<unk>"
"""What stands for every word outside the vocabulary."""

BYTE_ORDER_MARK = b"\xef\xbb\xbf"

Sentences = str | os.PathLike[str] | Iterable[str] | Callable[[], Iterable[str]]
"""A file to read (plain, .gz, .xz, .jsonl), the sentences themselves, or what gives them anew at each call."""


def read_sentences(path: str | os.PathLike[str], *, keep_blank: bool = False) -> Iterator[str]:
    """The sentences of a file, one a line, in constant memory; words are separated by single spaces.

    Args:
        path: plain text, or JSON lines with a field "text" (`.jsonl`); either may end in `.gz` or `.xz`.
        keep_blank: give a blank line as an empty sentence (generated text may hold such), instead of skipping it.

    Raises:
        DataError: the file is missing or damaged, a line is not UTF-8, holds a NUL byte, or is no such JSON object.
    """
    path = Path(path)
    as_json = path.name.removesuffix(".gz").removesuffix(".xz").endswith(".jsonl")
    for number, line in _lines(path):
        if as_json and not line.strip():
            continue  # nobody's sentence: in JSON lines an empty one is {"text": ""}
        sentence = " ".join((_json_text(line, path, number) if as_json else line).split())
        if sentence or keep_blank:
            yield sentence


def _lines(path: Path) -> Iterator[tuple[int, str]]:
    """Line numbers, from 1, and lines."""
    openers: dict[str, Callable[[Path, str], IO[bytes]]] = {".gz": gzip.open, ".xz": lzma.open}  # type: ignore[dict-item]
    number = 0
    try:
        with openers.get(path.suffix, Path.open)(path, "rb") as file:
            for number, raw in enumerate(file, start=1):
                line = raw.removeprefix(BYTE_ORDER_MARK) if number == 1 else raw
                yield number, _decode(line, path, number)
    except FileNotFoundError:
        raise DataError(f"{path}: no such file") from None
    except (OSError, EOFError, lzma.LZMAError, zlib.error) as error:
        where = f"{path}, after line {number}" if number else str(path)
        raise DataError(f"{where}: cannot be read ({error})") from error


def _decode(line: bytes, path: Path, number: int) -> str:
    if b"\0" in line:
        raise DataError(f"{path}, line {number}: a NUL byte; this is not a text file in UTF-8")
    try:
        return line.decode()
    except UnicodeDecodeError as error:
        raise DataError(f"{path}, line {number}: not UTF-8 (byte {error.start + 1}); convert it with iconv") from None


def _json_text(line: str, path: Path, number: int) -> str:
    try:
        record = json.loads(line)
    except json.JSONDecodeError as error:
        raise DataError(f"{path}, line {number}: not JSON ({error.msg})") from None
    text = record.get("text") if isinstance(record, dict) else None
    if not isinstance(text, str):
        raise DataError(f'{path}, line {number}: must be an object with a field "text" that is a string')
    return check_text(text, f"{path}, line {number}")


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
