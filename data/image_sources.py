"""Sources of pictures: published arrays, files in folders and archives, and whatever else answers the same."""

import hashlib
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
