"""FPPL and RPPL: perplexity of generated text under real text's language model, and the other way round."""

import json
import os
from dataclasses import asdict, dataclass
from typing import Any

from textebm._version import __version__
from textebm.errors import UsageError
from textebm.lm_eval import bootstrap
from textebm.lm_eval.corpus import UNKNOWN, Corpus, Sentences, Vocabulary
from textebm.lm_eval.diversity import SideFigures, fingerprints, side_figures
from textebm.lm_eval.ngram import NgramJudge
from textebm.lm_eval.protocols import DEFAULT_PROTOCOL, UNKNOWN_DECODING, get_protocol
from textebm.lm_eval.signature import Signature

Text = Corpus | Sentences
"""A corpus, a file (plain, .gz, .xz, .jsonl), or the sentences themselves."""

SHORT = 12
"""Digits of a SHA-256 that stand in a signature."""


@dataclass(frozen=True)
class Score:
    """A score, how sure it is, how it was computed, and what stands beside it.

    Args:
        metric: `fppl` or `rppl`.
        score: the perplexity.
        interval: lower and upper end of the 95 % bootstrap interval over the sentences that were scored, with the
            judge held fixed.
        signature: how it was computed.
        details: what stands beside it, in JSON types: `samples` and `real` (figures of either text), `real_row` (what
            real text scores), `judge`, `headline` (whether it may stand in the main table), `warnings`, and counts.
    """

    metric: str
    score: float
    interval: tuple[float, float]
    signature: Signature
    details: dict[str, Any]

    @property
    def warnings(self) -> list[str]:
        """What a reader of the score must know; the details hold the same."""
        return list(self.details["warnings"])

    def as_dict(self) -> dict[str, Any]:
        """The score in JSON types."""
        return {
            "metric": self.metric,
            "score": self.score,
            "interval": list(self.interval),
            "signature": str(self.signature),
            "details": self.details,
        }

    def to_json(self) -> str:
        """The score as one JSON object."""
        return json.dumps(self.as_dict(), ensure_ascii=False, indent=2, allow_nan=False)


def fppl(
    samples: Text,
    train: Text,
    *,
    reference: Text | None = None,
    data: str | None = None,
    unknown: str = UNKNOWN,
    decoding: str = UNKNOWN_DECODING,
    headline_n: int | None = None,
    protocol: str = DEFAULT_PROTOCOL,
    lmplz: str | None = None,
    resamples: int = 1000,
    seed: int = 0,
) -> Score:
    """Forward perplexity: generated sentences under a language model of the real training split.

    Args:
        samples: generated sentences; an empty one counts.
        train: the real training split.
        reference: the real test split; with it the details have its perplexity (the real row) and its figures.
        data: name of the corpus, for the signature; the training split's own by default.
        unknown: how the texts spell the unknown word (Yahoo: `_UNK`); it becomes `<unk>`.
        decoding: how the sentences were decoded, such as `sample-t1`, the headline protocol's.
        headline_n: number of sentences of the headline protocol; that of the real training split by default.
        protocol: name of the protocol.
        lmplz: KenLM's estimator, as `find_lmplz` takes it.
        resamples: of the bootstrap.
        seed: of the bootstrap; the judge has no randomness.

    Raises:
        DataError: a text is missing or unreadable, or has no word.
        UsageError: an argument is wrong.
        JudgeError: the judge cannot be estimated, or gives a sentence the probability 0.
    """
    settings = _Settings(data, unknown, decoding, headline_n, protocol, lmplz, resamples, seed)
    texts = _Texts(samples, train, reference, settings)
    judge = texts.train_judge(texts.train)
    real_row = None if texts.test is None else texts.measure(judge, texts.test)
    return _score("fppl", texts, judge, texts.samples, real_row)


def rppl(
    samples: Text,
    test: Text,
    train: Text,
    *,
    data: str | None = None,
    unknown: str = UNKNOWN,
    decoding: str = UNKNOWN_DECODING,
    headline_n: int | None = None,
    protocol: str = DEFAULT_PROTOCOL,
    lmplz: str | None = None,
    resamples: int = 1000,
    seed: int = 0,
) -> Score:
    """Reverse perplexity: the real test split under a language model of generated sentences.

    The details have the score's floor as the real row: the same judge estimated from the real training split.

    Args:
        samples: generated sentences; an empty one counts.
        test: the real test split.
        train: the real training split: its words are the vocabulary.
        data, unknown, decoding, headline_n, protocol, lmplz, resamples, seed: as in `fppl`.

    Raises:
        DataError: a text is missing or unreadable, or has no word.
        UsageError: an argument is wrong.
        JudgeError: the judge cannot be estimated, or gives a sentence the probability 0.
    """
    settings = _Settings(data, unknown, decoding, headline_n, protocol, lmplz, resamples, seed)
    texts = _Texts(samples, train, test, settings)
    assert texts.test is not None  # it was given
    judge = texts.train_judge(texts.samples)
    real_row = texts.measure(texts.train_judge(texts.train), texts.test)
    return _score("rppl", texts, judge, texts.test, real_row)


@dataclass(frozen=True)
class _Settings:
    """The arguments of `fppl` and `rppl` that are no text."""

    data: str | None
    unknown: str
    decoding: str
    headline_n: int | None
    protocol: str
    lmplz: str | None
    resamples: int
    seed: int

    def __post_init__(self) -> None:
        for name, value in (("resamples", self.resamples), ("headline_n", self.headline_n)):
            if value is not None and value < 1:
                raise UsageError(f"{name} is {value}: it must be at least 1")


@dataclass(frozen=True)
class _Row:
    """The perplexity of a text under a judge."""

    text: str
    tokens: int
    perplexity: float
    interval: list[float]


class _Texts:
    """The texts behind a score, checked, and their figures."""

    def __init__(self, samples: Text, train: Text, test: Text | None, settings: _Settings) -> None:
        self.settings = settings
        self.protocol = get_protocol(settings.protocol)
        self.samples = _corpus(samples, "samples", settings.unknown, keep_blank=True)
        self.train = _corpus(train, "train", settings.unknown)
        self.test = None if test is None else _corpus(test, "test", settings.unknown)
        for corpus in (self.samples, self.train, self.test):
            if corpus is not None:
                corpus.require_words()
        self.vocabulary = Vocabulary.from_sentences(self.train)
        training = fingerprints(self.train)
        self.train_figures = side_figures(self.train, self.vocabulary)
        self.sample_figures = side_figures(self.samples, self.vocabulary, training)
        self.test_figures = None if self.test is None else side_figures(self.test, self.vocabulary, training)

    def train_judge(self, corpus: Corpus) -> NgramJudge:
        return self.protocol.train_judge(corpus, self.vocabulary, self.settings.lmplz)

    def measure(self, judge: NgramJudge, corpus: Corpus) -> _Row:
        scores = judge.score(corpus)
        perplexity = scores.perplexity
        ends = bootstrap.interval(scores, resamples=self.settings.resamples, seed=self.settings.seed)
        return _Row(corpus.name, scores.total_tokens, perplexity, list(ends))

    @property
    def headline_n(self) -> int:
        return self.settings.headline_n or self.train_figures.sentences

    def same(self) -> list[str]:
        """Texts that should differ and do not."""
        pairs = [(self.samples, self.train)]
        if self.test is not None:
            pairs += [(self.samples, self.test), (self.test, self.train)]
        return [f"{a.name} and {b.name} hold the same sentences" for a, b in pairs if a.sha256 == b.sha256]


def _corpus(text: Text, role: str, unknown: str, *, keep_blank: bool = False) -> Corpus:
    if isinstance(text, Corpus):
        return text
    name = None if isinstance(text, str | os.PathLike) else role
    return Corpus(text, name, keep_blank=keep_blank, unknown=unknown)


def _score(metric: str, texts: _Texts, judge: NgramJudge, scored: Corpus, real_row: _Row | None) -> Score:
    row = texts.measure(judge, scored)
    departures = texts.protocol.departures(texts.sample_figures.sentences, texts.headline_n, texts.settings.decoding)
    details = {
        "scored": asdict(row),
        "real_row": None if real_row is None else asdict(real_row),
        "samples": _describe(texts.samples, texts.sample_figures),
        "real": _describe(texts.test, texts.test_figures) or _describe(texts.train, texts.train_figures),
        "train": {"text": texts.train.name, "sha256": texts.train.sha256, "sentences": texts.train_figures.sentences},
        "vocabulary": len(texts.vocabulary),
        "judge": {
            "trained_on": (texts.train if metric == "fppl" else texts.samples).name,
            "words_unseen": judge.unseen,
            **judge.settings,
        },
        "protocol": {"name": texts.protocol.name, "description": texts.protocol.description},
        "headline": not departures,
        "headline_sentences": texts.headline_n,
        "warnings": [*departures, *texts.same(), *_too_good(metric, row, real_row)],
    }
    low, high = row.interval
    return Score(metric, row.perplexity, (low, high), _signature(metric, texts, judge), details)


def _describe(corpus: Corpus | None, figures: SideFigures | None) -> dict[str, Any] | None:
    if corpus is None or figures is None:
        return None
    return {"text": corpus.name, "sha256": corpus.sha256, **asdict(figures)}


def _too_good(metric: str, row: _Row, real_row: _Row | None) -> list[str]:
    if real_row is None or row.perplexity >= real_row.perplexity:
        return []
    below = f"{metric.upper()} {row.perplexity:.2f} is below the real row, {real_row.perplexity:.2f}: "
    if metric == "fppl":
        return [
            below + "the samples are more predictable than real text, which points to lost diversity, not to quality"
        ]
    return [below + "samples teach the judge more than real text does; check that they do not hold the test split"]


def _signature(metric: str, texts: _Texts, judge: NgramJudge) -> Signature:
    settings, protocol = texts.settings, texts.protocol
    test = {"test": texts.test.sha256[:SHORT]} if metric == "rppl" and texts.test is not None else {}
    return Signature(
        {
            "metric": metric,
            "data": settings.data or texts.train.name,
            "train": texts.train.sha256[:SHORT],
            **test,
            "n": texts.sample_figures.sentences,
            "decoding": settings.decoding,
            "judge": protocol.name,
            **judge.settings,
            "vocabulary": f"{protocol.vocabulary}-{len(texts.vocabulary)}",
            "eos": "yes" if protocol.counts_end else "no",
            "interval": f"bootstrap-{settings.resamples}",
            "seed": settings.seed,
            "version": __version__,
        }
    )
