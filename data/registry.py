"""Named corpora and one's own files: from what the user wrote behind `--data` to three splits of sentences."""

import difflib
import hashlib
import os
import re
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Literal, get_args

from textebm.errors import DataError
from textebm.lm_eval.corpus import UNKNOWN, read_sentences

Split = Literal["train", "valid", "test"]
SPLITS: tuple[Split, ...] = get_args(Split)
SPLIT_NAMES: dict[Split, tuple[str, ...]] = {
    "train": ("train",),
    "valid": ("valid", "validation", "dev"),
    "test": ("test",),
}
COMPRESSIONS = ("", ".gz", ".xz")
HOLD_OUT_SHARES = 20  # a single file is cut into this many shares: one is valid, one test, the rest train
DATA_DIR_VARIABLE = "TEXTEBM_DATA"


@dataclass(frozen=True)
class SplitCard:
    """What is known of one published or local split: file names tried in turn, and what the content must be."""

    files: tuple[str, ...]
    sha256: str
    sentences: int
    words: int


@dataclass(frozen=True)
class Card:
    """What is known of a named corpus; `sha256` and counts are of the decompressed content."""

    name: str
    title: str
    description: str
    licence: str
    source: str
    notes: str
    unknown: str | None
    """The word that stands for an unknown one in the files."""
    embedded: bool
    """Whether the files ship with the package."""
    splits: dict[Split, SplitCard]

    def __str__(self) -> str:
        return f"{self.name} ({self.title})"


class Sentences(Iterator[str]):
    """Sentences of one split, read as they are asked for.

    Each is its words joined by single blanks. Lines without a word are left out and counted in `blank_lines`.
    """

    def __init__(self, path: Path, unknown: str | None = None, share: Split | None = None) -> None:
        self.blank_lines = 0
        self._sentences = self._read(path, unknown, share)

    def __next__(self) -> str:
        return next(self._sentences)

    def _read(self, path: Path, unknown: str | None, share: Split | None) -> Iterator[str]:
        found = 0
        for line in read_sentences(path, keep_blank=True):
            if not line:
                self.blank_lines += 1
                continue
            sentence = _with_our_unknown(line, unknown)
            if share is None or held_out_share(sentence) == share:
                found += 1
                yield sentence
        if not found and share is None:
            raise DataError(f"{path} holds no sentence: it is empty or has blank lines only. Give a file with text.")
        if not found:
            raise DataError(
                f"{path} is too small to hold out of it: none of its sentences falls to {share} (one in "
                f"{HOLD_OUT_SHARES} goes to valid, one to test). Give a folder with train, valid and test instead."
            )


@dataclass(frozen=True)
class Corpus:
    """A corpus with train, valid and test.

    A single text file has `valid` and `test` None: they are then held out of it, one sentence in twenty each.
    """

    name: str
    train: Path
    valid: Path | None
    test: Path | None
    unknown: str | None = None
    """The word that stands for an unknown one in the files; read as <unk>."""
    card: Card | None = None

    @property
    def held_out(self) -> bool:
        """Whether valid and test are held out of a single file."""
        return self.valid is None or self.test is None

    def path(self, split: Split) -> Path:
        """The file in which the sentences of a split stand."""
        return {"train": self.train, "valid": self.valid, "test": self.test}[split] or self.train

    def sentences(self, split: Split) -> Sentences:
        """The sentences of a split: words joined by single blanks, blank lines left out, unknown words as <unk>.

        Raises (while it is read):
            DataError: the file is missing, broken, not UTF-8, or holds no sentence of this split.
        """
        return Sentences(self.path(split), self.unknown, split if self.held_out else None)


def _with_our_unknown(sentence: str, unknown: str | None) -> str:
    if unknown is None or unknown == UNKNOWN or unknown not in sentence:
        return sentence
    return " ".join(UNKNOWN if word == unknown else word for word in sentence.split())


def held_out_share(sentence: str) -> Split:
    """The split to which a sentence of a single file belongs: a function of its words alone.

    So equal sentences never stand in two splits, and a file that grows keeps its splits.
    """
    digest = hashlib.blake2b(sentence.encode(), digest_size=8).digest()
    share = int.from_bytes(digest, "big") % HOLD_OUT_SHARES
    return "valid" if share == 0 else "test" if share == 1 else "train"


def card_names() -> list[str]:
    """Names of the corpora that have a card."""
    files = resources.files("textebm.data.cards").iterdir()
    return sorted(file.name.removesuffix(".toml") for file in files if file.name.endswith(".toml"))


@cache
def load_card(name: str) -> Card:
    """The card of a named corpus.

    Raises:
        DataError: there is no card of that name (the message names the nearest).
    """
    if name not in card_names():
        raise DataError(f"no corpus is named {name!r}{_nearest(name)}")
    values = tomllib.loads((resources.files("textebm.data.cards") / f"{name}.toml").read_text(encoding="utf-8"))
    splits = {split: SplitCard(**{**values[split], "files": tuple(values[split]["files"])}) for split in SPLITS}
    return Card(
        name=name,
        title=values["title"],
        description=values["description"],
        licence=values["licence"],
        source=values["source"],
        notes=values.get("notes", ""),
        unknown=values.get("unknown"),
        embedded=values.get("embedded", False),
        splits=splits,
    )


def resolve(data: str, data_dir: str | None = None) -> Corpus:
    """The corpus that `data` means.

    Args:
        data: name of a corpus that has a card (it wins over a file of that name), a text file (plain, .gz, .xz,
            .jsonl), or a folder with train, valid (or validation, dev) and test files.
        data_dir: folder with local copies of named corpora, as `data_dir/ptb/ptb.train.txt` or
            `data_dir/ptb.train.txt`; else the environment variable TEXTEBM_DATA.

    Raises:
        DataError: no such corpus, file or split; the message says where to get it, or names the nearest.
    """
    if data in card_names():
        return _named(load_card(data), data_dir)
    path = Path(data).expanduser()
    if path.is_dir():
        return _folder(path)
    if path.is_file():
        return Corpus(name=_stem(path), train=path, valid=None, test=None)
    raise DataError(f"{data!r} is neither a file, nor a folder, nor a named corpus{_nearest(data)}")


def _nearest(name: str) -> str:
    near = difflib.get_close_matches(name.lower(), card_names(), n=1, cutoff=0.5)
    known = ", ".join(card_names())
    return f"; did you mean {near[0]!r}? (named corpora: {known})" if near else f"; named corpora: {known}"


def _named(card: Card, data_dir: str | None) -> Corpus:
    if card.embedded:
        roots = [Path(str(resources.files("textebm.data"))) / card.name]
    else:
        root = _data_dir(card, data_dir)
        roots = [root / card.name, root]
    found = max((_files_in(root, card) for root in roots), key=len)  # of one folder, never half of each
    if missing := [card.splits[split].files[0] for split in SPLITS if split not in found]:
        raise DataError(
            f"{card}: no {', '.join(missing)} (plain, .gz or .xz) in {' or '.join(map(str, roots))}. "
            + _where_to_get(card)
        )
    return Corpus(card.name, found["train"], found["valid"], found["test"], card.unknown, card)


def _data_dir(card: Card, data_dir: str | None) -> Path:
    given, said_by = (data_dir, "data_dir") if data_dir else (os.environ.get(DATA_DIR_VARIABLE), DATA_DIR_VARIABLE)
    if not given:
        raise DataError(
            f"{card}: it does not ship with textebm, and no folder with a copy is named. {_where_to_get(card)}"
        )
    root = Path(given).expanduser()
    if not root.is_dir():
        raise DataError(f"{said_by} is {str(root)!r}, which is no folder. {_where_to_get(card)}")
    return root


def _where_to_get(card: Card) -> str:
    files = ", ".join(card.splits[split].files[0] for split in SPLITS)
    return (
        f"Where to get it: {card.source} Then put {files} (plain, .gz or .xz) into FOLDER/{card.name}, and name FOLDER "
        f"with --data-dir or in the environment variable {DATA_DIR_VARIABLE}."
    )


def _files_in(root: Path, card: Card) -> dict[Split, Path]:
    """The splits of a card whose file lies in a folder, plain before compressed."""
    found: dict[Split, Path] = {}
    for split in SPLITS:
        candidates = [root / (name + packed) for name in card.splits[split].files for packed in COMPRESSIONS]
        if path := next(filter(Path.is_file, candidates), None):
            found[split] = path
    return found


def _folder(folder: Path) -> Corpus:
    """The corpus in a folder whose file names say their split, as train.txt, dev.jsonl.gz or ptb.test.txt.xz."""
    found = {split: _split_files(folder, split) for split in SPLITS}
    for split, files in found.items():
        if not files:
            names = " or ".join(f"{name}.txt" for name in SPLIT_NAMES[split])
            raise DataError(
                f"{str(folder)!r} has no {split} file: expected {names} (also .jsonl; .gz or .xz; a prefix as in "
                f"NAME.{split}.txt is allowed). Add it, or give one text file, from which valid and test are held out."
            )
        if len(files) > 1:
            names = ", ".join(file.name for file in files)
            raise DataError(f"{str(folder)!r} has several {split} files: {names}. Keep one of them.")
    return Corpus(folder.resolve().name, found["train"][0], found["valid"][0], found["test"][0])


def _split_files(folder: Path, split: Split) -> list[Path]:
    name = re.compile(rf"(?:[^.].*[._-])?(?:{'|'.join(SPLIT_NAMES[split])})(?:\.txt|\.jsonl)?(?:\.gz|\.xz)?")
    return sorted(file for file in folder.iterdir() if file.is_file() and name.fullmatch(file.name))


def _stem(path: Path) -> str:
    """A file's name without its endings, for the names of runs."""
    name = path.name
    for ending in (".gz", ".xz", ".txt", ".jsonl"):
        name = name.removesuffix(ending)
    return name or path.name
