"""FPPL and RPPL as a user calls them: the number, its signature, what stands beside it, and bad input."""

import gzip
import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest

import textebm.lm_eval
from textebm._version import __version__
from textebm.errors import DataError, UsageError
from textebm.lm_eval import Corpus, NgramJudge, Signature, Vocabulary, difference, fppl, rppl
from textebm.lm_eval.scores import Score

Made = dict[str, list[str]]


@pytest.fixture
def texts(make_text: Callable[..., list[str]]) -> Made:
    """Train, test and samples that share most words; no real sentence is empty."""
    made = {name: make_text(seed, sentences=200) for seed, name in enumerate(("train", "test", "samples"))}
    return {name: [s or "w1" for s in text] if name != "samples" else text for name, text in made.items()}


@pytest.fixture(params=["fppl", "rppl"])
def measure(request: pytest.FixtureRequest, texts: Made) -> Callable[..., Score]:
    """Either metric of the texts, any of which can be given instead."""

    def call(**given: object) -> Score:
        samples, train, test = (given.pop(name, texts[name]) for name in ("samples", "train", "test"))
        if request.param == "fppl":
            return fppl(samples, train, reference=test, lmplz="built-in", resamples=50, **given)
        return rppl(samples, test, train, lmplz="built-in", resamples=50, **given)

    return call


class TestNumber:
    def test_fppl_is_of_the_samples_under_the_training_splits_judge(self, texts: Made) -> None:
        score = fppl(texts["samples"], texts["train"], reference=texts["test"], lmplz="built-in")
        judge = NgramJudge.train(texts["train"], Vocabulary.from_sentences(texts["train"]))
        scores = judge.score(texts["samples"])
        assert score.score == scores.perplexity
        assert score.details["scored"]["tokens"] == sum(len(s.split()) + 1 for s in texts["samples"])
        assert score.details["real_row"]["perplexity"] == judge.score(texts["test"]).perplexity
        assert score.interval[0] < score.score < score.interval[1]

    def test_rppl_is_of_the_test_split_under_the_samples_judge(self, texts: Made) -> None:
        score = rppl(texts["samples"], texts["test"], texts["train"], lmplz="built-in")
        vocabulary = Vocabulary.from_sentences(texts["train"])
        assert score.score == NgramJudge.train(texts["samples"], vocabulary).score(texts["test"]).perplexity
        floor = NgramJudge.train(texts["train"], vocabulary).score(texts["test"]).perplexity
        assert score.details["real_row"]["perplexity"] == floor

    def test_real_text_as_samples_scores_the_real_row(self, texts: Made) -> None:
        forward = fppl(texts["test"], texts["train"], reference=texts["test"], lmplz="built-in")
        assert forward.score == forward.details["real_row"]["perplexity"]
        reverse = rppl(texts["train"], texts["test"], texts["train"], lmplz="built-in")
        assert reverse.score == reverse.details["real_row"]["perplexity"]

    def test_order_of_sentences_does_not_matter(self, measure: Callable[..., Score], texts: Made) -> None:
        """Only almost: lmplz takes the raw count of one n-gram into its statistics, and the order chooses which."""
        assert measure(samples=texts["samples"][::-1]).score == pytest.approx(measure().score, rel=1e-3)

    def test_files_and_lists_agree(self, measure: Callable[..., Score], texts: Made, tmp_path: Path) -> None:
        paths = {name: tmp_path / f"{name}.txt.gz" for name in texts}
        for name, path in paths.items():
            path.write_bytes(gzip.compress("".join(f"{s}\n" for s in texts[name]).encode()))
        lists, files = measure(data="d"), measure(data="d", **paths)
        assert (lists.score, lists.interval) == (files.score, files.interval)
        assert str(lists.signature) == str(files.signature)
        assert files.details["samples"]["text"] == "samples.txt.gz"
        generators = measure(data="d", **{name: iter(text) for name, text in texts.items()})
        assert generators.score == lists.score

    def test_empty_samples_count(self, texts: Made) -> None:
        without = [s for s in texts["samples"] if s]
        assert len(without) < len(texts["samples"])
        scores = [fppl(s, texts["train"], lmplz="built-in", resamples=1) for s in (texts["samples"], without)]
        assert scores[0].score != scores[1].score
        assert [s.signature["n"] for s in scores] == [str(len(texts["samples"])), str(len(without))]

    def test_a_spelling_of_the_unknown_word(self, measure: Callable[..., Score], texts: Made) -> None:
        as_unk, as_alias = (
            {name: [s.replace("w3", word) for s in text] for name, text in texts.items()} for word in ("<unk>", "_UNK")
        )
        scores = measure(**as_unk), measure(**as_alias, unknown="_UNK")
        assert scores[0].score == scores[1].score
        assert scores[0].details["samples"] == scores[1].details["samples"]
        assert scores[0].details["samples"]["out_of_vocabulary"] == 0 < scores[0].details["samples"]["unknown_rate"]


class TestSignature:
    def test_says_how(self, texts: Made) -> None:
        score = rppl(
            texts["samples"], texts["test"], texts["train"], data="toy", decoding="greedy", lmplz="built-in", seed=7
        )
        signature = Signature.parse(str(score.signature))
        assert signature == score.signature
        query = signature["query"]
        assert dict(signature) == {
            "metric": "rppl",
            "data": "toy",
            "train": Corpus(texts["train"]).sha256[:12],
            "test": Corpus(texts["test"]).sha256[:12],
            "n": "200",
            "decoding": "greedy",
            "judge": "kenlm5",
            "order": "5",
            "smoothing": "modified-kneser-ney",
            "discounts": signature["discounts"],
            "estimator": "built-in",
            "query": query,
            "vocabulary": f"train-{score.details['vocabulary']}",
            "eos": "yes",
            "interval": "bootstrap-1000",
            "seed": "7",
            "version": __version__,
        }
        assert query == "built-in" or "kenlm-" in query

    def test_does_not_change_with_the_samples(self, texts: Made) -> None:
        """Two systems' scores compare when their signatures are equal."""
        scores = [fppl(texts[name], texts["train"], lmplz="built-in", resamples=1) for name in ("samples", "test")]
        assert str(scores[0].signature) == str(scores[1].signature)
        assert "test" not in scores[0].signature  # the test split is beside FPPL, not in it

    def test_lmplz_is_named(self, texts: Made, lmplz: Path) -> None:
        score = fppl(texts["samples"], texts["train"], lmplz=str(lmplz))
        assert score.signature["estimator"].startswith("lmplz")


class TestDetails:
    def test_json(self, measure: Callable[..., Score]) -> None:
        score = measure()
        read = json.loads(score.to_json())
        assert {*read} == {"metric", "score", "interval", "signature", "details"}
        assert read["score"] == score.score
        assert read["details"] == score.details
        assert read["details"]["samples"]["sentences"] == 200
        assert read["details"]["real"]["copied_rate"] >= 0

    def test_headline_protocol(self, measure: Callable[..., Score], texts: Made) -> None:
        score = measure(decoding="sample-t1")
        assert score.details["headline"] is True
        assert score.details["headline_sentences"] == len(texts["train"])
        assert [w for w in score.warnings if "headline" in w] == []

    @pytest.mark.parametrize(
        ("given", "said"),
        [
            ({"decoding": "greedy"}, "decoding is greedy"),
            ({}, "nothing says how"),
            ({"decoding": "sample-t1", "headline_n": 300}, "200 sentences, fewer than .* 300"),
            ({"decoding": "sample-t1", "headline_n": 100}, "200 sentences, more than .* 100"),
        ],
    )
    def test_departures_are_told(self, measure: Callable[..., Score], given: dict[str, object], said: str) -> None:
        score = measure(**given)
        assert score.details["headline"] is False
        (warning,) = [w for w in score.warnings if "headline" in w]
        assert re.search(said, warning)

    def test_same_text_twice_is_told(self, texts: Made) -> None:
        score = rppl(texts["test"], texts["train"], texts["train"], lmplz="built-in", resamples=1)
        assert "test and train hold the same sentences" in score.warnings
        score = fppl(texts["train"], texts["train"], lmplz="built-in", resamples=1)
        assert "samples and train hold the same sentences" in score.warnings
        assert score.details["samples"]["copied_rate"] == 1

    def test_too_good_is_flagged(self, texts: Made) -> None:
        dull = fppl(["w1"] * 200, texts["train"], reference=texts["test"], lmplz="built-in", resamples=1)
        assert any("below the real row" in w and "diversity" in w for w in dull.warnings)
        cheat = rppl(texts["test"], texts["test"], texts["train"], lmplz="built-in", resamples=1)
        assert any("below the real row" in w and "test split" in w for w in cheat.warnings)
        honest = rppl(["w0"] * 200, texts["test"], texts["train"], lmplz="built-in", resamples=1)
        assert not any("below the real row" in w for w in honest.warnings)

    def test_without_a_reference_the_training_split_stands_beside(self, texts: Made) -> None:
        score = fppl(texts["samples"], texts["train"], lmplz="built-in", resamples=1)
        assert score.details["real_row"] is None
        assert score.details["real"]["text"] == "train"
        assert score.details["real"]["copied_rate"] is None


class TestDifference:
    """Of two scores, from Python."""

    def scores(self, texts: Made, metric: str, **given: object) -> list[Score]:
        settings = {"lmplz": "built-in", "resamples": 50} | given
        pairs = (texts["samples"], texts["test"])
        if metric == "fppl":
            return [fppl(samples, texts["train"], **settings) for samples in pairs]
        return [rppl(samples, texts["test"], texts["train"], **settings) for samples in pairs]

    @pytest.mark.parametrize(("metric", "method"), [("fppl", "independent-bootstrap"), ("rppl", "paired-bootstrap")])
    def test_is_paired_where_both_score_the_same_sentences(self, metric: str, method: str, texts: Made) -> None:
        first, second = self.scores(texts, metric)
        found = difference(first, second, resamples=200)
        assert found.difference == pytest.approx(first.score - second.score)
        assert found.interval[0] < found.difference < found.interval[1]
        assert found.method == method
        assert 0 < found.p_value <= 1
        assert difference(first, second, resamples=200) == found

    def test_scores_that_do_not_compare_have_none(self, texts: Made) -> None:
        first, second = (self.scores(texts, metric)[0] for metric in ("fppl", "rppl"))
        with pytest.raises(UsageError, match="do not compare: they differ in metric"):
            difference(first, second)


class TestBadInput:
    @pytest.mark.parametrize("which", ["samples", "train", "test"])
    @pytest.mark.parametrize(("text", "said"), [([], "no sentence"), (["", " "], "no sentence|every sentence")])
    def test_nothing_to_measure(self, measure: Callable[..., Score], which: str, text: list[str], said: str) -> None:
        with pytest.raises(DataError, match=f"{which}: ({said})"):
            measure(**{which: text})

    def test_missing_file(self, measure: Callable[..., Score], tmp_path: Path) -> None:
        with pytest.raises(DataError, match=r"none\.txt: no such file"):
            measure(samples=tmp_path / "none.txt")

    @pytest.mark.parametrize("samples", [["w1"], ["zzz qqq"], ["<unk>"], ["<s> w1 </s> <unk>"], ["w1", ""]])
    def test_little_or_strange_text_is_no_error(self, measure: Callable[..., Score], samples: list[str]) -> None:
        assert 1 < measure(samples=samples).score < 1e6

    def test_text_of_another_kind_is_told(self, measure: Callable[..., Score]) -> None:
        assert any("no word of samples occurs" in warning for warning in measure(samples=["zzz qqq", ""]).warnings)
        assert not any("no word" in warning for warning in measure(samples=["zzz w1"]).warnings)

    def test_words_outside_the_vocabulary_are_counted(self, measure: Callable[..., Score], texts: Made) -> None:
        score = measure(samples=[*texts["samples"], "zzz qqq"])
        assert score.details["samples"]["out_of_vocabulary"] >= 2

    @pytest.mark.parametrize(
        "given",
        [{"resamples": 0}, {"headline_n": 0}, {"protocol": "kenlm6"}, {"repeats": 0}, {"seed": -1}, {"max_length": 0}],
    )
    def test_arguments(self, texts: Made, given: dict[str, object]) -> None:
        with pytest.raises(UsageError):
            fppl(texts["samples"], texts["train"], lmplz="built-in", **given)


class TestPackage:
    def test_every_public_name_is_there(self) -> None:
        assert {name: getattr(textebm.lm_eval, name) for name in textebm.lm_eval.__all__}["fppl"] is fppl
        with pytest.raises(AttributeError, match="no attribute 'nothing'"):
            _ = textebm.lm_eval.nothing


@pytest.mark.slow
@pytest.mark.realdata
def test_ptb_valid_as_samples(shared_data: Path) -> None:
    """Real text that plays the generator: its FPPL is that of real text, its RPPL above the floor, for it is small."""
    train, valid, test = (shared_data / "ptb" / f"ptb.{name}.txt.xz" for name in ("train", "valid", "test"))
    score = rppl(valid, test, train, lmplz="built-in", resamples=100)
    assert score.details["real_row"]["perplexity"] == pytest.approx(141.19, abs=0.05)
    assert score.score == pytest.approx(283.55, abs=0.1)  # lmplz and KenLM's query give 283.554
    assert score.details["judge"]["words_unseen"] == 3978
