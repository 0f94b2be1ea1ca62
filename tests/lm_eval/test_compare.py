"""What shares a table: scores whose signatures agree in all that decides them, and published rows beside their like."""

import json
from pathlib import Path

import pytest

from textebm.errors import DataError
from textebm.lm_eval import Signature, compare
from textebm.lm_eval.compare import compare_files, compare_items, read_items
from textebm.lm_eval.published import published_rows

KENLM = "data:ptb|train:5145926136ee|n:42068|decoding:sample-t1|judge:kenlm5|order:5|eos:yes|seed:0|version:0.1.0"
LSTM = (
    "data:ptb|train:5145926136ee|n:42068|decoding:sample-t1|judge:lstm-sentence|recipe:lstm-sentence-ptb|"
    "vocabulary:train-9999|eos:yes|seed:0|version:0.1.0"
)


def score(metric: str, signature: str, value: float = 150.0, headline: bool = True) -> dict:
    test = "|test:c2f8c16a6115" if metric == "rppl" else ""
    return {
        "metric": metric,
        "score": value,
        "interval": [value - 1, value + 1],
        "signature": f"metric:{metric}|{signature}{test}",
        "details": {"headline": headline},
    }


@pytest.fixture
def write(tmp_path: Path):
    def writer(name: str, content: object) -> Path:
        path = tmp_path / f"{name}.json"
        path.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
        return path

    return writer


class TestTables:
    def test_fppl_and_rppl_of_systems_that_compare_share_one(self, write) -> None:
        files = [
            write(name, {"fppl": score("fppl", KENLM, value), "rppl": score("rppl", KENLM, value + 10)})
            for name, value in (("a", 150), ("b", 140))
        ]
        found = compare_files(files)
        (table,) = found.tables
        assert table.rows() == [
            ["a", "150.00", "149.00 to 151.00", "160.00", "159.00 to 161.00", "yes"],
            ["b", "140.00", "139.00 to 141.00", "150.00", "149.00 to 151.00", "yes"],
        ]
        assert found.warnings == []

    @pytest.mark.parametrize(
        "change", [("n:42068", "n:100"), ("sample-t1", "greedy"), ("kenlm5", "arae-ngram"), ("ee|", "ff|")]
    )
    def test_others_never_share_one_without_a_warning(self, change: tuple[str, str], write) -> None:
        other = write("b", score("fppl", KENLM.replace(*change)))
        found = compare_files([write("a", score("fppl", KENLM)), other])
        assert [list(table.items) for table in found.tables] == [["a"], ["b"]]
        (warning,) = found.warnings
        assert "do not compare and share no table" in warning
        assert change[0].strip("|").split(":")[-1] in warning

    def test_rppl_of_different_test_splits_neither(self, write) -> None:
        first, second = score("rppl", KENLM), score("rppl", KENLM)
        second["signature"] = second["signature"].replace("test:c2f8", "test:0000")
        found = compare_files([write("a", first), write("b", second), write("c", score("fppl", KENLM))])
        assert [list(table.items) for table in found.tables] == [["a", "c"], ["b", "c"]]
        assert any("test: c2f8c16a6115 / 0000c16a6115" in warning for warning in found.warnings)

    def test_other_programs_and_departures_are_told(self, write) -> None:
        other = KENLM.replace("version:0.1.0", "version:0.2.0")
        found = compare_files([write("a", score("fppl", KENLM)), write("b", score("fppl", other, headline=False))])
        assert len(found.tables) == 1
        assert any("different programs (version)" in warning for warning in found.warnings)
        assert any("not for the main table: b" in warning for warning in found.warnings)

    def test_every_format_shows_the_same(self, write) -> None:
        found = compare_files([write("a", score("fppl", KENLM)), write("b|c", score("fppl", KENLM + "|x:1"))])
        for form in ("text", "markdown", "csv", "json"):
            shown = found.render(form)
            assert "150.00" in shown or '"score": 150.0' in shown
            assert ("do not compare" in shown) == (form != "csv")
        assert "| a | 150.00 | 149.00 to 151.00 | - | - | yes |" in found.render("markdown")
        assert r"| b\|c |" in found.render("markdown")
        lines = found.render("csv").splitlines()
        assert lines[0].startswith("table,what,name,FPPL")
        assert [line.split(",")[0] for line in lines[1:]] == ["1", "2"]
        assert json.loads(found.render("json"))["tables"][0]["rows"][0]["fppl"]["interval"] == [149, 151]


class TestPublishedRows:
    def shown(self, signature: str, headline: bool = True) -> compare.Comparison:
        items = [
            compare.Item("a", metric, 110.0, (109.0, 111.0), Signature.parse(f"metric:{metric}|{signature}"), headline)
            for metric in ("fppl", "rppl")
        ]
        return compare_items(items, published=True)

    def test_stand_beside_the_judge_that_reconstructs_theirs(self) -> None:
        found = self.shown(LSTM)
        assert found.warnings == []
        rows = {row[0]: row for row in found.tables[0].rows()}
        assert rows["LEBM (published)"] == ["LEBM (published)", "107.45", "-", "181.54", "-", "-"]
        assert rows["Real data (published)"][1:4] == ["100.36", "-", "-"]
        assert "Pang et al., NeurIPS 2020" in found.render("text")

    @pytest.mark.parametrize(
        ("signature", "headline", "said"),
        [
            (KENLM, True, "their judge was an LSTM"),
            (LSTM.replace("5145926136ee", "000000000000"), True, "other data"),
            (LSTM.replace("data:ptb", "data:snli"), True, "other data"),
            (LSTM.replace("recipe:lstm-sentence-ptb", "recipe:tiny"), True, "judge or its text"),
            (LSTM + "|text:lower", True, "judge or its text"),
            (LSTM, False, "not of the headline protocol"),
        ],
    )
    def test_beside_nothing_else(self, signature: str, headline: bool, said: str) -> None:
        found = self.shown(signature, headline)
        assert found.tables[0].published == []
        assert any("published rows are left out" in warning and said in warning for warning in found.warnings)

    def test_only_where_asked_for(self) -> None:
        item = compare.Item("a", "fppl", 110.0, None, Signature.parse(f"metric:fppl|{LSTM}"), True)
        assert compare_items([item]).tables[0].published == []


class TestFiles:
    def test_scores_are_found_wherever_they_stand(self, write) -> None:
        nested = {
            "name": "run-7",
            "x": [{"fppl": score("fppl", KENLM)}],
            "rows": [{"name": "b", "rppl": score("rppl", KENLM)}],
        }
        assert [(item.name, item.metric) for item in read_items(write("f", nested))] == [
            ("run-7", "fppl"),
            ("b", "rppl"),
        ]

    @pytest.mark.parametrize(
        ("content", "said"),
        [
            ("no json", "cannot be read as JSON"),
            ({"a": 1}, "no score in it"),
            (score("fppl", "n"), "not as textebm writes it"),
            ({"metric": "fppl", "signature": "a:b"}, "not as textebm writes it"),
        ],
    )
    def test_bad_files(self, content: object, said: str, write) -> None:
        path = write("bad", content)
        with pytest.raises(DataError, match=said) as caught:
            read_items(path)
        assert str(path) in str(caught.value)

    def test_the_published_rows_are_those_of_the_paper(self, root: Path) -> None:
        rows = published_rows()
        assert {name: len(corpus["rows"]) for name, corpus in rows["data"].items()} == {"ptb": 5, "snli": 5, "yahoo": 5}
        assert [name for name, corpus in rows["data"].items() if "train" in corpus] == ["ptb"]


@pytest.mark.realdata
def test_the_known_training_split_is_ptbs(shared_data: Path) -> None:
    from textebm.lm_eval.corpus import sha256_of

    digest = sha256_of(shared_data / "ptb" / "ptb.train.txt.xz")
    assert digest.startswith(published_rows()["data"]["ptb"]["train"])
