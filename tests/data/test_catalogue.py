"""`textebm data`: what is known of corpora, what is found of them here, and whether it is what was published."""

import hashlib
import json
import lzma
import shutil
from pathlib import Path

import pytest

from textebm.data import download, registry
from textebm.data.catalogue import Counts
from textebm.data.image_cards import image_card_names
from textebm.data.registry import DATA_DIR_VARIABLE, SPLITS, Card, SplitCard, card_names, load_card

LINES = "".join(f"sentence number {index}\n" for index in range(400))


@pytest.fixture(autouse=True)
def _own_home(monkeypatch, tmp_path):
    monkeypatch.setenv("TEXTEBM_HOME", str(tmp_path / "home"))
    monkeypatch.delenv(DATA_DIR_VARIABLE, raising=False)


@pytest.fixture
def small(monkeypatch) -> Card:
    """A named corpus of which the tests can have copies: every split is LINES."""
    part = {
        split: SplitCard((f"small.{split}.txt",), hashlib.sha256(LINES.encode()).hexdigest(), 400, 1200)
        for split in SPLITS
    }
    card = Card("small", "Small", "Lines.", "free", "The library.", "", None, False, part, {})
    monkeypatch.setattr(registry, "card_names", lambda: ["small"])
    monkeypatch.setattr(registry, "load_card", lambda name: card)
    for name in ("card_names", "load_card"):
        monkeypatch.setattr(f"textebm.data.catalogue.{name}", getattr(registry, name))
    return card


def write_small(folder: Path, packed: bool = False) -> Path:
    folder.mkdir(exist_ok=True)
    for split in SPLITS:
        if packed:
            (folder / f"small.{split}.txt.xz").write_bytes(lzma.compress(LINES.encode()))
        else:
            (folder / f"small.{split}.txt").write_text(LINES)
    return folder


class TestList:
    def test_names_every_card_where_it_is_and_its_licence(self, command):
        done = command("data", "list")
        assert done.code == 0
        for name in card_names():
            assert f"licence: {load_card(name).licence}" in done.out
        where = [line.strip() for line in done.lines[1::3]]
        assert where[: len(card_names())] == [
            "ships with textebm",
            "not here; downloaded when it is first used, or with textebm data fetch ptb",
            "not here; how to get it says textebm data show snli",
            "not here; how to get it says textebm data show yahoo",
        ]

    def test_as_json(self, command):
        found = {entry["name"]: entry for entry in json.loads(command("data", "list", "--format", "json").out)}
        assert list(found) == card_names() + image_card_names()
        assert found["demo"]["ships"] and found["demo"]["found"]
        assert (found["ptb"]["found"], found["ptb"]["download"], found["yahoo"]["download"]) == (None, True, False)
        assert found["ptb"]["sentences"] == {"train": 42068, "valid": 3370, "test": 3761}

    def test_a_copy_with_a_file_too_few_does_not_hide_the_others(self, small, command, tmp_path):
        (write_small(tmp_path / "copies") / "small.test.txt").unlink()
        entry, *_ = json.loads(command("data", "list", "--data-dir", "copies", "--format", "json").out)
        assert entry["found"] is None
        assert "no small.test.txt" in entry["problem"]
        assert "no small.test.txt" in command("data", "list", "--data-dir", "copies").out

    def test_takes_no_name(self, command):
        done = command("data", "list", "ptb")
        assert done.code == 2
        assert "textebm data show ptb shows one corpus" in done.err


class TestShow:
    @pytest.mark.parametrize("name", card_names())
    def test_everything_on_the_card(self, name, command):
        card = load_card(name)
        out = command("data", "show", name).out
        for told in (card.title, card.licence, card.source, card.notes, card.description.strip()):
            assert told in out
        for split in SPLITS:
            assert f"{split}: {card.splits[split].sentences:,} sentences, {card.splits[split].words:,} words" in out
        found = json.loads(command("data", "show", name, "--format", "json").out)
        assert {split: found["splits"][split]["sha256"] for split in SPLITS} == {
            split: card.splits[split].sha256 for split in SPLITS
        }

    def test_where_a_copy_was_found(self, small, command, tmp_path, monkeypatch):
        monkeypatch.setenv(DATA_DIR_VARIABLE, str(write_small(tmp_path / "copies")))
        out = command("data", "show", "small").out
        assert f"where: here: {tmp_path / 'copies'}" in out
        assert f"in {tmp_path / 'copies' / 'small.valid.txt'}" in out

    def test_own_text_is_counted(self, command, tmp_path):
        (tmp_path / "mine.txt").write_text(LINES + "\n")
        found = json.loads(command("data", "show", "mine.txt", "--format", "json").out)
        assert found["name"] == "mine"
        assert sum(found["splits"][split]["sentences"] for split in SPLITS) == 400
        assert [found["splits"][split]["held_out"] for split in SPLITS] == [False, True, True]
        assert found["splits"]["train"]["blank_lines"] == 1
        assert "held out of mine.txt" in command("data", "show", "mine.txt").out

    def test_a_folder_says_what_it_resolves_to(self, command, tmp_path):
        (tmp_path / "books").mkdir()
        for name in ("a.txt", "b.txt"):
            (tmp_path / "books" / name).write_text(LINES.replace("sentence", name))
        assert "books/a.txt to books/b.txt (2 files)" in command("data", "show", "books").out

    def test_what_is_not_there(self, command):
        done = command("data", "show", "pbt")
        assert done.code == 2
        assert "did you mean 'ptb'?" in done.err


class TestShowDataSets:
    def test_text(self, command, tmp_path):
        datasets = pytest.importorskip("datasets")
        datasets.Dataset.from_dict({"text": LINES.splitlines(), "n": [1] * 400}).save_to_disk(tmp_path / "mine")
        out = command("data", "show", "hf:./mine").out
        assert "kind: text\ncolumns: text (string), n (int64)\nrows: train 400\n" in out
        assert "held out of hf:./mine, column text, split train" in out

    def test_images(self, command, tmp_path):
        pytest.importorskip("datasets")
        image = pytest.importorskip("PIL.Image")
        for label, split in (("cat", "train"), ("dog", "train"), ("cat", "test")):
            (tmp_path / "pets" / split / label).mkdir(parents=True)
            image.new("RGB", (4, 4)).save(tmp_path / "pets" / split / label / "0.png")
        done = command("data", "show", "hf:./pets")
        assert done.code == 0, done.err
        *about, problem = done.lines
        assert about == [
            "hf:./pets",
            "kind: image",
            "columns: image (image), label (classlabel)",
            "rows: train 2, test 1",
        ]
        assert problem.startswith("as images: hf:./pets, column image, split train is too small to hold out of it")
        done = command("train", "--data", "hf:./pets")
        assert done.code == 2
        assert "is too small to hold out of it" in done.err

    def test_columns_among_which_one_must_be_named(self, command, tmp_path):
        datasets = pytest.importorskip("datasets")
        datasets.Dataset.from_dict({"a": ["x"] * 40, "b": LINES.splitlines()[:40]}).save_to_disk(tmp_path / "mine")
        done = command("data", "show", "hf:./mine")
        assert done.code == 0
        assert "as text: hf:./mine has several columns of strings: name one with --text-field" in done.out


class TestFetch:
    def test_says_what_it_did(self, command, monkeypatch, tmp_path):
        def pretend(corpus: str, files: dict[str, download.Published], advice: str) -> dict[str, download.Fetched]:
            return {key: download.Fetched(tmp_path / file.name, key != "test") for key, file in files.items()}

        monkeypatch.setattr(download, "fetch", pretend)
        done = command("data", "fetch", "ptb")
        assert done.code == 0
        assert done.lines[0] == f"train: downloaded, sum as published: {tmp_path / 'ptb.train.txt'}"
        assert done.lines[2] == f"test: was there, sum as published: {tmp_path / 'ptb.test.txt'}"
        assert "Linguistic Data Consortium" in done.lines[3]

    @pytest.mark.parametrize(
        ("name", "said"),
        [
            ("yahoo", "no place to download it from as it is. Where to get it: Yang"),
            ("snli", "no place to download it from as it is. Where to get it: Bowman"),
            ("demo", "ships with textebm: there is nothing to download"),
            ("ptb", "HF_HUB_OFFLINE forbids to download it. Where to get it: Mikolov"),
            ("ptbb", "no corpus is named 'ptbb'; did you mean 'ptb'?"),
        ],
    )
    def test_what_cannot_be_fetched_says_where_to_get_it(self, name, said, command):
        done = command("data", "fetch", name)
        assert done.code == 2
        assert said in done.err

    @pytest.mark.parametrize("action", ["show", "fetch", "check"])
    def test_a_name_is_needed(self, action, command):
        done = command("data", action)
        assert done.code == 2
        assert f"data {action} needs the name of a corpus" in done.err


class TestCheck:
    def test_what_ships_is_as_its_card_says(self, command):
        done = command("data", "check", "demo")
        assert done.code == 0
        assert [line.split(",")[0] for line in done.lines] == ["train: ok", "valid: ok", "test: ok"]

    @pytest.mark.realdata
    @pytest.mark.parametrize("name", ["ptb", "snli", "yahoo"])
    def test_real_copies_are_as_published(self, name, command, shared_data):
        assert command("data", "check", name, "--data-dir", shared_data).code == 0

    @pytest.mark.realdata
    def test_one_word_that_differs_is_found(self, command, shared_data, tmp_path):
        copies = tmp_path / "copies"
        copies.mkdir()
        for path in (shared_data / "ptb").iterdir():
            shutil.copyfile(path, copies / path.name)  # the originals may be read-only
        text = lzma.decompress((copies / "ptb.valid.txt.xz").read_bytes())
        (copies / "ptb.valid.txt").write_bytes(text.replace(b" the ", b" a ", 1))  # plain goes before packed
        done = command("data", "check", "ptb", "--data-dir", copies)
        assert done.code == 1
        assert [line.split(",")[0] for line in done.lines if not line.startswith(" ")] == [
            "train: ok",
            "valid: differs",
            "test: ok",
        ]

    @pytest.mark.parametrize("packed", [False, True])
    def test_counts_and_sums_of_every_split(self, packed, small, command, tmp_path):
        write_small(tmp_path / "copies", packed)
        done = command("data", "check", "small", "--data-dir", "copies", "--format", "json")
        assert done.code == 0
        found = json.loads(done.out)
        assert found["ok"]
        assert found["splits"]["test"]["sentences"] == 400
        assert found["splits"]["test"]["sha256"] == small.splits["test"].sha256

    @pytest.mark.parametrize(
        ("raw", "problems"),
        [
            (LINES.replace("number", "Number").encode(), ["sha256 is"]),
            (LINES.encode() + b"one more\n", ["sha256 is", "sentences is 401, and the card says 400", "words is 1202"]),
            (LINES.encode() + b"\xff\n", ["line 401: not UTF-8"]),
            (b"", ["sha256 is", "sentences is 0", "words is 0"]),
        ],
        ids=["other letters", "a line more", "not UTF-8", "empty"],
    )
    def test_what_differs_is_named(self, raw, problems, small, command, tmp_path):
        (write_small(tmp_path / "copies") / "small.valid.txt").write_bytes(raw)
        done = command("data", "check", "small", "--data-dir", "copies", "--format", "json")
        assert done.code == 1
        found = json.loads(done.out)
        assert not found["ok"]
        assert [found["splits"][split]["ok"] for split in SPLITS] == [True, False, True]
        said = found["splits"]["valid"]["problems"]
        assert len(said) == len(problems)
        assert all(start in problem for start, problem in zip(problems, said, strict=True))
        out = command("data", "check", "small", "--data-dir", "copies").out
        assert f"valid: {'differs' if 'sha256' in found['splits']['valid'] else 'unreadable'}" in out

    def test_no_copy_to_check(self, command):
        done = command("data", "check", "ptb")
        assert done.code == 2
        assert "there is no copy on this machine to check. Where to get it" in done.err

    def test_own_files_are_counted_to_their_end(self, command, tmp_path):
        (tmp_path / "mine").mkdir()
        for split in SPLITS:
            (tmp_path / "mine" / f"{split}.txt").write_text(f"{LINES}\n{split} one two three four\n")
        done = command("data", "check", "mine")
        assert done.code == 0
        assert (
            done.lines[0] == "train: ok, 401 sentences, 1,205 words, longest 5 words, 1 blank lines, in mine/train.txt"
        )

    def test_own_files_with_a_fault(self, command, tmp_path):
        (tmp_path / "mine").mkdir()
        for split in SPLITS:
            (tmp_path / "mine" / f"{split}.txt").write_text("" if split == "test" else f"{LINES}{split}\n")
        done = command("data", "check", "mine")
        assert done.code == 1
        assert "test: unreadable" in done.out
        assert "holds no sentence" in done.out


def test_counts():
    assert Counts.of([]) == Counts(0, 0, 0, 0)
    assert Counts.of(["a", "", "a b c", ""]) == Counts(2, 4, 2, 3)
