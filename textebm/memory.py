"""Memory that a long job holds though nothing in it uses it."""

import ctypes
import functools
import sys
from collections.abc import Callable


def give_back() -> None:
    """Let the C library's allocator return to the system what it holds unused.

    Batches of every shape leave holes between the tensors that live on, and the allocator keeps them: a run grows by
    fragments, without a leak. This takes milliseconds. Where the library is not glibc, nothing happens.
    """
    if (trim := _trim()) is not None:
        trim(0)


@functools.cache
def _trim() -> Callable[[int], int] | None:
    """glibc's `malloc_trim`, where there is one."""
    if sys.platform != "linux":
        return None
    found: Callable[[int], int] | None = getattr(ctypes.CDLL(None), "malloc_trim", None)
    return found
