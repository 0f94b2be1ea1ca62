"""Pictures as arrays, decoded once and kept: keyed by content and settings, mapped from their file.

    TEXTEBM_HOME/images/KEY.pixels    (images, channels, height, width) uint8, nothing else
    TEXTEBM_HOME/images/KEY.labels    (images,) int64, little-endian; empty where there are no labels
    TEXTEBM_HOME/images/KEY.json      what they hold, their sizes and sums; written last, so what has one is whole

Entries are independent: any of them may be deleted at any time.
"""

import dataclasses
import hashlib
import json
import math
from collections import Counter
from collections.abc import Callable, Mapping, Sized
from pathlib import Path

import numpy as np
import numpy.typing as npt

from textebm import whole_files
from textebm.data.cache import Watch
from textebm.data.entries import building, sealed, unsealed
from textebm.data.image_decoding import Fitting
from textebm.data.image_sources import Pictures
from textebm.errors import DataError
from textebm.home import home
from textebm.model.image_batch import ImageShape

FORMAT = 1
"""Of keys and files: another number, and everything is built anew."""
PICTURES_AT_ONCE = 256
CHECKED_WHOLE = 1 << 30
"""Bytes of pixels up to which an entry's sum is checked whenever it is opened: it takes a second or two."""


@dataclasses.dataclass
class ImageReport:
    """What an encoded split holds, and what became of its source."""

    count: int
    """Images kept."""
    channels: int
    height: int
    width: int
    labels: dict[str, int]
    """Images of each class; empty where there are no labels."""
    digest: str
    """SHA-256, as hexadecimal digits, of all pixels and labels, in order."""
    left_out: int = 0
    """Pictures that could not be used, and were to be left out."""
    problems: list[str] = dataclasses.field(default_factory=list)
    """What was wrong with the first few of them."""
    converted: dict[str, int] = dataclasses.field(default_factory=dict)
    """Pictures that had another mode than grey or colour of 8 bits, as was wanted, by Pillow's name of their mode."""

    @property
    def shape(self) -> ImageShape:
        """Of each image."""
        return ImageShape(self.channels, self.height, self.width)

    def __str__(self) -> str:
        parts = [f"{self.count:,} images of {self.shape}", *remarks(self.labels, self.converted, self.left_out)]
        return ", ".join(parts)


def remarks(labels: Sized, converted: Mapping[str, int], left_out: int) -> list[str]:
    """What is said of a split beside its number of images: classes, conversions, pictures that were left out.

    The arguments are those of a report.
    """
    said = [f"{len(labels)} classes"] if labels else []
    said += [f"{count:,} converted from {mode}" for mode, count in converted.items()]
    return [*said, f"{left_out:,} left out as unreadable"] if left_out else said


@dataclasses.dataclass(frozen=True, eq=False)
class Entry:
    """An entry of the cache.

    pixels: (images, channels, height, width) uint8, mapped from its file. labels: (images,) int64, or None.
    """

    pixels: npt.NDArray[np.uint8]
    labels: npt.NDArray[np.int64] | None
    class_names: tuple[str, ...]
    report: ImageReport


@dataclasses.dataclass(frozen=True)
class Recipe:
    """What an entry is made of.

    Args:
        split: what the pictures are called while they are decoded.
        pictures: reads them, and says which rows are wanted; called only if the entry is not there.
        class_names: of the labels.
        fitting: how each is made to fit.
        skip_bad: whether pictures that cannot be used are left out, not an error.
    """

    split: str
    pictures: Callable[[], tuple[Pictures, npt.NDArray[np.int64]]]
    class_names: tuple[str, ...]
    fitting: Fitting
    skip_bad: bool = False


def folder() -> Path:
    """Where entries are kept."""
    return home() / "images"


def entry(digest: str, recipe: Recipe, watch: Watch | None = None) -> Entry:
    """An entry, mapped from the cache, where it is put if it is not there.

    Args:
        digest: of the source's content and of which of its pictures are wanted.
        recipe: how the entry is made.
        watch: told of each lot of pictures that is done.

    Raises:
        DataError: a picture cannot be used (it is named), none is left, or the cache folder cannot be written.
    """
    settings = [FORMAT, digest, dataclasses.asdict(recipe.fitting), recipe.skip_bad, recipe.class_names]
    key = hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:32]
    path = folder() / f"{key}.json"
    with building(path, lambda: _is_whole(path), "decoded images") as found:
        if not found:
            _build(path, recipe, watch)
    return _opened(path)


def _build(path: Path, recipe: Recipe, watch: Watch | None) -> None:
    pictures, rows = recipe.pictures()
    decoded = _Decoding(recipe)
    with whole_files.appearing(path.with_suffix(".pixels")) as temporary, temporary.open("wb") as file:
        for begin in range(0, len(rows), PICTURES_AT_ONCE):
            some = rows[begin : begin + PICTURES_AT_ONCE]
            file.write(decoded.some(pictures, some))
            if watch is not None:
                watch(recipe.split, len(some))
        decoded.require_pictures()
    labels = np.array(decoded.labels, dtype="<i8")
    with whole_files.appearing(path.with_suffix(".labels")) as temporary:
        temporary.write_bytes(labels.tobytes())
    described = {
        "report": dataclasses.asdict(decoded.report(labels)),
        "class_names": recipe.class_names,
        "pixels": decoded.sum.hexdigest(),
        "labels": hashlib.sha256(labels.tobytes()).hexdigest(),
    }
    whole_files.write_text(path, sealed(described))


class _Decoding:
    """Pictures on their way into an entry, and what became of them."""

    NAMED = 10
    """Pictures left out whose faults are told."""

    def __init__(self, recipe: Recipe) -> None:
        self.recipe = recipe
        self.sum = hashlib.sha256()
        self.count = self.left_out = 0
        self.labels: list[int] = []
        self.problems: list[str] = []
        self.converted: Counter[str] = Counter()

    def some(self, pictures: Pictures, rows: npt.NDArray[np.int64]) -> bytes:
        """The pixels of some pictures, one after the other."""
        fitted = []
        for row in rows.tolist():
            try:
                picture = pictures.picture(row)
                pixels, mode = self.recipe.fitting.fit(picture)
            except DataError as error:
                if not self.recipe.skip_bad:
                    raise
                self.left_out += 1
                self.problems += [str(error)] if self.left_out <= self.NAMED else []
                continue
            fitted.append(pixels)
            self.labels += [] if picture.label is None else [picture.label]
            self.converted.update([] if mode is None else [mode])
        self.count += len(fitted)
        raw = np.stack(fitted).tobytes() if fitted else b""
        self.sum.update(raw)
        return raw

    def require_pictures(self) -> None:
        """Check that something is left."""
        if not self.count:
            raise DataError(f"none of its {self.left_out:,} pictures can be used. The first: {self.problems[0]}")

    def report(self, labels: npt.NDArray[np.int64]) -> ImageReport:
        """What the entry holds."""
        shape, names = self.recipe.fitting.shape, self.recipe.class_names
        counts = np.bincount(labels, minlength=len(names)).tolist() if len(labels) else []
        whole = self.sum.copy()
        whole.update(labels.tobytes())
        return ImageReport(
            self.count,
            shape.channels,
            shape.height,
            shape.width,
            dict(zip(names, counts, strict=True)) if counts else {},
            whole.hexdigest(),
            self.left_out,
            self.problems,
            dict(self.converted),
        )


def _is_whole(path: Path) -> bool:
    """Whether an entry is complete and undamaged; of a very large one, whether it has its size."""
    try:
        described = unsealed(path)
        report = ImageReport(**described["report"])
        pixels, labels = path.with_suffix(".pixels"), path.with_suffix(".labels").read_bytes()
        size = pixels.stat().st_size
        if size != report.count * math.prod(dataclasses.astuple(report.shape)):
            return False
        if hashlib.sha256(labels).hexdigest() != described["labels"]:
            return False
        if size > CHECKED_WHOLE:
            return True
        return bool(whole_files.sha256(pixels) == described["pixels"])
    except (OSError, ValueError, KeyError, TypeError):
        return False


def _opened(path: Path) -> Entry:
    described = unsealed(path)
    report = ImageReport(**described["report"])
    shape = (report.count, *dataclasses.astuple(report.shape))
    pixels = np.memmap(path.with_suffix(".pixels"), dtype=np.uint8, mode="r", shape=shape)
    labels = np.frombuffer(path.with_suffix(".labels").read_bytes(), dtype="<i8").astype(np.int64)
    return Entry(pixels, labels if len(labels) else None, tuple(described["class_names"]), report)
