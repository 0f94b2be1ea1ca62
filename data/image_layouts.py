"""Which files belong to which split: of published sets, each in its forms, and of one's own folders and archives."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from textebm.data.image_cards import ImageCard
from textebm.data.image_files import (
    ARCHIVE_ENDINGS,
    Container,
    FolderFiles,
    TarFiles,
    file_digest,
    is_image,
    open_container,
    read_at_most,
)
from textebm.data.image_formats import read_cifar_batch, read_idx_images, read_mats
from textebm.data.image_sources import ArrayFiles, ArrayMembers, ImageFiles, ImageSource, Selected
from textebm.data.registry import COMPRESSIONS, SPLITS, Split
from textebm.errors import DataError
from textebm.lm_eval.corpus import shown

Sources = dict[Split, ImageSource]

SPLIT_FOLDERS: dict[str, Split] = {
    **{"train": "train", "training": "train"},
    **{"valid": "valid", "validation": "valid", "val": "valid", "dev": "valid"},
    **{"test": "test", "testing": "test"},
}
"""Names of folders that say a split."""
CIFAR_FOLDER = "cifar-10-batches-py"
CIFAR_ARCHIVE = "cifar-10-python.tar.gz"
CIFAR_BATCHES: dict[Split, tuple[str, ...]] = {
    "train": tuple(f"data_batch_{number}" for number in range(1, 6)),
    "test": ("test_batch",),
}
CELEBA_IMAGES = "img_align_celeba"
CELEBA_PARTITION = "list_eval_partition.txt"
LARGEST_PARTITION = 64 << 20


# ---- one's own folders and archives


@dataclass(frozen=True)
class Layout:
    """The pictures of a folder or an archive.

    splits: name and class ("": none) of each picture, by split. Only `train`: the names say no split.
    """

    splits: Mapping[Split, tuple[Selected, ...]]

    @property
    def class_names(self) -> tuple[str, ...]:
        """Names of the classes, of all splits; empty where there are none."""
        return tuple(sorted({kind for pictures in self.splits.values() for _, kind in pictures} - {""}))


def layout_of(container: Container) -> Layout:
    """How pictures lie in a folder or an archive: `train/CLASS/x.png`, `train/x.png`, `CLASS/x.png` or `x.png`.

    A folder in which all others lie says nothing.

    Raises:
        DataError: there is no picture, or some pictures lie outside the folders that say splits or classes.
    """
    paths = [name.split("/") for name in container.names() if is_image(name)]
    if not paths:
        raise DataError(
            f"{container.describe()} holds no picture: no name in it ends in .jpg, .png or the like (text in an "
            "archive must be unpacked first)"
        )
    depth = 0
    while all(len(path) > depth + 1 for path in paths) and len({path[depth] for path in paths}) == 1:
        if paths[0][depth].lower() in SPLIT_FOLDERS:
            break
        depth += 1
    says_split = [len(path) > depth + 1 and path[depth].lower() in SPLIT_FOLDERS for path in paths]
    if not any(says_split):
        return Layout({"train": _classes(container, paths, depth)})
    if not all(says_split):
        outside = "/".join(paths[says_split.index(False)])
        raise DataError(
            f"{container.describe()}: {shown(outside)} lies outside the folders train, valid and test; move it "
            "into one of them, or take them away: then valid and test are held out of all pictures"
        )
    by_split: dict[Split, list[list[str]]] = {}
    for path in paths:
        by_split.setdefault(SPLIT_FOLDERS[path[depth].lower()], []).append(path)
    if "train" not in by_split:
        raise DataError(f"{container.describe()}: a folder {' and '.join(by_split)}, and none named train")
    return Layout({split: _classes(container, by_split[split], depth + 1) for split in SPLITS if split in by_split})


def _classes(container: Container, paths: list[list[str]], depth: int) -> tuple[Selected, ...]:
    """Each picture with the name of the folder at this depth, which is its class; all have one, or none has."""
    flat = [len(path) == depth + 1 for path in paths]
    if any(flat) and not all(flat):
        alone, classed = ("/".join(paths[flat.index(is_flat)]) for is_flat in (True, False))
        raise DataError(
            f"{container.describe()}: {shown(alone)} lies beside folders of classes, such as that of {shown(classed)}; "
            "move it into one of them"
        )
    return tuple(("/".join(path), "" if all(flat) else path[depth]) for path in paths)


def folder_sources(container: Container) -> Sources:
    """The splits of a folder or an archive of pictures: at least train.

    Raises:
        DataError: see `layout_of`.
    """
    layout = layout_of(container)

    def of(split: Split) -> ImageFiles:
        pictures = layout.splits[split]
        return ImageFiles(container, lambda _: pictures, layout.class_names, split if len(layout.splits) > 1 else "")

    return {split: of(split) for split in layout.splits}


# ---- published sets


@dataclass(frozen=True)
class Found:
    """A named set on this machine: the folder that holds its files, and its splits."""

    folder: Path
    sources: Sources


def find(card: ImageCard, folders: Iterable[Path]) -> Found | None:
    """A named set in the first of these folders that has its files; None: none has any.

    Raises:
        DataError: a folder has some of the files, and not all.
    """
    read = READERS[card.reader]
    return next((Found(folder, sources) for folder in folders if (sources := read(card, folder)) is not None), None)


def _missing(card: ImageCard, folder: Path, names: list[str]) -> DataError:
    return DataError(f"{card}: {shown(folder)} has no {', '.join(names)}. {card.advice}")


def packed(folder: Path, name: str) -> Path | None:
    """A file in a folder, plain before packed by gzip or xz."""
    return next((path for end in COMPRESSIONS if (path := folder / (name + end)).is_file()), None)


def _complete(card: ImageCard, folder: Path) -> dict[str, Path] | None:
    """All files of a card; None: the folder has none of them."""
    found = {name: path for name in card.files if (path := packed(folder, name)) is not None}
    if found and len(found) < len(card.files):
        raise _missing(card, folder, [name for name in card.files if name not in found])
    return found or None


def _idx(card: ImageCard, folder: Path) -> Sources | None:
    """MNIST: two files a split."""
    files = _complete(card, folder)
    if files is None:
        return None

    def of(prefix: str) -> ArrayFiles:
        paths = (files[f"{prefix}-images-idx3-ubyte"], files[f"{prefix}-labels-idx1-ubyte"])
        return ArrayFiles(paths, read_idx_images, card.classes)

    return {"train": of("train"), "test": of("t10k")}


def _mat(card: ImageCard, folder: Path) -> Sources | None:
    """SVHN: a file for test, and one or two for train."""
    files = _complete(card, folder)
    if files is None:
        return None
    train = tuple(path for name, path in files.items() if not name.startswith("test"))
    return {
        "train": ArrayFiles(train, read_mats, card.classes),
        "test": ArrayFiles((files["test_32x32.mat"],), read_mats, card.classes),
    }


def _cifar(card: ImageCard, folder: Path) -> Sources | None:
    """CIFAR-10: the published batches, in a folder or packed as they are published; or pictures by split and class."""
    if (folder / CIFAR_FOLDER).is_dir():
        return _cifar_batches(card, FolderFiles(folder / CIFAR_FOLDER), "")
    if (folder / CIFAR_ARCHIVE).is_file():
        return _cifar_batches(card, TarFiles(folder / CIFAR_ARCHIVE), f"{CIFAR_FOLDER}/")
    archives = [folder / f"{card.name}{ending}" for ending in ARCHIVE_ENDINGS]
    if archive := next(filter(Path.is_file, archives), None):
        return _cifar_pictures(card, open_container(archive))
    if all((folder / split / card.classes[0]).is_dir() for split in ("train", "test")):
        return _cifar_pictures(card, FolderFiles(folder))
    return None


def _cifar_batches(card: ImageCard, container: Container, prefix: str) -> Sources:
    def of(split: Split) -> ArrayMembers:
        members = tuple(prefix + name for name in CIFAR_BATCHES[split])
        return ArrayMembers(container, members, read_cifar_batch, card.classes)

    return {"train": of("train"), "test": of("test")}


def _cifar_pictures(card: ImageCard, container: Container) -> Sources:
    def select(split: Split, files: Container) -> tuple[Selected, ...]:
        layout = layout_of(files)
        if set(layout.splits) != {"train", "test"} or layout.class_names != card.classes:
            raise DataError(
                f"{files.describe()}: not CIFAR-10 as pictures: train/CLASS/*.jpg and test/CLASS/*.jpg are wanted, "
                f"with the classes {', '.join(card.classes)}. {card.advice}"
            )
        return layout.splits[split]

    def of(split: Split) -> ImageFiles:
        return ImageFiles(container, partial(select, split), card.classes, split)

    return {"train": of("train"), "test": of("test")}


def _celeba(card: ImageCard, folder: Path) -> Sources | None:
    """CelebA: the aligned images, in a folder or an archive, and the file that says the split of each."""
    names = [folder / CELEBA_IMAGES, *(folder / f"{CELEBA_IMAGES}{ending}" for ending in ARCHIVE_ENDINGS)]
    images = next(filter(Path.exists, names), None)
    lists = [folder / CELEBA_PARTITION, folder / "Eval" / CELEBA_PARTITION]
    partition = next(filter(Path.is_file, lists), None)
    if images is not None and partition is not None:
        return _celeba_splits(open_container(images), partition)
    if images is not None:
        raise _missing(card, folder, [CELEBA_PARTITION])
    if partition is not None:
        raise _missing(card, folder, [f"{CELEBA_IMAGES} (a folder, {', '.join(ARCHIVE_ENDINGS)})"])
    return None


def _celeba_splits(container: Container, partition: Path) -> Sources:
    decides = file_digest(partition)

    def select(split: Split, files: Container) -> tuple[Selected, ...]:
        wanted = {name for name, number in read_partition(partition).items() if SPLITS[number] == split}
        found = [name for name in files.names() if name.rpartition("/")[2] in wanted]
        if missing := sorted(wanted - {name.rpartition("/")[2] for name in found}):
            raise DataError(
                f"{files.describe()} lacks {len(missing):,} of the {len(wanted):,} images of {split} that "
                f"{shown(partition)} lists, such as {shown(missing[0])}: complete it, or cut the list"
            )
        return tuple((name, "") for name in found)

    return {split: ImageFiles(container, partial(select, split), (), split, decides) for split in SPLITS}


def read_partition(path: Path) -> dict[str, int]:
    """The split of each of CelebA's images, 0: train, 1: valid, 2: test, from lines such as `000001.jpg 0`.

    Raises:
        DataError: the file is unreadable, empty, or has another form.
    """
    found: dict[str, int] = {}
    lines = read_at_most(path, LARGEST_PARTITION).decode("utf-8", errors="replace").splitlines()
    for number, line in enumerate(lines, start=1):
        parts = line.split()
        if not parts:
            continue
        if len(parts) != 2 or parts[1] not in ("0", "1", "2"):
            raise DataError(
                f"{shown(path)}, line {number}: {line[:60]!r}, where a file's name and 0, 1 or 2 are wanted"
            )
        found[parts[0]] = int(parts[1])
    if not found:
        raise DataError(f"{shown(path)}: no line in it; it lists CelebA's images and the split of each")
    return found


READERS: dict[str, Callable[[ImageCard, Path], Sources | None]] = {
    "idx": _idx,
    "mat": _mat,
    "cifar": _cifar,
    "celeba": _celeba,
}
"""Readers of published sets, by the name on their cards."""
