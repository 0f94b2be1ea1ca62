"""The script that made the demo corpus: its readers of foreign formats, its sentence splitter and its tokens."""

import importlib.util
import lzma
import struct
import zlib

import pytest


@pytest.fixture(scope="module")
def script(root):
    spec = importlib.util.spec_from_file_location("make_demo_corpus", root / "scripts" / "make_demo_corpus.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def r_vector(lines: list[str | None], version: int = 3) -> bytes:
    """A character vector as R serialises it."""
    head = b"X\n" + struct.pack(">iii", version, 0x40201, 0x30500)
    if version == 3:
        head += struct.pack(">i", 5) + b"UTF-8"
    body = struct.pack(">ii", 16, len(lines))
    for line in lines:
        text = b"" if line is None else line.encode()
        body += struct.pack(">ii", 0x40009, -1 if line is None else len(text)) + text
    return head + body


def r_database(*chunks: bytes) -> bytes:
    return b"".join(struct.pack(">I", len(chunk)) + zlib.compress(chunk) for chunk in chunks)


NOVEL = [
    "A NOVEL",
    "",
    "CHAPTER I",
    "",
    'Mr. Smith said, "It is _very_ late, is not',
    'it?" She was silent. "Come," cried he; "do come!"',
    "",
    "It was I. They had known St. James's by 1803.",
    "",
    "THE END",
]


@pytest.mark.parametrize("version", [2, 3])
def test_r_strings(script, version):
    database = r_database(r_vector(["one", None, "naïve"], version), r_vector([], version))
    assert [script.r_strings(chunk) for chunk in script.r_chunks(database)] == [["one", "", "naïve"], []]


def test_r_errors(script):
    with pytest.raises(ValueError, match="its header says 7"):
        list(script.r_chunks(struct.pack(">I", 7) + zlib.compress(b"12345678")))
    with pytest.raises(ValueError, match="not an XDR serialisation"):
        script.r_strings(b"A\n")
    with pytest.raises(ValueError, match="type 13, not a character vector"):
        script.r_strings(b"X\n" + struct.pack(">iiiii", 2, 0, 0, 13, 1))


def test_sentences_of_a_novel(script):
    assert list(script.novel_sentences(r_database(r_vector(NOVEL)))) == [
        'Mr. Smith said, "It is _very_ late, is not it?"',
        "She was silent.",
        '"Come," cried he; "do come!"',
        "It was I.",
        "They had known St. James's by 1803.",
    ]


def test_wordnet_examples(script):
    lines = [
        '  1 "licence" | "not this"\n',
        '0001 29 v 01 go 0 | to move; "he goes"; "a slow walk" \n',
        "0002 no gloss\n",
    ]
    assert list(script.wordnet_examples(lines)) == ["he goes", "a slow walk"]


@pytest.mark.parametrize(
    ("sentence", "expected"),
    [
        ('Mr. Smith said, "It is _very_ late!"', "mr. smith said , it is very late !"),
        ("I don't know; she can't, and I'll go", "i do n't know ; she ca n't , and i 'll go ."),
        ("My sister's horse", "my sister 's horse ."),
        ("Ma'am, it is five o'clock", "ma'am , it is five o'clock ."),
        ("To-morrow--or to-day--a well-bred man", "tomorrow -- or today -- a well bred man ."),
        ("-- so it ends --", "so it ends ."),
    ],
)
def test_tokens(script, sentence, expected):
    assert " ".join(script.tokens(sentence)) == expected


@pytest.mark.parametrize(
    "sentence", ["in 1803 they left", "it cost £5", "so... it ends", "Miss ---- ---- came", "", "he saw Mr."]
)
def test_sentences_that_are_left_out(script, sentence):
    assert script.tokens(sentence) is None


def test_usable_keeps_length_and_sentences(script):
    examples = ["a slow walk home", "he walks home slowly", "The dog ran home", "too short", "they kill the king ."]
    kept = [" ".join(words) for words in script.usable(examples, only_sentences=True)]
    assert kept == ["he walks home slowly .", "the dog ran home ."]


def test_corpus_is_distinct_frequent_and_in_an_order_of_its_own(script):
    candidates = [f"word {'ab'[i % 2]} {end}".split() for i in range(6) for end in ".!"] + [["rare", "word", "."]]
    sentences = script.make_corpus(candidates, rarest=1)
    assert len(sentences) == 3
    assert script.make_corpus(reversed(candidates), rarest=1) != []
    assert [s for s in script.make_corpus(candidates, rarest=2) if "rare" in s] == []
    many = [f"word {index:03}" for index in range(100)]
    parts = script.split(many)
    assert {name: len(part) for name, part in parts.items()} == {"valid": 5, "test": 5, "train": 90}
    assert sorted(sentence for part in parts.values() for sentence in part) == many


def test_main_writes_the_same_bytes_twice(script, tmp_path, monkeypatch, capsys):
    package = tmp_path / "package"
    (package / script.AUSTEN_DATABASE).parent.mkdir(parents=True)
    (package / script.WORDNET_FILES[0]).parent.mkdir(parents=True)
    places = [
        f"She went to the {noun} with {name}." for noun in ("sea", "hill", "town") for name in ("Ann", "Tom", "Sue")
    ]
    (package / script.AUSTEN_DATABASE).write_bytes(r_database(r_vector(places * 2)))
    for name in script.WORDNET_FILES:
        gloss = "; ".join(
            f'"{he} went to the {noun}"' for he in ("he", "she", "they") for noun in ("sea", "hill", "town")
        )
        (package / name).write_text(f"0001 | a gloss; {gloss}\n", encoding="utf-8")
    written = []
    for folder in (tmp_path / "first", tmp_path / "second"):
        arguments = ["make", "--wordnet", str(package), "--austen", str(package), "--output", str(folder)]
        monkeypatch.setattr("sys.argv", arguments)
        script.main()
        written.append({file.name: file.read_bytes() for file in folder.iterdir()})
    assert written[0] == written[1]
    assert sorted(written[0]) == ["demo.test.txt.xz", "demo.train.txt.xz", "demo.valid.txt.xz"]
    text = b"".join(lzma.decompress(content) for content in written[0].values()).decode().splitlines()
    assert "she went to the sea ." in text and len(text) == len(set(text))
    assert '"sentences"' in capsys.readouterr().out
