"""What every judge owes, whatever it is made of: one set of laws for all of them."""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from importlib.util import find_spec
from typing import Any

import numpy as np
import pytest

from textebm.lm_eval.corpus import Vocabulary
from textebm.lm_eval.judge import Judge
from textebm.lm_eval.neural import LstmJudge
from textebm.lm_eval.ngram import BUILT_IN, NgramJudge
from textebm.lm_eval.perplexity import SentenceScores
from textebm.lm_eval.recipes import RECIPES
from textebm.lm_eval.signature import Signature

WORDS = [f"w{n}" for n in range(20)]
CONTEXTS = ["", "w1", "w0 w1 w2", "w3 never", "<unk>", "w1 <s> </s>", "w1 w1 w1 w1 w1 w1"]
STREAM = replace(RECIPES["dgmvae"], embedding=8, hidden=12, batch=4, span=6, epochs=2, lr=3.0)

OF_SIGNATURES = {"metric", "data", "train", "valid", "test", "n", "decoding", "judge", "vocabulary", "eos", "interval"}
"""Keys that a signature has besides the judge's settings, with `seed` and `version`."""


@dataclass(frozen=True)
class Made:
    """A judge, and which of the laws are meant for its kind."""

    judge: Judge
    closed: bool = True
    """Its words share a probability of 1."""
    stateless: bool = True
    """A sentence does not depend on those before it."""


def make_ngram(text: list[str], vocabulary: Vocabulary) -> Made:
    return Made(NgramJudge.train(text, vocabulary, 3, query=BUILT_IN))


def make_kenlm(text: list[str], vocabulary: Vocabulary) -> Made:
    if find_spec("kenlm") is None:
        pytest.skip("KenLM's Python module is not installed: pip install 'textebm[kenlm]'")
    return Made(NgramJudge.train(text, vocabulary, 3))


def make_lstm(text: list[str], vocabulary: Vocabulary) -> Made:
    return Made(LstmJudge.train(text, vocabulary, "tiny"))


def make_stream(text: list[str], vocabulary: Vocabulary) -> Made:
    return Made(LstmJudge.train(text, vocabulary, STREAM), stateless=False)


def make_causal(text: list[str], vocabulary: Vocabulary) -> Made:
    pytest.importorskip("transformers", reason="transformers is not installed: pip install 'textebm[hub]'")
    import torch
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

    from textebm.lm_eval.causal import CausalJudge

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    bytes_only = Tokenizer(models.BPE({piece: n for n, piece in enumerate([*alphabet, "<end>"])}, []))
    bytes_only.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=bytes_only, eos_token="<end>")
    torch.manual_seed(0)
    model = GPT2LMHeadModel(GPT2Config(vocab_size=len(tokenizer), n_positions=256, n_embd=16, n_layer=1, n_head=2))
    return Made(CausalJudge(vocabulary, model, tokenizer, "random"), closed=False)


MAKERS: dict[str, Callable[[list[str], Vocabulary], Made]] = {
    "ngram": make_ngram,
    "kenlm": make_kenlm,
    "lstm": make_lstm,
    "lstm-stream": make_stream,
    "causal": make_causal,
}


@pytest.fixture(scope="module", params=MAKERS)
def made(request: pytest.FixtureRequest) -> Made:
    """Each kind of judge of one text, over a vocabulary with specials and with words that the text does not hold."""
    random = np.random.default_rng(7)
    text = [" ".join(random.choice(WORDS[:18], int(random.integers(0, 9)))) for _ in range(80)]
    text = [s.replace("w4", "<unk>").replace("w5", "<s>").replace("w6", "</s>") for s in text]
    return MAKERS[request.param](text, Vocabulary([*WORDS, "<s>", "</s>", "never"]))


def probability(judge: Judge, word: str, context: str) -> float:
    return math.exp(judge.token_log_probs(f"{context} {word}")[-2])


def test_answers_the_protocol(made: Made) -> None:
    assert isinstance(made.judge, Judge)
    assert isinstance(made.judge.score(["w1"]), SentenceScores)


def test_probabilities_of_all_that_can_come_sum_to_one(made: Made) -> None:
    if not made.closed:
        pytest.skip("gives probability to words outside the vocabulary too, spelling by spelling")
    for context in CONTEXTS:
        total = sum(probability(made.judge, word, context) for word in made.judge.vocabulary)
        total += math.exp(made.judge.token_log_probs(context)[-1])
        assert total == pytest.approx(1, abs=3e-6), context


def test_the_end_of_sentence_is_counted_and_has_a_probability(made: Made) -> None:
    scores = made.judge.score(["w1 w2", ""])
    assert scores.tokens.tolist() == [3, 1]
    assert scores.log_probs.max() < 0
    ends = made.judge.token_log_probs("w1 w2")
    assert ends.shape == (3,) and ends.dtype == np.float64
    assert np.isfinite(ends).all() and ends.max() < 0


def test_a_sentence_is_the_sum_of_its_tokens(made: Made) -> None:
    for sentence in CONTEXTS:
        score = made.judge.score([sentence])
        by_token = made.judge.token_log_probs(sentence)
        assert len(by_token) == score.tokens[0]
        assert score.log_probs[0] == pytest.approx(by_token.sum(), rel=2e-6)


def test_a_word_outside_the_vocabulary_is_unk(made: Made) -> None:
    """And a word that the training text does not hold is not."""
    new, unknown = (made.judge.token_log_probs(f"w1 {word} w2") for word in ("zzz", "<unk>"))
    assert np.allclose(new, unknown, rtol=1e-6)
    assert not np.allclose(made.judge.token_log_probs("w1 never w2"), unknown, rtol=1e-6)
    assert made.judge.unseen == (6 if made.closed else 0)  # w4 to w6, w18, w19 and never


def test_order_of_the_words_matters(made: Made) -> None:
    one, other = made.judge.score(["w1 w2 w3", "w3 w2 w1"]).log_probs
    assert one != other


def test_a_score_does_not_depend_on_the_other_sentences(made: Made) -> None:
    if not made.stateless:
        pytest.skip("its recipe carries the state on, and says so")
    sentences = [" ".join(WORDS[n % 7 :][: n % 11]) for n in range(60)]
    whole = made.judge.score(sentences).log_probs
    order = np.random.default_rng(0).permutation(len(sentences))
    permuted = made.judge.score(sentences[i] for i in order).log_probs
    assert np.allclose(permuted, whole[order], rtol=1e-6, atol=0)
    assert np.allclose([made.judge.score([s]).log_probs[0] for s in sentences], whole, rtol=1e-6, atol=0)


@pytest.mark.parametrize("text", [[""], ["", ""], ["w1"], ["zzz zzz"], ["<unk>"], ["<s> </s>"], ["</s> " * 40]])
def test_any_text_has_a_finite_perplexity(text: list[str], made: Made) -> None:
    assert 1 < made.judge.score(text).perplexity < 1e15  # random weights that spell by bytes are very bad


def test_settings_fit_into_a_signature(made: Made) -> None:
    settings: dict[str, Any] = made.judge.settings
    assert settings and all(isinstance(value, str) and value for value in settings.values())
    assert not settings.keys() & {*OF_SIGNATURES, "seed", "version"}
    assert dict(Signature.parse(str(Signature(settings)))) == settings
