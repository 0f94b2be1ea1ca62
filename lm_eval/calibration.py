"""Calibration: what real text scores under each judge, beside what is known of it.

A judge that does not give the known figure on real text is not the judge that it is called. The judge is trained on the
real training split, chosen on the real valid split, and scores the real test split once.
"""

import dataclasses
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from textebm._version import __version__
from textebm.errors import UsageError
from textebm.lm_eval import bootstrap
from textebm.lm_eval.corpus import UNKNOWN, Corpus, Sentences, Vocabulary
from textebm.lm_eval.judging import JudgeOptions, train_judge
from textebm.lm_eval.protocols import KENLM5, LSTM_SENTENCE, PROTOCOLS
from textebm.lm_eval.signature import SHORT, Signature

KENLM, LSTM = KENLM5.name, LSTM_SENTENCE.name
JUDGES = (KENLM, LSTM)


@dataclass(frozen=True)
class KnownValue:
    """A published or established figure of real text.

    Args:
        perplexity: the figure.
        source: where it comes from.
        train_sha256: of the training split that it was made with, where that is known.
        train_sentences: of that split, otherwise.
    """

    perplexity: float
    source: str
    train_sha256: str | None = None
    train_sentences: int | None = None

    def compares(self, train: Corpus, sentences: int) -> bool:
        """Whether a judge of this training split can be expected to give that figure."""
        if self.train_sha256 is not None:
            return train.sha256 == self.train_sha256
        return sentences == self.train_sentences


PTB_TRAIN = "5145926136ee9aef6f359b267ac09cc8a920879cd71725de17c490dd111d2998"
"""SHA-256 of the sentences of PTB's training split, as `Corpus` computes it."""

KNOWN = {
    ("ptb", KENLM): KnownValue(141.19, "KenLM's lmplz and query, order 5", train_sha256=PTB_TRAIN),
    ("ptb", LSTM): KnownValue(100.4, "LEBM's and SRI's real-data rows, 100.36 and 100.47", train_sha256=PTB_TRAIN),
    ("yahoo", LSTM): KnownValue(60.04, "LEBM's real-data row", train_sentences=100_000),
}
"""By corpus and judge. SNLI's 23.53 is not here: the published split is a sample that its name does not determine."""


@dataclass(frozen=True)
class RealRow:
    """What real text scores under a judge.

    Args:
        judge: name of the judge.
        score: perplexity of the test split.
        interval: lower and upper end of its 95 % bootstrap interval over sentences.
        signature: how it was computed.
        details: counts, the judge's settings and curve, and `known`: the known figure, or why there is none.
    """

    judge: str
    score: float
    interval: tuple[float, float]
    signature: Signature
    details: dict[str, Any]

    def as_dict(self) -> dict[str, Any]:
        """In JSON types, with the keys of every score."""
        return {
            "metric": "real-row",
            "judge": self.judge,
            "score": self.score,
            "interval": list(self.interval),
            "signature": str(self.signature),
            "details": self.details,
        }


def calibrate(
    train: Corpus | Sentences,
    valid: Corpus | Sentences,
    test: Corpus | Sentences,
    *,
    data: str,
    judges: Sequence[str] = JUDGES,
    seed: int = 0,
    options: JudgeOptions | None = None,
) -> Iterator[RealRow]:
    """The real row of each judge, as it is ready.

    Args:
        train: the real training split; its words are the vocabulary.
        valid: the real valid split, on which the LSTM judge is chosen.
        test: the real test split.
        data: name of the corpus, for signatures and known figures.
        judges: names.
        seed: of the LSTM judge and of the bootstrap.
        options: how the judges are made; `data` says which recipe the LSTM judge has.

    Raises:
        UsageError: there is no such judge.
        DataError: a text is missing or unreadable, or has no word.
        JudgeError: a judge cannot be made.
    """
    if unknown := [name for name in judges if name not in JUDGES]:
        raise UsageError(f"there is no judge {unknown[0]!r} to calibrate: choose from {', '.join(JUDGES)}")
    texts = [_corpus(text, role) for text, role in ((train, "train"), (valid, "valid"), (test, "test"))]
    for text in texts:
        text.require_words()
    options = dataclasses.replace(options or JudgeOptions(), data=data)
    return (_real_row(name, texts, seed, options) for name in judges)


def _corpus(text: Corpus | Sentences, role: str) -> Corpus:
    if isinstance(text, Corpus):
        return text
    return Corpus(text, None if isinstance(text, str | os.PathLike) else role, unknown=UNKNOWN)


def _real_row(name: str, texts: Sequence[Corpus], seed: int, options: JudgeOptions) -> RealRow:
    train, valid, test = texts
    vocabulary = Vocabulary.from_sentences(train)
    sentences = sum(1 for _ in train)
    judge = train_judge(PROTOCOLS[name], train, valid, vocabulary, options, seed)
    scores = judge.score(test)
    signature = Signature(
        {
            "metric": "real-row",
            "data": options.data,
            "train": train.sha256[:SHORT],
            **({} if name == KENLM else {"valid": valid.sha256[:SHORT]}),
            "test": test.sha256[:SHORT],
            "n": sentences,
            "judge": name,
            **judge.settings,
            "vocabulary": f"train-{len(vocabulary)}",
            "eos": "yes",
            "interval": "bootstrap-1000",
            "seed": seed,
            "version": __version__,
        }
    )
    details = {
        "tokens": scores.total_tokens,
        "vocabulary": len(vocabulary),
        "known": _known(options.data, name, train, sentences, scores.perplexity),
        "judge": judge.settings,
        "curve": list(getattr(judge, "curve", ())),
    }
    return RealRow(name, scores.perplexity, bootstrap.interval(scores, seed=seed), signature, details)


def _known(data: str, name: str, train: Corpus, sentences: int, score: float) -> dict[str, Any]:
    """The known figure and how far the score is from it, or why there is none."""
    known = KNOWN.get((data, name))
    if known is None:
        return {"perplexity": None, "why": f"no figure is known for {data} under {name}"}
    if not known.compares(train, sentences):
        return {
            "perplexity": None,
            "why": f"this is another training split of {data} than the one that {known.perplexity} was measured with",
        }
    return {"perplexity": known.perplexity, "source": known.source, "difference": score / known.perplexity - 1}
