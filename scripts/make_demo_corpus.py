"""Make the demo corpus in data/demo from two Debian packages; the same packages give the same bytes.

    apt-get download wordnet-base r-cran-janeaustenr
    python scripts/make_demo_corpus.py --wordnet wordnet-base_*.deb --austen r-cran-janeaustenr_*.deb

Each argument is a .deb file (unpacked with dpkg-deb) or a folder into which one has been unpacked. Sources: the example
sentences of WordNet 3.0, and Jane Austen's six novels. The steps are described in data/demo/README.md.
"""

import argparse
import hashlib
import json
import lzma
import re
import string
import struct
import subprocess
import tempfile
import zlib
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path

SHORTEST, LONGEST = 4, 20  # tokens of a sentence, punctuation counted
RAREST = 4  # a sentence stays only if each of its words occurs at least this often in the corpus
HELD_OUT = 0.05  # share of the sentences in valid, and again in test
SEED = 2020

AUSTEN_DATABASE = "usr/lib/R/site-library/janeaustenr/data/Rdata.rdb"
WORDNET_FILES = tuple(f"usr/share/wordnet/data.{part}" for part in ("noun", "verb", "adj", "adv"))

# --- R's lazy-load database: [uint32 size][zlib stream] chunks, each an XDR serialisation -----------------------------

R_STRING_VECTOR, R_STRING = 16, 9


def r_chunks(database: bytes) -> Iterator[bytes]:
    """The decompressed objects of an R lazy-load database."""
    position = 0
    while position < len(database):
        (size,) = struct.unpack_from(">I", database, position)
        stream = zlib.decompressobj()
        chunk = stream.decompress(database[position + 4 :])
        if len(chunk) != size:
            raise ValueError(f"the object at byte {position} has {len(chunk)} bytes, its header says {size}")
        yield chunk
        position = len(database) - len(stream.unused_data)


def r_strings(chunk: bytes) -> list[str]:
    """The strings of a character vector in R's XDR serialisation, version 2 or 3 (missing values become "")."""
    if chunk[:2] != b"X\n":
        raise ValueError("not an XDR serialisation")
    (version,) = struct.unpack_from(">i", chunk, 2)
    position = 14  # after the format, its version, and the versions of R that wrote it and can read it
    if version == 3:  # the name of the native encoding follows
        (length,) = struct.unpack_from(">i", chunk, position)
        position += 4 + length
    flags, count = struct.unpack_from(">ii", chunk, position)
    if flags & 0xFF != R_STRING_VECTOR:
        raise ValueError(f"an R object of type {flags & 0xFF}, not a character vector")
    position += 8
    strings = []
    for _ in range(count):
        flags, length = struct.unpack_from(">ii", chunk, position)
        if flags & 0xFF != R_STRING:
            raise ValueError(f"an R object of type {flags & 0xFF} inside a character vector")
        position += 8
        strings.append(chunk[position : position + max(length, 0)].decode("utf-8"))
        position += max(length, 0)
    return strings


# --- from sources to sentences ----------------------------------------------------------------------------------------

HEADING = re.compile(
    r"(chapter|volume|letter)\s+[ivxlc\d]+\.?|the end|finis|end of .*|by jane austen|\(?1\d\d\d\)?", re.IGNORECASE
)
ABBREVIATION = re.compile(
    r"\b(?:Mr|Mrs|Messrs|Dr|St|Col|Capt|Lieut|Rev|Esq|Hon|Sr|Jr|Jun|Sen|ult|inst|No|viz|vol|l|[A-HJ-Z])\.$"
)  # not "I.", which ends many a sentence
SENTENCE_END = re.compile(r"""[.!?]+["')]*(?=\s|--|$)""")
OPENS_SENTENCE = re.compile(r"""(?:--)?\s*["'(]*[A-Z]""")


def paragraphs(lines: Iterable[str]) -> Iterator[str]:
    """Paragraphs of a novel (blank lines stand between them), headings and editors' notes left out."""
    block: list[str] = []
    for line in [*lines, ""]:
        if line.strip():
            block.append(line.strip())
            continue
        text = " ".join(block)
        block = []
        if text and not HEADING.fullmatch(text) and not text.startswith("[") and not text.isupper():
            yield text


def sentences_of(paragraph: str) -> Iterator[str]:
    """Sentences of a paragraph: cut after . ! ? where a capital letter follows, not after an abbreviation."""
    start = 0
    for match in SENTENCE_END.finditer(paragraph):
        end = match.end()
        if ABBREVIATION.search(paragraph[start : match.start() + 1]) and paragraph[match.start()] == ".":
            continue
        if end == len(paragraph) or OPENS_SENTENCE.match(paragraph, end):
            yield paragraph[start:end].strip(" -")
            start = end
    rest = paragraph[start:].strip(" -")
    if rest:
        yield rest


def novel_sentences(database: bytes) -> Iterator[str]:
    """Sentences of every novel in the package's database."""
    for chunk in r_chunks(database):
        for paragraph in paragraphs(r_strings(chunk)):
            yield from sentences_of(paragraph)


def wordnet_examples(lines: Iterable[str]) -> Iterator[str]:
    """The quoted example sentences in the glosses of a WordNet data file."""
    for line in lines:
        if " | " in line and not line.startswith("  "):  # lines that begin with blanks are the licence
            yield from re.findall(r'"([^"]+)"', line.split(" | ", 1)[1])


# --- from a sentence to tokens ----------------------------------------------------------------------------------------

ODD = re.compile(r"[^a-z\s.,;:!?'-]|\.\s*\.")  # figures, brackets, accents, signs, an ellipsis
TODAY = re.compile(r"\bto-(day|night|morrow)\b")
TITLES = {"mr.", "mrs.", "messrs.", "dr.", "st."}  # St. as in St. James
TITLE = re.compile(r"(?:mr|mrs|messrs|dr|st)\b\.?")
TOKEN = re.compile(rf"{TITLE.pattern}|[a-z]+(?:'[a-z]+)*|[.,;:!?]|--")
CONTRACTION = re.compile(r"([a-z']+?)'?(n't|'(?:s|d|m|ll|re|ve))")


def tokens(sentence: str) -> list[str] | None:
    """Lower-case tokens in the manner of the Penn Treebank; None where a figure or an odd sign stands in the sentence.

    Quotation marks and _emphasis_ marks go, hyphenated words are taken apart, a missing full stop is added.
    """
    text = TODAY.sub(r"to\1", sentence.lower().replace("_", "").replace('"', " "))
    if ODD.search(text):
        return None
    words: list[str] = []
    for match in TOKEN.finditer(text):
        word = match.group()
        if TITLE.fullmatch(word):
            words.append(word.rstrip(".") + ".")
        elif parts := CONTRACTION.fullmatch(word):
            words.extend(parts.groups())
        else:
            words.append(word)
    return _with_clean_ends(words)


def _with_clean_ends(words: list[str]) -> list[str] | None:
    """The words without pauses at the ends, with a full stop if none ends them; None where a name is blanked out."""
    pauses = {",", ";", ":", "--"}
    while words and words[0] in pauses:
        words.pop(0)
    while words and words[-1] in pauses:
        words.pop()
    blanked = any(word == following for word, following in pairwise(words) if word in pauses)
    if not words or blanked or words[-1] in TITLES:
        return None
    return words if words[-1] in {".", "!", "?"} else [*words, "."]


# A demo invents sentences from these words; it should not invent any about sexual violence, killing or peoples.
UNWELCOME = """
    sex sexual raped naked prostitute gay kill kills killed killing killer murder murders murdered murderer suicide
    hitler nazi nazis jew jews jewish negro terrorist terrorists terrorism slave slavery damn hell idiot
"""
# Single letters are initials and blanked-out names.
LEFT_OUT = {*UNWELCOME.split(), *string.ascii_lowercase} - {"a", "i", "o"}

SUBJECTS = "i he she it we you they there"
PAST_OR_PRESENT = "is was are were am 're 'm has had have 've does did"
AUXILIARIES = "do n't will would 'll 'd can could shall should may might must"
PREDICATE_STARTS = frozenset(PAST_OR_PRESENT.split())
MARKS_OF_A_SENTENCE = PREDICATE_STARTS.union(SUBJECTS.split(), AUXILIARIES.split())


def is_sentence(words: list[str]) -> bool:
    """Whether a WordNet example in lower case reads as a sentence and not as a phrase.

    It has a subject pronoun or a finite auxiliary ('s is mostly a possessive), and does not begin as a predicate does
    ("was seriously ill"), unless it asks.
    """
    predicate_only = words[0] in PREDICATE_STARTS and words[-1] != "?"
    return not predicate_only and not MARKS_OF_A_SENTENCE.isdisjoint(words)


# --- the corpus -------------------------------------------------------------------------------------------------------


def usable(sentences: Iterable[str], *, only_sentences: bool = False) -> Iterator[list[str]]:
    """Token lists of allowed length and content; `only_sentences` leaves out phrases (no capital, no `is_sentence`)."""
    for sentence in sentences:
        words = tokens(sentence)
        if words is None or not SHORTEST <= len(words) <= LONGEST or not LEFT_OUT.isdisjoint(words):
            continue
        if not only_sentences or sentence[0].isupper() or is_sentence(words):
            yield words


def make_corpus(candidates: Iterable[list[str]], rarest: int = RAREST) -> list[str]:
    """Distinct sentences whose every word occurs often enough among the candidates, in a random but fixed order.

    Sentences that differ in punctuation only count as one, so that none can stand in two splits.
    """
    distinct = {" ".join(w for w in words if w[0].isalpha() or "'" in w): words for words in candidates}
    counts = Counter(word for words in distinct.values() for word in words)
    kept = [" ".join(words) for words in distinct.values() if all(counts[word] >= rarest for word in words)]
    # Ordered by a hash and not by a shuffle, whose result may change with the Python version.
    return sorted(kept, key=lambda sentence: hashlib.sha256(f"{SEED} {sentence}".encode()).digest())


def split(sentences: list[str]) -> dict[str, list[str]]:
    """The sentences as valid, test and train."""
    held_out = round(HELD_OUT * len(sentences))
    return {
        "valid": sentences[:held_out],
        "test": sentences[held_out : 2 * held_out],
        "train": sentences[2 * held_out :],
    }


@contextmanager
def unpacked(package: Path) -> Iterator[Path]:
    """The folder of an unpacked package; a .deb file is unpacked into a temporary one."""
    if package.is_dir():
        yield package
        return
    with tempfile.TemporaryDirectory() as folder:
        subprocess.run(["dpkg-deb", "-x", str(package), folder], check=True)
        yield Path(folder)


def candidates_of(wordnet: Path, austen: Path) -> Iterator[list[str]]:
    """Token lists from both packages."""
    yield from usable(novel_sentences((austen / AUSTEN_DATABASE).read_bytes()))
    for name in WORDNET_FILES:
        with (wordnet / name).open(encoding="utf-8") as lines:
            yield from usable(wordnet_examples(lines), only_sentences=True)


def main() -> None:
    """Read both packages, write the three splits, and print their counts and hashes as JSON."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--wordnet", type=Path, required=True, help="wordnet-base: a .deb file or an unpacked folder")
    parser.add_argument("--austen", type=Path, required=True, help="r-cran-janeaustenr: the same")
    output = Path(__file__).parents[1] / "data" / "demo"
    parser.add_argument("--output", type=Path, default=output, help="folder to write to (default: %(default)s)")
    arguments = parser.parse_args()
    with unpacked(arguments.wordnet) as wordnet, unpacked(arguments.austen) as austen:
        splits = split(make_corpus(candidates_of(wordnet, austen)))
    arguments.output.mkdir(parents=True, exist_ok=True)
    report = {}
    for name, sentences in splits.items():
        content = "".join(f"{sentence}\n" for sentence in sentences).encode()
        (arguments.output / f"demo.{name}.txt.xz").write_bytes(lzma.compress(content, preset=9 | lzma.PRESET_EXTREME))
        report[name] = {
            "sentences": len(sentences),
            "words": sum(len(sentence.split()) for sentence in sentences),
            "sha256": hashlib.sha256(content).hexdigest(),
        }
    print(json.dumps(report, indent=2))


if __name__ == "__main__":
    main()
