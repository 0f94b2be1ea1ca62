"""FPPL and RPPL: perplexity of generated text under real text's language model, and the other way round."""

import json
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, TypedDict, Unpack

import numpy as np

from textebm._version import __version__
from textebm.errors import UsageError
from textebm.lm_eval import bootstrap
from textebm.lm_eval.corpus import UNKNOWN, Corpus, Sentences, Vocabulary
from textebm.lm_eval.diversity import Survey, survey
from textebm.lm_eval.judge import Judge
from textebm.lm_eval.judging import JudgeOptions, Observe, score_sentences, train_judge
from textebm.lm_eval.perplexity import SentenceScores
from textebm.lm_eval.protocols import DEFAULT_PROTOCOL, NOT_FILTERED, UNKNOWN_DECODING, get_protocol
from textebm.lm_eval.signature import SHORT, Signature

Text = Corpus | Sentences
"""A corpus, a file (plain, .gz, .xz, .jsonl), the sentences themselves, or a function that gives them anew."""

Metric = Literal["fppl", "rppl"]


AS_IS = "as-is"
"""Text policy of a corpus whose words are measured as they stand in it."""


class Options(TypedDict, total=False):
    """What `fppl`, `rppl` and `evaluate` take by name; all of it has a default.

    The texts:
        data: name of the corpus, for the signature; the training split's own by default.
        unknown: how the texts spell the unknown word (Yahoo: `_UNK`); it becomes `<unk>`.
        text_policy: how the real text was changed before it was measured, for the signature (`lower+numbers-N`);
            `as-is` by default.
        decoding: how the sentences were decoded, such as `sample-t1`, the headline protocol's.
        filtering: what was left out of the samples; `none` by default.
        max_length: longest sentence that could be generated, in words; None where that is not known.
        headline_n: number of sentences of the headline protocol; that of the real training split by default.

    The judge:
        protocol: name of the protocol.
        lmplz: KenLM's estimator, as `find_lmplz` takes it.
        recipe: of a neural judge, in place of the protocol's own; its scores are then no headline scores.
        judge_model: the causal language model of the protocol `causal`: a folder, a GGUF file, or a name on the hub.
        judge_epochs: training of a neural judge ends after so many epochs; the same.
        device: where a neural judge is trained and asked.
        judge_cache: folder of trained neural judges; TEXTEBM_HOME/judges by default.
        observe: told what happens while a neural judge is trained.

    How sure:
        resamples: of the bootstrap.
        seed: of the bootstrap, and of a neural judge.
        repeats: neural judges trained, with seeds `seed`, `seed + 1`, ...; the score is their mean.
    """

    data: str | None
    unknown: str
    text_policy: str
    decoding: str
    filtering: str
    max_length: int | None
    headline_n: int | None
    protocol: str
    lmplz: str | None
    recipe: str | None
    judge_model: str | None
    judge_epochs: int | None
    device: str
    judge_cache: Path | None
    observe: Observe | None
    resamples: int
    seed: int
    repeats: int


@dataclass(frozen=True)
class Settings:
    """The options with their defaults; see `Options`."""

    data: str | None = None
    unknown: str = UNKNOWN
    text_policy: str = AS_IS
    decoding: str = UNKNOWN_DECODING
    filtering: str = NOT_FILTERED
    max_length: int | None = None
    headline_n: int | None = None
    protocol: str = DEFAULT_PROTOCOL
    lmplz: str | None = None
    recipe: str | None = None
    judge_model: str | None = None
    judge_epochs: int | None = None
    device: str = "cpu"
    judge_cache: Path | None = None
    observe: Observe | None = None
    resamples: int = 1000
    seed: int = 0
    repeats: int = 1

    def __post_init__(self) -> None:
        for name in ("resamples", "headline_n", "repeats", "judge_epochs", "max_length"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise UsageError(f"{name} is {value}: it must be at least 1")
        if self.seed < 0:
            raise UsageError(f"seed is {self.seed}: it must be 0 or more")
        kind = get_protocol(self.protocol).judge
        if kind != "lstm" and (self.recipe or self.judge_epochs):
            raise UsageError(f"recipe and judge_epochs are of judges that are trained, and {self.protocol} has none")
        if (kind == "causal") != (self.judge_model is not None):
            raise UsageError("judge_model names the causal language model of the protocol causal: both or none")

    @property
    def judge_options(self) -> JudgeOptions:
        """What decides how a judge is made."""
        return JudgeOptions(
            lmplz=self.lmplz,
            recipe=self.recipe,
            epochs=self.judge_epochs,
            device=self.device,
            cache=self.judge_cache,
            observe=self.observe,
            data=self.data or "",
            judge_model=self.judge_model,
        )


@dataclass(frozen=True)
class Score:
    """A score, how sure it is, how it was computed, and what stands beside it.

    Args:
        metric: `fppl` or `rppl`.
        score: the perplexity; the mean over judges where there are several.
        interval: lower and upper end of the 95 % bootstrap interval over the sentences that were scored, with the
            judge held fixed.
        signature: how it was computed.
        details: what stands beside it, in JSON types: `samples` and `real` (figures of either text), `real_row` (what
            real text scores), `judge`, `protocol` (with its quirks), `headline` (whether it may stand in the main
            table) and `headline_reasons` (why not), `warnings`, and counts.
        sentence_scores: of each sentence that was scored, by each judge; not part of the JSON object.
    """

    metric: Metric
    score: float
    interval: tuple[float, float]
    signature: Signature
    details: dict[str, Any]
    sentence_scores: tuple[SentenceScores, ...] = field(default=(), repr=False, compare=False)

    @property
    def warnings(self) -> list[str]:
        """What a reader of the score must know; the details hold the same."""
        return list(self.details["warnings"])

    @property
    def quirks(self) -> list[str]:
        """What the protocol does that a reader would not expect; the details hold the same."""
        return list(self.details["protocol"]["quirks"])

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
    valid: Text | None = None,
    **options: Unpack[Options],
) -> Score:
    """Forward perplexity: generated sentences under a language model of the real training split.

    Args:
        samples: generated sentences; an empty one counts.
        train: the real training split.
        reference: the real test split; with it the details have its perplexity (the real row) and its figures.
        valid: the real validation split, which stops the training of a neural judge; without it, a tenth of `train`.
        options: as in `Options`.

    Raises:
        DataError: a text is missing or unreadable, or has no word.
        UsageError: an argument is wrong.
        JudgeError: the judge cannot be estimated, or gives a sentence the probability 0.
    """
    settings = Settings(**options)
    real = Real(train, reference, valid, settings)
    return forward(real, Samples(samples, real, settings))


def rppl(
    samples: Text,
    test: Text,
    train: Text,
    *,
    valid: Text | None = None,
    **options: Unpack[Options],
) -> Score:
    """Reverse perplexity: the real test split under a language model of generated sentences.

    The details have the score's floor as the real row: the same judge estimated from the real training split. Training
    of a neural judge of samples is stopped by a tenth of the samples, never by real text.

    Args:
        samples: generated sentences; an empty one counts.
        test: the real test split.
        train: the real training split: its words are the vocabulary.
        valid: the real validation split, which stops the training of the real row's neural judge.
        options: as in `Options`.

    Raises:
        DataError: a text is missing or unreadable, or has no word.
        UsageError: an argument is wrong.
        JudgeError: the judge cannot be estimated, or gives a sentence the probability 0.
    """
    settings = Settings(**options)
    require_training(settings)
    real = Real(train, test, valid, settings)
    return reverse(real, Samples(samples, real, settings))


def require_training(settings: Settings) -> None:
    """Check that the protocol trains its judge, as RPPL must.

    Raises:
        UsageError: it does not.
    """
    if get_protocol(settings.protocol).judge == "causal":
        raise UsageError("RPPL is of a judge that is trained on the samples: under the protocol causal there is none")


def difference(first: Score, second: Score, *, resamples: int = 1000, seed: int = 0) -> bootstrap.Difference:
    """By how much one text's score differs from another's, with an interval and a p-value.

    RPPL of two texts scores the same real sentences, which are drawn together (a paired bootstrap); FPPL scores
    different ones (independent bootstraps). Of several judges it is the difference of the means over them.

    Raises:
        UsageError: the scores are not of one metric, or do not compare.
    """
    verdict = first.signature.compare(second.signature)
    if not verdict.comparable:
        raise UsageError(f"these scores do not compare: they differ in {', '.join(verdict.decisive)}")
    return bootstrap.difference(
        first.sentence_scores,
        second.sentence_scores,
        paired=first.metric == "rppl",
        resamples=resamples,
        seed=seed,
    )


# ----------------------------------------------------------------------------------------------------- texts and judges


@dataclass(frozen=True)
class Row:
    """The perplexity of a text under a judge, or its mean over several.

    Args:
        text: name of the text.
        tokens: how many were counted.
        perplexity: the mean over the judges.
        interval: of the bootstrap over sentences.
        runs: perplexity under each judge.
        scores: of each sentence, by each judge.
    """

    text: str
    tokens: int
    perplexity: float
    interval: tuple[float, float]
    runs: tuple[float, ...]
    scores: tuple[SentenceScores, ...] = field(repr=False)

    def as_dict(self) -> dict[str, Any]:
        """The row in JSON types."""
        return {
            "text": self.text,
            "tokens": self.tokens,
            "perplexity": self.perplexity,
            "interval": list(self.interval),
        }


class Real:
    """The real text behind scores: checked and gone through once, its judges trained once.

    Raises:
        DataError: a text has no word.
    """

    def __init__(self, train: Text, test: Text | None, valid: Text | None, settings: Settings) -> None:
        self.settings = settings
        self.protocol = get_protocol(settings.protocol)
        self.train = as_corpus(train, "train", settings.unknown)
        self.test = None if test is None else as_corpus(test, "test", settings.unknown)
        self.valid = None if valid is None else as_corpus(valid, "valid", settings.unknown)
        for corpus in (self.train, self.test, self.valid):
            if corpus is not None:
                corpus.require_words()
        self.vocabulary = Vocabulary.from_sentences(self.train)
        self.train_survey = survey(self.train, self.vocabulary)
        self.test_survey = None if self.test is None else self.survey(self.test)
        self._test_rows: dict[Metric, Row] = {}

    def survey(self, corpus: Corpus) -> Survey:
        """One pass over another text: its figures, and what it copies from the training split."""
        return survey(corpus, self.vocabulary, self.train_survey.fingerprints)

    @property
    def headline_n(self) -> int:
        """Number of sentences of the headline protocol."""
        return self.settings.headline_n or self.train_survey.figures.sentences

    @property
    def seeds(self) -> list[int]:
        """Seeds of the judges: several only where they change something."""
        runs = self.settings.repeats if self.protocol.judge == "lstm" else 1
        return [self.settings.seed + run for run in range(runs)]

    @cached_property
    def judges(self) -> list[Judge]:
        """The judges of the real training split, one a seed."""
        return self.train_judges(self.protocol.fppl_training(self.train), self.valid)

    @cached_property
    def floor_judges(self) -> list[Judge]:
        """The judges of RPPL's real row: the training split in the place of samples, one a seed.

        A neural judge is the one of FPPL: it would take as long again to train it without the validation split.
        """
        training, _ = self.protocol.rppl_training(self.train, self.train_survey.figures.sentences, self.vocabulary)
        as_samples = self.protocol.judge == "ngram" and self.protocol.vocabulary_lines
        return self.train_judges(training, None) if as_samples else self.judges

    def train_judges(self, training: Corpus, held_out: Corpus | None) -> list[Judge]:
        """Judges of a text under the protocol, one a seed."""
        vocabulary = self._judge_vocabulary(training, held_out)
        options = self.settings.judge_options
        return [train_judge(self.protocol, training, held_out, vocabulary, options, seed) for seed in self.seeds]

    def _judge_vocabulary(self, training: Corpus, held_out: Corpus | None) -> Vocabulary:
        if self.protocol.vocabulary == "train":
            return self.vocabulary
        texts = [training]
        if self.protocol.vocabulary == "own+test":
            texts += [text for text in (held_out, self.test) if text is not None]
        return Vocabulary.from_sentences(sentence for text in texts for sentence in text)

    def measure(self, judges: Sequence[Judge], corpus: Corpus) -> Row:
        """Perplexity of a text as the protocol counts it."""
        scores = tuple(score_sentences(judge, corpus, self.protocol.counts_end) for judge in judges)
        runs = tuple(each.perplexity for each in scores)
        ends = bootstrap.interval(scores, resamples=self.settings.resamples, seed=self.settings.seed)
        return Row(corpus.name, scores[0].total_tokens, float(np.mean(runs)), ends, runs, scores)

    def real_row(self, metric: Metric) -> Row | None:
        """What real text scores in the place of samples; None for FPPL where there is no test split."""
        if metric not in self._test_rows:
            if metric == "rppl":
                self._test_rows[metric] = self.measure(self.floor_judges, self.tested)
            elif self.test is not None:
                scored = self.protocol.fppl_scored(self.test, self.vocabulary)
                self._test_rows[metric] = self.measure(self.judges, scored)
        return self._test_rows.get(metric)

    @property
    def tested(self) -> Corpus:
        """The real text whose perplexity RPPL is."""
        if self.protocol.tested_on == "train":
            return self.train
        if self.test is None:
            raise UsageError("RPPL is the perplexity of a real test split: give one")
        return self.test


class Samples:
    """Generated text, checked and gone through once.

    Raises:
        DataError: it has no word.
    """

    def __init__(self, text: Text, real: Real, settings: Settings) -> None:
        self.settings = settings
        self.corpus = as_corpus(text, "samples", settings.unknown, keep_blank=True)
        self.corpus.require_words()
        self.survey = real.survey(self.corpus)

    def departures(self, real: Real) -> list[str]:
        """What of the samples is not as the protocol prescribes."""
        figures, lengths = self.survey.figures, self.survey.lengths
        return real.protocol.departures(
            figures.sentences,
            real.headline_n,
            self.settings.decoding,
            filtering=self.settings.filtering,
            max_length=self.settings.max_length,
            longest=figures.longest,
            longest_training=real.train_survey.figures.longest,
            at_longest=int(lengths[-1]),
        )


def as_corpus(text: Text, role: str, unknown: str, *, keep_blank: bool = False) -> Corpus:
    """A text as something that can be gone through again; what is no file is called by its role."""
    if isinstance(text, Corpus):
        return text
    name = None if isinstance(text, str | os.PathLike) else role
    return Corpus(text, name, keep_blank=keep_blank, unknown=unknown)


# --------------------------------------------------------------------------------------------------------------- scores


def forward(real: Real, samples: Samples) -> Score:
    """FPPL of samples; `fppl` for texts that are prepared already."""
    scored = real.protocol.fppl_scored(samples.corpus, real.vocabulary)
    return _score("fppl", real, samples, real.judges, real.train.name, scored)


def reverse(real: Real, samples: Samples) -> Score:
    """RPPL of samples; `rppl` for texts that are prepared already."""
    tested = real.tested  # before the judge is trained, which may take long
    n = samples.survey.figures.sentences
    training, held_out = real.protocol.rppl_training(samples.corpus, n, real.vocabulary)
    return _score("rppl", real, samples, real.train_judges(training, held_out), samples.corpus.name, tested)


def _score(
    metric: Metric, real: Real, samples: Samples, judges: Sequence[Judge], trained_on: str, scored: Corpus
) -> Score:
    settings, protocol = real.settings, real.protocol
    row, real_row = real.measure(judges, scored), real.real_row(metric)
    departures = samples.departures(real)
    reasons = _reasons(real, judges, departures)
    train = real.train_survey
    details = {
        "scored": row.as_dict() | _outside(real, judges[0], scored),
        "real_row": None if real_row is None else real_row.as_dict(),
        "samples": _describe(samples.corpus, samples.survey),
        "real": _describe(real.test, real.test_survey) or _describe(real.train, train),
        "train": {"text": real.train.name, "sha256": train.sha256, "sentences": train.figures.sentences},
        "vocabulary": len(judges[0].vocabulary),
        "judge": {"trained_on": trained_on, "words_unseen": judges[0].unseen, **judges[0].settings},
        "protocol": {
            "name": protocol.name,
            "description": protocol.description,
            "source": protocol.source,
            "quirks": list(protocol.quirks),
        },
        "headline": not reasons,
        "headline_reasons": reasons,
        "headline_sentences": real.headline_n,
        "repeats": _repeats(real, row),
        "warnings": [
            *departures,
            *_same(real, samples),
            *_foreign(samples),
            *_too_good(metric, row, real_row),
        ],
    }
    signature = _signature(metric, real, samples, judges[0], settings)
    return Score(metric, row.perplexity, row.interval, signature, details, row.scores)


def _reasons(real: Real, judges: Sequence[Judge], departures: list[str]) -> list[str]:
    """Why a score may not stand in the main table."""
    reasons = list(departures)
    if not real.protocol.headline:
        reasons.insert(0, f"{real.protocol.name} is not the headline protocol: its scores have tables of their own")
    if real.settings.recipe is not None:
        reasons.append(f"the judge's recipe is {real.settings.recipe}, not the protocol's own")
    if any(judge.settings.get("epochs", "").endswith("-cut") for judge in judges):
        reasons.append("the judge's training was ended early")
    return reasons


def _describe(corpus: Corpus | None, found: Survey | None) -> dict[str, Any] | None:
    if corpus is None or found is None:
        return None
    return {"text": corpus.name, "sha256": found.sha256, **asdict(found.figures)}


def _outside(real: Real, judge: Judge, scored: Corpus) -> dict[str, int]:
    """Words of the scored text that a judge with a vocabulary of its own takes for `<unk>`."""
    if real.protocol.vocabulary == "train":
        return {}
    return {"out_of_vocabulary": sum(judge.vocabulary.map(sentence.split())[1] for sentence in scored)}


def _repeats(real: Real, row: Row) -> dict[str, Any]:
    """The runs over the judge's seeds."""
    if real.protocol.judge != "lstm":
        return {"runs": 1, "note": "the judge is deterministic: repeats change nothing"}
    spread = float(np.std(row.runs, ddof=1)) if len(row.runs) > 1 else None
    return {"runs": len(row.runs), "seeds": real.seeds, "scores": list(row.runs), "mean": row.perplexity, "sd": spread}


def _same(real: Real, samples: Samples) -> list[str]:
    """Texts that should differ and do not."""
    texts = [(samples.corpus, samples.survey), (real.train, real.train_survey)]
    if real.test is not None and real.test_survey is not None:
        texts.insert(1, (real.test, real.test_survey))
    pairs = [(a, b) for number, a in enumerate(texts) for b in texts[number + 1 :]]
    return [f"{a[0].name} and {b[0].name} hold the same sentences" for a, b in pairs if a[1].sha256 == b[1].sha256]


def _foreign(samples: Samples) -> list[str]:
    """Whether the samples have nothing in common with the real text."""
    figures = samples.survey.figures
    if figures.out_of_vocabulary < figures.words:
        return []
    return [
        f"no word of {samples.corpus.name} occurs in the real training split: is it of the same language, case and "
        "tokenisation?"
    ]


def _too_good(metric: Metric, row: Row, real_row: Row | None) -> list[str]:
    if real_row is None or row.perplexity >= real_row.perplexity:
        return []
    below = f"{metric.upper()} {row.perplexity:.2f} is below the real row, {real_row.perplexity:.2f}: "
    if metric == "fppl":
        return [
            below + "the samples are more predictable than real text, which points to lost diversity, not to quality"
        ]
    return [below + "samples teach the judge more than real text does; check that they do not hold the test split"]


def _signature(metric: Metric, real: Real, samples: Samples, judge: Judge, settings: Settings) -> Signature:
    protocol = real.protocol
    facts: dict[str, object] = {
        "metric": metric,
        "data": settings.data or real.train.name,
        "train": real.train_survey.sha256[:SHORT],
    }
    if metric == "fppl" and protocol.judge == "lstm" and real.valid is not None:
        facts["valid"] = real.valid.sha256[:SHORT]
    if metric == "rppl":
        tested = real.test_survey if protocol.tested_on == "test" else real.train_survey
        assert tested is not None  # `Real.tested` has asked for it
        facts["test"] = tested.sha256[:SHORT]
    if settings.text_policy != AS_IS:
        facts["text"] = settings.text_policy
    facts |= {"n": samples.survey.figures.sentences, "decoding": samples.settings.decoding}
    if samples.settings.filtering != NOT_FILTERED:
        facts["filtering"] = samples.settings.filtering
    longest = real.train_survey.figures.longest if protocol.max_length is None else protocol.max_length
    limit = samples.settings.max_length
    if limit is not None and limit < longest:
        facts["max_length"] = limit
    own = {("judge-text" if key == "text" else key): value for key, value in judge.settings.items()}  # `text` is taken
    facts |= {"judge": protocol.name, **own, **protocol.facts()}
    if len(real.seeds) > 1:
        facts["judge_seeds"] = f"{real.seeds[0]}-{real.seeds[-1]}"
    return Signature(
        facts
        | {
            "vocabulary": f"{protocol.vocabulary}-{len(judge.vocabulary)}",
            "eos": "yes" if protocol.counts_end else "no",
            "interval": f"bootstrap-{settings.resamples}",
            "seed": settings.seed,
            "version": __version__,
        }
    )
