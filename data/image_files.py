"""Where image files lie: in a folder, a tar or a zip archive. Nothing is ever unpacked onto the disk by its name.

An archive's members are read into memory, one at a time and of bounded size. Links, devices and paths that lead out of
the archive are refused.
"""

import gzip
import hashlib
import lzma
import os
import tarfile
import tempfile
import weakref
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path, PurePosixPath
from typing import IO, Protocol

from textebm import whole_files
from textebm.errors import DataError
from textebm.lm_eval.corpus import ARCHIVE_TESTS, open_unpacked, readable, shown
from textebm.lm_eval.xz import open_xz

IMAGE_ENDINGS = (".jpg", ".jpeg", ".png", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm", ".pgm")
TAR_ENDINGS = (".tar", ".tar.gz", ".tgz", ".tar.xz", ".txz")
ARCHIVE_ENDINGS = (*TAR_ENDINGS, ".zip")
LARGEST_MEMBER = 64 << 20
"""Bytes of one file in a folder or an archive: a batch of CIFAR-10 has 31 MB, a photograph less."""
LARGEST_RATIO = 200
"""How many times its packed size an archive may have, unpacked (but see `SMALLEST_LIMIT`): images hardly shrink."""
SMALLEST_LIMIT = 1 << 30
"""Bytes that an archive may have, unpacked, however small it is packed."""
SMALLEST_PACKED = 256 << 20
"""The same of a single packed file."""
READ_AT_ONCE = 1 << 20


class Container(Protocol):
    """Files by name: the names are relative paths with `/` between their parts."""

    def describe(self) -> str:
        """What messages call it."""

    def names(self) -> tuple[str, ...]:
        """The names of all plain files, sorted; hidden ones are left out.

        Raises:
            DataError: it is damaged, or not what it seems.
        """

    def read(self, name: str) -> bytes:
        """The content of a file.

        Raises:
            DataError: there is no such file, it is damaged, or it is larger than 64 MiB.
        """

    def digest(self, names: Callable[[], Iterable[str]]) -> str:
        """SHA-256, as hexadecimal digits, of what decides the content of these files.

        Args:
            names: gives their names; of an archive, which is taken as a whole, it is not called.
        """


def open_container(path: Path) -> Container:
    """The files in a folder or an archive, told by its name.

    Raises:
        DataError: it is neither.
    """
    if path.is_dir():
        return FolderFiles(path)
    if path.name.lower().endswith(".zip"):
        return ZipFiles(path)
    if path.name.lower().endswith(TAR_ENDINGS):
        return TarFiles(path)
    raise DataError(f"{shown(path)} is neither a folder nor an archive ({', '.join(ARCHIVE_ENDINGS)})")


def is_image(name: str) -> bool:
    """Whether a file's name says that it is an image."""
    return name.lower().endswith(IMAGE_ENDINGS)


def file_digest(path: Path) -> str:
    """SHA-256 of a file, as hexadecimal digits.

    Raises:
        DataError: it cannot be read.
    """
    with _reading(path):
        return whole_files.sha256(path)


def unpacked_digest(path: Path) -> str:
    """SHA-256 of a file's content, unpacked where its name ends in `.gz` or `.xz`: it is never held in memory.

    Raises:
        DataError: it cannot be read, or is damaged.
    """
    digest = hashlib.sha256()
    with _reading(path), open_unpacked(path) as file:
        while piece := file.read(READ_AT_ONCE):
            digest.update(piece)
    return digest.hexdigest()


def read_at_most(path: Path, limit: int) -> bytes:
    """A file's content, unpacked where its name ends in `.gz` or `.xz`.

    Raises:
        DataError: it cannot be read, is damaged, or has more than `limit` bytes; or many times its packed size.
    """
    if path.name.endswith(tuple(ARCHIVE_TESTS)) and path.is_file():
        limit = min(limit, max(SMALLEST_PACKED, LARGEST_RATIO * path.stat().st_size))
    raw = bytearray()  # in pieces: asked for all at once, the whole limit would be set aside in memory first
    with _reading(path), open_unpacked(path) as file:
        while len(raw) <= limit and (piece := file.read(READ_AT_ONCE)):
            raw += piece
    if len(raw) > limit:
        raise DataError(f"{shown(path)}: more than {limit:,} bytes, unpacked; this is not the file that is wanted")
    return bytes(raw)


@contextmanager
def _reading(path: Path) -> Iterator[None]:
    """Say in a DataError what is wrong with a file."""
    try:
        with readable(path):
            yield
    except (OSError, EOFError, lzma.LZMAError, zlib.error) as error:
        tested = next((test for ending, test in ARCHIVE_TESTS.items() if path.name.endswith(ending)), None)
        hint = f"; the file is damaged or cut short: test it with {tested}, and copy it again" if tested else ""
        raise DataError(f"{shown(path)}: cannot be read ({error}){hint}") from None


def _is_hidden(name: str) -> bool:
    return any(part == "__MACOSX" or (part.startswith(".") and part != "..") for part in PurePosixPath(name).parts)


class FolderFiles:
    """The files in a folder and the folders in it; links to folders are not followed."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def describe(self) -> str:
        """The folder."""
        return shown(self.path)

    @cached_property
    def _names(self) -> tuple[str, ...]:
        found = []
        with _reading(self.path):
            for place, folders, files in os.walk(self.path, onerror=_raise):
                folders[:] = [folder for folder in folders if not folder.startswith(".")]
                inside = Path(place).relative_to(self.path)
                found += [(inside / name).as_posix() for name in files if not name.startswith(".")]
        return tuple(sorted(found))

    def names(self) -> tuple[str, ...]:
        """Relative paths, sorted."""
        return self._names

    def read(self, name: str) -> bytes:
        """The content of a file in it."""
        path = self.path / name
        with _reading(path), path.open("rb") as file:
            raw = file.read(LARGEST_MEMBER + 1)
        return _checked_size(raw, shown(path))

    def digest(self, names: Callable[[], Iterable[str]]) -> str:
        """Of the names and contents of these files."""
        digest = hashlib.sha256()
        for name in names():
            digest.update(os.fsencode(name) + b"\0" + bytes.fromhex(file_digest(self.path / name)))
        return digest.hexdigest()


def _raise(error: OSError) -> None:
    raise error


def _checked_size(raw: bytes, where: str) -> bytes:
    if len(raw) > LARGEST_MEMBER:
        raise DataError(f"{where}: more than {LARGEST_MEMBER >> 20} MiB, which no image of a data set has; take it out")
    return raw


class _Archive:
    """What tar and zip archives have in common."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def describe(self) -> str:
        """The archive."""
        return shown(self.path)

    @cached_property
    def _digest(self) -> str:
        return file_digest(self.path)

    def digest(self, names: Callable[[], Iterable[str]]) -> str:
        """Of the archive as a whole."""
        return self._digest

    def _where(self, name: str) -> str:
        return f"{shown(self.path)}, member {shown(name)}"

    def _safe(self, name: str, *, plain: bool) -> str:
        """The name without `./` before it.

        Raises:
            DataError: it leads out of the archive, or is no plain file.
        """
        path = PurePosixPath(name)
        if not path.parts:
            raise self._damaged("a member without a name")
        if path.is_absolute() or ".." in path.parts or "\\" in name:
            raise DataError(f"{self._where(name)}: the path leads out of the archive, which is not to be trusted")
        if not plain:
            raise DataError(
                f"{self._where(name)}: a link or a device; only plain files are read. Pack it without links"
            )
        return path.as_posix()

    def _missing(self, name: str) -> DataError:
        return DataError(f"{shown(self.path)} has no member {shown(name)}")

    def _bomb(self, limit: int) -> DataError:
        return DataError(
            f"{shown(self.path)}: more than {limit:,} bytes, unpacked, which is {LARGEST_RATIO} times its size: no "
            "archive of images is so. Unpack it by hand if you trust it, and name the folder"
        )

    def _damaged(self, error: object) -> DataError:
        return DataError(
            f"{shown(self.path)}: the archive is damaged, cut short, or none at all ({error}); copy it again"
        )


class _Bounded:
    """A file that never sets aside more memory than it has bytes, whatever size a header says that it wants."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self._size = file.seek(0, os.SEEK_END)
        self.seek, self.tell = file.seek, file.tell
        file.seek(0)

    def read(self, size: int = -1) -> bytes:
        """At most so many bytes; a negative number for all."""
        rest = max(0, self._size - self._file.tell())
        return self._file.read(rest if size < 0 else min(size, rest))


class TarFiles(_Archive):
    """The files in a tar archive, plain or packed by gzip or xz.

    A packed one is unpacked once, as one nameless temporary file, so that its members can be read in any order.
    """

    @cached_property
    def _file(self) -> IO[bytes]:
        if self.path.name.lower().endswith(".tar"):
            with _reading(self.path):
                return self._closed_at_last(self.path.open("rb"))
        spooled = self._closed_at_last(tempfile.TemporaryFile())  # noqa: SIM115  it lives as long as this object
        with _reading(self.path), self._unpacked() as packed:
            limit = max(SMALLEST_LIMIT, LARGEST_RATIO * self.path.stat().st_size)
            while piece := packed.read(READ_AT_ONCE):
                if spooled.tell() + len(piece) > limit:
                    raise self._bomb(limit)
                spooled.write(piece)
        return spooled

    def _closed_at_last(self, file: IO[bytes]) -> IO[bytes]:
        """The file, which is closed when this object goes."""
        weakref.finalize(self, file.close)
        return file

    def _unpacked(self) -> IO[bytes]:
        packed_by_gzip = self.path.name.lower().endswith("gz")
        return gzip.open(self.path, "rb") if packed_by_gzip else open_xz(self.path)  # type: ignore[return-value]

    @cached_property
    def _places(self) -> dict[str, tuple[int, int]]:
        """Where in the file each member's content begins, and its size."""
        places: dict[str, tuple[int, int]] = {}
        try:
            with tarfile.open(fileobj=_Bounded(self._file), mode="r:") as tar:  # type: ignore[call-overload]
                for member in tar:
                    tar.members = []  # it would keep every one
                    if member.isdir() or _is_hidden(member.name):
                        continue
                    name = self._safe(member.name, plain=member.isreg() and not member.issparse())
                    places[name] = (member.offset_data, member.size)
        except (tarfile.TarError, OSError, EOFError, ValueError, RecursionError, OverflowError) as error:
            raise self._damaged(error) from None
        return places

    def names(self) -> tuple[str, ...]:
        """Paths of the members, sorted."""
        return tuple(sorted(self._places))

    def read(self, name: str) -> bytes:
        """The content of a member."""
        if name not in self._places:
            raise self._missing(name)
        begin, size = self._places[name]
        self._file.seek(begin)
        raw = self._file.read(min(size, LARGEST_MEMBER + 1))
        if len(raw) < min(size, LARGEST_MEMBER + 1):
            raise self._damaged(f"it ends in the middle of {shown(name)}")
        return _checked_size(raw, self._where(name))


ZIP_METHODS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2)
"""Ways to pack a member that unpack in little memory, whatever the member says; LZMA's takes what it is told to."""


class ZipFiles(_Archive):
    """The files in a zip archive."""

    @cached_property
    def _zip(self) -> zipfile.ZipFile:
        try:
            with _reading(self.path):
                return zipfile.ZipFile(self.path)
        except (zipfile.BadZipFile, ValueError, NotImplementedError) as error:
            raise self._damaged(error) from None

    @cached_property
    def _members(self) -> dict[str, zipfile.ZipInfo]:
        members = {}
        for info in self._zip.infolist():
            if not info.filename.endswith("/") and not _is_hidden(info.filename):
                kind = (info.external_attr >> 16) & 0o170000
                members[self._safe(info.filename, plain=kind in (0, 0o100000))] = info
        limit = max(SMALLEST_LIMIT, LARGEST_RATIO * self.path.stat().st_size)
        if sum(info.file_size for info in members.values()) > limit:
            raise self._bomb(limit)
        return members

    def names(self) -> tuple[str, ...]:
        """Paths of the members, sorted."""
        return tuple(sorted(self._members))

    def read(self, name: str) -> bytes:
        """The content of a member."""
        if name not in self._members:
            raise self._missing(name)
        info = self._members[name]
        if info.compress_type not in ZIP_METHODS:
            raise DataError(f"{self._where(name)}: packed in a way that is not read; pack it as zip does by default")
        try:
            with self._zip.open(info) as file:
                raw = file.read(LARGEST_MEMBER + 1)
        except (zipfile.BadZipFile, OSError, EOFError, ValueError, zlib.error) as error:
            raise self._damaged(error) from None
        except (RuntimeError, NotImplementedError) as error:  # encrypted, or packed in an unknown way
            raise DataError(f"{self._where(name)}: cannot be read ({error}); pack it without a password") from None
        return _checked_size(raw, self._where(name))
