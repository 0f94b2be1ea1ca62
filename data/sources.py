"""Sources of sentences: files, one after the other, and whatever else answers the same three questions."""

import hashlib
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Protocol

from textebm import whole_files
from textebm.errors import DataError
from textebm.home import home
from textebm.lm_eval.corpus import holds_json_lines, read_sentences, readable, shown

STANDARD_INPUT = "-"
HUB_PREFIX = "hf:"
DEFAULT_TEXT_FIELD = "text"
READ_AT_ONCE = 1 << 20


class Source(Protocol):
    """Where the sentences of one split come from."""

    def describe(self) -> str:
        """What messages call it: a file, or a data set's name, column and split."""

    def sentences(self) -> Iterator[str]:
        """Every sentence, its words joined by single blanks; a blank line is given as "".

        Raises (while it is read):
            DataError: something is missing, damaged or no text.
        """

    def digest(self) -> str:
        """SHA-256, as hexadecimal digits, of the content as it is stored: the same wherever the same content lies.

        Computed in constant memory.

        Raises:
            DataError: something cannot be read.
        """


@dataclass(frozen=True)
class TextFiles:
    """Text files read one after the other: plain or JSON lines, `.gz` or `.xz`.

    Args:
        paths: the files, at least one.
        text_field: the field of JSON lines that holds the text.
    """

    paths: tuple[Path, ...]
    text_field: str = DEFAULT_TEXT_FIELD

    def describe(self) -> str:
        """The file; of several the first, the last, and how many they are."""
        if len(self.paths) == 1:
            return shown(self.paths[0])
        return f"{shown(self.paths[0])} to {shown(self.paths[-1])} ({len(self.paths)} files)"

    def sentences(self) -> Iterator[str]:
        """Every line of every file, in the order of the files."""
        for path in self.paths:
            yield from read_sentences(path, keep_blank=True, text_field=self.text_field)

    def digest(self) -> str:
        """The file's SHA-256 as sha256sum prints it; of several files, or of JSON lines, one made of the files' own.

        JSON lines count the field that is read: another field is another text.
        """
        own = [_file_digest(path) for path in self.paths]
        as_json = [holds_json_lines(path) for path in self.paths]
        if len(own) == 1 and not as_json[0]:
            return own[0]
        parts = [f"{digest} json:{self.text_field}" if j else digest for digest, j in zip(own, as_json, strict=True)]
        return hashlib.sha256("\n".join(parts).encode()).hexdigest()

    def same_content(self, other: "TextFiles") -> bool:
        """Whether both hold the same bytes; files of other sizes are not read for it.

        Raises:
            DataError: a file cannot be read.
        """
        return self._sizes() == other._sizes() and self.digest() == other.digest()

    def _sizes(self) -> list[int]:
        try:
            return [path.stat().st_size for path in self.paths]
        except OSError as error:
            raise DataError(f"{error.filename}: cannot be looked at ({error.strerror})") from None


def _file_digest(path: Path) -> str:
    try:
        with readable(path):
            return whole_files.sha256(path)
    except OSError as error:
        raise DataError(f"{shown(path)}: cannot be read ({error.strerror})") from None


def pipe_folder() -> Path:
    """Where what came through a pipe is kept."""
    return home().absolute() / "data" / "stdin"  # a run's configuration names it, wherever the run is resumed


def spool(stream: IO[bytes], text_field: str | None = None) -> Path:
    """Keep what a stream holds, in constant memory, so that it can be read again: now, and when a run is resumed.

    Args:
        stream: standard input, say.
        text_field: where given, the stream holds JSON lines.

    Returns:
        `TEXTEBM_HOME/data/stdin/SHA256.txt` (or `.jsonl`): the same content is kept once.

    Raises:
        DataError: the stream is a terminal or empty.
    """
    if stream.isatty():
        raise DataError(
            "--data - reads text from standard input, which is a terminal here: pipe something into the command, as in "
            "zcat corpus.gz | textebm train --data -"
        )
    folder = pipe_folder()
    folder.mkdir(parents=True, exist_ok=True)
    unfinished = folder / f".{os.getpid()}.part"
    digest, size = hashlib.sha256(), 0
    try:
        with unfinished.open("wb") as file:
            while piece := stream.read(READ_AT_ONCE):
                digest.update(piece)
                size += len(piece)
                file.write(piece)
        if not size:
            raise DataError("--data - reads text from standard input, which is empty: did the command before it fail?")
        kept = folder / f"{digest.hexdigest()}{'.txt' if text_field is None else '.jsonl'}"
        unfinished.replace(kept)
    finally:
        unfinished.unlink(missing_ok=True)
    return kept
