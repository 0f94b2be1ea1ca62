"""Sources of pictures: published arrays, files in folders and archives, and whatever else answers the same."""

import bisect
import hashlib
import itertools
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Protocol

from textebm.data.image_decoding import Picture
from textebm.data.image_files import Container, unpacked_digest
from textebm.data.image_formats import Images
from textebm.errors import DataError
from textebm.lm_eval.corpus import shown


class Pictures(Protocol):
    """The pictures of a source, in a fixed order."""

    def __len__(self) -> int:
        """How many they are."""

    def picture(self, row: int) -> Picture:
        """One of them.

        Raises:
            DataError: it cannot be read.
        """

    def fingerprint(self, row: int) -> bytes:
        """A hash of its content as it is stored: equal pictures have equal ones."""

    def label(self, row: int) -> int | None:
        """Its class, without a look at its pixels; None: it has none."""


class ImageSource(Protocol):
    """Where the pictures of one split come from, or of several that are told apart later."""

    @property
    def class_names(self) -> tuple[str, ...]:
        """Names of the classes; label k is the k-th. Empty: the pictures have no labels."""

    def describe(self) -> str:
        """What messages call it."""

    def digest(self) -> str:
        """SHA-256, as hexadecimal digits, of what decides the pictures: the same wherever the same content lies.

        Raises:
            DataError: something cannot be read.
        """

    def read(self) -> Pictures:
        """The pictures.

        Raises:
            DataError: something is missing or damaged.
        """


def fingerprint(content: bytes) -> bytes:
    """A hash by which equal pictures are known."""
    return hashlib.blake2b(content, digest_size=8).digest()


def combined(*parts: object) -> str:
    """SHA-256, as hexadecimal digits, of several things that JSON can write."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


# ---- arrays


@dataclass(frozen=True, eq=False)
class ArrayPictures:
    """Pictures of an array."""

    where: str
    images: Images

    def __len__(self) -> int:
        return len(self.images)

    def picture(self, row: int) -> Picture:
        """The picture of one row."""
        return Picture(f"{self.where}, image {row}", self.images.pixels[row], int(self.images.labels[row]))

    def fingerprint(self, row: int) -> bytes:
        """Of its pixels."""
        return fingerprint(self.images.pixels[row].tobytes())

    def label(self, row: int) -> int:
        """The class of one row."""
        return int(self.images.labels[row])


@dataclass(frozen=True)
class ArrayFiles:
    """Published files that hold all pictures of a split as arrays.

    Args:
        paths: the files.
        reader: what makes one array of them.
        class_names: of the labels.
    """

    paths: tuple[Path, ...]
    reader: Callable[..., Images]
    class_names: tuple[str, ...]

    def describe(self) -> str:
        """The files."""
        return " and ".join(shown(path) for path in self.paths)

    def digest(self) -> str:
        """Of the unpacked contents."""
        return combined(*(unpacked_digest(path) for path in self.paths))

    def read(self) -> ArrayPictures:
        """All pictures, in memory until they are let go."""
        images = self.reader(*self.paths)
        if not len(images):
            raise DataError(f"{self.describe()}: no image in it")
        return ArrayPictures(self.describe(), images)


@dataclass(frozen=True)
class ArrayMembers:
    """Members of a folder or an archive that together hold all pictures of a split as arrays.

    Args:
        container: where they lie.
        members: their names, in order.
        reader: makes an array of one member's content and what messages call it.
        class_names: of the labels.
    """

    container: Container
    members: tuple[str, ...]
    reader: Callable[[bytes, str], Images]
    class_names: tuple[str, ...]

    def describe(self) -> str:
        """The container, and the first and the last member."""
        return f"{self.container.describe()} ({' to '.join(dict.fromkeys((self.members[0], self.members[-1])))})"

    def digest(self) -> str:
        """Of the container's files, and which of them they are."""
        return combined(self.container.digest(lambda: self.members), self.members)

    def read(self) -> ArrayPictures:
        """All pictures, in memory until they are let go."""
        parts = [
            self.reader(self.container.read(name), f"{self.container.describe()}, {shown(name)}")
            for name in self.members
        ]
        return ArrayPictures(self.describe(), Images.joined(parts))


# ---- files


Selected = tuple[str, str]
"""Name of a picture's file, and of its class; "": it has none."""


@dataclass(frozen=True, eq=False)
class FilePictures:
    """Pictures that are files."""

    container: Container
    chosen: Sequence[Selected]
    numbers: Mapping[str, int]
    """Of the classes, by name."""

    def __len__(self) -> int:
        return len(self.chosen)

    def picture(self, row: int) -> Picture:
        """The picture in one file."""
        name, kind = self.chosen[row]
        return Picture(f"{self.container.describe()}, {shown(name)}", self.container.read(name), self.numbers.get(kind))

    def fingerprint(self, row: int) -> bytes:
        """Of the file's bytes."""
        return fingerprint(self.container.read(self.chosen[row][0]))

    def label(self, row: int) -> int | None:
        """The class that the file's folder says."""
        return self.numbers.get(self.chosen[row][1])


@dataclass(frozen=True)
class ImageFiles:
    """Image files of a folder or an archive.

    Args:
        container: where they lie.
        select: which of its files belong here; called when the pictures are wanted.
        class_names: of the labels. Empty: no labels.
        part: what the selection is called, in messages and digests.
        decides: a digest of what else decides the selection.
    """

    container: Container
    select: Callable[[Container], Sequence[Selected]]
    class_names: tuple[str, ...] = ()
    part: str = ""
    decides: str = ""

    def describe(self) -> str:
        """The container, and the part of it."""
        return f"{self.container.describe()}{f' ({self.part})' if self.part else ''}"

    @cached_property
    def _chosen(self) -> tuple[Selected, ...]:
        return tuple(self.select(self.container))

    def digest(self) -> str:
        """Of the files, and of which they are."""
        content = self.container.digest(lambda: (name for name, _ in self._chosen))
        return combined(content, self.part, self.decides, self.class_names)

    def read(self) -> FilePictures:
        """The pictures, each read when it is asked for."""
        if not self._chosen:
            raise DataError(f"{self.describe()}: no picture in it")
        return FilePictures(self.container, self._chosen, {name: n for n, name in enumerate(self.class_names)})


# ---- several as one


@dataclass(frozen=True, eq=False)
class PooledPictures:
    """The pictures of several sources, one after the other."""

    parts: tuple[Pictures, ...]

    @cached_property
    def _ends(self) -> list[int]:
        return list(itertools.accumulate(map(len, self.parts)))

    def _at(self, row: int) -> tuple[Pictures, int]:
        """The part that a picture is in, and its row there."""
        number = bisect.bisect_right(self._ends, row)
        return self.parts[number], row - (self._ends[number - 1] if number else 0)

    def __len__(self) -> int:
        return self._ends[-1]

    def picture(self, row: int) -> Picture:
        """One of them."""
        part, place = self._at(row)
        return part.picture(place)

    def fingerprint(self, row: int) -> bytes:
        """Of its content."""
        part, place = self._at(row)
        return part.fingerprint(place)

    def label(self, row: int) -> int | None:
        """Its class."""
        part, place = self._at(row)
        return part.label(place)


@dataclass(frozen=True)
class Pool:
    """Several sources as one; their classes are the same."""

    parts: tuple[ImageSource, ...]

    @property
    def class_names(self) -> tuple[str, ...]:
        """Of the first part."""
        return self.parts[0].class_names

    def describe(self) -> str:
        """All of them."""
        return " and ".join(dict.fromkeys(part.describe() for part in self.parts))

    def digest(self) -> str:
        """Of all of them, in order."""
        return combined(*(part.digest() for part in self.parts))

    def read(self) -> PooledPictures:
        """All pictures."""
        return PooledPictures(tuple(part.read() for part in self.parts))
