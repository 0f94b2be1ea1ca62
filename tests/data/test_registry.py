"""Corpora: named ones, one's own files and folders, and what is said when something is missing."""

import gzip
import hashlib
import lzma
from pathlib import Path

import pytest

from textebm.data.registry import (
    DATA_DIR_VARIABLE,
    SPLITS,
    Corpus,
    Split,
    card_names,
    held_out_share,
    load_card,
    resolve,
)
from textebm.data.sources import TextFiles
from textebm.errors import DataError

NAMED = ("demo", "ptb", "snli", "yahoo")
LICENSED = ("ptb", "snli", "yahoo")


@pytest.fixture(autouse=True)
def _no_data_dir(monkeypatch, tmp_path):
    monkeypatch.delenv(DATA_DIR_VARIABLE, raising=False)
    monkeypatch.setenv("TEXTEBM_HOME", str(tmp_path / "home"))


def write_ptb(folder: Path, ending: str = "") -> None:
    """Files named as the published ones, with text of our own."""
    folder.mkdir(parents=True, exist_ok=True)
    opener = {"": open, ".gz": gzip.open, ".xz": lzma.open}[ending]
    for split in SPLITS:
        with opener(folder / f"ptb.{split}.txt{ending}", "wt", encoding="utf-8") as file:
            file.write(f" a {split}   sentence of <unk> \n\n and another \n")


def content(path: Path) -> bytes:
    return lzma.decompress(path.read_bytes()) if path.suffix == ".xz" else path.read_bytes()


def path_of(corpus: Corpus, split: Split) -> Path:
    source = corpus.source(split)
    assert isinstance(source, TextFiles)
    (path,) = source.paths
    return path


def assert_matches_card(corpus: Corpus) -> None:
    assert corpus.card is not None
    for split in SPLITS:
        card = corpus.card.splits[split]
        assert hashlib.sha256(content(path_of(corpus, split))).hexdigest() == card.sha256
        sentences = list(corpus.sentences(split))
        assert len(sentences) == card.sentences
        assert sum(len(sentence.split()) for sentence in sentences) == card.words


# --- named corpora ---


def test_every_card_that_ships_is_complete():
    assert tuple(card_names()) == NAMED
    for name in NAMED:
        card = load_card(name)
        assert card.title and card.description and card.licence and card.source.endswith(".")
        for split in card.splits.values():
            assert len(split.sha256) == 64 and split.words > split.sentences > 0 and split.files


def test_demo_matches_its_card_and_needs_no_data_dir():
    assert_matches_card(resolve("demo"))


def test_demo_is_what_it_promises():
    splits = {split: list(resolve("demo").sentences(split)) for split in SPLITS}
    lengths = [len(sentence.split()) for sentences in splits.values() for sentence in sentences]
    assert len(lengths) >= 20_000 and min(lengths) >= 4 and max(lengths) <= 20
    words_only = {split: {"".join(filter(str.isalpha, s)) for s in sentences} for split, sentences in splits.items()}
    assert not words_only["train"] & (words_only["valid"] | words_only["test"])
    assert not words_only["valid"] & words_only["test"]
    folder = path_of(resolve("demo"), "train").parent
    assert sum(file.stat().st_size for file in folder.iterdir() if file.is_file()) < 1.5e6
    assert "Princeton" in (folder / "LICENSE-wordnet.txt").read_text(encoding="utf-8")


@pytest.mark.realdata
@pytest.mark.parametrize("name", LICENSED)
def test_local_copies_match_their_cards(name, shared_data):
    assert_matches_card(resolve(name, str(shared_data)))


@pytest.mark.realdata
def test_yahoo_unknown_word_is_mapped(shared_data):
    corpus = resolve("yahoo", str(shared_data))
    words = [word for sentence in corpus.sentences("valid") for word in sentence.split()]
    assert "_UNK" not in words
    assert words.count("<unk>") == content(path_of(corpus, "valid")).decode().split().count("_UNK") > 0


@pytest.mark.parametrize("ending", ["", ".gz", ".xz"])
@pytest.mark.parametrize("layout", ["ptb", "."])
def test_named_corpus_in_either_layout_and_compression(tmp_path, layout, ending):
    write_ptb(tmp_path / layout, ending)
    corpus = resolve("ptb", str(tmp_path))
    stream = corpus.sentences("test")
    assert list(stream) == ["a test sentence of <unk>", "and another"]
    assert stream.blank_lines == 1
    assert corpus.card == load_card("ptb") and not corpus.held_out


def test_data_dir_from_the_environment_and_the_argument_wins(tmp_path, monkeypatch):
    write_ptb(tmp_path / "environment")
    write_ptb(tmp_path / "argument")
    monkeypatch.setenv(DATA_DIR_VARIABLE, str(tmp_path / "environment"))
    assert path_of(resolve("ptb"), "train").parent.name == "environment"
    assert path_of(resolve("ptb", str(tmp_path / "argument")), "train").parent.name == "argument"


def test_one_copy_is_used_never_half_of_each(tmp_path):
    write_ptb(tmp_path)
    write_ptb(tmp_path / "ptb")
    (tmp_path / "ptb" / "ptb.valid.txt").unlink()
    corpus = resolve("ptb", str(tmp_path))
    assert {path_of(corpus, split).parent for split in SPLITS} == {tmp_path}


@pytest.mark.parametrize("name", LICENSED)
def test_without_a_data_dir_it_says_where_to_get_it_and_how_to_point_to_it(name):
    with pytest.raises(DataError, match=rf"(?s){name}.*https?://.*{name}.train.txt.*--data-dir.*{DATA_DIR_VARIABLE}"):
        resolve(name)


def test_missing_files_are_named(tmp_path):
    write_ptb(tmp_path)
    (tmp_path / "ptb.valid.txt").unlink()
    with pytest.raises(DataError, match=r"no ptb\.valid\.txt \(plain, \.gz or \.xz\) in "):
        resolve("ptb", str(tmp_path))


def test_data_dir_that_is_no_folder(tmp_path, monkeypatch):
    with pytest.raises(DataError, match=r"data_dir is .*absent.*no folder"):
        resolve("ptb", str(tmp_path / "absent"))
    monkeypatch.setenv(DATA_DIR_VARIABLE, str(tmp_path / "absent"))
    with pytest.raises(DataError, match=f"{DATA_DIR_VARIABLE} is .*absent.*no folder"):
        resolve("ptb")


@pytest.mark.parametrize(("wrong", "meant"), [("pbt", "ptb"), ("PTB", "ptb"), ("snil", "snli"), ("yaho", "yahoo")])
def test_unknown_name_names_the_nearest(wrong, meant):
    with pytest.raises(DataError, match=f"{wrong}.*did you mean '{meant}'"):
        resolve(wrong)
    with pytest.raises(DataError, match=f"did you mean '{meant}'"):
        load_card(wrong)


def test_unknown_name_without_a_near_one_lists_all():
    with pytest.raises(DataError, match=r"neither a file, nor a folder.*demo, ptb, snli, yahoo"):
        resolve("/no/such/file.txt")


# --- one's own text ---


def some_sentences(count: int) -> list[str]:
    return [f"sentence number {index}" for index in range(count)]


def test_single_file_is_cut_in_three_parts_that_share_no_sentence(tmp_path):
    file = tmp_path / "mine.txt"
    lines = some_sentences(4000) + some_sentences(1000)  # a quarter of the sentences twice
    file.write_text("\n".join(lines), encoding="utf-8")
    corpus = resolve(str(file))
    assert (corpus.name, corpus.held_out, corpus.card) == ("mine", ("valid", "test"), None)
    parts = {split: list(corpus.sentences(split)) for split in SPLITS}
    assert sorted(sentence for part in parts.values() for sentence in part) == sorted(lines)
    assert not set(parts["train"]) & set(parts["valid"] + parts["test"])
    assert not set(parts["valid"]) & set(parts["test"])
    for split in ("valid", "test"):
        assert len(parts[split]) / len(lines) == pytest.approx(0.05, abs=0.015)
    assert parts == {split: list(corpus.sentences(split)) for split in SPLITS}


def test_a_file_that_grows_keeps_its_splits(tmp_path):
    small, large = tmp_path / "small.txt", tmp_path / "large.txt"
    small.write_text("\n".join(some_sentences(500)), encoding="utf-8")
    large.write_text("\n".join(some_sentences(900)), encoding="utf-8")
    for split in SPLITS:
        before = list(resolve(str(small)).sentences(split))
        assert list(resolve(str(large)).sentences(split))[: len(before)] == before


def test_hold_out_does_not_change_between_versions():
    shares = [held_out_share(sentence) for sentence in some_sentences(60)]
    assert [index for index, share in enumerate(shares) if share == "valid"] == [10, 54]
    assert [index for index, share in enumerate(shares) if share == "test"] == [9, 34, 49]


@pytest.mark.parametrize("name", ["mine.txt", "mine", "mine.txt.gz", "mine.txt.xz", "mine.jsonl", "mine.jsonl.xz"])
def test_single_file_of_every_ending(tmp_path, name):
    path = tmp_path / name
    lines = some_sentences(200)
    if ".jsonl" in name:
        lines = [f'{{"text": "{line}"}}' for line in lines]
    opener = {".gz": gzip.open, ".xz": lzma.open}.get(path.suffix, open)
    with opener(path, "wt", encoding="utf-8") as file:
        file.write("\n".join(lines))
    corpus = resolve(str(path))
    assert corpus.name == "mine"
    assert sorted(s for split in SPLITS for s in corpus.sentences(split)) == sorted(some_sentences(200))


@pytest.mark.parametrize(
    "names",
    [
        ("train.txt", "valid.txt", "test.txt"),
        ("train.txt", "dev.txt.gz", "test.txt.xz"),
        ("train.jsonl", "validation.txt", "test"),
        ("ptb.train.txt", "ptb.valid.txt", "ptb.test.txt"),
        ("my-train.txt", "my_dev.txt", "my.test.txt"),
    ],
)
def test_folder_with_three_splits(tmp_path, names):
    folder = tmp_path / "corpus"
    folder.mkdir()
    for name in (*names, "README.md", "latest.txt", ".train.txt.swp", "._train.txt", "contrain.txt"):
        (folder / name).write_bytes(b"")
    corpus = resolve(str(folder))
    assert tuple(path_of(corpus, split).name for split in SPLITS) == names
    assert corpus.name == "corpus" and not corpus.held_out


@pytest.mark.parametrize("lacking", SPLITS)
def test_folder_lacking_a_split(tmp_path, lacking):
    for split in set(SPLITS) - {lacking}:
        (tmp_path / f"{split}.txt").write_text("one\n", encoding="utf-8")
    with pytest.raises(DataError, match=f"has no {lacking} file: expected {lacking}.txt"):
        resolve(str(tmp_path))


def test_folder_with_two_files_for_a_split(tmp_path):
    for name in ("train.txt", "dev.txt", "valid.txt.xz", "test.txt"):
        (tmp_path / name).write_bytes(b"")
    with pytest.raises(DataError, match=r"several valid files: dev\.txt, valid\.txt\.xz"):
        resolve(str(tmp_path))


@pytest.mark.parametrize("text", ["", "\n \n\t\n"])
def test_empty_split_names_the_file(tmp_path, text):
    for split in SPLITS:
        (tmp_path / f"{split}.txt").write_text(text, encoding="utf-8")
    with pytest.raises(DataError, match=r"valid\.txt holds no sentence"):
        list(resolve(str(tmp_path)).sentences("valid"))


def test_file_too_small_to_hold_out(tmp_path):
    file = tmp_path / "tiny.txt"
    file.write_text("the same sentence\n" * 100, encoding="utf-8")
    with pytest.raises(DataError, match=r"tiny\.txt is too small to hold out of it: none .* falls to test"):
        list(resolve(str(file)).sentences("test"))
