"""`textebm calibrate`: real rows through the command line, beside what is known; and the library behind it."""

import json
import re
from pathlib import Path
from typing import Any

import pytest

from textebm.errors import DataError, UsageError
from textebm.lm_eval import calibration
from textebm.lm_eval.calibration import KNOWN, KnownValue, calibrate
from textebm.lm_eval.corpus import Corpus, Vocabulary
from textebm.lm_eval.judging import JudgeOptions
from textebm.lm_eval.neural import LstmJudge
from textebm.lm_eval.ngram import NgramJudge
from textebm.lm_eval.protocols import LSTM_SENTENCE
from textebm.lm_eval.signature import Signature


@pytest.fixture(autouse=True)
def no_settings_of_this_machine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("TEXTEBM_DATA", raising=False)
    monkeypatch.setenv("TEXTEBM_HOME", str(tmp_path / "home"))


def read(folder: Path, split: str) -> list[str]:
    return (folder / f"{split}.txt").read_text().splitlines()


class TestCommand:
    def test_all_judges(self, command, corpus_folder: Path) -> None:
        """The figures are those of the judges, trained as one would from Python."""
        done = command("calibrate", "--data", corpus_folder, "--recipe", "tiny", "--lmplz", "built-in", "--seed", 3)
        assert done.code == 0, done.err
        result = json.loads(done.out)
        rows = result["details"]["judges"]
        assert list(rows) == ["kenlm5", "lstm-sentence"]
        train, valid, test = (read(corpus_folder, split) for split in ("train", "valid", "test"))
        vocabulary = Vocabulary.from_sentences(train)
        judges = {
            "kenlm5": NgramJudge.train(train, vocabulary, 5),
            "lstm-sentence": LstmJudge.train(train, vocabulary, "tiny", seed=3, held_out=valid),
        }
        for name, judge in judges.items():
            row = rows[name]
            assert row["score"] == pytest.approx(judge.score(test).perplexity, rel=1e-9)
            low, high = row["interval"]
            assert low < row["score"] < high
            signature = Signature.parse(row["signature"])
            assert signature["metric"] == "real-row"
            assert signature["judge"] == name
            assert signature["n"] == "300"
            assert signature["test"] == Corpus(test).sha256[:12]
            assert {key: signature[key] for key in judge.settings} == judge.settings
            assert row["details"]["known"]["perplexity"] is None
        assert len(rows["lstm-sentence"]["details"]["curve"]) == 3
        assert {key: result[key] for key in ("score", "signature")} == {
            key: rows["kenlm5"][key] for key in ("score", "signature")
        }

    def test_says_how_it_was_obtained(self, command, corpus_folder: Path, tmp_path: Path) -> None:
        """Without the places on this machine that the command line named."""
        words = ("--judge", "kenlm5", "--lmplz", "built-in", "--output", tmp_path / "out.json")
        done = command("calibrate", "--data", corpus_folder, *words)
        assert (done.code, done.out) == (0, "")
        result = json.loads((tmp_path / "out.json").read_text())
        assert result["command"] == f"textebm calibrate --data {corpus_folder} --judge kenlm5"
        assert re.fullmatch("[0-9a-f]{40}(-dirty)?", result["commit"])
        assert re.match("cpu", result["hardware"])
        assert result["seed"] == 0 and result["versions"]["torch"]

    def test_goes_on_where_it_ended(self, command, corpus_folder: Path) -> None:
        words = ("calibrate", "--data", corpus_folder, "--judge", "lstm-sentence", "--recipe", "tiny")
        first = command(*words, "--epochs", 1)
        assert "ended early after 1 epochs" in first.err
        assert "epochs:1-cut" in json.loads(first.out)["signature"]
        second = command(*words)
        assert "1 epochs done" in second.err and "epoch 3" in second.err and "epoch 1:" not in second.err
        third = command(*words)
        assert "trained before (3 epochs)" in third.err
        one, other = (json.loads(done.out)["details"]["judges"] for done in (second, third))
        assert one == other

    def test_a_damaged_judge_is_trained_again_and_that_is_said(
        self, command, corpus_folder: Path, tmp_path: Path
    ) -> None:
        words = ("calibrate", "--data", corpus_folder, "--judge", "lstm-sentence", "--recipe", "tiny")
        first = command(*words)
        (weights,) = tmp_path.glob("home/judges/*/*.safetensors")
        weights.write_bytes(weights.read_bytes()[:1000])
        second = command(*words)
        assert second.code == 0
        assert re.search(r"warning: the judge kept in .* is damaged and is trained again", second.err)
        assert json.loads(first.out)["score"] == json.loads(second.out)["score"]

    def test_text_for_people_on_the_demo_corpus(self, command) -> None:
        words = ("--recipe", "tiny", "--epochs", 1, "--format", "text", "--lmplz", "built-in")
        done = command("calibrate", "--data", "demo", *words)
        assert done.code == 0, done.err
        assert re.search(r"^kenlm5: real text 86\.\d\d  \(95 % interval", done.out, re.MULTILINE)
        assert re.search(r"^lstm-sentence: real text 1\d\d\.\d\d  \(95 % interval", done.out, re.MULTILINE)
        assert "no figure is known for demo under kenlm5" in done.out

    @pytest.mark.parametrize(
        ("words", "said"),
        [
            (("--recipe", "nonsense"), "choose from lstm-sentence-ptb"),
            (("--judge", "bert"), "bert"),
            (("--data", "nowhere"), "neither a file"),
            (("--epochs", 0), "max_epochs is 0"),
            (("--max-minutes", -1), "max_minutes is -1"),
            (("--seed", -1), "seed is -1"),
        ],
    )
    def test_wrong_usage(self, words, said: str, command, corpus_folder: Path) -> None:
        done = command("calibrate", "--data", corpus_folder, "--judge", "lstm-sentence", *words)
        assert done.code == 2
        assert said in done.err.replace("\n│ ", "")

    @pytest.mark.realdata
    def test_ptb_under_kenlm(self, shared_data: Path, command) -> None:
        done = command("calibrate", "--data", "ptb", "--data-dir", shared_data, "--judge", "kenlm5")
        known = json.loads(done.out)["details"]["judges"]["kenlm5"]["details"]["known"]
        assert known["perplexity"] == 141.19
        assert abs(known["difference"]) < 4e-4


class TestKnownFigures:
    def rows(self, data: str, train: list[str], **options: Any) -> list[dict[str, Any]]:
        settings = JudgeOptions(recipe="tiny", lmplz="built-in", epochs=1, **options)
        return [row.as_dict() for row in calibrate(train, ["a b"], ["b a"], data=data, options=settings)]

    def test_are_withheld_from_other_training_splits(self) -> None:
        for row in self.rows("ptb", ["a b", "b", "a"]):
            assert row["details"]["known"]["perplexity"] is None
            assert "another training split of ptb" in row["details"]["known"]["why"]

    def test_are_compared_with_where_the_training_split_is_theirs(self, monkeypatch: pytest.MonkeyPatch) -> None:
        train = ["a b", "b", "a"]
        monkeypatch.setitem(KNOWN, ("ptb", "kenlm5"), KnownValue(5.0, "a test", train_sha256=Corpus(train).sha256))
        monkeypatch.setitem(KNOWN, ("ptb", "lstm-sentence"), KnownValue(5.0, "a test", train_sentences=3))
        for row in self.rows("ptb", train):
            known = row["details"]["known"]
            assert known["perplexity"] == 5.0
            assert known["difference"] == pytest.approx(row["score"] / 5 - 1)

    @pytest.mark.parametrize(("data", "recipe"), [("snli", "lstm-sentence-snli"), ("my-corpus", "lstm-sentence-ptb")])
    def test_the_recipe_is_that_of_the_corpus_or_of_ptb(self, data: str, recipe: str) -> None:
        assert LSTM_SENTENCE.recipe_for(data) == recipe

    def test_bad_use(self) -> None:
        with pytest.raises(UsageError, match="no judge 'x'"):
            calibrate(["a"], ["a"], ["a"], data="d", judges=["x"])
        with pytest.raises(DataError, match="valid: no sentence"):
            calibrate(["a"], [], ["a"], data="d")

    def test_the_judges_are_those_of_the_command(self) -> None:
        assert set(calibration.JUDGES) == {judge for _, judge in KNOWN}
