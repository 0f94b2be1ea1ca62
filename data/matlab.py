"""Arrays of numbers out of MATLAB 5 files, such as SVHN is published in: nothing that a header says is believed unseen.

A file is a header of 128 bytes and then elements, each a type, a size and so many bytes. An array is an element of type
14: its class, its dimensions, its name and its values, elements themselves; one of type 15 holds another, packed by
zlib (MathWorks, "MAT-File Format"). Structures, cells, objects, sparse and complex arrays are not read.
"""

import io
import math
import struct
import zlib
from collections.abc import Collection
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

HEADER, TAG = 128, 8
VERSION_AT = 124
MATRIX, PACKED = 14, 15
STORED = {1: "i1", 2: "u1", 3: "i2", 4: "u2", 5: "i4", 6: "u4", 7: "f4", 9: "f8", 12: "i8", 13: "u8"}
"""NumPy's names of the types in which values are stored."""
CLASSES = {6: "f8", 7: "f4", 8: "i1", 9: "u1", 10: "i2", 11: "u2", 12: "i4", 13: "u4", 14: "i8", 15: "u8"}
"""The types of arrays: whole numbers of a double array are stored as bytes where they fit."""
COMPLEX = 0x0800
LONGEST_NAME, MOST_DIMENSIONS = 64, 32
LARGEST_RATIO = 200
"""How many times its packed size an array may have (but see `SMALLEST_LIMIT`)."""
SMALLEST_LIMIT = 256 << 20
"""Bytes that an array may have, however small it is packed."""
AT_ONCE = 1 << 20


def read_arrays(path: Path, names: Collection[str]) -> dict[str, NDArray[Any]]:
    """Arrays of a file, by name; those that it does not have are left out.

    Raises:
        ValueError: it is no such file, is damaged or cut short, or holds another kind of thing under a name.
        OSError: it cannot be read.
    """
    found = {}
    with path.open("rb") as file:
        header = file.read(HEADER)
        order = {b"IM": "<", b"MI": ">"}.get(header[-2:])
        if len(header) < HEADER or order is None:
            raise ValueError("it has no header of a MATLAB 5 file")
        if struct.unpack(f"{order}H", header[VERSION_AT : VERSION_AT + 2])[0] != 0x0100:
            raise ValueError(
                "it is of another version of MATLAB's format: of 7.3, say, which is HDF5; save it with -v7"
            )
        rest = path.stat().st_size - HEADER
        while tag := file.read(TAG):
            kind, size = struct.unpack(f"{order}II", _whole(tag, TAG))
            rest -= TAG + size
            if rest < 0:
                raise ValueError(f"an element of {size:,} bytes, and the file ends before it does")
            after = file.tell() + size
            element: IO[bytes] = file
            if kind == PACKED:
                element = io.BufferedReader(_Unpacked(file, size, max(SMALLEST_LIMIT, LARGEST_RATIO * size)))
                kind, size = struct.unpack(f"{order}II", _exactly(element, TAG))
            if kind == MATRIX and size:
                name, array = _array(element, order, names)
                if array is not None:
                    found[name] = array
            file.seek(after)
    return found


class _Unpacked(io.RawIOBase):
    """What so many bytes of a file hold, unpacked by zlib: at most `limit` bytes."""

    def __init__(self, file: IO[bytes], size: int, limit: int) -> None:
        self._file, self._rest, self._limit = file, size, limit
        self._stream = zlib.decompressobj()

    def readable(self) -> bool:
        """It is."""
        return True

    def readinto(self, buffer) -> int:  # type: ignore[no-untyped-def]  # noqa: ANN001 (whatever io hands over)
        """Fill a buffer with what comes next.

        Raises:
            ValueError: it is damaged, or more than the limit.
        """
        while not self._stream.eof:
            given = self._stream.unconsumed_tail
            if not given:
                given = self._file.read(min(self._rest, AT_ONCE))
                self._rest -= len(given)
                if not given:
                    break
            try:
                found = self._stream.decompress(given, len(buffer))
            except zlib.error as error:
                raise ValueError(str(error)) from None
            if found:
                self._limit -= len(found)
                if self._limit < 0:
                    raise ValueError(f"more than {LARGEST_RATIO} times its size, unpacked")
                buffer[: len(found)] = found
                return len(found)
        return 0


def _array(element: IO[bytes], order: str, names: Collection[str]) -> tuple[str, NDArray[Any] | None]:
    """The name and the values of an array; no values, where its name is not wanted.

    Raises:
        ValueError: it is damaged, or no array of numbers.
    """
    flags = struct.unpack(f"{order}II", _whole(_part(element, order, 8)[1], 8))[0]
    sizes = _part(element, order, 4 * MOST_DIMENSIONS)[1]
    name = _part(element, order, LONGEST_NAME)[1].decode("latin-1")
    if name not in names:
        return name, None
    if flags & 0xFF not in CLASSES or flags & COMPLEX:
        raise ValueError(f"{name} is no array of numbers")
    shape = struct.unpack(f"{order}{len(sizes) // 4}i", sizes[: len(sizes) // 4 * 4])
    kind, raw = _part(element, order, None)
    if kind not in STORED or any(size < 0 for size in shape):
        raise ValueError(f"{name} has no values that are numbers")
    stored = np.dtype(STORED[kind]).newbyteorder(order)  # type: ignore[arg-type]
    if math.prod(shape) * stored.itemsize != len(raw):
        raise ValueError(f"{name} is of shape {shape}, and has {len(raw):,} bytes of values")
    values = np.frombuffer(raw, stored).reshape(shape, order="F")
    return name, values.astype(CLASSES[flags & 0xFF], order="K", casting="unsafe", copy=False)


def _part(element: IO[bytes], order: str, longest: int | None) -> tuple[int, bytes | bytearray]:
    """The type and the bytes of the next element within an array, of which there may be so many."""
    tag = _exactly(element, TAG)
    kind, size = struct.unpack(f"{order}II", tag)
    if kind >> 16:  # a small one: its size and its bytes are within the tag
        kind, size = kind & 0xFFFF, kind >> 16
        if size > 4:
            raise ValueError("a small element of more than 4 bytes")
        return kind, tag[4 : 4 + size]
    if longest is not None and size > longest:
        raise ValueError(f"{size:,} bytes where at most {longest} are wanted")
    raw = _exactly(element, size)
    _exactly(element, -size % 8)  # elements begin at multiples of 8
    return kind, raw


def _exactly(element: IO[bytes], size: int) -> bytes | bytearray:
    """So many bytes, read in pieces, so that no more memory is set aside than there are bytes."""
    raw = bytearray()
    while len(raw) < size and (piece := element.read(min(size - len(raw), AT_ONCE))):
        raw += piece
    return _whole(raw, size)


def _whole(raw: bytes | bytearray, size: int) -> bytes | bytearray:
    if len(raw) < size:
        raise ValueError("it is cut short")
    return raw
