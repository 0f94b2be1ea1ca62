"""The cache of encoded text: keyed by content and settings, mapped, whole or not there, safe for two processes."""

import dataclasses
import gzip
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from textebm.data import cache
from textebm.data.registry import resolve
from textebm.data.text import EncodingOptions, encode
from textebm.data.vocabulary import decode
from textebm.errors import DataError

VOCABULARY = cache.VocabularyOptions(50)
LINES = {
    "train": ["the cat sat", "", "the dog ran home", "a cat ran"],
    "valid": ["the cat ran home", "a zebra sat"],
    "test": ["the dog sat"],
}


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("TEXTEBM_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


@pytest.fixture
def folder(tmp_path):
    folder = tmp_path / "corpus"
    folder.mkdir()
    for split, lines in LINES.items():
        (folder / f"{split}.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return folder


class Built:
    """What was built, and not found."""

    def __init__(self):
        self.what = []

    def __call__(self, what, sentences):
        self.what.append((what, sentences))


def get(folder, options=None, vocabulary=VOCABULARY):
    """All of a corpus, and what had to be built for it."""
    built = Built()
    corpus = resolve(str(folder))
    tokenizer = cache.vocabulary(corpus, vocabulary, built)
    splits = [
        cache.encoded(corpus, split, tokenizer, options or EncodingOptions(), built)
        for split in ("train", "valid", "test")
    ]
    return tokenizer, splits, built.what


def sentences_of(tokenizer, text):
    return [decode(tokenizer, text.sentence(row)) for row in range(len(text))]


def test_a_cached_text_is_the_text_that_encode_gives(folder):
    tokenizer, splits, _ = get(folder)
    _, again, _ = get(folder)
    for split, first, second in zip(LINES, splits, again, strict=True):
        plain = encode(resolve(str(folder)).sentences(split), tokenizer)
        for text in (first, second):
            assert text.report == plain.report
            assert sentences_of(tokenizer, text) == sentences_of(tokenizer, plain)
            assert [torch.equal(a, b) for a, b in zip(text.batch([0]), plain.batch([0]), strict=True)] == [True] * 3
    assert sentences_of(tokenizer, splits[1]) == ["the cat ran home", "a <unk> sat"]
    assert splits[0].report.blank_lines == 1


def test_what_is_there_is_not_built_again(folder):
    assert [what for what, _ in get(folder)[2]] == ["vocabulary", "train", "valid", "test"]
    assert get(folder)[2] == []


def test_a_cached_text_is_mapped_from_its_file(folder, home):
    _, (train, _, _), _ = get(folder)
    assert not train.pieces[0].ids.flags.owndata and not train.pieces[0].ids.flags.writeable
    mapped = {line.split()[-1] for line in Path("/proc/self/maps").read_text().splitlines() if ".arrow" in line}
    assert {Path(path).parent for path in mapped} >= {home / "encoded"}


@pytest.mark.parametrize(
    "changed",
    [
        {"vocabulary": dataclasses.replace(VOCABULARY, vocab_size=6)},
        {"vocabulary": dataclasses.replace(VOCABULARY, lowercase=True)},
        {"vocabulary": dataclasses.replace(VOCABULARY, vocab_size=300, kind="bpe")},
        {"options": EncodingOptions(max_length=3)},
        {"options": EncodingOptions(max_length=3, overlong="cut")},
        {"options": EncodingOptions(unknown_words="drop")},
    ],
)
def test_other_settings_are_another_entry(folder, changed):
    get(folder)
    _, _, built = get(folder, **changed)
    assert {what for what, _ in built} >= {"train", "valid", "test"}


def test_other_content_is_another_entry_and_only_that(folder):
    get(folder)
    (folder / "valid.txt").write_text("the cat\n", encoding="utf-8")
    tokenizer, (_, valid, _), built = get(folder)
    assert built == [("valid", 1)]
    assert sentences_of(tokenizer, valid) == ["the cat"]


def test_the_same_content_elsewhere_is_the_same_entry(folder, tmp_path):
    get(folder)
    folder.rename(tmp_path / "moved")
    (tmp_path / "moved" / "train.txt").touch()
    assert get(tmp_path / "moved")[2] == []


def test_how_a_file_is_packed_may_be_another_entry_but_never_another_text(folder):
    tokenizer, before, _ = get(folder)
    packed = gzip.compress((folder / "train.txt").read_bytes())
    (folder / "train.txt").unlink()
    (folder / "train.txt.gz").write_bytes(packed)
    _, after, _ = get(folder)
    assert sentences_of(tokenizer, after[0]) == sentences_of(tokenizer, before[0])


@pytest.mark.parametrize("harm", ["cut the text", "delete the text", "cut the report", "another report", "break words"])
def test_a_damaged_entry_is_built_anew(folder, home, harm):
    tokenizer, splits, _ = get(folder)
    expected = [sentences_of(tokenizer, text) for text in splits]
    del splits
    encoded = home / "encoded"
    if harm == "cut the text":
        for path in encoded.glob("*.arrow"):
            os.truncate(path, path.stat().st_size // 2)
    elif harm == "delete the text":
        for path in encoded.glob("*.arrow"):
            path.unlink()
    elif harm == "break words":
        for path in encoded.glob("*.vocabulary.json"):
            path.write_text("{", encoding="utf-8")
    else:
        for path in set(encoded.glob("*.json")) - set(encoded.glob("*.vocabulary.json")):
            path.write_text(
                '{"size":' if harm == "cut the report" else '{"size": 1, "report": {"x": 1}}', encoding="utf-8"
            )
    tokenizer, splits, built = get(folder)
    assert built
    assert [sentences_of(tokenizer, text) for text in splits] == expected


def test_a_split_without_a_usable_sentence_is_named_and_leaves_nothing(folder, home):
    with pytest.raises(DataError, match=r"test\.txt \(test\): no sentence is left.*max_length = 2"):
        (folder / "valid.txt").write_text("cat the\n", encoding="utf-8")
        (folder / "train.txt").write_text("the cat\n", encoding="utf-8")
        get(folder, EncodingOptions(max_length=2))
    assert len(list((home / "encoded").glob("*.arrow"))) == 2
    assert list((home / "encoded").glob(".*.tmp")) == []


def test_a_refused_word_names_the_split(folder):
    with pytest.raises(DataError, match=r"valid\.txt \(valid\): the word 'zebra' is not in the vocabulary"):
        get(folder, EncodingOptions(unknown_words="refuse"))


def test_a_folder_that_cannot_be_written_is_named_with_the_way_out(folder, home, monkeypatch):
    home.write_text("a file where a folder is needed", encoding="utf-8")
    with pytest.raises(DataError, match=r"cannot be written.*TEXTEBM_HOME"):
        get(folder)


FULL_DISK = """
import resource, sys
from textebm.data import cache
from textebm.data.registry import resolve
resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))
cache.vocabulary(resolve(sys.argv[1]), cache.VocabularyOptions(5000))
"""


def test_a_full_disk_is_told_and_leaves_nothing(folder, home):
    """A limit on the size of files stands in for a full disk: both end a write with an OSError."""
    words = " ".join(f"word{index}" for index in range(5000))
    (folder / "train.txt").write_text(words + "\n", encoding="utf-8")
    done = subprocess.run(
        [sys.executable, "-c", FULL_DISK, str(folder)], capture_output=True, text=True, env=os.environ, check=False
    )
    assert "DataError: the cache of encoded text in" in done.stderr and "TEXTEBM_HOME" in done.stderr
    assert [path for path in (home / "encoded").iterdir() if path.suffix != ".lock"] == []


SLOW_BUILD = """
import sys, time
from textebm.data import cache
from textebm.data.registry import resolve
from textebm.data.text import EncodingOptions
corpus = resolve(sys.argv[1])
def watch(what, sentences):
    print("built", what, flush=True)
    time.sleep(0.5)
tokenizer = cache.vocabulary(corpus, cache.VocabularyOptions(50), watch)
text = cache.encoded(corpus, "train", tokenizer, EncodingOptions(), watch)
print("sentences", len(text))
"""


def start_slow(folder):
    return subprocess.Popen([sys.executable, "-c", SLOW_BUILD, str(folder)], stdout=subprocess.PIPE, text=True)


def test_of_two_processes_one_builds_and_the_other_waits(folder):
    outputs = [process.communicate(timeout=120)[0] for process in [start_slow(folder), start_slow(folder)]]
    assert all("sentences 3" in output for output in outputs)
    for what in ("vocabulary", "train"):
        assert sum(output.count(f"built {what}") for output in outputs) == 1


def test_a_killed_build_harms_nobody(folder, home):
    with start_slow(folder) as victim:
        assert victim.stdout.readline() == "built vocabulary\n"
        victim.kill()
    (home / "encoded" / ".0123.99999.tmp").write_bytes(b"left over")
    time.sleep(0.05)
    tokenizer, (train, *_), _ = get(folder)
    assert sentences_of(tokenizer, train) == [line for line in LINES["train"] if line]


def test_reports_are_plain_json(folder, home):
    get(folder)
    for path in (home / "encoded").glob("*.json"):
        json.loads(path.read_text(encoding="utf-8"))


def test_pieces_go_through_the_file(folder, monkeypatch):
    monkeypatch.setattr("textebm.data.text.SENTENCES_A_PIECE", 2)
    tokenizer, (train, *_), _ = get(folder)
    assert [len(piece) for piece in train.pieces] == [2, 1]
    assert train.lengths[np.array([2, 0])].tolist() == [3, 3]
    assert sentences_of(tokenizer, train) == [line for line in LINES["train"] if line]
