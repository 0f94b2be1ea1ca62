"""Named sets of images: what is known of each, and where its files may lie on this machine."""

import os
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib import resources
from pathlib import Path

from textebm.data import download
from textebm.data.image_decoding import Crop
from textebm.data.registry import DATA_DIR_VARIABLE, Split
from textebm.errors import DataError

CARDS = "textebm.data.cards.images"


@dataclass(frozen=True)
class FileCard:
    """What is known of one published file.

    sha256: of its content: unpacked, where the file may lie here packed or not. None: not known.
    url: where it is published; None: at no address that stays.
    packed: SHA-256 of what that address sends, where that is packed.
    """

    sha256: str | None = None
    url: str | None = None
    packed: str | None = None

    def published(self, name: str) -> download.Published | None:
        """What a download brings, or None where there is none that can be checked."""
        digest = self.packed or self.sha256
        if self.url is None or digest is None:
            return None
        return download.Published(self.url.rpartition("/")[2] or name, self.url, digest)


@dataclass(frozen=True)
class ImageCard:
    """What is known of a named set of images."""

    name: str
    title: str
    description: str
    licence: str
    source: str
    notes: str
    reader: str
    """Which reader its files are for: a key of `image_layouts.READERS`."""
    folder: str
    """Name of the folder that holds its files, in the folder that --data-dir names."""
    channels: int
    size: int
    """Height and width, in pixels."""
    classes: tuple[str, ...]
    crop: Crop
    held_out: int | None
    """How many images of the published training set are valid; None: there is a published valid."""
    images: Mapping[Split, int]
    """Images of each split."""
    files: Mapping[str, FileCard]
    wanted: str
    """The files in words, for messages."""

    def __str__(self) -> str:
        return f"{self.name} ({self.title})"

    @property
    def advice(self) -> str:
        """Where to get it by hand, and how to name the folder."""
        return (
            f"Where to get it: {self.source} Then put {self.wanted} into FOLDER/{self.folder}, and name FOLDER with "
            f"--data-dir or in the environment variable {DATA_DIR_VARIABLE}."
        )

    @property
    def downloads(self) -> dict[str, download.Published]:
        """The files that can be downloaded and checked; empty unless all can."""
        found = {name: file.published(name) for name, file in self.files.items()}
        return {} if None in found.values() else {name: file for name, file in found.items() if file is not None}


def image_card_names() -> list[str]:
    """Names of the sets of images that have a card."""
    names = (file.name for file in resources.files(CARDS).iterdir())
    return sorted(name.removesuffix(".toml") for name in names if name.endswith(".toml"))


@cache
def load_image_card(name: str) -> ImageCard:
    """The card of a named set of images.

    Raises:
        DataError: there is no card of that name.
    """
    if name not in image_card_names():
        raise DataError(f"no set of images is named {name!r}; named ones: {', '.join(image_card_names())}")
    values = tomllib.loads((resources.files(CARDS) / f"{name}.toml").read_text(encoding="utf-8"))
    return ImageCard(
        name=name,
        title=values["title"],
        description=values["description"],
        licence=values["licence"],
        source=values["source"],
        notes=values["notes"],
        reader=values["reader"],
        folder=values["folder"],
        channels=values["channels"],
        size=values["size"],
        classes=tuple(values.get("classes", ())),
        crop=values.get("crop", "centre"),
        held_out=values.get("held_out"),
        images=values["images"],
        files={file: FileCard(**known) for file, known in values["files"].items()},
        wanted=values["wanted"],
    )


def places(card: ImageCard, data_dir: str | None = None) -> list[Path]:
    """The folders in which the files of a named set are looked for, in order.

    Args:
        card: of the set.
        data_dir: folder that holds local copies; else that of TEXTEBM_DATA. What was downloaded is looked at last,
            unless `data_dir` is given.

    Raises:
        DataError: `data_dir`, or the folder of TEXTEBM_DATA, does not exist.
    """
    given, said_by = (data_dir, "data_dir") if data_dir else (os.environ.get(DATA_DIR_VARIABLE), DATA_DIR_VARIABLE)
    found = []
    if given:
        root = Path(given).expanduser()
        if not root.is_dir():
            raise DataError(f"{said_by} is {str(root)!r}, which is no folder. {card.advice}")
        found = list(dict.fromkeys((root / card.name, root / card.folder, root)))
    return found if data_dir else [*found, download.folder_of(card.folder)]


def fetch(card: ImageCard) -> dict[str, download.Fetched]:
    """Download a named set to `TEXTEBM_HOME/data/FOLDER/`; files that are there already are only checked.

    Raises:
        DataError: it is published at no address that stays, the network cannot or may not be used, or what comes is
            not what was published.
    """
    if not card.downloads:
        raise DataError(f"{card}: there is no address to download it from. {card.advice}")
    return download.fetch(card.folder, card.downloads, card.advice)
