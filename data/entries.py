"""Entries of a cache: built by one process while others wait, and there as a whole or not at all."""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from textebm.errors import DataError


@contextmanager
def building(path: Path, whole: Callable[[], bool] | None = None, kind: str = "encoded text") -> Iterator[bool]:
    """Whether an entry is there; if not, the entry is this process's to build, and others wait for it.

    Args:
        path: the file that says that the entry is there.
        whole: whether it is; default: that the file exists.
        kind: what the cache holds, for messages.

    Raises:
        DataError: the cache folder cannot be written.
    """
    from filelock import FileLock

    whole = whole or path.is_file
    if whole():
        yield True
        return
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(path.with_suffix(".lock")):
            for left in path.parent.glob(f".{path.stem}.*.tmp"):  # by a process that was killed
                left.unlink(missing_ok=True)
            yield whole()
    except OSError as error:
        raise DataError(
            f"the cache of {kind} in {path.parent} cannot be written ({error.strerror or error}). Make room or "
            "give permission there, or name another folder in the environment variable TEXTEBM_HOME."
        ) from None


def replace(path: Path, write: Callable[[Path], object]) -> None:
    """Write a file under another name, and move it into place when it is complete and on the disk."""
    temporary = path.with_name(f".{path.stem}.{os.getpid()}.tmp")
    try:
        write(temporary)
        with temporary.open("rb") as stream:
            os.fsync(stream.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
