"""`textebm data`."""

import dataclasses
import json
from collections.abc import Callable, Sequence
from typing import Any

from textebm import options
from textebm.commands.terminal import T, parse, say
from textebm.errors import UsageError


def data(arguments: Sequence[str]) -> int:
    """`textebm data`."""
    chosen = parse(options.Data, "data", arguments)
    from textebm.data import catalogue

    name = chosen.name
    if chosen.action == "list":
        if name is not None:
            raise UsageError(f"data list takes no name; textebm data show {name} shows one corpus")
        _show(chosen, catalogue.listing(chosen.data_dir), _describe_corpora)
        return 0
    if name is None:
        raise UsageError(
            f"data {chosen.action} needs the name of a corpus; textebm data list lists those that have one"
        )
    if chosen.action == "fetch":
        _show(chosen, catalogue.fetch(name), _describe_fetched)
        return 0
    if chosen.action == "show":
        found = catalogue.describe(name, chosen.data_dir, chosen.text_field, dataclasses.asdict(chosen.images))
        _show(chosen, found, _describe_corpus)
        return 0
    found = catalogue.check(name, chosen.data_dir, chosen.text_field, dataclasses.asdict(chosen.images))
    _show(chosen, found, _describe_check)
    return 0 if found["ok"] else 1


def _show(chosen: options.Data, found: T, in_words: Callable[[T], str]) -> None:
    """Print what was found, for people or as JSON; warnings go to standard error."""
    for warning in found.get("warnings", ()) if isinstance(found, dict) else ():
        say(f"warning: {warning}")
    print(in_words(found) if chosen.format == "text" else json.dumps(found, indent=2, ensure_ascii=False))


def _describe_corpora(entries: list[dict[str, Any]]) -> str:
    lines = []
    for entry in entries:
        unit = "images" if entry["kind"] == "images" else "sentences"
        counts = " / ".join(f"{count:,}" for count in entry[unit].values())
        lines += [
            f"{entry['name']:10} {entry['title']}: {counts} {unit} (train / valid / test)",
            f"           {_where(entry)}",
            f"           licence: {entry['licence']}",
        ]
    return "\n".join(lines)


def _where(entry: dict[str, Any]) -> str:
    """Where a named corpus is on this machine, or how it gets there."""
    if entry["problem"]:
        return str(entry["problem"])
    if entry["ships"]:
        return "ships with textebm"
    if entry["found"]:
        return f"here: {entry['found']}"
    fetched = "downloaded when it is first used, or with" if entry["download"] else "how to get it says"
    return f"not here; {fetched} textebm data {'fetch' if entry['download'] else 'show'} {entry['name']}"


def _describe_corpus(found: dict[str, Any]) -> str:
    """A corpus for people: its card if it has one, its columns if it has some, its splits."""
    lines = [found["name"] + (f": {found['title']}" if "title" in found else "")]
    if "title" in found:
        told = ("description", "licence", "source", "notes", "unknown")
        lines += [f"{key}: {found[key]}" for key in told if found.get(key)]
        lines.append(f"where: {_where(found)}")
    if "columns" in found:
        lines.append(f"kind: {found['kind']}")
        lines.append("columns: " + ", ".join(f"{column} ({kind})" for column, kind in found["columns"].items()))
        lines.append("rows: " + ", ".join(f"{split} {count:,}" for split, count in found["rows"].items()))
    if "shape" in found:
        lines.append(f"shape: {'×'.join(map(str, found['shape']))} (channels, height, width)")
        lines += [f"classes: {', '.join(found['classes'])}"] if found["classes"] else []
    if found.get("problem") and "title" not in found:
        lines.append(f"{'as images' if found['kind'] == 'image' else 'as text'}: {found['problem']}")
    lines += [f"{split}: {_describe_split(values)}" for split, values in found.get("splits", {}).items()]
    return "\n".join(lines)


def _describe_split(values: dict[str, Any]) -> str:
    place = values.get("source") or values.get("file")
    parts = [f"{values['sentences']:,} sentences, {values['words']:,} words"] if "sentences" in values else []
    if "images" in values:
        from textebm.data.image_cache import remarks

        parts.append(f"{values['images']:,} images")
        parts += remarks(values.get("labels") or (), values.get("converted", {}), values.get("left_out", 0))
    parts += [f"longest {values['longest']:,} words"] if "longest" in values else []
    parts += [f"{values['blank_lines']:,} blank lines"] if values.get("blank_lines") else []
    if place:
        parts.append(f"{'held out of' if values.get('held_out') else 'in'} {place}")
    elif values.get("url"):
        parts.append(f"published at {values['url']}")
    return ", ".join(parts)


def _describe_fetched(found: dict[str, Any]) -> str:
    """What a download brought."""
    lines = [
        f"{split}: {'downloaded' if values['downloaded'] else 'was there'}, sum as published: {values['file']}"
        for split, values in found["splits"].items()
    ]
    return "\n".join([*lines, f"licence: {found['licence']}"])


def _describe_check(found: dict[str, Any]) -> str:
    """The result of a check, a line a split, and a line a problem."""
    lines = []
    for split, values in found["splits"].items():
        result = "ok" if values["ok"] else "differs" if "sha256" in values or "images" in values else "unreadable"
        lines.append(f"{split}: {result}, {_describe_split(values)}")
        lines += [f"  {problem}" for problem in (*values["problems"], *values.get("left_out_for", ()))]
    for values in found.get("files", {}).values():
        lines.append(f"{values['file']}: {'ok, sum as published' if values['ok'] else 'differs'}")
        lines += [f"  {problem}" for problem in values["problems"]]
    return "\n".join(lines)
