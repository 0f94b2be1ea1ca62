"""`evaluate`: every text in one report, beside real text and the judge itself."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from textebm.errors import UsageError
from textebm.lm_eval import evaluate, fppl, rppl
from textebm.lm_eval.diversity import distinct_n
from textebm.lm_eval.report import JUDGE_ROW, REAL_ROW, Report

SETTINGS = {"lmplz": "built-in", "resamples": 50, "decoding": "sample-t1"}


@pytest.fixture(scope="module")
def made() -> dict[str, list[str]]:
    import random

    source = random.Random(0)

    def make(sentences: int, words: int) -> list[str]:
        pick = lambda: f"w{int(source.paretovariate(0.8)) % words}"  # noqa: E731
        return [" ".join(pick() for _ in range(source.randint(1, 9))) for _ in range(sentences)]

    return {"train": make(300, 30), "test": make(100, 30), "a": make(300, 30), "b": make(300, 12)}


@pytest.fixture(scope="module")
def report(made: dict[str, list[str]]) -> Report:
    return evaluate({"a": made["a"], "b": made["b"]}, made["test"], made["train"], **SETTINGS)


def test_scores_are_those_of_fppl_and_rppl(report: Report, made: dict[str, list[str]]) -> None:
    entries = {entry.name: entry for entry in report.entries}
    assert list(entries) == ["a", "b", JUDGE_ROW, REAL_ROW]
    for name in ("a", "b"):
        forward = fppl(made[name], made["train"], reference=made["test"], **SETTINGS)
        reverse = rppl(made[name], made["test"], made["train"], **SETTINGS)
        found = entries[name].scores
        assert (found["fppl"]["score"], found["rppl"]["score"]) == (forward.score, reverse.score)
        assert found["fppl"]["signature"] == str(forward.signature)
        real = entries[REAL_ROW].scores
        assert real["fppl"]["score"] == forward.details["real_row"]["perplexity"]
        assert real["rppl"]["score"] == reverse.details["real_row"]["perplexity"]


def test_limits(report: Report) -> None:
    entries = {entry.name: entry for entry in report.entries}
    real, judge = entries[REAL_ROW], entries[JUDGE_ROW]
    assert (real.kind, judge.kind) == ("real", "judge")
    assert judge.scores["fppl"]["details"]["samples"]["sentences"] == 300  # the headline protocol's number
    assert judge.scores["fppl"]["details"]["headline"]
    assert judge.scores["rppl"]["score"] > real.scores["rppl"]["score"]  # something is lost in every copy
    assert real.figures["length_wasserstein"] == real.figures["length_total_variation"] == 0
    assert judge.figures["length_wasserstein"] < entries["b"].figures["length_wasserstein"] + 3


def test_what_perplexity_does_not_see(report: Report) -> None:
    """Text b has 12 of the 30 words: fluent to the judge, and poor."""
    entries = {entry.name: entry for entry in report.entries}
    rich, poor = entries["a"].figures, entries["b"].figures
    assert all(rich[f"distinct_{n}"] > poor[f"distinct_{n}"] for n in (1, 2, 3))
    assert rich["self_bleu"] < poor["self_bleu"]
    assert rich["novelty_2"] > poor["novelty_2"]


def test_differences_are_of_the_first_text(report: Report) -> None:
    found = {difference["metric"]: difference for difference in report.differences}
    for metric, method in (("fppl", "independent-bootstrap"), ("rppl", "paired-bootstrap")):
        scores = {entry.name: entry.scores[metric]["score"] for entry in report.entries}
        assert (found[metric]["first"], found[metric]["second"]) == ("b", "a")
        assert found[metric]["difference"] == pytest.approx(scores["b"] - scores["a"])
        assert found[metric]["method"] == method
        assert found[metric]["interval"][0] < found[metric]["difference"] < found[metric]["interval"][1]


def test_texts_that_do_not_compare_have_no_difference(made: dict[str, list[str]]) -> None:
    texts = {"a": made["a"], "short": made["b"][:50]}
    found = evaluate(texts, made["test"], made["train"], limits=False, **SETTINGS)
    assert all(d["difference"] is None and "differ in n" in d["why"] for d in found.differences)
    assert "differ in n" in found.table("text")
    assert any("short: 50 sentences, fewer" in remark for remark in found.remarks)


def test_every_format_shows_every_text(report: Report) -> None:
    for form in ("text", "markdown", "csv"):
        shown = report.table(form)
        for name in ("a", "b", JUDGE_ROW, REAL_ROW, "FPPL", "self_bleu", "novelty_4"):
            assert name in shown
        assert ("paired-bootstrap" in shown) == (form != "csv")
    read = json.loads(report.to_json())
    assert {"metric", "score", "interval", "signature", "details"} <= read.keys()
    assert read["score"]["a"]["fppl"] == report.entries[0].scores["fppl"]["score"]
    assert [row["name"] for row in read["details"]["rows"]] == ["a", "b", JUDGE_ROW, REAL_ROW]


def test_figures_of_different_sizes_are_measured_on_equal_ones(made: dict[str, list[str]]) -> None:
    """More of the same text is no poorer, though it has fewer different n-grams for its size."""
    texts = {"once": made["a"][:100], "often": made["a"]}
    found = evaluate(texts, made["test"], made["train"], limits=False, **SETTINGS)
    once, often = (entry.figures["distinct_2"] for entry in found.entries[:2])
    assert often == pytest.approx(once, rel=0.2)
    assert distinct_n(made["a"])[2] < 0.7 * once
    assert "on 100 sentences of each text" in found.notes[0]


def test_without_sacrebleu_self_bleu_is_left_out_and_that_is_said(made: dict[str, list[str]], monkeypatch) -> None:
    monkeypatch.setattr("textebm.lm_eval.report.find_spec", lambda name: None)
    found = evaluate({"a": made["a"]}, made["test"], made["train"], limits=False, **SETTINGS)
    assert found.entries[0].figures["self_bleu"] is None
    assert any("sacrebleu is not installed" in note for note in found.notes)
    assert "-" in found.table("text")


def test_files_have_their_own_names(made: dict[str, list[str]], tmp_path: Path) -> None:
    paths = []
    for folder, text in (("x", "a"), ("y", "b")):
        (tmp_path / folder).mkdir()
        paths.append(tmp_path / folder / "samples.txt")
        paths[-1].write_text("\n".join(made[text]), encoding="utf-8")
    found = evaluate(paths, made["test"], made["train"], limits=False, **SETTINGS)
    assert [entry.name for entry in found.entries] == ["samples.txt", "samples.txt (2)", REAL_ROW]


@pytest.mark.parametrize("samples", [{}, [], {REAL_ROW: ["w1"]}])
def test_bad_arguments(samples: object, made: dict[str, list[str]]) -> None:
    with pytest.raises(UsageError):
        evaluate(samples, made["test"], made["train"], **SETTINGS)


def test_mauve_tells_real_from_poor(made: dict[str, list[str]], make_text: Callable[..., list[str]], tmp_path) -> None:
    pytest.importorskip("mauve")
    found = evaluate(
        {"a": made["a"], "dull": ["w1"] * 300},
        made["test"],
        made["train"],
        limits=False,
        mauve="tiny",
        judge_cache=tmp_path,
        **SETTINGS,
    )
    figures = {entry.name: entry.figures["mauve"] for entry in found.entries}
    assert 0 < figures["dull"] < 0.3 < figures["a"] <= 1
    assert figures[REAL_ROW] > 0.3
    assert any("MAUVE" in note and "tiny" in note for note in found.notes)


def test_a_feature_depends_on_no_other_sentence(made: dict[str, list[str]]) -> None:
    import numpy as np

    from textebm.lm_eval import Vocabulary
    from textebm.lm_eval.mauve import features
    from textebm.lm_eval.neural import LstmJudge

    judge = LstmJudge.train(made["train"], Vocabulary.from_sentences(made["train"]), "tiny")
    text = ["w1 w2 w3", "", "w1", *made["a"][:80]]
    together = features(judge, text)
    alone = np.concatenate([features(judge, [sentence]) for sentence in text])
    np.testing.assert_allclose(together, alone, atol=1e-5)
    assert together.shape == (83, judge.recipe.sizes[-1])
    assert np.abs(together[0] - together[2]).max() > 1e-4
