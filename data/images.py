"""Images as batches: from what the user wrote behind `--data` to three splits of pictures, decoded, mapped, in batches.

corpus = resolve_images("mnist", data_dir)
train = corpus.encoded("train")
for rows in image_batches(len(train), 100, seed=0, epoch=0):
    x = train.batch(rows).to(device)
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

from textebm.data.batches import permuted
from textebm.data.cache import Watch
from textebm.data.image_cache import Entry, ImageReport, Recipe, entry
from textebm.data.image_cards import ImageCard, fetch, image_card_names, load_image_card, places
from textebm.data.image_decoding import CROPS, Crop, Fitting, is_coloured, opened
from textebm.data.image_files import ARCHIVE_ENDINGS, FolderFiles, is_image, open_container
from textebm.data.image_layouts import find, folder_sources
from textebm.data.image_sources import ImageSource, Pictures, Pool, combined
from textebm.data.registry import HOLD_OUT_SHARES, SPLITS, TEXT_NAME, Split, held_out_part
from textebm.data.sources import HUB_PREFIX
from textebm.errors import DataError
from textebm.model.image_batch import ImageBatch, ImageShape

__all__ = [
    "EncodedImages",
    "ImageBatch",
    "ImageCorpus",
    "ImageReport",
    "ImageShape",
    "class_number",
    "image_batches",
    "is_image_data",
    "resolve_images",
]

HOLD_OUT_SEED = 0
"""Of the permutations that draw valid out of a published training set, and the images that `max_images` leaves."""
TRAINED_SHARE = 0.8
"""Of the images that are pooled, those that are train and valid."""
LARGEST_SIDE = 1024
"""Pixels; larger images are beyond what this model is for."""


class EncodedImages:
    """One split, decoded: a memory-mapped array, and labels where there are any.

    Args:
        entry: of the cache.
    """

    def __init__(self, entry: Entry) -> None:
        self.pixels = entry.pixels
        """(images, channels, height, width) uint8."""
        self.labels = entry.labels
        """(images,) the class of each, or None."""
        self.class_names = entry.class_names
        """Name of class 0, 1, ..."""
        self.report = entry.report

    def __len__(self) -> int:
        return len(self.pixels)

    @property
    def shape(self) -> ImageShape:
        """Of each image."""
        return self.report.shape

    def batch(self, rows: npt.NDArray[np.int64]) -> ImageBatch:
        """The images of these rows, in the order given: value v of a pixel becomes v / 127.5 − 1."""
        return as_batch(self.pixels[rows])

    def groups(self, rows: npt.NDArray[np.int64], size: int) -> list[npt.NDArray[np.int64]]:
        """Places in `rows` of the images that are worked on together outside training: `size` in a row."""
        return consecutive(len(rows), size)


def as_batch(pixels: npt.NDArray[np.uint8]) -> ImageBatch:
    """Images of 8 bits, (batch, channels, height, width), as a batch: value v of a pixel becomes v / 127.5 − 1."""
    return ImageBatch(torch.from_numpy(pixels).float().div_(127.5).sub_(1.0))


def consecutive(n: int, size: int) -> list[npt.NDArray[np.int64]]:
    """0 … n − 1 in order, in groups of `size`, the last one smaller."""
    return [np.arange(begin, min(begin + size, n)) for begin in range(0, n, size)]


def image_batches(n: int, batch_size: int, seed: int, epoch: int, first: int = 0) -> Iterator[npt.NDArray[np.int64]]:
    """Rows of the images in shuffled batches: every image once; the last batch is smaller where they do not come out
    even.

    A pure function of its arguments, computed as it is asked for: a resumed run sees the batches it would have seen.

    Args:
        n: how many images there are.
        batch_size: images in a batch.
        seed: of the run's data order.
        epoch: each epoch has another order.
        first: number of the batch to begin with.
    """
    for begin in range(first * batch_size, n, batch_size):
        yield permuted(np.arange(begin, min(begin + batch_size, n)), n, seed, epoch)


# ---- splits


@dataclass(frozen=True)
class Choice:
    """Which of a source's pictures a split takes.

    Args:
        shares: the splits whose pictures it takes, where the source holds several; None: all.
        held_out: how many pictures of the source are valid, drawn by a fixed permutation of their numbers; None: a
            hash of each picture's content says its split, as of sentences: one in twenty valid, one in twenty test.
        apart: the splits that are told apart so.
        limit: how many it takes at most, drawn by a fixed permutation, in the source's order.
        without: number of a class whose pictures it leaves out.
    """

    shares: frozenset[Split] | None = None
    held_out: int | None = None
    apart: frozenset[Split] = frozenset()
    limit: int | None = None
    without: int | None = None

    def of(self, pictures: Pictures, where: str) -> npt.NDArray[np.int64]:
        """The rows, ascending.

        Raises:
            DataError: there is none.
        """
        n = len(pictures)
        rows = np.arange(n)
        if self.shares is not None:
            valid = self._drawn(n) if self.held_out is not None else None
            shares = [self._share(pictures, row, valid) for row in range(n)]
            rows = rows[np.array([share in self.shares for share in shares], dtype=bool)]
        if not len(rows):
            named = " or ".join(sorted(self.shares or ()))
            raise DataError(
                f"{where} is too small to hold out of it: none of its {n:,} pictures falls to {named} (one in "
                f"{HOLD_OUT_SHARES} goes to valid, one to test). Give folders train, valid and test instead"
            )
        if self.without is not None:
            rows = rows[[pictures.label(row) != self.without for row in rows.tolist()]]
            _require_pictures(rows, f"{where}: no picture of another class than the one that is left out")
        return _limited(rows, self.limit)

    def _drawn(self, n: int) -> frozenset[int]:
        """The rows that are valid; at most half of the source, so that a small copy of it can be used."""
        assert self.held_out is not None
        return frozenset(permuted(np.arange(min(self.held_out, n // 2)), n, HOLD_OUT_SEED, 0).tolist())

    def _share(self, pictures: Pictures, row: int, valid: frozenset[int] | None) -> Split:
        if valid is not None:
            return "valid" if row in valid else "train"
        split = held_out_part(pictures.fingerprint(row))
        return split if split in self.apart else "train"

    def plain(self) -> list[object]:
        """What decides the rows, for a digest."""
        shares = None if self.shares is None else sorted(self.shares)
        without = [] if self.without is None else [{"without": self.without}]
        return [shares, self.held_out, sorted(self.apart), self.limit, HOLD_OUT_SHARES, HOLD_OUT_SEED, *without]


@dataclass(frozen=True)
class PoolChoice:
    """Which of all pictures of a set a split takes, whatever splits they were published in.

    80 % of the pictures, drawn by a fixed permutation, are train, and the other 20 % test: of those outside the class
    `without`, whose own pictures are all in test. One in twenty of the 80 % is valid. It is the split of anomaly
    detection on MNIST (Zenati et al. 2018, and those who compare with them).

    Args:
        split: which one.
        whole_train: whether train keeps the pictures that are valid too.
        limit: how many it takes at most, drawn by a fixed permutation, in order.
        without: number of the class that is not trained on; None: there is none.
    """

    split: Split
    whole_train: bool = False
    limit: int | None = None
    without: int | None = None

    def of(self, pictures: Pictures, where: str) -> npt.NDArray[np.int64]:
        """The rows, ascending.

        Raises:
            DataError: there is none.
        """
        rows = np.arange(len(pictures))
        left_out = np.zeros(len(rows), dtype=bool)
        if self.without is not None:
            left_out = np.array([pictures.label(row) == self.without for row in rows.tolist()], dtype=bool)
        others = rows[~left_out]
        _require_pictures(others, f"{where}: no picture of another class than the one that is left out")
        drawn = others[permuted(np.arange(len(others)), len(others), HOLD_OUT_SEED, 0)]
        trained = int(TRAINED_SHARE * len(drawn))
        valid = max(1, trained // HOLD_OUT_SHARES)
        parts: dict[Split, npt.NDArray[np.int64]] = {
            "train": drawn[0 if self.whole_train else valid : trained],
            "valid": drawn[:valid],
            "test": np.concatenate([drawn[trained:], rows[left_out]]),
        }
        found = np.sort(parts[self.split])
        _require_pictures(found, f"{where} is too small: none of its {len(rows):,} pictures falls to {self.split}")
        return _limited(found, self.limit)

    def plain(self) -> list[object]:
        """What decides the rows, for a digest."""
        shares = [TRAINED_SHARE, HOLD_OUT_SHARES, HOLD_OUT_SEED]
        return ["pool", self.split, self.whole_train, self.limit, self.without, *shares]


def _require_pictures(rows: npt.NDArray[np.int64], otherwise: str) -> None:
    if not len(rows):
        raise DataError(otherwise)


def _limited(rows: npt.NDArray[np.int64], limit: int | None) -> npt.NDArray[np.int64]:
    """At most so many of the rows, drawn by a fixed permutation, in order."""
    if limit is None or limit >= len(rows):
        return rows
    return rows[np.sort(permuted(np.arange(limit), len(rows), HOLD_OUT_SEED, 1))]


@dataclass(frozen=True)
class ImageCorpus:
    """A set of images with train, valid and test.

    What it has no source for is held out of train: of a published set valid, `card.held_out` images drawn by a fixed
    permutation; of any other one picture in twenty for valid, and one for test, by a hash of its content.
    """

    name: str
    sources: Mapping[Split, ImageSource]
    fitting: Fitting
    card: ImageCard | None = None
    max_images: int | None = None
    """How many images train has at most."""
    whole_train: bool = False
    """Whether train keeps the images that are valid too."""
    skip_bad: bool = False
    excluded: int | None = None
    """Number of the class that is left out of train and valid."""
    pool: bool = False
    """Whether `sources` has all images as train, of which each split takes its own (see `PoolChoice`)."""
    _digests: dict[int, str] = field(default_factory=dict, compare=False, repr=False)
    """Of sources by their identity: each is read once for it."""

    @property
    def shape(self) -> ImageShape:
        """Of every image."""
        return self.fitting.shape

    @property
    def class_names(self) -> tuple[str, ...]:
        """Name of class 0, 1, ...; empty where there are no labels."""
        return self.sources["train"].class_names

    @property
    def held_out(self) -> tuple[Split, ...]:
        """The splits that are held out of train."""
        return tuple(split for split in SPLITS if split not in self.sources)

    def source(self, split: Split) -> ImageSource:
        """Where the pictures of a split lie: of one that is held out, where those of train lie."""
        return self.sources.get(split, self.sources["train"])

    def describe(self, split: Split) -> str:
        """What messages call the place where the pictures of a split lie."""
        return self.source(split).describe()

    def choice(self, split: Split) -> Choice | PoolChoice:
        """Which pictures of its source a split takes."""
        limit = self.max_images if split == "train" else None
        if self.pool:
            return PoolChoice(split, self.whole_train, limit, self.excluded)
        without = self.excluded if split != "test" else None
        if not self.held_out or (split in self.sources and split != "train"):
            return Choice(limit=limit, without=without)
        shares: set[Split] = {split, "valid"} if split == "train" and self.whole_train else {split}
        held_out = self.card.held_out if self.card else None
        return Choice(frozenset(shares), held_out, frozenset(self.held_out), limit, without)

    def digest(self, split: Split) -> str:
        """SHA-256, as hexadecimal digits, of what decides the images of a split: the same wherever they lie.

        Raises:
            DataError: the source cannot be read.
        """
        source = self.source(split)
        if id(source) not in self._digests:
            self._digests[id(source)] = source.digest()
        shape = [self.shape.channels, self.shape.height, self.shape.width]
        return combined(self._digests[id(source)], self.choice(split).plain(), shape, self.fitting.crop, self.skip_bad)

    def encoded(self, split: Split, watch: Watch | None = None) -> EncodedImages:
        """A split, decoded: mapped from the cache, where it is put if it is not there.

        Raises:
            DataError: something is missing or damaged; the message says what, and where.
        """
        source = self.source(split)

        def pictures() -> tuple[Pictures, npt.NDArray[np.int64]]:
            found = source.read()
            return found, self.choice(split).of(found, source.describe())

        recipe = Recipe(split, pictures, source.class_names, self.fitting, self.skip_bad)
        return EncodedImages(entry(self.digest(split), recipe, watch))

    def warnings(self) -> list[str]:
        """What a person ought to know before they use it."""
        found = []
        if self.whole_train and "valid" in self.held_out:
            found.append(
                "valid is part of train, as was asked for: what is measured on valid says nothing of new images"
            )
        return found


# ---- resolving


def is_image_data(name: str, data_dir: str | None = None) -> bool:
    """Whether what stands behind `--data` names images rather than text.

    It does if it has a card, if it is an archive or a folder with more image files than text files, or if it is a data
    set with a column of images.
    """
    if name in image_card_names():
        return True
    if name.startswith(HUB_PREFIX):
        return _is_hub_of_images(name)
    path = Path(name).expanduser()
    try:
        if path.is_dir():
            names = FolderFiles(path).names()
            return sum(map(is_image, names)) > sum(TEXT_NAME.search(file) is not None for file in names)
        return path.is_file() and path.name.lower().endswith(ARCHIVE_ENDINGS)
    except (OSError, ValueError, DataError):  # what cannot be looked at is nobody's images; who reads it says why
        return False


def _is_hub_of_images(name: str) -> bool:
    from textebm.data import hub

    try:
        return hub.load(hub.Reference.parse(name)).kind == "image"
    except DataError:
        return False


def download_notice(name: str, data_dir: str | None = None) -> str | None:
    """What `resolve_images` would download for a named set, and its licence; None where it would download nothing."""
    if name not in image_card_names():
        return None
    card = load_image_card(name)
    needed = card.downloads and data_dir is None and find(card, places(card)) is None
    return f"{card}. Licence: {card.licence}" if needed else None


def resolve_images(
    name: str,
    data_dir: str | None = None,
    size: int | None = None,
    crop: Crop | None = None,
    *,
    channels: int | None = None,
    max_images: int | None = None,
    whole_train: bool = False,
    skip_bad: bool = False,
    image_column: str | None = None,
    label_column: str | None = None,
    exclude_class: str | None = None,
    pool: bool = False,
) -> ImageCorpus:
    """The set of images that `name` means.

    Args:
        name: of a set that has a card; a folder or an archive (.tar, .tar.gz, .tar.xz, .zip) of pictures; or `hf:NAME`
            for a data set that `datasets` reads, of the hub or a local one.
        data_dir: folder with local copies of named sets; else the environment variable TEXTEBM_DATA, else what was
            downloaded before, else a download where the set is published at an address that stays.
        size: height and width in pixels; default: of a named set its own, else that of the first picture if it is
            square.
        crop: `centre`, the largest centred square, or `authors`, of CelebA; default: of a named set its own, else
            `centre`.
        channels: 1 for grey, 3 for colour; default: of a named set its own, else as the first picture has.
        max_images: how many images train has at most: drawn by a fixed permutation, the same in every run.
        whole_train: whether train keeps the images that are held out as valid, as in the published training sets.
        skip_bad: whether pictures that cannot be decoded are left out and counted; else one is an error.
        image_column: of a data set; default: its only one of images.
        label_column: of a data set; default: its only one of class labels, if it has one.
        exclude_class: name or number of a class that is left out of train and valid, and stays in test.
        pool: whether the images of all splits are taken together, and train, valid and test drawn from them anew (see
            `PoolChoice`).

    Raises:
        DataError: there is no such set, class, folder or picture, or an argument is out of range; the message says
            what to do.
    """
    _check_arguments(size, crop, channels, max_images)
    if name in image_card_names():
        card = load_image_card(name)
        shape = ImageShape(channels or card.channels, size or card.size, size or card.size)
        fitting = Fitting(shape, chosen_crop(name, crop))
        plain = ImageCorpus(name, _published(card, data_dir), fitting, card, max_images, whole_train, skip_bad)
        return _arranged(plain, exclude_class, pool)
    if name.startswith(HUB_PREFIX):
        from textebm.data import image_hub

        short, sources = image_hub.resolve(name, image_column, label_column)
    else:
        path = Path(name).expanduser()
        if not _is_folder(path) and not path.name.lower().endswith(ARCHIVE_ENDINGS):
            known = ", ".join(image_card_names())
            raise DataError(
                f"{name!r} is neither a folder nor an archive of images, nor a named set; named sets: {known}"
            )
        short, sources = path.resolve().name.split(".")[0] or "images", folder_sources(open_container(path))
    fitting = _fitting(sources["train"], size, chosen_crop(name, crop), channels)
    plain = ImageCorpus(short, sources, fitting, None, max_images, whole_train, skip_bad)
    return _arranged(plain, exclude_class, pool)


def chosen_crop(name: str, crop: Crop | None) -> Crop:
    """What is kept of the pictures of a set: what is asked for, else of a named set its own, else the centred square.

    Args:
        name: of the set.
        crop: what is asked for.
    """
    return crop or (load_image_card(name).crop if name in image_card_names() else "centre")


def _arranged(corpus: ImageCorpus, exclude_class: str | None, pool: bool) -> ImageCorpus:
    """A set of images with one class left out of train and valid, or with splits drawn anew; or as it is."""
    excluded = None if exclude_class is None else class_number(exclude_class, corpus.class_names, corpus.name)
    sources = corpus.sources
    if pool:
        sources = {"train": Pool(tuple(sources[split] for split in SPLITS if split in sources))}
    return replace(corpus, sources=sources, excluded=excluded, pool=pool)


def class_number(named: str, classes: Sequence[str], where: str) -> int:
    """The number of a class.

    Args:
        named: its name, or else its number.
        classes: names of class 0, 1, ...
        where: what messages call the images.

    Raises:
        DataError: there is no such class, or there are none at all.
    """
    if not classes:
        raise DataError(f"{where} has no classes, and {named!r} is to be one: folders of the classes' names make some")
    if named in classes:
        return list(classes).index(named)
    if named.isdecimal() and int(named) < len(classes):
        return int(named)
    raise DataError(f"{where} has no class {named!r}; its classes: {', '.join(classes)}")


def _is_folder(path: Path) -> bool:
    try:
        return path.is_dir()
    except (OSError, ValueError):  # a name too long, or with a NUL
        return False


def _check_arguments(size: int | None, crop: str | None, channels: int | None, max_images: int | None) -> None:
    if size is not None and not 1 <= size <= LARGEST_SIDE:
        raise DataError(f"images of {size} pixels a side: from 1 to {LARGEST_SIDE} are possible")
    if crop is not None and crop not in CROPS:
        raise DataError(f"no crop is named {crop!r}; there are {' and '.join(CROPS)}")
    if channels not in (None, 1, 3):
        raise DataError(f"images of {channels} channels: 1 (grey) and 3 (colour) are possible")
    if max_images is not None and max_images < 1:
        raise DataError(f"at most {max_images} images: at least 1 is wanted")


def _published(card: ImageCard, data_dir: str | None) -> Mapping[Split, ImageSource]:
    """The splits of a named set, from this machine or a download."""
    found = find(card, places(card, data_dir))
    if found is None and card.downloads and data_dir is None:
        fetch(card)
        found = find(card, places(card))
    if found is None:
        raise DataError(f"{card}: it does not ship with textebm, and no folder with a copy is named. {card.advice}")
    return found.sources


def _fitting(source: ImageSource, size: int | None, crop: Crop, channels: int | None) -> Fitting:
    """How the pictures of one's own set are made to fit: as the first one is, in what was not said."""
    if size is not None and channels is not None:
        return Fitting(ImageShape(channels, size, size), crop)
    first = source.read().picture(0)
    image = opened(first)
    if size is None and (image.width != image.height or image.width > LARGEST_SIDE):
        raise DataError(
            f"{first.name}: {image.width}×{image.height} pixels: say the size of all images, in pixels a side "
            "(--images.size)"
        )
    side = size or image.width
    found = channels or (3 if is_coloured(image) else 1)
    return Fitting(ImageShape(found, side, side), crop, refuse_colour=channels is None)
