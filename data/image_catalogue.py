"""What is known of sets of images, and what is found of them on this machine: behind the command `textebm data`.

Everything is given as plain dictionaries, ready for JSON, as in `catalogue`.
"""

import dataclasses
from pathlib import Path
from typing import Any

from textebm.data import image_cards
from textebm.data.image_cache import ImageReport
from textebm.data.image_cards import ImageCard, image_card_names, load_image_card, places
from textebm.data.image_files import file_digest, unpacked_digest
from textebm.data.image_layouts import Found, find, packed
from textebm.data.images import ImageCorpus, resolve_images
from textebm.data.registry import SPLITS, Split
from textebm.errors import DataError


def listing(data_dir: str | None = None) -> list[dict[str, Any]]:
    """Every named set: name, title, images, shape, licence, where it was found, and whether it can be downloaded.

    `found` is a folder, or None where the set is not on this machine; `problem` says what is wrong with a copy.
    """
    return [_entry(load_image_card(name), data_dir) for name in image_card_names()]


def _entry(card: ImageCard, data_dir: str | None) -> dict[str, Any]:
    try:
        found, problem = find(card, places(card, data_dir)), None
    except DataError as error:  # a copy with a file too few must not hide the other sets
        found, problem = None, str(error)
    return {
        "name": card.name,
        "title": card.title,
        "kind": "images",
        "images": {split: card.images[split] for split in SPLITS},
        "shape": [card.channels, card.size, card.size],
        "licence": card.licence,
        "found": None if found is None else str(found.folder),
        "ships": False,
        "download": bool(card.downloads),
        "problem": problem,
    }


def describe_card(card: ImageCard, data_dir: str | None = None) -> dict[str, Any]:
    """Everything on a card, and where its files are; nothing is decoded or downloaded."""
    entry = _entry(card, data_dir)
    found = None if entry["found"] is None else find(card, places(card, data_dir))
    held_out = {"valid"} if card.held_out is not None else set()
    splits = {
        split: {
            "source": None if found is None else found.sources.get(split, found.sources["train"]).describe(),
            "held_out": split in held_out,
            "images": card.images[split],
        }
        for split in SPLITS
    }
    told = {"description": card.description, "source": card.source, "notes": card.notes, "advice": card.advice}
    files = {name: dataclasses.asdict(file) for name, file in card.files.items()}
    return {**entry, **told, "crop": card.crop, "classes": card.classes, "splits": splits, "files": files}


def describe(data: str, data_dir: str | None = None, **chosen: Any) -> dict[str, Any]:  # noqa: ANN401
    """What `data` means: a named set's card; of anything else what it resolves to, decoded and counted.

    Args:
        data: as for `resolve_images`.
        data_dir: folder that holds local copies of named sets.
        chosen: arguments of `resolve_images`.

    Raises:
        DataError: there is no such set, or it cannot be read.
    """
    if data in image_card_names():
        return describe_card(load_image_card(data), data_dir)
    corpus = resolve_images(data, data_dir, **chosen)
    splits = {split: _split(corpus, split, corpus.encoded(split).report) for split in SPLITS}
    shape = list(dataclasses.astuple(corpus.shape))
    about = {"name": corpus.name, "kind": "images", "shape": shape, "classes": corpus.class_names}
    return {**about, "splits": splits, "warnings": corpus.warnings()}


def _split(corpus: ImageCorpus, split: Split, report: ImageReport) -> dict[str, Any]:
    """What an encoded split holds."""
    return {
        "source": corpus.describe(split),
        "held_out": split in corpus.held_out,
        "images": report.count,
        "labels": report.labels,
        "digest": report.digest,
        "left_out": report.left_out,
        "left_out_for": report.problems,
        "converted": report.converted,
    }


def fetch(name: str) -> dict[str, Any]:
    """Download a named set, and say of each file whether it was there already.

    Raises:
        DataError: it is published at no address that stays, or cannot be had.
    """
    card = load_image_card(name)
    files = {key: {"file": str(got.path), "downloaded": got.downloaded} for key, got in image_cards.fetch(card).items()}
    return {"name": name, "licence": card.licence, "splits": files}


def check(data: str, data_dir: str | None = None, **chosen: Any) -> dict[str, Any]:  # noqa: ANN401
    """Decode a set to its end, and hold a named one against its card.

    Args:
        data, data_dir, chosen: see `describe`.

    Returns:
        `ok`, and for each split what it holds, `ok`, and `problems`: what differs from the card, or cannot be read. Of
        a named set also `files`, with the sum of each that the card knows.

    Raises:
        DataError: there is no such set here.
    """
    if data not in image_card_names():
        corpus = resolve_images(data, data_dir, **chosen)
        splits = {split: _checked(corpus, split) for split in SPLITS}
        return _result(corpus.name, splits, {}, corpus.warnings())
    card = load_image_card(data)
    found = find(card, places(card, data_dir))
    if found is None:
        raise DataError(f"{card}: there is no copy on this machine to check. {card.advice}")
    corpus = resolve_images(data, data_dir, **chosen)
    files = _checked_files(card, found)
    unknown = [name for name in card.files if name not in files]
    other = (
        [f"{', '.join(unknown)}: no such file here, or no sum of it on the card: it was not compared"]
        if unknown
        else []
    )
    return _result(card.name, {split: _checked(corpus, split, card) for split in SPLITS}, files, other)


def _result(
    name: str, splits: dict[Split, dict[str, Any]], files: dict[str, dict[str, Any]], warnings: list[str]
) -> dict[str, Any]:
    ok = all(part["ok"] for part in (*splits.values(), *files.values()))
    return {"name": name, "kind": "images", "ok": ok, "splits": splits, "files": files, "warnings": warnings}


def _checked(corpus: ImageCorpus, split: Split, card: ImageCard | None = None) -> dict[str, Any]:
    about = {"source": corpus.describe(split), "held_out": split in corpus.held_out}
    try:
        report = corpus.encoded(split).report
    except DataError as error:
        return {**about, "ok": False, "problems": [str(error)]}
    wanted = report.count if card is None else card.images[split]
    problems = [] if report.count == wanted else [f"images is {report.count}, and the card says {wanted}"]
    return {**_split(corpus, split, report), "ok": not problems, "problems": problems}


def _checked_files(card: ImageCard, found: Found) -> dict[str, dict[str, Any]]:
    """The published files that are here and that the card has a sum of."""
    checked = {}
    for name, known in card.files.items():
        path = packed(found.folder, name)
        if path is None or known.sha256 is None:
            continue
        digest = None
        try:
            digest = _digest(path, name)
            problems = [] if digest == known.sha256 else [f"sha256 is {digest}, and the card says {known.sha256}"]
        except DataError as error:  # a file that is cut short must not hide what is wrong with the others
            problems = [str(error)]
        checked[name] = {"file": str(path), "sha256": digest, "ok": not problems, "problems": problems}
    return checked


def _digest(path: Path, name: str) -> str:
    """SHA-256 of a file: of its content, where it lies here packed and is published plain."""
    return file_digest(path) if path.name == name else unpacked_digest(path)
