"""Pickles of numbers, names and arrays, read without running anything that they say.

A pickle is a program: the usual reader imports and calls whatever it names. This one knows numpy's arrays and their
types by name alone, and puts a description in the place of each; everything else that a pickle wants to import is
refused. Only when the whole is read are arrays made of the descriptions, after they were checked.
"""

import io
import math
import pickle
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt

from textebm.errors import DataError

NUMBERS = {"u1", "u2", "u4", "u8", "i1", "i2", "i4", "i8", "f4", "f8", "b1"}
"""Types of the values of an array, as numpy writes them."""


class PickledType:
    """The type of an array's values, as its pickle describes it."""

    def __init__(self, code: object = None, *flags: object) -> None:
        self.code = code
        self.order: object = "|"

    def __setstate__(self, state: Any) -> None:  # noqa: ANN401
        self.order = state[1]

    def numpy(self, where: str) -> np.dtype[Any]:
        """The type.

        Raises:
            DataError: its values are no numbers.
        """
        code, order = _text(self.code), _text(self.order)
        if code not in NUMBERS or order not in ("|", "<", ">", "="):
            raise DataError(f"{where}: an array of {code!r} in it, and only numbers are read from a pickle")
        return np.dtype(code).newbyteorder(order)  # type: ignore[arg-type]


class PickledArray:
    """An array, as its pickle describes it."""

    def __init__(self, *arguments: object) -> None:
        self.state: tuple[Any, ...] = ()

    def __setstate__(self, state: Any) -> None:  # noqa: ANN401
        self.state = tuple(state)

    def values(self, where: str) -> npt.NDArray[Any]:
        """The array.

        Raises:
            DataError: its values are no numbers, or are fewer or more than its shape says.
        """
        try:
            _, shape, kind, is_fortran, raw = self.state
        except ValueError:
            raise DataError(f"{where}: an array that is described by {len(self.state)} parts, not 5") from None
        if not isinstance(kind, PickledType) or not isinstance(raw, bytes) or not isinstance(shape, tuple):
            raise DataError(f"{where}: an array of something else than numbers, which is not read from a pickle")
        if not all(isinstance(size, int) and size >= 0 for size in shape):
            raise DataError(f"{where}: an array of the shape {shape}")
        dtype = kind.numpy(where)
        if math.prod(shape) * dtype.itemsize != len(raw):
            raise DataError(f"{where}: an array of the shape {shape} with {len(raw):,} bytes of values")
        return np.frombuffer(raw, dtype).reshape(shape, order="F" if is_fortran else "C")


def _text(written: object) -> str:
    """Text, which Python 2 wrote as bytes."""
    return written.decode("latin-1") if isinstance(written, bytes) else str(written)


def _from_buffer(raw: object, kind: object, shape: object, order: object) -> PickledArray:
    """What numpy 2 writes in pickles of protocol 5."""
    array = PickledArray()
    array.state = (1, shape, kind, order == "F", bytes(raw) if isinstance(raw, bytes | bytearray) else raw)
    return array


def _bytes(text: object, encoding: object) -> bytes:
    """How Python 3 writes bytes in pickles that Python 2 can read."""
    if not isinstance(text, str) or encoding != "latin1":
        raise pickle.UnpicklingError(f"text in the encoding {encoding!r}")
    return text.encode("latin1")


def _no_bytes() -> bytes:
    """How Python 3 writes no bytes at all in such pickles: as a call without arguments."""
    return b""


class _PlainUnpickler(pickle.Unpickler):
    KNOWN: ClassVar[dict[tuple[str, str], Any]] = {
        ("numpy", "dtype"): PickledType,
        ("numpy", "ndarray"): PickledArray,
        ("numpy.core.multiarray", "_reconstruct"): PickledArray,
        ("numpy._core.multiarray", "_reconstruct"): PickledArray,
        ("numpy.core.numeric", "_frombuffer"): _from_buffer,
        ("numpy._core.numeric", "_frombuffer"): _from_buffer,
        ("_codecs", "encode"): _bytes,
        ("__builtin__", "bytes"): _no_bytes,
        ("builtins", "bytes"): _no_bytes,
    }

    def find_class(self, module: str, name: str) -> Any:  # noqa: ANN401
        """What stands for something that a pickle wants to import."""
        if (module, name) not in self.KNOWN:
            raise pickle.UnpicklingError(
                f"it wants to import {module}.{name}, which numbers, names and arrays do not need"
            )
        return self.KNOWN[module, name]


def load_plain(raw: bytes, where: str) -> Any:  # noqa: ANN401
    """What a pickle holds: numbers, text, bytes, lists, tuples, dictionaries, and `PickledArray` for each array.

    Args:
        raw: the pickle. Text of Python 2 comes as bytes.
        where: what messages call it.

    Raises:
        DataError: it is damaged, or wants something else.
    """
    try:
        return _PlainUnpickler(io.BytesIO(raw), encoding="bytes").load()
    except Exception as error:  # whatever bytes make of its small machine: index, key, value, memory, end of file
        reason = str(error) or type(error).__name__
        raise DataError(
            f"{where}: not read as a pickle of numbers: {reason}. Get the file from where it is published"
        ) from None
