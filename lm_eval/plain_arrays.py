"""Arrays in .npz files that anybody may have written: nothing is unpickled, and no header is believed.

NumPy's own reader sets aside what an array's header asks for before it has seen a value, and unpacks whatever an
archive holds. Here a header must agree with the size of its member, and a member with the size of its file.
"""

import io
import math
import zipfile
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

LARGEST_RATIO = 200
"""How many times its packed size an archive may have, unpacked (but see `SMALLEST_LIMIT`)."""
LONGEST_HEADER = 1 << 16
SMALLEST_LIMIT = 256 << 20
"""Bytes that an archive may have, unpacked, however small it is packed."""


def names_in(path: Path) -> list[str]:
    """Names of the arrays in a .npz file.

    Raises:
        ValueError, OSError: it is none.
    """
    with _opened(path) as archive:
        return [name.removesuffix(".npy") for name in archive.namelist()]


def arrays_in(path: Path, names: Sequence[str]) -> list[NDArray[Any]]:
    """Arrays of a .npz file, by name.

    Raises:
        KeyError: there is no such array.
        ValueError, OSError: it is damaged, larger than an archive of its size has a reason to be, or holds no numbers.
    """
    with _opened(path) as archive:
        infos = [archive.getinfo(f"{name}.npy") for name in names]
        limit = max(SMALLEST_LIMIT, LARGEST_RATIO * path.stat().st_size)
        if any(info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED) for info in infos):
            raise ValueError("packed in a way that NumPy does not")
        if any(info.compress_size > path.stat().st_size for info in infos):  # they are asked for at once
            raise ValueError("a member that is larger than its file")
        if sum(info.file_size for info in infos) > limit:
            raise ValueError(f"more than {limit:,} bytes, unpacked")
        try:
            return [_array(archive.read(info)) for info in infos]
        except (zipfile.BadZipFile, zlib.error, EOFError, RuntimeError, NotImplementedError) as error:
            raise ValueError(str(error) or "cut short") from None


def mapped(path: Path) -> NDArray[Any]:
    """The array of a .npy file, mapped from it, to be read only.

    Raises:
        ValueError, OSError: it is damaged, or cut short, or holds no numbers.
    """
    with path.open("rb") as file:
        beginning = io.BytesIO(file.read(LONGEST_HEADER))
    shape, is_fortran, dtype = _header(beginning)
    rest = path.stat().st_size - beginning.tell()
    size = math.prod(shape) * dtype.itemsize
    if size > rest:
        raise ValueError(f"an array of shape {shape} in {rest:,} bytes")
    if not size:  # of nothing no map can be made
        return np.zeros(shape, dtype)
    return np.memmap(path, dtype, "r", beginning.tell(), shape, "F" if is_fortran else "C")


def _opened(path: Path) -> zipfile.ZipFile:
    try:
        return zipfile.ZipFile(path)
    except (zipfile.BadZipFile, NotImplementedError, EOFError) as error:
        raise ValueError(str(error)) from None


def _array(raw: bytes) -> NDArray[Any]:
    """The array of a .npy file's content."""
    file = io.BytesIO(raw)
    shape, is_fortran, dtype = _header(file)
    if math.prod(shape) * dtype.itemsize != len(raw) - file.tell():
        raise ValueError(f"an array of shape {shape} in {len(raw):,} bytes")
    return np.frombuffer(raw, dtype, offset=file.tell()).reshape(shape, order="F" if is_fortran else "C")


def _header(file: io.BytesIO) -> tuple[tuple[int, ...], bool, np.dtype[Any]]:
    """Shape, whether columns come first, and type of the array in a .npy file, after whose header the file then stands.

    Raises:
        ValueError: it has no such header, or not of numbers or text.
    """
    try:
        version = np.lib.format.read_magic(file)
        readers = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
        if version not in readers:
            raise ValueError(f"a .npy file of version {version}")
        shape, is_fortran, dtype = readers[version](file)
    except Exception as error:  # a header is Python's own notation, and fails in as many ways
        raise ValueError(f"no header of a .npy file: {error}") from None
    if dtype.kind not in "biufUS" or dtype.shape or not dtype.itemsize:
        raise ValueError(f"an array of {dtype}, and numbers or text are wanted")
    if not all(isinstance(size, int) and size >= 0 for size in shape):
        raise ValueError(f"an array of shape {shape}")
    return shape, is_fortran, dtype
