"""One report of generated text: FPPL, RPPL, and what perplexity does not see, between the two limits of every table."""

import json
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal, Unpack

from textebm.errors import UsageError
from textebm.lm_eval import tables
from textebm.lm_eval.bootstrap import Difference
from textebm.lm_eval.corpus import Corpus
from textebm.lm_eval.diversity import (
    ORDERS,
    SELF_BLEU_SENTENCES,
    SUBSAMPLE,
    NgramSets,
    Survey,
    distinct_n,
    self_bleu,
    subsample,
    total_variation,
    wasserstein,
)
from textebm.lm_eval.judging import sample_judge
from textebm.lm_eval.protocols import HEADLINE_DECODING, NOT_FILTERED
from textebm.lm_eval.scores import (
    Options,
    Real,
    Samples,
    Score,
    Settings,
    Text,
    difference,
    forward,
    require_training,
    reverse,
)

File = str | os.PathLike[str]

Kind = Literal["real", "samples", "judge"]

REAL_ROW = "real text"
JUDGE_ROW = "the judge as a generator"


@dataclass(frozen=True)
class Entry:
    """A row of the report.

    Args:
        name: of the text.
        kind: `samples`; `real`, the real test split in the place of samples, whose RPPL is that of the judge of the
            real training split; or `judge`, sentences drawn from the judge of the real training split.
        scores: `fppl` and `rppl`, each with its score, interval, signature and details; of real text without the
            latter two.
        figures: what perplexity does not see.
    """

    name: str
    kind: Kind
    scores: dict[str, dict[str, Any]]
    figures: dict[str, float | int | None]

    def as_dict(self) -> dict[str, Any]:
        """The row in JSON types."""
        return {"name": self.name, "kind": self.kind, **self.scores, "figures": self.figures}


@dataclass(frozen=True)
class Report:
    """What was measured of one text or several.

    Args:
        entries: the samples, then the limits.
        differences: of each text's score from that of the first one.
        notes: how the figures were measured.
        remarks: what a reader must know: warnings, quirks, why a score is kept out of the main table.
    """

    entries: list[Entry]
    differences: list[dict[str, Any]]
    notes: list[str]
    remarks: list[str]

    def as_dict(self) -> dict[str, Any]:
        """The report in JSON types."""
        samples = [entry for entry in self.entries if "signature" in entry.scores["fppl"]]

        def of_each(key: str) -> dict[str, Any]:
            return {entry.name: {metric: score[key] for metric, score in entry.scores.items()} for entry in samples}

        return {
            "metric": "evaluate",
            "score": of_each("score"),
            "interval": of_each("interval"),
            "signature": of_each("signature"),
            "details": {
                "rows": [entry.as_dict() for entry in self.entries],
                "differences": self.differences,
                "notes": self.notes,
                "remarks": self.remarks,
            },
        }

    def to_json(self) -> str:
        """The report as one JSON object."""
        return json.dumps(self.as_dict(), ensure_ascii=False, indent=2, allow_nan=False)

    def table(self, form: tables.TableFormat) -> str:
        """The report as a table, one column a text; below it, but in CSV, differences and notes."""
        names = [entry.name for entry in self.entries]
        rows = [
            ["FPPL", *(tables.perplexity(entry.scores["fppl"]["score"]) for entry in self.entries)],
            ["  95 % interval", *(tables.between(entry.scores["fppl"]["interval"]) for entry in self.entries)],
            ["RPPL", *(tables.perplexity(entry.scores["rppl"]["score"]) for entry in self.entries)],
            ["  95 % interval", *(tables.between(entry.scores["rppl"]["interval"]) for entry in self.entries)],
        ]
        for key in self.entries[0].figures:
            rows.append([key, *(tables.figure(entry.figures[key]) for entry in self.entries)])
        rendered = tables.render(["", *names], [[cell.strip() for cell in row] for row in rows], form)
        if form == "csv":
            return rendered
        lines = [_difference_in_words(found) for found in self.differences]
        signatures = [
            f"{entry.name}: {score['signature']}"
            for entry in self.entries
            for score in entry.scores.values()
            if "signature" in score
        ]
        mark = "- " if form == "markdown" else ""
        parts = [
            rendered,
            *("\n".join(mark + line for line in block) for block in (lines, self.notes, signatures) if block),
        ]
        return "\n\n".join(parts)


def _difference_in_words(found: Mapping[str, Any]) -> str:
    if found["difference"] is None:
        return f"{found['metric'].upper()} of {found['first']} and {found['second']}: {found['why']}"
    low, high = found["interval"]
    return (
        f"{found['metric'].upper()} of {found['first']} minus {found['second']}: {found['difference']:+.2f} "
        f"(95 % interval {low:+.2f} to {high:+.2f}, p = {found['p_value']:.3g}, {found['method']})"
    )


def evaluate(
    samples: Mapping[str, Text] | Sequence[File | Corpus] | File | Corpus,
    test: Text,
    train: Text,
    *,
    valid: Text | None = None,
    limits: bool = True,
    mauve: str | None = None,
    **options: Unpack[Options],
) -> Report:
    """Measure generated texts beside one another, and beside the two limits of every table.

    Args:
        samples: the texts by name; or files, which have names of their own. Each is measured with the same options.
        test: the real test split.
        train: the real training split.
        valid: the real validation split, for neural judges.
        limits: whether the judge is measured as a generator too; real text always is.
        mauve: recipe of the LSTM judge whose states are the features of MAUVE (needs the extra `mauve`); None to leave
            it out.
        options: as of `fppl`.

    Raises:
        DataError: a text is missing or unreadable, or has no word.
        UsageError: an argument is wrong.
        JudgeError: a judge cannot be estimated, or gives a sentence the probability 0.
    """
    settings = Settings(**options)
    require_training(settings)
    real = Real(train, test, valid, settings)
    given = _named(samples)
    prepared = {name: Samples(text, real, settings) for name, text in given.items()}
    if limits:
        prepared[JUDGE_ROW] = _judge_as_generator(real, settings)
    forwards = {name: forward(real, text) for name, text in prepared.items()}
    reverses = {name: reverse(real, text) for name, text in prepared.items()}
    figures = _Figures(real, [text.survey for text in prepared.values()], settings.seed, mauve)
    entries = [
        Entry(
            name,
            "judge" if name == JUDGE_ROW else "samples",
            {"fppl": forwards[name].as_dict(), "rppl": reverses[name].as_dict()},
            figures.of(text.corpus, text.survey),
        )
        for name, text in prepared.items()
    ]
    entries.append(_real_entry(real, figures))
    differences = [
        _compared(metric, name, scores, settings)
        for metric, scores in (("fppl", forwards), ("rppl", reverses))
        for name in list(given)[1:]
    ]
    remarks = _remarks([*forwards.items(), *reverses.items()])
    return Report(entries, differences, figures.notes, remarks)


def _named(samples: Mapping[str, Text] | Sequence[File | Corpus] | File | Corpus) -> dict[str, Text]:
    if isinstance(samples, Mapping):
        named = dict(samples)
    else:
        named = {}
        for text in [samples] if isinstance(samples, str | os.PathLike | Corpus) else samples:
            name = text.name if isinstance(text, Corpus) else Path(text).name
            named[name if name not in named else f"{name} ({len(named) + 1})"] = text
    if not named:
        raise UsageError("no generated text is given")
    if clash := named.keys() & {REAL_ROW, JUDGE_ROW}:
        raise UsageError(f"a text cannot be named {clash.pop()!r}: a row of the table is")
    return named


def _judge_as_generator(real: Real, settings: Settings) -> Samples:
    """As many sentences as the protocol prescribes, drawn at temperature 1 from the judge of real text."""
    n = real.protocol.sentences_wanted(real.headline_n)
    drawn = sample_judge(real.judges[0], real.protocol, real.train, n, settings.seed, settings.judge_options)
    own = Settings(**{**vars(settings), "decoding": HEADLINE_DECODING, "filtering": NOT_FILTERED, "max_length": None})
    return Samples(Corpus(drawn, JUDGE_ROW, keep_blank=True), real, own)


def _real_entry(real: Real, figures: "_Figures") -> Entry:
    assert real.test is not None and real.test_survey is not None  # `evaluate` was given it
    scores = {}
    for metric in ("fppl", "rppl"):
        row = real.real_row(metric)
        assert row is not None
        scores[metric] = {"score": row.perplexity, "interval": list(row.interval)}
    return Entry(REAL_ROW, "real", scores, figures.of(real.test, real.test_survey, is_reference=True))


def _compared(metric: str, name: str, scores: Mapping[str, Score], settings: Settings) -> dict[str, Any]:
    first = next(iter(scores))
    try:
        found: Difference = difference(scores[name], scores[first], resamples=settings.resamples, seed=settings.seed)
    except UsageError as error:  # texts of different numbers of sentences, say
        return {"metric": metric, "first": name, "second": first, "difference": None, "why": str(error)}
    return {"metric": metric, "first": name, "second": first, **asdict(found)}


def _remarks(scores: Iterable[tuple[str, Score]]) -> list[str]:
    """What a reader must know; what is said of every text is said once."""
    remarks: list[str] = []
    for name, score in scores:
        own = [f"warning: {name}: {warning}" for warning in score.warnings]
        reasons = [reason for reason in score.details["headline_reasons"] if reason not in score.warnings]
        shared = [f"not for the main table: {reason}" for reason in reasons]
        shared += [f"quirk of {score.details['protocol']['name']}: {quirk}" for quirk in score.quirks]
        remarks += [remark for remark in dict.fromkeys([*own, *shared]) if remark not in remarks]
    return remarks


class _Figures:
    """Figures that depend on a text's size: all are measured on as many sentences as the smallest text has."""

    def __init__(self, real: Real, surveys: Sequence[Survey], seed: int, mauve: str | None) -> None:
        assert real.test is not None and real.test_survey is not None
        self._real = real
        self._seed = seed
        self._grams = NgramSets.of(real.train)
        smallest = min(survey.figures.sentences for survey in (*surveys, real.test_survey))
        self.size = min(SUBSAMPLE, smallest)
        self._mauve: Callable[[Sequence[str]], float] | None = None
        self.notes = [
            f"distinct-n and novelty: on {self.size:,} sentences of each text (seed {seed}); self-BLEU: BLEU-4 on "
            f"{min(self.size, SELF_BLEU_SENTENCES)} of them, each with the others as references; novelty: share of "
            "n-grams that the training split does not have; length: distances from the test split",
            "real text: FPPL is of the test split; RPPL is what the judge of the real training split gives it",
        ]
        self._self_bleu = find_spec("sacrebleu") is not None
        if not self._self_bleu:
            self.notes.append("self-BLEU is left out: sacrebleu is not installed (pip install 'textebm[bleu]')")
        if mauve is not None:
            from textebm.lm_eval.mauve import against_test

            self._mauve, note = against_test(real, self.size, seed, mauve)
            self.notes.append(note)

    def of(self, corpus: Corpus, survey: Survey, *, is_reference: bool = False) -> dict[str, float | int | None]:
        """All figures of a text."""
        assert self._real.test_survey is not None
        chosen = subsample(corpus, self.size, self._seed)
        distinct, novelty = distinct_n(chosen), self._grams.novelty(chosen)
        lengths = self._real.test_survey.lengths
        figures: dict[str, float | int | None] = {
            **asdict(survey.figures),
            **{f"distinct_{n}": distinct[n] for n in ORDERS},
            **{f"novelty_{n}": novelty[n] for n in ORDERS},
            "self_bleu": self_bleu(subsample(chosen, SELF_BLEU_SENTENCES, self._seed)) if self._self_bleu else None,
            "length_wasserstein": wasserstein(survey.lengths, lengths),
            "length_total_variation": total_variation(survey.lengths, lengths),
        }
        if self._mauve is not None:
            text = subsample(self._real.train, self.size, self._seed) if is_reference else chosen
            figures["mauve"] = self._mauve(text)
        return figures
