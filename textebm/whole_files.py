"""Files that are there as a whole or not at all, and their checksums."""

import hashlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def appearing(path: Path, *, synced: bool = True) -> Iterator[Path]:
    """A file to write, which takes the place of `path` in one move when the block ends, and is gone where it fails.

    Args:
        path: where it appears, in a folder that exists.
        synced: it is on the disk before it moves, so that a crash of the machine leaves the old file or the new one.
            Not worth its time for many files that can be made again.

    Yields:
        The file's name until then, in the same folder.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        yield temporary
        if synced:
            with temporary.open("rb") as stream:
                os.fsync(stream.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Replace a file by `text`, in UTF-8, in one move."""
    with appearing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def sha256(path: Path) -> str:
    """SHA-256 of what is in a file, in hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
