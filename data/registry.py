"""Named corpora and one's own files: from what the user wrote behind `--data` to three splits of sentences."""

import difflib
import hashlib
import json
import os
import re
import sys
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cache
from importlib import resources
from itertools import combinations
from pathlib import Path
from typing import Literal, get_args

from textebm.data import download
from textebm.data.sources import DEFAULT_TEXT_FIELD, HUB_PREFIX, STANDARD_INPUT, Source, TextFiles, pipe_folder, spool
from textebm.errors import DataError
from textebm.lm_eval.corpus import UNKNOWN, shown

Split = Literal["train", "valid", "test"]
SPLITS: tuple[Split, ...] = get_args(Split)
SPLIT_NAMES: dict[Split, tuple[str, ...]] = {
    "train": ("train",),
    "valid": ("valid", "validation", "dev"),
    "test": ("test",),
}
COMPRESSIONS = ("", ".gz", ".xz")
TEXT_NAME = re.compile(r"\.(?:txt|jsonl)(?:\.gz|\.xz)?$")
TABLES = (".parquet", ".arrow", ".csv", ".tsv", ".json")
"""Endings of files that are no text to read line by line, but that a data set may be made of."""
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
    download: dict[Split, str]
    """Where each file is published, as an address; empty where it is published nowhere in this form."""

    def __str__(self) -> str:
        return f"{self.name} ({self.title})"

    @property
    def advice(self) -> str:
        """Where to get it by hand, and how to name the folder."""
        files = ", ".join(self.splits[split].files[0] for split in SPLITS)
        return (
            f"Where to get it: {self.source} Then put {files} (plain, .gz or .xz) into FOLDER/{self.name}, and name "
            f"FOLDER with --data-dir or in the environment variable {DATA_DIR_VARIABLE}."
        )


class Sentences(Iterator[str]):
    """Sentences of one split, read as they are asked for.

    Each is its words joined by single blanks. Lines without a word are left out and counted in `blank_lines`.

    Args:
        source: where they stand.
        unknown: the word that stands for an unknown one there.
        shares: where the source holds other splits too: those of its shares that belong to this one; None: all.
    """

    def __init__(
        self, source: Source, unknown: str | None = None, shares: frozenset[Split] | None = None, split: Split = "train"
    ) -> None:
        self.blank_lines = 0
        self._sentences = self._read(source, unknown, shares, split)

    def __next__(self) -> str:
        return next(self._sentences)

    def _read(
        self, source: Source, unknown: str | None, shares: frozenset[Split] | None, split: Split
    ) -> Iterator[str]:
        found, others = 0, 0
        for line in source.sentences():
            if not line:
                self.blank_lines += 1
                continue
            sentence = _with_our_unknown(line, unknown)
            if shares is None or held_out_share(sentence) in shares:
                found += 1
                yield sentence
            else:
                others += 1
        if not found and not others:
            raise DataError(
                f"{source.describe()} holds no sentence: it is empty or has blank lines only. Give a file with text."
            )
        if not found:
            raise DataError(
                f"{source.describe()} is too small to hold out of it: none of its sentences falls to {split} (one in "
                f"{HOLD_OUT_SHARES} goes to valid, one to test). Give a folder with train, valid and test instead."
            )


@dataclass(frozen=True)
class Corpus:
    """A corpus with train, valid and test.

    Where `valid` or `test` is None, it is held out of train: one sentence in twenty.
    """

    name: str
    train: Source
    valid: Source | None
    test: Source | None
    unknown: str | None = None
    """The word that stands for an unknown one in the source; read as <unk>."""
    card: Card | None = None
    _contents: dict[int, str] = field(default_factory=dict, compare=False, repr=False)
    """Digests of sources by their identity: a text is read once, however many splits are made of it."""

    @property
    def held_out(self) -> tuple[Split, ...]:
        """The splits that are held out of train."""
        return tuple(split for split in SPLITS if self._own(split) is None)

    def source(self, split: Split) -> Source:
        """Where the sentences of a split stand: of one that is held out, where those of train stand."""
        return self._own(split) or self.train

    def _own(self, split: Split) -> Source | None:
        sources: dict[Split, Source | None] = {"train": self.train, "valid": self.valid, "test": self.test}
        return sources[split]

    def describe(self, split: Split) -> str:
        """What messages call the place where the sentences of a split stand."""
        return self.source(split).describe()

    def _shares(self, split: Split) -> frozenset[Split] | None:
        """The shares of its source that a split takes; None: all of it."""
        if split in self.held_out:
            return frozenset({split})
        return frozenset(SPLITS) - frozenset(self.held_out) if split == "train" and self.held_out else None

    def sentences(self, split: Split) -> Sentences:
        """The sentences of a split: words joined by single blanks, blank lines left out, unknown words as <unk>.

        Raises (while it is read):
            DataError: the source is missing, broken, not UTF-8, or holds no sentence of this split.
        """
        return Sentences(self.source(split), self.unknown, self._shares(split), split)

    def digest(self, split: Split) -> str:
        """SHA-256, as hexadecimal digits, of what decides the sentences of a split: the same wherever they lie.

        It covers the source's content, how the unknown word is written there, and what is held out. The content is
        read once; what is written to it later is not noticed by this object.

        Raises:
            DataError: the source cannot be read.
        """
        source, shares = self.source(split), self._shares(split)
        if id(source) not in self._contents:
            self._contents[id(source)] = source.digest()
        decides = {
            "content": self._contents[id(source)],
            "unknown": self.unknown or UNKNOWN,
            "shares": None if shares is None else [sorted(shares), HOLD_OUT_SHARES],
        }
        return hashlib.sha256(json.dumps(decides, sort_keys=True).encode()).hexdigest()

    def warnings(self) -> list[str]:
        """What a person ought to know before they use it: splits that are the same text."""
        own = [(split, source) for split in SPLITS if isinstance(source := self._own(split), TextFiles)]
        return [
            f"{first} and {second} are the same text ({one.describe()}, {other.describe()}): what is measured on "
            f"{second} says nothing"
            for (first, one), (second, other) in combinations(own, 2)
            if one.same_content(other)
        ]


def _with_our_unknown(sentence: str, unknown: str | None) -> str:
    if unknown is None or unknown == UNKNOWN or unknown not in sentence:
        return sentence
    return " ".join(UNKNOWN if word == unknown else word for word in sentence.split())


def held_out_share(sentence: str) -> Split:
    """The split to which a sentence of a single file belongs: a function of its words alone.

    So equal sentences never stand in two splits, and a file that grows keeps its splits.
    """
    return held_out_part(hashlib.blake2b(sentence.encode(), digest_size=8).digest())


def held_out_part(digest: bytes) -> Split:
    """The split that a hash of content says: one in twenty valid, one in twenty test."""
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
        download=values.get("download", {}),
    )


def download_notice(data: str, data_dir: str | None = None) -> str | None:
    """What `resolve` would download for a named corpus, and its licence; None where it would download nothing."""
    if data not in card_names():
        return None
    card = load_card(data)
    return f"{card}. Licence: {card.licence}" if card.download and locate(card, data_dir) is None else None


def resolve(data: str, data_dir: str | None = None, text_field: str | None = None) -> Corpus:
    """The corpus that `data` means.

    Args:
        data: name of a corpus that has a card (it wins over a file of that name), a text file (plain, .gz, .xz,
            .jsonl), a folder with train, valid (or validation, dev) and test files, a folder of other text files,
            `-` for standard input, or `hf:NAME` for a data set that `datasets` reads, of the hub or a local one.
        data_dir: folder with local copies of named corpora, as `data_dir/ptb/ptb.train.txt` or
            `data_dir/ptb.train.txt`; else the environment variable TEXTEBM_DATA, else what was downloaded before, else
            a download where the corpus is published.
        text_field: the field of JSON lines (default: text), or the column of a data set (default: text, or its only one
            of strings), that holds the text.

    Raises:
        DataError: no such corpus, file or split; the message says where to get it, or names the nearest.
    """
    if data in card_names():
        return _named(load_card(data), data_dir)
    if data.startswith(HUB_PREFIX):
        return _hub(data, text_field)
    path = Path(settled(data, text_field)).expanduser()
    field = text_field or DEFAULT_TEXT_FIELD
    try:
        path.name.encode()
        if path.is_dir():
            return _folder(path, field)
        if path.is_file():
            return _file(path, field)
        dangling = path.is_symlink()
    except UnicodeEncodeError:
        raise DataError(f"{shown(path)}: the name holds bytes that are not UTF-8; rename it") from None
    except OSError as error:
        raise DataError(f"{shown(path)}: cannot be looked at ({error.strerror})") from None
    if dangling:
        raise DataError(f"{shown(path)} is a symbolic link that leads nowhere (its target is missing, or a loop)")
    if path.parent == pipe_folder():
        raise DataError(f"{path}: what came through the pipe is not kept any more; pipe it in again, with --data -")
    from textebm.data.image_cards import image_card_names  # which itself imports this module

    if data in image_card_names():
        raise DataError(f"{data} is a set of images, and text is wanted here; named corpora: {', '.join(card_names())}")
    raise DataError(f"{data!r} is neither a file, nor a folder, nor a named corpus{_nearest(data)}")


def settled(data: str, text_field: str | None = None) -> str:
    """`data` in a form that can be read again: what comes through a pipe is kept in TEXTEBM_HOME, and its file named.

    Args:
        data: as for `resolve`; `-`, or a pipe such as the shell makes of `<(command)`, is read to its end.
        text_field: where given, what comes through a pipe is JSON lines.

    Raises:
        DataError: standard input is a terminal, or the pipe is empty.
    """
    if data in (STANDARD_INPUT, "/dev/stdin"):
        return str(spool(sys.stdin.buffer, text_field))
    path = Path(data)
    if os.path.lexists(path) and path.is_fifo():
        with path.open("rb") as pipe:
            return str(spool(pipe, text_field))
    return data


def short_name(data: str) -> str:
    """What a corpus is called in the names of runs: a file's name without its endings, in letters, digits, `_`, `-`."""
    if data.startswith(HUB_PREFIX):
        from textebm.data.hub import Reference

        name = Reference.parse(data).short
    elif Path(data).parent == pipe_folder():
        name = f"stdin-{Path(data).name[:12]}"
    else:
        name = _stem(Path(data)).split(".")[0]
    return re.sub(r"[^\w-]+", "-", name).strip("-") or "data"


def _hub(data: str, text_field: str | None) -> Corpus:
    """The corpus in a data set; what it lacks of valid and test is held out of train."""
    from textebm.data import hub

    reference = hub.Reference.parse(data)
    found = hub.load(reference)
    column = found.text_column(text_field)
    names = {split: next(filter(found.splits.__contains__, SPLIT_NAMES[split]), None) for split in SPLITS}
    if names["train"] is None and len(found.splits) == 1:
        names = {"train": next(iter(found.splits)), "valid": None, "test": None}
    if names["train"] is None:
        raise DataError(f"{reference} has no split named train; its splits: {', '.join(found.splits)}")

    def source(split: Split) -> hub.Column | None:
        name = names[split]
        return None if name is None else hub.Column(found.name, column, name, found.splits[name])

    train = source("train")
    assert train is not None
    return Corpus(reference.short, train, source("valid"), source("test"))


def _nearest(name: str) -> str:
    near = difflib.get_close_matches(name.lower(), card_names(), n=1, cutoff=0.5)
    known = ", ".join(card_names())
    return f"; did you mean {near[0]!r}? (named corpora: {known})" if near else f"; named corpora: {known}"


def _named(card: Card, data_dir: str | None) -> Corpus:
    paths = locate(card, data_dir)
    if paths is None:
        if not card.download:
            raise DataError(f"{card}: it does not ship with textebm, and no folder with a copy is named. {card.advice}")
        paths = {split: file.path for split, file in fetch(card).items()}
    train, valid, test = (TextFiles((paths[split],)) for split in SPLITS)
    return Corpus(card.name, train, valid, test, card.unknown, card)


def locate(card: Card, data_dir: str | None = None) -> dict[Split, Path] | None:
    """The files of a named corpus on this machine, or None where it is not here.

    They are looked for in the package; in `data_dir`, else in the folder of TEXTEBM_DATA; and among the downloads.

    Raises:
        DataError: `data_dir` lacks a file, or has no such folder; or TEXTEBM_DATA has some of the files and not all.
    """
    if card.embedded:
        return _complete(card, [Path(str(resources.files("textebm.data"))) / card.name])
    given, said_by = (data_dir, "data_dir") if data_dir else (os.environ.get(DATA_DIR_VARIABLE), DATA_DIR_VARIABLE)
    if given:
        root = Path(given).expanduser()
        if not root.is_dir():
            raise DataError(f"{said_by} is {str(root)!r}, which is no folder. {card.advice}")
        roots = [root / card.name, root]
        if data_dir or any(_files_in(folder, card) for folder in roots):
            return _complete(card, roots)
    kept = _files_in(download.folder_of(card.name), card)
    return kept if len(kept) == len(SPLITS) else None


def fetch(card: Card) -> dict[Split, download.Fetched]:
    """Download a named corpus to `TEXTEBM_HOME/data/NAME/`; files that are there already are only checked.

    Raises:
        DataError: the corpus is published nowhere that is known, the network cannot or may not be used, or what comes
            is not what was published.
    """
    if not card.download:
        raise DataError(f"{card}: there is no place to download it from as it is. {card.advice}")
    wanted: dict[Split, download.Published] = {
        split: download.Published(card.splits[split].files[0], card.download[split], card.splits[split].sha256)
        for split in SPLITS
    }
    return download.fetch(card.name, wanted, card.advice)


def _complete(card: Card, roots: list[Path]) -> dict[Split, Path]:
    """All files of a card out of one of these folders: of one folder, never half of each."""
    found = max((_files_in(root, card) for root in roots), key=len)
    if missing := [card.splits[split].files[0] for split in SPLITS if split not in found]:
        raise DataError(
            f"{card}: no {', '.join(missing)} (plain, .gz or .xz) in {' or '.join(map(str, roots))}. {card.advice}"
        )
    return found


def _files_in(root: Path, card: Card) -> dict[Split, Path]:
    """The splits of a card whose file lies in a folder, plain before compressed."""
    found: dict[Split, Path] = {}
    for split in SPLITS:
        candidates = [root / (name + packed) for name in card.splits[split].files for packed in COMPRESSIONS]
        if path := next(filter(Path.is_file, candidates), None):
            found[split] = path
    return found


def _file(path: Path, text_field: str) -> Corpus:
    """The corpus in one file, from which valid and test are held out."""
    if path.suffix == ".safetensors":
        raise DataError(f"{shown(path)} holds the weights of a model, and --data wants text; --model names its folder")
    if path.suffix in TABLES:
        raise DataError(
            f"{shown(path)} is a table or a data set, not one sentence a line; --data hf:{path} reads a column of it"
        )
    return Corpus(_corpus_name(path), TextFiles((path,), text_field), None, None)


def _folder(folder: Path, text_field: str) -> Corpus:
    """The corpus in a folder: of files named train, valid and test, or of all its text files, taken together.

    Names such as train.txt, dev.jsonl.gz or ptb.test.txt.xz say their split. Where no name says one, every text file
    in the folder and in the folders in it is read, in the order of their paths.
    """
    found = {split: _split_files(folder, split) for split in SPLITS}
    if not any(found.values()):
        return Corpus(folder.resolve().name, TextFiles(_text_files(folder), text_field), None, None)
    for split, files in found.items():
        if not files:
            names = " or ".join(f"{name}.txt" for name in SPLIT_NAMES[split])
            raise DataError(
                f"{str(folder)!r} has no {split} file: expected {names} (also .jsonl; .gz or .xz; a prefix as in "
                f"NAME.{split}.txt is allowed). Add it, or give one text file, from which valid and test are held out."
            )
        if len(files) > 1:
            names = ", ".join(shown(file.name) for file in files)
            raise DataError(f"{str(folder)!r} has several {split} files: {names}. Keep one of them.")
    train, valid, test = (TextFiles((found[split][0],), text_field) for split in SPLITS)
    return Corpus(folder.resolve().name, train, valid, test)


def _text_files(folder: Path) -> tuple[Path, ...]:
    """The text files in a folder and the folders in it, in the order of their paths.

    Hidden ones are left out, and links to folders are not followed, so that no loop of links is walked.
    """
    if (folder / "checkpoints").is_dir() or (folder / "model.safetensors").exists():
        raise DataError(
            f"{str(folder)!r} is a run or model folder, and --data wants text: --model {folder} is how to name a model"
        )
    found: list[Path] = []
    others: list[Path] = []
    for place, folders, names in os.walk(folder, onerror=_raise):
        folders[:] = [name for name in folders if not name.startswith(".")]
        for name in names:
            path = Path(place, name)
            if not name.startswith(".") and path.is_file():
                (found if TEXT_NAME.search(name) else others).append(path)
    if not found:
        if not others:
            raise DataError(f"{str(folder)!r} is empty: it holds neither text (names in .txt or .jsonl) nor pictures")
        tables = sorted(path.name for path in others if path.suffix in TABLES)
        hint = f"; it holds {shown(tables[0])}: --data hf:{folder} reads a data set" if tables else ""
        raise DataError(
            f"{str(folder)!r} holds no text file: no name in it ends in .txt or .jsonl (also with .gz or .xz){hint}"
        )
    return tuple(sorted(found, key=lambda path: path.relative_to(folder).as_posix()))


def _raise(error: OSError) -> None:
    raise error


def _split_files(folder: Path, split: Split) -> list[Path]:
    name = re.compile(rf"(?:[^.].*[._-])?(?:{'|'.join(SPLIT_NAMES[split])})(?:\.txt|\.jsonl)?(?:\.gz|\.xz)?")
    return sorted(file for file in folder.iterdir() if file.is_file() and name.fullmatch(file.name))


def _corpus_name(path: Path) -> str:
    return short_name(str(path)) if path.parent == pipe_folder() else _stem(path)


def _stem(path: Path) -> str:
    """A file's name without its endings."""
    name = path.name
    for ending in (".gz", ".xz", ".txt", ".jsonl"):
        name = name.removesuffix(ending)
    return name or path.name
