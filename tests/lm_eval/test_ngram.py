"""The n-gram judge: laws of its probabilities, KenLM's own figures, specials; for each estimator and reader."""

import math
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from textebm.errors import JudgeError, UsageError
from textebm.lm_eval import ngram
from textebm.lm_eval.corpus import Corpus, Vocabulary
from textebm.lm_eval.ngram import BUILT_IN, NgramJudge, find_lmplz

GOLDEN_PERPLEXITY = 9.442994670565353
"""What KenLM 0.3.0's query says of golden/test.txt, under golden/lmplz-order4.arpa."""

PTB_REAL_ROW = 141.19
"""lmplz, order 5, `<unk>` as an ordinary word, end of sentence counted."""

CONTEXTS = ["", "w1", "w0 w1 w2", "w3 never", "<unk>", "w1 <s> </s>", "w1 w1 w1 w1 w1 w1"]


def golden_corpora(golden: Path) -> tuple[Corpus, Corpus, Vocabulary]:
    train, test = (Corpus(golden / f"{name}.txt", keep_blank=True) for name in ("train", "test"))
    return train, test, Vocabulary([*Vocabulary.from_sentences(train), "kite", "lobster"])


def probability(judge: NgramJudge, word: str, context: str) -> float:
    return math.exp(judge.token_log_probs(f"{context} {word}")[-2])


def end_probability(judge: NgramJudge, context: str) -> float:
    return math.exp(judge.token_log_probs(context)[-1])


class TestLaws:
    @pytest.mark.parametrize("order", [2, 5])
    @pytest.mark.parametrize("special", ["none", "in the text"])
    def test_probabilities_over_the_vocabulary_sum_to_one(
        self, estimator: Path | None, query: str, order: int, special: str, make_text: Callable[..., list[str]]
    ) -> None:
        """Words that the training text never holds included: each gets its uniform share."""
        text = make_text(1, sentences=40)
        if special == "in the text":
            text = [s.replace("w1 ", "<unk> ").replace("w2 ", "<s> ") for s in text]
        vocabulary = Vocabulary([*(f"w{n}" for n in range(20)), "<s>", "</s>", "never", "neither"])
        judge = NgramJudge.train(text, vocabulary, order, estimator, query)
        assert judge.unseen >= 3
        for context in CONTEXTS:
            total = sum(probability(judge, word, context) for word in vocabulary) + end_probability(judge, context)
            assert total == pytest.approx(1, abs=2e-6), context

    def test_where_every_word_occurs_one_share_is_kept_for_a_word_that_never_comes(
        self, estimator: Path | None, query: str
    ) -> None:
        """KenLM's count of specials: it divides between the words of the text, </s>, and its own <unk>."""
        text = ["a b <unk>", "b b a", "<unk> a", "a"]
        judge = NgramJudge.train(text, Vocabulary(["a", "b"]), 2, estimator, query)
        assert judge.unseen == 0
        # Adjusted counts of a, b, <unk>, </s>: 3 (after b, <unk>, <s>), 3, 2, 2; discounts 1.5, 1.5, 1, 1 of 10.
        never = (1.5 + 1.5 + 1 + 1) / 10 / 5
        total = sum(probability(judge, word, "b") for word in ("a", "b", "<unk>")) + end_probability(judge, "b")
        left_by_b = (0.5 * 3) / 3  # b is followed by <unk>, b and a, once each
        assert total == pytest.approx(1 - left_by_b * never, abs=2e-6)

    def test_unseen_words_share_alike_and_seen_ones_get_more(
        self, estimator: Path | None, query: str, make_text: Callable[..., list[str]]
    ) -> None:
        vocabulary = Vocabulary([*(f"w{n}" for n in range(20)), "one", "two"])
        judge = NgramJudge.train(make_text(2), vocabulary, 3, estimator, query)
        assert probability(judge, "one", "w1") == probability(judge, "two", "w1") < probability(judge, "w0", "w1")

    def test_score_does_not_depend_on_the_other_sentences(
        self, query: str, make_text: Callable[..., list[str]], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        judge = NgramJudge.train(make_text(3), Vocabulary(f"w{n}" for n in range(20)), 4, None, query)
        sentences = make_text(4, sentences=50)
        whole = judge.score(sentences)
        alone = [judge.score([s]).log_probs[0] for s in sentences]
        assert np.allclose(whole.log_probs, alone, rtol=1e-12)
        assert np.allclose(judge.score(sentences[::-1]).log_probs[::-1], whole.log_probs, rtol=1e-12)
        monkeypatch.setattr(ngram, "SENTENCES_AT_ONCE", 7)
        assert np.allclose(judge.score(iter(sentences)).log_probs, whole.log_probs, rtol=1e-12)

    def test_sentence_is_the_sum_of_its_tokens(self, query: str, make_text: Callable[..., list[str]]) -> None:
        judge = NgramJudge.train(make_text(3), Vocabulary(f"w{n}" for n in range(20)), 4, None, query)
        sentences = [*make_text(4), "", "new word"]
        scores = judge.score(sentences)
        assert scores.tokens.tolist() == [len(s.split()) + 1 for s in sentences]
        by_token = [judge.token_log_probs(s) for s in sentences]
        assert [len(values) for values in by_token] == scores.tokens.tolist()
        assert np.allclose(scores.log_probs, [values.sum() for values in by_token], rtol=2e-6)


class TestSpecials:
    """lmplz refuses <unk>, <s> and </s> in text, and KenLM's module reads <UNK> as <unk>."""

    @pytest.mark.parametrize("special", ["<unk>", "<s>", "</s>", "<UNK>", "_<unk>", "__<s>"])
    def test_is_a_word_like_any_other(
        self, special: str, estimator: Path | None, query: str, make_text: Callable[..., list[str]]
    ) -> None:
        text = make_text(6, sentences=100)
        with_special = [" ".join(special if w == "w1" else w for w in s.split()) for s in text]
        scores = []
        for sentences in (text, with_special):
            # <unk> is in every vocabulary; where it stands in the text, "x" is what never comes instead.
            never = ["x"] if special == "<unk>" and sentences is with_special else []
            vocabulary = Vocabulary.from_sentences([*sentences, *never])
            judge = NgramJudge.train(sentences, vocabulary, 3, estimator, query)
            scores.append(judge.score(sentences).log_probs)
        assert np.array_equal(*scores)

    def test_different_words_stay_different(self, estimator: Path | None, query: str) -> None:
        words = ["<unk>", "_<unk>", "__<unk>", "<UNK>", "<s>", "</s>", "_</s>"]
        text = [" ".join(["a", word] * (n + 1)) for n, word in enumerate(words)]
        judge = NgramJudge.train(text, Vocabulary(["a", *words]), 2, estimator, query)
        assert judge.unseen == 0
        probabilities = [probability(judge, word, "a") for word in words]
        assert np.diff(probabilities).min() > 0.01  # the n-th follows "a" n times

    def test_word_outside_the_vocabulary_becomes_unk(self, query: str, make_text: Callable[..., list[str]]) -> None:
        vocabulary = Vocabulary(f"w{n}" for n in range(1, 20))  # w0 is outside
        text = make_text(9)
        mapped = [" ".join(w if w in vocabulary else "<unk>" for w in s.split()) for s in text]
        judges = [NgramJudge.train(t, vocabulary, 3, None, query) for t in (text, mapped)]
        scores = [judge.score(t).log_probs for judge, t in zip(judges, (mapped, text), strict=True)]
        assert np.array_equal(*scores)


class TestAgreement:
    def test_golden_perplexity(self, golden: Path, estimator: Path | None, query: str) -> None:
        train, test, vocabulary = golden_corpora(golden)
        judge = NgramJudge.train(train, vocabulary, 4, estimator, query)
        assert judge.score(test).perplexity == pytest.approx(GOLDEN_PERPLEXITY, rel=1e-6)
        assert judge.unseen == 2

    @pytest.mark.parametrize("seed", range(4))
    def test_estimators_and_readers(self, seed: int, lmplz: Path, make_text: Callable[..., list[str]]) -> None:
        """Perplexity within 1e-5; the fallback of small texts is noticed by both."""
        pytest.importorskip("kenlm", reason="KenLM's Python module is not installed")
        text, other = make_text(seed, sentences=(3, 300)[seed % 2]), make_text(seed + 100)
        vocabulary = Vocabulary(f"w{n}" for n in range(25))
        judges = [
            NgramJudge.train(text, vocabulary, 5, program, query)
            for program in (lmplz, None)
            for query in ("kenlm", BUILT_IN)
        ]
        perplexities = [judge.score(other).perplexity for judge in judges]
        assert perplexities == pytest.approx([perplexities[0]] * 4, rel=1e-5)
        assert len({judge.settings["discounts"] for judge in judges}) == 1
        assert {j.settings["estimator"].split("-")[0] for j in judges} == {"lmplz", "built"}
        assert len({j.settings["query"] for j in judges}) == 2

    @pytest.mark.realdata
    def test_ptb_real_row(self, shared_data: Path, estimator: Path | None) -> None:
        train, test = (Corpus(shared_data / "ptb" / f"ptb.{name}.txt.xz") for name in ("train", "test"))
        vocabulary = Vocabulary.from_sentences(train)
        judge = NgramJudge.train(train, vocabulary, 5, estimator)
        scores = judge.score(test)
        assert len(vocabulary) == 9999
        assert scores.total_tokens == 78_669 + 3_761
        assert scores.perplexity == pytest.approx(PTB_REAL_ROW, abs=0.05)
        assert judge.settings["discounts"] == "closed-form"


class TestSmallText:
    def test_discounts_are_told(self, estimator: Path | None, golden: Path) -> None:
        train, _, vocabulary = golden_corpora(golden)
        judge = NgramJudge.train(["the boat", "the"], vocabulary, 3, estimator)
        assert judge.settings["discounts"] == "fallback-in-orders-1+2+3"
        judge = NgramJudge.train(train, vocabulary, 4, estimator)
        assert judge.settings["discounts"] == "closed-form"

    @pytest.mark.parametrize("text", [["a"], ["a", ""], ["zzz zzz"], ["<unk>"], ["a a a a a a a a"]])
    def test_one_word_is_enough(self, text: list[str], estimator: Path | None, query: str) -> None:
        judge = NgramJudge.train(text, Vocabulary(["a", "b"]), 5, estimator, query)
        assert math.isfinite(judge.score(["a b <unk> zzz", ""]).perplexity)


class TestBadUse:
    @pytest.mark.parametrize("order", [1, 7])
    def test_order(self, order: int) -> None:
        with pytest.raises(UsageError, match="must be 2 to 6"):
            NgramJudge.train(["a"], Vocabulary(["a"]), order)

    def test_no_sentence(self, estimator: Path | None) -> None:
        with pytest.raises(JudgeError, match="no sentence"):
            NgramJudge.train([], Vocabulary(["a"]), 2, estimator)
        judge = NgramJudge.train(["a"], Vocabulary(["a"]), 2, estimator)
        with pytest.raises(JudgeError, match="no token"):
            _ = judge.score([]).perplexity

    def test_missing_module(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
        with pytest.raises(UsageError, match=r"textebm\[kenlm\]"):
            NgramJudge.train(["a"], Vocabulary(["a"]), 2, query="kenlm")
        assert NgramJudge.train(["a"], Vocabulary(["a"]), 2).settings["query"] == BUILT_IN

    def test_a_program_that_fails(self, tmp_path: Path) -> None:
        broken = make_program(tmp_path / "lmplz", "echo out of memory >&2; exit 3")
        with pytest.raises(JudgeError, match=r"ended with 3: out of memory.*TEXTEBM_LMPLZ"):
            NgramJudge.train(["a"], Vocabulary(["a"]), 2, broken)
        broken.write_text("no program")
        broken.chmod(0o644)
        with pytest.raises(JudgeError, match="cannot be run"):
            NgramJudge.train(["a"], Vocabulary(["a"]), 2, broken)


def make_program(path: Path, script: str = "exit 0") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)
    return path


class TestFindLmplz:
    @pytest.fixture(autouse=True)
    def nothing_installed(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
        monkeypatch.delenv("TEXTEBM_LMPLZ", raising=False)
        monkeypatch.setenv("TEXTEBM_HOME", str(tmp_path / "home"))
        monkeypatch.setenv("PATH", str(tmp_path / "bin"))

    def test_each_place_goes_before_the_next(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
        assert find_lmplz() is None
        own = make_program(tmp_path / "home" / "kenlm" / "bin" / "lmplz")
        assert find_lmplz() == own
        on_path = make_program(tmp_path / "bin" / "lmplz")
        assert find_lmplz() == on_path
        by_variable = make_program(tmp_path / "variable")
        monkeypatch.setenv("TEXTEBM_LMPLZ", str(by_variable))
        assert find_lmplz() == by_variable
        by_option = make_program(tmp_path / "option")
        assert find_lmplz(str(by_option)) == by_option

    def test_built_in_can_be_asked_for(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
        make_program(tmp_path / "bin" / "lmplz")
        assert find_lmplz(BUILT_IN) is None
        monkeypatch.setenv("TEXTEBM_LMPLZ", BUILT_IN)
        assert find_lmplz() is None

    def test_a_name_that_is_no_program(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
        with pytest.raises(UsageError, match="option names"):
            find_lmplz(str(tmp_path / "none"))
        monkeypatch.setenv("TEXTEBM_LMPLZ", str(tmp_path))
        with pytest.raises(UsageError, match="TEXTEBM_LMPLZ names"):
            find_lmplz()

    def test_home_is_under_the_users_cache_by_default(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
        monkeypatch.delenv("TEXTEBM_HOME")
        monkeypatch.setenv("HOME", str(tmp_path))
        own = make_program(tmp_path / ".cache" / "textebm" / "kenlm" / "bin" / "lmplz")
        assert find_lmplz() == own
        assert os.access(own, os.X_OK)
