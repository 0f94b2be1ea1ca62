"""Each protocol on an example computed by hand, and what each trains on, holds out, scores and counts."""

from collections.abc import Iterable
from dataclasses import dataclass, field, replace

import numpy as np
import pytest
from numpy.typing import NDArray

from textebm.errors import UsageError
from textebm.lm_eval import Corpus, NgramJudge, Vocabulary, fppl, protocols, rppl
from textebm.lm_eval.judge import Judge
from textebm.lm_eval.judging import score_sentences
from textebm.lm_eval.perplexity import SentenceScores
from textebm.lm_eval.protocols import PROTOCOLS, get_protocol

NGRAM = [name for name, protocol in PROTOCOLS.items() if protocol.judge == "ngram"]

TRAIN = ["a b", "a c", "b"]
"""Its bigram model by hand: discounts are 0.5 and 1; what the unigrams leave, 3 of 6, is divided between a, b, c, </s>
and <unk>, 0.1 each; see test_kneser_ney.py."""
UNIGRAM = {"a": 0.5 / 6 + 0.1, "b": 1 / 6 + 0.1, "c": 0.5 / 6 + 0.1, "</s>": 1 / 6 + 0.1, "<unk>": 0.1}
START = {word: 1.5 / 3 * p for word, p in UNIGRAM.items()} | {
    "a": 1 / 3 + 1.5 / 3 * UNIGRAM["a"],
    "b": 0.5 / 3 + 1.5 / 3 * UNIGRAM["b"],
}
"""p(word | <s>)"""
AFTER_A = {word: 1 / 2 * p for word, p in UNIGRAM.items()} | {
    "b": 0.5 / 2 + 1 / 2 * UNIGRAM["b"],
    "c": 0.5 / 2 + 1 / 2 * UNIGRAM["c"],
}
"""p(word | a)"""
END_AFTER_B = 1 / 2 + 1 / 2 * UNIGRAM["</s>"]


def geometric(*probabilities: float) -> float:
    """The perplexity of tokens with these probabilities."""
    return float(np.prod(probabilities)) ** (-1 / len(probabilities))


@pytest.fixture
def bigrams(monkeypatch: pytest.MonkeyPatch) -> None:
    """The n-gram protocols with bigrams, which can be computed by hand."""
    small = {name: replace(PROTOCOLS[name], order=2) for name in NGRAM}
    monkeypatch.setattr(protocols, "PROTOCOLS", PROTOCOLS | small)


class TestByHand:
    def score(self, protocol: str, samples: list[str], train: list[str] = TRAIN) -> float:
        return fppl(samples, train, protocol=protocol, lmplz="built-in", resamples=1).score

    @pytest.mark.usefixtures("bigrams")
    def test_kenlm5_counts_the_end(self) -> None:
        assert self.score("kenlm5", ["a b"]) == pytest.approx(geometric(START["a"], AFTER_A["b"], END_AFTER_B))
        assert self.score("kenlm5", ["zzz"]) == self.score("kenlm5", ["<unk>"])

    @pytest.mark.usefixtures("bigrams")
    def test_arae_ngram_scores_every_word_as_a_sentence_and_no_end(self) -> None:
        """The lines <unk>, a, b, c, then the sample, given the start of sentence and without their ends: 6 tokens."""
        lines = [START[word] for word in ("<unk>", "a", "b", "c")]
        assert self.score("arae-ngram", ["a b"]) == pytest.approx(geometric(*lines, START["a"], AFTER_A["b"]))

    @pytest.mark.usefixtures("bigrams")
    def test_fang2019_never_sees_the_unknown_word(self) -> None:
        """Without <unk> the training text is the one above; scored, <unk> has the share of a word never seen."""
        train = ["a <unk> b", "a c", "b <unk>"]
        expected = geometric(START["a"], AFTER_A["<unk>"])
        assert self.score("fang2019", ["a <unk>"], train) == pytest.approx(expected)
        assert self.score("fang2019", ["a zzz"], train) == pytest.approx(expected)
        assert self.score("fang2019", ["", "a <unk>"], train) == pytest.approx(expected)  # an end costs nothing

    def test_rppl_of_arae_ngram_trains_on_every_word_first(self) -> None:
        samples, test = ["a b a", "c"] * 9, ["c a", "b"]
        vocabulary = Vocabulary(["a", "b", "c"])
        judge = NgramJudge.train(["<unk>", "a", "b", "c", *samples], vocabulary)
        log_probs = np.concatenate([judge.token_log_probs(sentence)[:-1] for sentence in test])
        score = rppl(samples, test, TRAIN, protocol="arae-ngram", lmplz="built-in", resamples=1)
        assert score.score == pytest.approx(np.exp(-log_probs.mean()))
        assert score.details["judge"]["words_unseen"] == 0
        assert score.details["scored"]["tokens"] == 3

    def test_rppl_of_fang2019_is_tested_on_the_training_file(self) -> None:
        train, samples, test = ["a <unk> b", "a c", "b"] * 5, ["a b <unk> a", "c"] * 9, ["c"]
        judge = NgramJudge.train(["", "a", "b", "c", *["a b a", "c"] * 9], Vocabulary(["a", "b", "c"]))
        log_probs = np.concatenate([judge.token_log_probs(sentence)[:-1] for sentence in train])
        score = rppl(samples, test, train, protocol="fang2019", lmplz="built-in", resamples=1)
        assert score.score == pytest.approx(np.exp(-log_probs.mean()))
        assert score.details["scored"]["text"] == "train"
        assert score.signature["test"] == score.signature["train"]

    @pytest.mark.parametrize("name", NGRAM)
    def test_the_real_row_is_real_text_in_the_place_of_samples(self, name: str) -> None:
        test = ["c a", "b a <unk>"]
        forward = fppl(test, TRAIN, reference=test, protocol=name, lmplz="built-in", resamples=1)
        assert forward.score == forward.details["real_row"]["perplexity"]
        reverse = rppl(TRAIN, test, TRAIN, protocol=name, lmplz="built-in", resamples=1)
        assert reverse.score == reverse.details["real_row"]["perplexity"]


# --------------------------------------------------------------------------------------------------------- with neurons


@dataclass
class Uniform:
    """A judge for which every word of its vocabulary and the end are equally likely: its perplexity is their number."""

    vocabulary: Vocabulary
    seed: int
    unseen: int = 0
    epochs: str = "9-converged"

    @property
    def settings(self) -> dict[str, str]:
        return {"recipe": "uniform", "epochs": self.epochs}

    def score(self, sentences: Iterable[str]) -> SentenceScores:
        tokens = np.array([len(sentence.split()) + 1 for sentence in sentences])
        return SentenceScores(-tokens * (np.log(len(self.vocabulary) + 1) + 0.1 * self.seed), tokens)

    def token_log_probs(self, sentence: str) -> NDArray[np.float64]:
        return np.full(len(sentence.split()) + 1, -np.log(len(self.vocabulary) + 1))


@dataclass
class Training:
    """What the judges of a protocol were trained on."""

    recipes: list[str] = field(default_factory=list)
    texts: list[list[str]] = field(default_factory=list)
    held_out: list[list[str] | None] = field(default_factory=list)
    seeds: list[int] = field(default_factory=list)


@pytest.fixture
def training(monkeypatch: pytest.MonkeyPatch) -> Training:
    """Uniform judges in the place of neural ones, and a record of what they are given."""
    from textebm.lm_eval.neural import LstmJudge

    seen = Training()

    def train(sentences, vocabulary, recipe, *, seed, held_out, max_epochs=None, **_: object) -> Judge:
        seen.recipes.append(recipe.name)
        seen.texts.append(list(sentences))
        seen.held_out.append(None if held_out is None else list(held_out))
        seen.seeds.append(seed)
        return Uniform(vocabulary, seed, epochs="9-converged" if max_epochs is None or max_epochs >= 9 else "1-cut")

    monkeypatch.setattr(LstmJudge, "train", train)
    return seen


class TestNeural:
    SAMPLES = ("a b", "a d", "")
    TEST = ("c a b", "b e")
    VALID = ("a", "c")

    def test_fppl_stops_on_real_valid(self, training: Training) -> None:
        score = fppl(self.SAMPLES, TRAIN, valid=self.VALID, protocol="lstm-sentence", data="snli", resamples=1)
        assert training == Training(["lstm-sentence-snli"], [TRAIN], [list(self.VALID)], [0])
        assert score.score == pytest.approx(4 + 1)  # a, b, c, <unk> and the end
        assert score.details["scored"]["tokens"] == 7

    def test_rppl_never_stops_on_real_text(self, training: Training) -> None:
        rppl(self.SAMPLES, self.TEST, TRAIN, valid=self.VALID, protocol="lstm-sentence", data="yahoo", resamples=1)
        assert training.texts == [list(self.SAMPLES), TRAIN]
        assert training.held_out == [None, list(self.VALID)]  # the second one is the judge of the real row
        assert training.recipes == ["lstm-sentence-yahoo"] * 2

    def test_a_corpus_without_a_size_of_its_own_has_that_of_ptb(self, training: Training) -> None:
        fppl(self.SAMPLES, TRAIN, protocol="lstm-sentence", data="mine", resamples=1)
        assert training.recipes == ["lstm-sentence-ptb"]

    def test_arae_rnn_takes_its_vocabulary_from_its_own_training_file(self, training: Training) -> None:
        score = rppl(self.SAMPLES, self.TEST, TRAIN, protocol="arae-rnn", resamples=1)
        assert score.score == pytest.approx(4 + 1)  # a, b, d, <unk> and the end
        assert score.signature["vocabulary"] == "own-4"
        assert score.details["scored"]["out_of_vocabulary"] == 2  # c and e, which no sample has
        assert training.recipes[0] == "arae-rnn"

    def test_dgmvae_splits_the_samples_and_knows_the_words_of_the_test_split(self, training: Training) -> None:
        samples = [f"a w{n % 5}" for n in range(46)]
        score = rppl(samples, self.TEST, TRAIN, protocol="dgmvae", resamples=1)
        assert training.texts[0] == samples[:40]
        assert training.held_out[0] == samples[40:43]
        assert score.score == pytest.approx(len({"a", *(f"w{n}" for n in range(5)), "b", "c", "e", "<unk>"}) + 1)
        assert score.details["scored"]["out_of_vocabulary"] == 0
        assert score.signature["split"] == "40+3+3"

    def test_a_causal_model_is_taken_as_it_is_given(self, monkeypatch: pytest.MonkeyPatch) -> None:
        from textebm.lm_eval.causal import CausalJudge

        monkeypatch.setattr(CausalJudge, "load", lambda name, vocabulary, *, device: Uniform(vocabulary, 0))
        given = {"protocol": "causal", "judge_model": "gpt", "resamples": 1}
        score = fppl(self.SAMPLES, TRAIN, reference=self.TEST, **given)
        assert score.score == pytest.approx(4 + 1) == score.details["real_row"]["perplexity"]
        assert not score.details["headline"] and len(score.quirks) == 3
        with pytest.raises(UsageError, match="there is none"):
            rppl(self.SAMPLES, self.TEST, TRAIN, **given)
        for wrong in ({"protocol": "causal"}, {"judge_model": "gpt"}):
            with pytest.raises(UsageError, match="both or none"):
                fppl(self.SAMPLES, TRAIN, **wrong)

    def test_repeats_are_judges_of_their_own_seeds(self, training: Training) -> None:
        score = fppl(self.SAMPLES, TRAIN, protocol="lstm-sentence", seed=3, repeats=3, resamples=20)
        assert training.seeds == [3, 4, 5]
        runs = [5 * np.exp(0.1 * seed) for seed in (3, 4, 5)]
        assert score.details["repeats"]["scores"] == pytest.approx(runs)
        assert score.score == score.details["repeats"]["mean"] == pytest.approx(np.mean(runs))
        assert score.details["repeats"]["sd"] == pytest.approx(np.std(runs, ddof=1))
        assert score.signature["judge_seeds"] == "3-5"
        assert score.interval == pytest.approx((np.mean(runs), np.mean(runs)))  # each sentence is as likely as another

    def test_repeats_of_a_deterministic_judge_change_nothing(self) -> None:
        once, often = (fppl(self.SAMPLES, TRAIN, lmplz="built-in", resamples=20, repeats=n) for n in (1, 5))
        assert (once.score, once.interval, once.signature) == (often.score, often.interval, often.signature)
        assert "change nothing" in often.details["repeats"]["note"]

    @pytest.mark.parametrize("given", [{"recipe": "tiny"}, {"judge_epochs": 1}])
    def test_a_judge_of_another_making_is_no_headline_judge(self, given: dict[str, object], training: Training) -> None:
        settings = {"protocol": "lstm-sentence", "decoding": "sample-t1", "resamples": 1, "data": "ptb"}
        assert fppl(self.SAMPLES, TRAIN, **settings).details["headline"]
        assert fppl(self.SAMPLES, TRAIN, **settings, judge_epochs=50).details["headline"]  # it ended before
        score = fppl(self.SAMPLES, TRAIN, **settings, **given)
        assert not score.details["headline"]
        with pytest.raises(UsageError, match="are trained"):
            fppl(self.SAMPLES, TRAIN, **given)


# ------------------------------------------------------------------------------------------------------------- headline


class TestHeadline:
    """Whatever is not as the protocol says is named, and kept out of the main table."""

    TRAIN = tuple(["a b c d e f"] * 400)

    def score(self, samples: list[str], **given: object) -> object:
        settings = {"decoding": "sample-t1", "lmplz": "built-in", "resamples": 1} | given
        return fppl(samples, self.TRAIN, **settings)

    def test_as_it_should_be(self) -> None:
        score = self.score(["a b"] * 400, max_length=6)
        assert score.details["headline"] and score.details["headline_reasons"] == []

    @pytest.mark.parametrize(
        ("given", "said", "fact"),
        [
            ({"filtering": "no <unk>"}, "filtered (no <unk>)", "filtering:no <unk>"),
            ({"max_length": 5}, "5 words at most", "max_length:5"),
            ({"decoding": "greedy"}, "decoding is greedy", "decoding:greedy"),
            ({"headline_n": 7}, "more than the headline protocol's 7", "n:400"),
            ({"protocol": "arae-ngram"}, "not the headline protocol", "judge:arae-ngram"),
        ],
    )
    def test_departures(self, given: dict[str, object], said: str, fact: str) -> None:
        score = self.score(["a b"] * 400, **given)
        assert not score.details["headline"]
        assert any(said in reason for reason in score.details["headline_reasons"])
        assert fact in str(score.signature).split("|")

    def test_sentences_that_were_cut_are_found_out(self) -> None:
        """Nobody says so, but lengths end in a heap; those of language thin out."""
        cut = self.score(["a b"] * 300 + ["a b c d"] * 100)
        assert any("100 sentences have exactly 4 words" in warning for warning in cut.warnings)
        thinning = self.score(["a b"] * 395 + ["a b c"] * 4 + ["a b c d"])
        assert not any("exactly" in warning for warning in thinning.warnings)
        as_long = self.score(["a b"] * 300 + ["a b c d e f"] * 100)
        assert not any("exactly" in warning for warning in as_long.warnings)

    def test_text_policy_stands_in_the_signature(self) -> None:
        assert "text" not in self.score(["a"] * 400).signature
        assert self.score(["a"] * 400, text_policy="lower+numbers-N").signature["text"] == "lower+numbers-N"


class TestDefinitions:
    def test_what_may_stand_where(self) -> None:
        assert [p.name for p in PROTOCOLS.values() if p.beside_published] == ["lstm-sentence"]
        assert [p.name for p in PROTOCOLS.values() if p.headline] == ["kenlm5", "lstm-sentence"]
        for protocol in PROTOCOLS.values():
            assert protocol.headline or protocol.quirks, "what others do differently is said"

    @pytest.mark.parametrize(
        ("name", "n", "decoding", "max_length"),
        [
            ("kenlm5", 7, "sample-t1", None),
            ("lstm-sentence", 7, "sample-t1", None),
            ("arae-ngram", 100_000, "greedy", 15),
            ("arae-rnn", 7, None, None),
            ("fang2019", 1_280, "greedy", 80),
            ("dgmvae", 46_000, "greedy", None),
            ("causal", 7, "sample-t1", None),
        ],
    )
    def test_samples_that_each_prescribes(
        self, name: str, n: int, decoding: str | None, max_length: int | None
    ) -> None:
        protocol = get_protocol(name)
        assert (protocol.sentences_wanted(7), protocol.decoding, protocol.max_length) == (n, decoding, max_length)

    def test_quirks_stand_with_the_score(self) -> None:
        score = fppl(["a"], TRAIN, protocol="fang2019", lmplz="built-in", resamples=1)
        assert score.quirks == list(PROTOCOLS["fang2019"].quirks) == score.details["protocol"]["quirks"]

    @pytest.mark.parametrize(
        ("name", "nearest"), [("kenlm", "kenlm5"), ("LSTM", "lstm-sentence"), ("fang", "fang2019")]
    )
    def test_an_unknown_name_is_answered_with_the_nearest(self, name: str, nearest: str) -> None:
        with pytest.raises(UsageError, match=f"did you mean '{nearest}'.*arae-rnn"):
            get_protocol(name)
        with pytest.raises(UsageError, match="unknown protocol 'qqq': choose from"):
            get_protocol("qqq")


def test_without_ends_is_the_same_sum_less_the_ends() -> None:
    judge = NgramJudge.train(TRAIN * 3, Vocabulary(["a", "b", "c"]), order=3)
    text = Corpus(["a b", "", "c a zzz"], keep_blank=True)
    whole, without = (score_sentences(judge, text, counts) for counts in (True, False))
    ends = [judge.token_log_probs(sentence)[-1] for sentence in text]
    np.testing.assert_allclose(without.log_probs, whole.log_probs - ends, rtol=1e-6)
    assert without.tokens.tolist() == [2, 0, 3]
    assert (whole.tokens - without.tokens).tolist() == [1, 1, 1]
