"""What is known of corpora, and what is found of them on this machine: behind the command `textebm data`.

Everything is given as plain dictionaries, ready for JSON; the command line words them for people.
"""

import dataclasses
import hashlib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from textebm.data import image_catalogue, registry
from textebm.data.image_cards import image_card_names
from textebm.data.images import is_image_data
from textebm.data.registry import SPLITS, Card, Corpus, Split, card_names, load_card, locate, resolve
from textebm.data.sources import HUB_PREFIX
from textebm.errors import DataError
from textebm.lm_eval.corpus import open_unpacked, read_sentences

UNPACKED_AT_ONCE = 1 << 20


@dataclasses.dataclass
class Counts:
    """What a split holds."""

    sentences: int = 0
    words: int = 0
    blank_lines: int = 0
    longest: int = 0
    """Words of the longest sentence."""

    @classmethod
    def of(cls, sentences: Iterable[str]) -> "Counts":
        """Count sentences; an empty one is a blank line."""
        counts = cls()
        for sentence in sentences:
            words = sentence.count(" ") + 1 if sentence else 0
            counts.sentences += words > 0
            counts.blank_lines += words == 0
            counts.words += words
            counts.longest = max(counts.longest, words)
        return counts


def listing(data_dir: str | None = None) -> list[dict[str, Any]]:
    """Every named corpus: name, title, sentences, licence, where it was found, and whether it can be downloaded.

    `found` is a folder, or None where the corpus is not on this machine; `problem` says what is wrong with a copy.
    Sets of images, which have images in the place of sentences, follow the corpora of text.
    """
    return [*(_entry(load_card(name), data_dir) for name in card_names()), *image_catalogue.listing(data_dir)]


def _entry(card: Card, data_dir: str | None) -> dict[str, Any]:
    try:
        files, problem = locate(card, data_dir), None
    except DataError as error:  # a copy with a file too few must not hide the other corpora
        files, problem = None, str(error)
    return {
        "name": card.name,
        "title": card.title,
        "kind": "text",
        "sentences": {split: card.splits[split].sentences for split in SPLITS},
        "licence": card.licence,
        "found": None if files is None else str(files["train"].parent),
        "ships": card.embedded,
        "download": bool(card.download),
        "problem": problem,
    }


def describe(
    data: str, data_dir: str | None = None, text_field: str | None = None, images: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """What `data` means: a named corpus's card and where its files are; of anything else what it resolves to, counted.

    Nothing is downloaded for a named corpus.

    Args:
        data, data_dir, text_field: as for `resolve`, or as for `resolve_images`.
        images: further arguments of `resolve_images`.

    Raises:
        DataError: there is no such corpus, or it cannot be read.
    """
    if data in card_names():
        return _describe_card(load_card(data), data_dir)
    if _means_images(data, data_dir, text_field):
        return _describe_images(data, data_dir, images or {})
    if data.startswith(HUB_PREFIX):
        return _describe_hub(data, text_field)
    corpus = resolve(data, data_dir, text_field)
    return {"name": corpus.name, "kind": "text", **_describe_splits(corpus)}


def _means_images(data: str, data_dir: str | None, text_field: str | None) -> bool:
    """Whether images are meant, and no text was asked for."""
    return text_field is None and data not in card_names() and is_image_data(data, data_dir)


def _describe_images(data: str, data_dir: str | None, chosen: Mapping[str, Any]) -> dict[str, Any]:
    """Images, and of a data set its columns: also where it is not plain which of them are meant."""
    if not data.startswith(HUB_PREFIX):
        return image_catalogue.describe(data, data_dir, **chosen)
    about = _about_hub(data)
    try:
        return {**about, **image_catalogue.describe(data, data_dir, **chosen), "name": about["name"]}
    except DataError as error:
        return {**about, "problem": str(error)}


def _describe_card(card: Card, data_dir: str | None) -> dict[str, Any]:
    entry = _entry(card, data_dir)
    files = None if entry["found"] is None else locate(card, data_dir)
    splits = {
        split: {
            "file": None if files is None else str(files[split]),
            "sentences": card.splits[split].sentences,
            "words": card.splits[split].words,
            "sha256": card.splits[split].sha256,
            "url": card.download.get(split),
        }
        for split in SPLITS
    }
    told = {"description": card.description.strip(), "source": card.source, "notes": card.notes, "advice": card.advice}
    return {**entry, "unknown": card.unknown, **told, "splits": splits}


def _about_hub(data: str) -> dict[str, Any]:
    from textebm.data import hub

    found = hub.load(hub.Reference.parse(data))
    rows = {name: len(split) for name, split in found.splits.items()}
    return {"name": found.name, "kind": found.kind, "columns": found.columns, "rows": rows}


def _describe_hub(data: str, text_field: str | None) -> dict[str, Any]:
    about = _about_hub(data)
    if about["kind"] != "text" and text_field is None:
        return about
    try:
        corpus = resolve(data, text_field=text_field)
    except DataError as error:  # which column is meant is not plain; everything else is known
        return {**about, "problem": str(error)}
    return {**about, **_describe_splits(corpus)}


def _describe_splits(corpus: Corpus) -> dict[str, Any]:
    splits = {
        split: {
            "source": corpus.describe(split),
            "held_out": split in corpus.held_out,
            **dataclasses.asdict(_counts(corpus, split)),
        }
        for split in SPLITS
    }
    return {"splits": splits, "warnings": corpus.warnings()}


def _counts(corpus: Corpus, split: Split) -> Counts:
    """Counts of a split; blank lines are those of its source."""
    sentences = corpus.sentences(split)
    counts = Counts.of(sentences)
    counts.blank_lines = sentences.blank_lines
    return counts


def fetch(name: str) -> dict[str, Any]:
    """Download a named corpus, and say of each file whether it was there already.

    Raises:
        DataError: the corpus is not named, ships anyway, is published nowhere, or cannot be had.
    """
    if name in image_card_names():
        return image_catalogue.fetch(name)
    card = load_card(name)
    if card.embedded:
        raise DataError(f"{card} ships with textebm: there is nothing to download, and --data {name} uses it")
    files = {
        split: {"file": str(file.path), "downloaded": file.downloaded} for split, file in registry.fetch(card).items()
    }
    return {"name": name, "licence": card.licence, "splits": files}


def check(
    data: str, data_dir: str | None = None, text_field: str | None = None, images: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """Read a corpus to its end, and hold a named one against its card.

    Args:
        data, data_dir, text_field, images: as for `describe`.

    Returns:
        `ok`, and for each split its counts, `ok`, and `problems`: what differs from the card, or cannot be read.

    Raises:
        DataError: there is no such corpus here.
    """
    if _means_images(data, data_dir, text_field):
        return image_catalogue.check(data, data_dir, **(images or {}))
    if data in card_names():
        card = load_card(data)
        files = locate(card, data_dir)
        if files is None:
            raise DataError(f"{card}: there is no copy on this machine to check. {card.advice}")
        splits = {split: _check_split(card, split, files[split]) for split in SPLITS}
        warnings: list[str] = []
    else:
        corpus = resolve(data, data_dir, text_field)
        splits = {split: _read_split(corpus, split) for split in SPLITS}
        data, warnings = corpus.name, corpus.warnings()
    return {
        "name": data,
        "ok": all(split["ok"] for split in splits.values()),
        "splits": splits,
        "warnings": warnings,
    }


def _check_split(card: Card, split: Split, path: Path) -> dict[str, Any]:
    wanted = card.splits[split]
    try:
        counts = Counts.of(read_sentences(path, keep_blank=True))
        found = {"sha256": _unpacked_digest(path), "sentences": counts.sentences, "words": counts.words}
    except DataError as error:
        return {"source": str(path), "ok": False, "problems": [str(error)]}
    problems = [
        f"{key} is {value}, and the card says {getattr(wanted, key)}"
        for key, value in found.items()
        if value != getattr(wanted, key)
    ]
    return {
        "source": str(path),
        **dataclasses.asdict(counts),
        "sha256": found["sha256"],
        "ok": not problems,
        "problems": problems,
    }


def _unpacked_digest(path: Path) -> str:
    digest = hashlib.sha256()
    with open_unpacked(path) as file:
        while piece := file.read(UNPACKED_AT_ONCE):
            digest.update(piece)
    return digest.hexdigest()


def _read_split(corpus: Corpus, split: Split) -> dict[str, Any]:
    about = {"source": corpus.describe(split), "held_out": split in corpus.held_out}
    try:
        counts = _counts(corpus, split)
    except DataError as error:
        return {**about, "ok": False, "problems": [str(error)]}
    return {**about, **dataclasses.asdict(counts), "ok": True, "problems": []}
