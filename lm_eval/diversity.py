"""What perplexity does not see: figures of a text that stand beside its score, and beside those of real text."""

from collections.abc import Iterable
from dataclasses import dataclass

from textebm.lm_eval.corpus import UNKNOWN, Vocabulary


@dataclass(frozen=True)
class SideFigures:
    """Counts and rates of a text.

    Args:
        sentences: number of sentences, empty ones included.
        words: number of words; an end of sentence is none.
        mean_length: words a sentence.
        out_of_vocabulary: words outside the vocabulary, which become `<unk>`.
        unknown_rate: share of the words that are or become `<unk>`.
        duplicate_rate: share of the sentences that occurred before in the text.
        empty_rate: share of the sentences without a word.
        copied_rate: share of the sentences that occur in the real training split; None for that split itself.
    """

    sentences: int
    words: int
    mean_length: float
    out_of_vocabulary: int
    unknown_rate: float
    duplicate_rate: float
    empty_rate: float
    copied_rate: float | None


def fingerprints(sentences: Iterable[str]) -> frozenset[int]:
    """The distinct sentences that have a word, each as a 64-bit hash: a tenth of the text's memory."""
    return frozenset(hash(sentence) for sentence in sentences if sentence)


def side_figures(
    sentences: Iterable[str], vocabulary: Vocabulary, training: frozenset[int] | None = None
) -> SideFigures:
    """Measure a text in one pass.

    Args:
        sentences: at least one.
        vocabulary: of the real training split.
        training: `fingerprints` of the real training split; None leaves `copied_rate` out.
    """
    seen: set[int] = set()
    n = words = outside = unknown = empty = copied = 0
    for sentence in sentences:
        mapped, new = vocabulary.map(sentence.split())
        fingerprint = hash(sentence)
        n += 1
        words += len(mapped)
        outside += new
        unknown += mapped.count(UNKNOWN)
        empty += not mapped
        copied += training is not None and fingerprint in training
        seen.add(fingerprint)
    return SideFigures(
        sentences=n,
        words=words,
        mean_length=words / n,
        out_of_vocabulary=outside,
        unknown_rate=unknown / max(words, 1),
        duplicate_rate=1 - len(seen) / n,
        empty_rate=empty / n,
        copied_rate=None if training is None else copied / n,
    )
