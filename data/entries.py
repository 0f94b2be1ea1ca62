"""Entries of a cache: built by one process while others wait, and there as a whole or not at all."""

import hashlib
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from textebm import plain_json
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


def sealed(described: dict[str, Any]) -> str:
    """What an entry says of itself, as JSON with a sum by which `unsealed` knows it."""
    return json.dumps({**described, "seal": _sum(described)}, indent=2) + "\n"


def unsealed(path: Path) -> dict[str, Any]:
    """What an entry says of itself.

    Raises:
        ValueError: it is not as it was written.
        OSError: it cannot be read.
    """
    described = plain_json.parse(path.read_bytes())
    if not isinstance(described, dict) or described.pop("seal", None) != _sum(described):
        raise ValueError(f"{path} is not as it was written")
    return described


def _sum(described: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(described, sort_keys=True).encode()).hexdigest()
