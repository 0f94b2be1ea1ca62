"""The documentation is true: its Python runs, its commands and their options exist, its links lead somewhere."""

import ast
import functools
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
NAMES = [page.relative_to(ROOT).as_posix() for page in PAGES]

BLOCK = re.compile(
    r"^ *(?P<fence>```+)(?P<language>[\w-]*)[^\n]*\n(?P<body>.*?)^ *(?P=fence) *$", re.MULTILINE | re.DOTALL
)
INLINE_CODE = re.compile(r"(?<!`)`([^`\n]+)`(?!`)")
LINK = re.compile(r"(?<!\\)\]\(<?([^)\s>]+)>?[^)]*\)|(?:src|href)=\"([^\"]+)\"")
OPTION = re.compile(r"(?<![\w-])-{1,2}[A-Za-z][\w.-]*")
SHELLS = {"", "bash", "sh", "shell", "console", "text"}


def blocks(page: Path, languages: set[str]) -> Iterator[tuple[int, str]]:
    """The line where each code block's body starts, and the body."""
    text = page.read_text(encoding="utf-8")
    for match in BLOCK.finditer(text):
        if match["language"] in languages:
            yield text.count("\n", 0, match.start("body")) + 1, match["body"]


def prose(page: Path) -> str:
    """The page without its code blocks."""
    return BLOCK.sub("", page.read_text(encoding="utf-8"))


def commands(page: Path) -> list[list[str]]:
    """The words of every simple command in the page's shell blocks and of every `textebm …` or `make …` elsewhere."""
    lines = [line for _, body in blocks(page, SHELLS) for line in body.replace("\\\n", " ").splitlines()]
    lines += [code for code in INLINE_CODE.findall(prose(page)) if code.startswith(("textebm ", "make "))]
    return parsed(lines)


def parsed(lines: list[str]) -> list[list[str]]:
    """The words of every simple command in shell lines."""
    found = []
    for line in lines:
        try:
            words = shlex.split(line.removeprefix("$ "), comments=True)
        except ValueError:  # an apostrophe in a program's output, or an ellipsis: not a command
            continue
        found += list(simple_commands(words))
    return found


def simple_commands(words: list[str]) -> Iterator[list[str]]:
    """Words cut at |, &&, ; and >, without leading NAME=value."""
    current: list[str] = []
    for word in [*words, ";"]:
        if word in {"|", "||", "&&", "&", ";", ">", ">>", "2>", "<"}:
            if current:
                yield current
            current = []
        elif current or not re.fullmatch(r"[A-Z_]+=.*", word):
            current.append(word)


@functools.cache
def help_text(*command: str) -> str | None:
    """What `textebm COMMAND --help` prints, or None where there is no such command."""
    program = [sys.executable, "-m", "textebm", *command, "--help"]
    wide = os.environ | {"COLUMNS": "200"}  # no option is broken at the end of a line
    done = subprocess.run(program, env=wide, capture_output=True, text=True, check=False)
    usage = " ".join(["usage: textebm", *command])
    return done.stdout if done.returncode == 0 and usage in done.stdout else None


def complaint(words: list[str]) -> str | None:
    """What is wrong with a `textebm …` command, if anything."""
    rest = words[1:]
    command = rest[:1] if rest and re.fullmatch(r"[a-z][a-z0-9-]*", rest[0]) else []
    text = help_text(*command)
    if text is None:
        return f"{shlex.join(words)}: no such command"
    known = {option.replace("_", "-") for option in OPTION.findall(text)} | {"--debug"}  # which every command takes
    used = [word.split("=")[0] for word in rest if OPTION.match(word)]
    unknown = [option for option in used if option.replace("_", "-") not in known]
    return f"{shlex.join(words)}: no option {', '.join(unknown)}" if unknown else None


@pytest.mark.parametrize("name", NAMES)
def test_python_runs(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A page's blocks build on one another, as a reader would type them, in an empty folder."""
    found = list(blocks(ROOT / name, {"python"}))
    if not found:
        pytest.skip("no Python in it")
    monkeypatch.chdir(tmp_path)
    namespace: dict[str, object] = {"__name__": "__main__"}
    for line, body in found:
        exec(compile("\n" * (line - 1) + body, ROOT / name, "exec"), namespace)


@pytest.mark.parametrize("name", NAMES)
def test_commands_exist(name: str) -> None:
    """Every `textebm COMMAND --option` is one that the program's own help names."""
    complaints = [complaint(words) for words in commands(ROOT / name) if words[0] == "textebm"]
    assert [c for c in complaints if c is not None] == []


def test_examples_of_the_help_exist() -> None:
    """So are the examples in the program's own help, which people copy."""
    top = help_text() or ""
    names = re.findall(r"^  ([a-z]+) {2,}\w", top, re.MULTILINE)
    assert "train" in names
    pages = [top, *(help_text(name) or f"  textebm {name}" for name in names)]
    lines = [line.strip() for page in pages for line in page.splitlines() if line.startswith("  textebm ")]
    assert [c for c in map(complaint, parsed(lines)) if c is not None] == []


@pytest.mark.parametrize("name", NAMES)
def test_make_targets_exist(name: str) -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
    wanted = [word for words in commands(ROOT / name) if words[0] == "make" for word in words[1:] if word.isalpha()]
    assert [target for target in wanted if target not in targets] == []


@pytest.mark.parametrize("name", NAMES)
def test_links_lead_somewhere(name: str) -> None:
    """Relative links name files of the checkout, and their #fragments name headings."""
    page = ROOT / name
    dead = []
    for match in LINK.finditer(INLINE_CODE.sub("", prose(page))):
        link = match[1] or match[2]
        if re.match(r"[a-z][a-z0-9+.-]*:", link):
            continue
        path, _, fragment = link.partition("#")
        target = page.parent / path if path else page
        if not target.exists() or (fragment and target.suffix == ".md" and fragment not in anchors(target)):
            dead.append(link)
    assert dead == []


def anchors(page: Path) -> set[str]:
    """The names that a page's headings have as link targets."""
    headings = re.findall(r"^#+ +(.+?) *$", prose(page), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


class TestTheseChecks:
    """They find what they are for, on a page with one mistake of each kind."""

    @pytest.fixture
    def page(self, tmp_path: Path) -> Path:
        page = tmp_path / "page.md"
        page.write_text(
            "# A title, here\n[a](#a-title-here) [b](#nowhere) [c](missing.md) `[d](code.md)`\n"
            "```bash\n$ TEXTEBM_DATA=x textebm nonsense \\\n  --seed 1 | head  # isn't\n```\n"
            "```python\nx = 1\n```\nRun `textebm --no-such-option` or `make test`.\n"
        )
        return page

    def test_commands_are_found_whole(self, page: Path) -> None:
        assert commands(page) == [
            ["textebm", "nonsense", "--seed", "1"],
            ["head"],
            ["textebm", "--no-such-option"],
            ["make", "test"],
        ]

    def test_wrong_commands_are_named(self, page: Path) -> None:
        assert complaint(["textebm", "nonsense", "--seed", "1"]) == "textebm nonsense --seed 1: no such command"
        assert complaint(["textebm", "--no-such-option"]) == "textebm --no-such-option: no option --no-such-option"
        assert complaint(["textebm", "--help"]) is None

    def test_code_blocks_know_their_line(self, page: Path) -> None:
        assert list(blocks(page, {"python"})) == [(8, "x = 1\n")]

    def test_anchors(self, page: Path) -> None:
        assert anchors(page) == {"a-title-here"}


def names_of_tests(path: Path) -> set[str]:
    """The tests of a file, as `name` or `Class::name`."""
    found = set()
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        inside = node.body if isinstance(node, ast.ClassDef) else [node]
        prefix = f"{node.name}::" if isinstance(node, ast.ClassDef) else ""
        found |= {prefix + n.name for n in inside if isinstance(n, ast.FunctionDef) and n.name.startswith("test")}
    return found


@pytest.mark.parametrize("name", NAMES)
def test_tests_that_a_page_names_exist(name: str) -> None:
    named = re.findall(r"`(tests/[\w/]+\.py)::([\w:]+)`", (ROOT / name).read_text(encoding="utf-8"))
    there = {file: names_of_tests(ROOT / file) for file in {file for file, _ in named} if (ROOT / file).is_file()}
    assert [f"{file}::{test}" for file, test in named if test not in there.get(file, ())] == []


def test_every_fault_of_data_stands_in_the_table() -> None:
    page = (ROOT / "docs" / "data.md").read_text(encoding="utf-8")
    file = "tests/data/test_faults.py"
    assert [test for test in sorted(names_of_tests(ROOT / file)) if f"`{file}::{test}`" not in page] == []
