"""From a protocol to its judge, and from a judge to the scores that the protocol counts."""

from array import array
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from textebm.errors import UsageError
from textebm.lm_eval.corpus import Corpus, Vocabulary
from textebm.lm_eval.judge import Judge
from textebm.lm_eval.ngram import NgramJudge, find_lmplz
from textebm.lm_eval.perplexity import SentenceScores
from textebm.lm_eval.protocols import EvaluationProtocol

Observe = Callable[[Mapping[str, Any]], None]
"""Told what happens while a neural judge is trained: an event has a `kind`, and facts beside it."""


@dataclass(frozen=True)
class JudgeOptions:
    """What decides how a judge is made, beside its protocol and its text.

    Args:
        lmplz: KenLM's estimator, as `find_lmplz` takes it.
        recipe: of a neural judge, in place of the protocol's own.
        epochs: training of a neural judge ends after so many in all.
        minutes: it ends after so many, at the end of an epoch; the next time it goes on.
        device: of a neural judge.
        precision: of the products in its training; `auto` for bf16 where the device has it.
        cache: folder of trained neural judges; TEXTEBM_HOME/judges by default.
        observe: told what happens while a neural judge is trained.
        data: name of the corpus, by which a recipe has its size.
        judge_model: folder or name of a causal language model.
    """

    lmplz: str | None = None
    recipe: str | None = None
    epochs: int | None = None
    minutes: float | None = None
    device: str = "cpu"
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    cache: Path | None = None
    observe: Observe | None = None
    data: str = ""
    judge_model: str | None = None


def train_judge(
    protocol: EvaluationProtocol,
    training: Corpus,
    held_out: Corpus | None,
    vocabulary: Vocabulary,
    options: JudgeOptions,
    seed: int,
) -> Judge:
    """The judge of a protocol, trained on a text or taken from the cache.

    Args:
        protocol: the protocol.
        training: what it is trained on.
        held_out: what stops the training of a neural judge; None for a tenth of `training`.
        vocabulary: the words that it gives probability to.
        options: the rest.
        seed: of a neural judge.

    Raises:
        UsageError: there is no such recipe, or no neural judge can be trained here.
        JudgeError: the judge cannot be estimated.
    """
    if protocol.judge == "ngram":
        return NgramJudge.train(training, vocabulary, protocol.order, find_lmplz(options.lmplz))
    if protocol.judge == "causal":
        from textebm.lm_eval.causal import CausalJudge

        return CausalJudge.load(options.judge_model or "", vocabulary, device=options.device)
    try:
        from textebm.lm_eval.neural import LstmJudge, judge_folder
    except ImportError as error:
        raise UsageError(f"{protocol.name} has a neural judge, which needs torch: {error}") from None
    from textebm.lm_eval.recipes import get_recipe

    return LstmJudge.train(
        training,
        vocabulary,
        get_recipe(options.recipe or protocol.recipe_for(options.data) or ""),
        seed=seed,
        held_out=held_out,
        device=options.device,
        precision=options.precision,
        cache=options.cache or judge_folder(),
        observe=options.observe,
        max_epochs=options.epochs,
        max_minutes=options.minutes,
    )


def score_sentences(judge: Judge, sentences: Iterable[str], counts_end: bool) -> SentenceScores:
    """Scores of each sentence, with or without its end: both start from the start of the sentence.

    Memory: 16 bytes a sentence.
    """
    if counts_end:
        return judge.score(sentences)
    log_probs, tokens = array("d"), array("q")
    for sentence in sentences:
        words = judge.token_log_probs(sentence)[:-1]
        log_probs.append(float(words.sum()))
        tokens.append(len(words))
    return SentenceScores(np.frombuffer(log_probs, dtype=np.float64), np.frombuffer(tokens, dtype=np.int64))


def sample_judge(
    judge: Judge, protocol: EvaluationProtocol, train: Corpus, n: int, seed: int, options: JudgeOptions
) -> list[str]:
    """Sentences drawn from a judge of real text itself, at temperature 1: the plain language model as a generator.

    Args:
        judge: the judge.
        protocol: its protocol.
        train: the real training split that it was trained on.
        n: number of sentences.
        seed: the same one gives the same sentences on one machine.
        options: of the judge.
    """
    if isinstance(judge, NgramJudge):
        # KenLM's module answers for given words only, so the model is read by our own reader.
        readable = NgramJudge.train(
            protocol.fppl_training(train), judge.vocabulary, protocol.order, find_lmplz(options.lmplz), query="built-in"
        )
        return list(readable.sample(n, seed))
    from textebm.lm_eval.neural import LstmJudge

    assert isinstance(judge, LstmJudge)  # there is no other kind under a protocol
    return list(judge.sample(n, seed))
