"""Pickles of numbers, names and arrays, read without running anything that they say.

A pickle is a program: the usual reader imports and calls whatever it names. This one knows numpy's arrays and their
types by name alone, and puts a description in the place of each; everything else that a pickle wants to import is
refused, and so is every instruction that such pickles have no use for. Only when the whole is read are arrays made of
the descriptions, after they were checked.

It rests on the unpickler that Python's library has in Python: the one in C sets aside as much memory for its table of
objects as a pickle of twenty bytes cares to ask for.
"""

import io
import math
import pickle
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt

from textebm.errors import DataError

LARGEST_SIZE = 1 << 40
"""Of one dimension of an array."""
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
        if not all(type(size) is int and 0 <= size < LARGEST_SIZE for size in shape):
            raise DataError(f"{where}: an array of a shape that is not one of whole numbers")
        dtype = kind.numpy(where)
        if math.prod(shape) * dtype.itemsize != len(raw):
            raise DataError(f"{where}: an array of the shape {shape} with {len(raw):,} bytes of values")
        return np.frombuffer(raw, dtype).reshape(shape, order="F" if is_fortran else "C")


def _text(written: object) -> str:
    """Text, which Python 2 wrote as bytes; of anything else its kind."""
    if isinstance(written, bytes):
        return written.decode("latin-1")
    return written if isinstance(written, str) else type(written).__name__


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


def _plain_key(key: object) -> None:
    """Refuse a key of a dictionary that is more than a number or a name: to hash it could take for ever."""
    if not isinstance(key, str | bytes | int | float | None):
        raise pickle.UnpicklingError(f"a {type(key).__name__} as the key of a dictionary")


_PythonUnpickler: Any = pickle._Unpickler


class _PlainUnpickler(_PythonUnpickler):  # type: ignore[misc]
    PLAIN = (
        *("PROTO", "FRAME", "STOP", "MARK", "POP", "POP_MARK", "DUP"),
        *("NONE", "NEWTRUE", "NEWFALSE", "INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4"),
        *("FLOAT", "BINFLOAT", "STRING", "BINSTRING", "SHORT_BINSTRING"),
        *("UNICODE", "SHORT_BINUNICODE", "BINUNICODE", "BINUNICODE8"),
        *("SHORT_BINBYTES", "BINBYTES", "BINBYTES8", "BYTEARRAY8"),
        *("EMPTY_LIST", "LIST", "APPEND", "APPENDS", "EMPTY_TUPLE", "TUPLE", "TUPLE1", "TUPLE2", "TUPLE3"),
        *("EMPTY_DICT", "DICT", "SETITEM", "SETITEMS"),
        *("GET", "BINGET", "LONG_BINGET", "PUT", "BINPUT", "LONG_BINPUT", "MEMOIZE"),
        *("GLOBAL", "STACK_GLOBAL", "REDUCE", "BUILD"),
    )
    """Instructions of which pickles of numbers, names and arrays are made."""
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

    def load_build(self) -> None:
        """Tell a description its state; nothing else is ever changed."""
        if not isinstance(self.stack[-2], PickledType | PickledArray):
            raise pickle.UnpicklingError(f"a state for a {type(self.stack[-2]).__name__}")
        super().load_build()

    def load_bytearray8(self) -> None:
        """Put bytes onto the stack: those that are there, and no memory for as many as are said to be."""
        self.append(bytearray(self.read(int.from_bytes(self.read(8), "little"))))

    def load_setitem(self) -> None:
        """Put a value into a dictionary."""
        _plain_key(self.stack[-2])
        super().load_setitem()

    def load_setitems(self) -> None:
        """Put several values into a dictionary; they stand on the stack since the last mark."""
        for key in self.stack[::2]:
            _plain_key(key)
        super().load_setitems()

    def load_dict(self) -> None:
        """Make a dictionary of what stands on the stack since the last mark."""
        for key in self.stack[::2]:
            _plain_key(key)
        super().load_dict()

    dispatch: ClassVar[dict[int, Any]] = {
        **{getattr(pickle, name)[0]: pickle._Unpickler.dispatch[getattr(pickle, name)[0]] for name in PLAIN},
        pickle.BUILD[0]: load_build,
        pickle.BYTEARRAY8[0]: load_bytearray8,
        pickle.SETITEM[0]: load_setitem,
        pickle.SETITEMS[0]: load_setitems,
        pickle.DICT[0]: load_dict,
    }


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
        if isinstance(error, KeyError):
            reason = f"it holds an instruction ({error}) which numbers, names and arrays do not need"
        raise DataError(
            f"{where}: not read as a pickle of numbers: {reason}. Get the file from where it is published"
        ) from None
