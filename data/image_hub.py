"""Pictures of data sets in the forms that the library `datasets` reads (see `hub`)."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from textebm.data import hub
from textebm.data.image_decoding import Picture
from textebm.data.image_sources import ImageSource, combined, fingerprint
from textebm.data.registry import SPLIT_NAMES, SPLITS, Split
from textebm.errors import DataError

if TYPE_CHECKING:
    from datasets import Dataset


@dataclass(frozen=True, eq=False)
class HubPictures:
    """Pictures in a column of a data set."""

    where: str
    rows: "Dataset"
    image_column: str
    label_column: str | None

    def __len__(self) -> int:
        return len(self.rows)

    def picture(self, row: int) -> Picture:
        """The picture in one row."""
        values = self.rows[row]
        where = f"{self.where}, row {row}"
        label = None if self.label_column is None else values[self.label_column]
        if self.label_column is not None and (label is None or label < 0):
            raise DataError(f"{where}: no label in the column {self.label_column}")
        return Picture(where, _content(values[self.image_column], where), label)

    def label(self, row: int) -> int | None:
        """The class of one row."""
        return None if self._labels is None else self._labels[row]

    @cached_property
    def _labels(self) -> list[int | None] | None:
        """Of all rows: a column is read without its pictures."""
        return None if self.label_column is None else list(self.rows[self.label_column])

    def fingerprint(self, row: int) -> bytes:
        """Of the picture's bytes."""
        return fingerprint(self._bytes(row))

    def digest(self) -> str:
        """SHA-256 of all pictures and labels."""
        digest = hashlib.sha256()
        for row in range(len(self)):
            raw = self._bytes(row)
            label = None if self.label_column is None else self.rows[row][self.label_column]
            digest.update(f"{len(raw)} {label} ".encode() + raw)
        return digest.hexdigest()

    def _bytes(self, row: int) -> bytes:
        return _content(self.rows[row][self.image_column], f"{self.where}, row {row}")


def _content(stored: dict[str, Any] | None, where: str) -> bytes:
    """A picture's bytes: they stand in the data set, or in a file that it names."""
    if stored is None:
        raise DataError(f"{where}: no picture in it")
    if stored["bytes"] is not None:
        return bytes(stored["bytes"])
    try:
        return Path(stored["path"]).read_bytes()
    except (OSError, TypeError) as error:
        raise DataError(f"{where}: its picture cannot be read ({error})") from None


@dataclass(frozen=True, eq=False)
class HubImages:
    """A source: the pictures in one column of one split of a data set."""

    name: str
    """The data set's."""
    split: str
    rows: "Dataset"
    image_column: str
    label_column: str | None
    class_names: tuple[str, ...]

    def describe(self) -> str:
        """Data set, column and split."""
        return f"{self.name}, column {self.image_column}, split {self.split}"

    def digest(self) -> str:
        """Of the pictures and labels: where they lie, and in which format, does not matter."""
        return combined(self.read().digest(), self.class_names)

    def read(self) -> HubPictures:
        """The pictures, each read when it is asked for."""
        if not len(self.rows):
            raise DataError(f"{self.describe()}: no picture in it")
        return HubPictures(self.describe(), self.rows, self.image_column, self.label_column)


def resolve(data: str, image_column: str | None, label_column: str | None) -> tuple[str, Mapping[Split, ImageSource]]:
    """The short name of a data set, and its splits: at least train.

    Args:
        data: `hf:NAME` and the like (see `hub.Reference`).
        image_column: that holds the pictures; None: its only one of images.
        label_column: that holds class labels; None: its only one of them, if it has one.

    Raises:
        DataError: the data set cannot be had, has no train, or it is not plain which column is meant.
    """
    reference = hub.Reference.parse(data)
    found = hub.load(reference)
    from datasets import ClassLabel, Image

    images = _column(found, image_column, "image", "images", "--images.image-column")
    if images is None:
        there = ", ".join(f"{name} ({kind})" for name, kind in found.columns.items())
        raise DataError(f"{reference} has no column of images; its columns: {there}")
    labels = _column(found, label_column, "classlabel", "class labels", "--images.label-column")
    names: tuple[str, ...] = ()
    if labels is not None:
        kind = found.features[labels]
        assert isinstance(kind, ClassLabel)
        names = tuple(kind.names)
    splits = _splits(reference, found)

    def of(name: str) -> HubImages:
        rows = found.splits[name].select_columns([images, labels] if labels else [images])
        return HubImages(found.name, name, rows.cast_column(images, Image(decode=False)), images, labels, names)

    return reference.short, {split: of(name) for split, name in splits.items()}


def _column(found: hub.HubData, named: str | None, kind: str, kinds: str, option: str) -> str | None:
    """The column of a kind: the one named, else the only one; None: there is none."""
    fit = [name for name, what in found.columns.items() if what == kind]
    if named is not None:
        if named in fit:
            return named
        there = ", ".join(f"{name} ({what})" for name, what in found.columns.items())
        raise DataError(f"{found.name} has no column of {kinds} named {named!r}; its columns: {there}")
    if len(fit) > 1:
        raise DataError(f"{found.name} has several columns of {kinds} ({', '.join(fit)}): name one with {option}")
    return fit[0] if fit else None


def _splits(reference: hub.Reference, found: hub.HubData) -> dict[Split, str]:
    """The names of its splits; a data set with one split is train, whatever it is called."""
    named = {split: next(filter(found.splits.__contains__, SPLIT_NAMES[split]), None) for split in SPLITS}
    splits = {split: name for split, name in named.items() if name is not None}
    if "train" in splits:
        return splits
    if len(found.splits) == 1:
        return {"train": next(iter(found.splits))}
    raise DataError(f"{reference} has no split named train; its splits: {', '.join(found.splits)}")
