"""What perplexity does not see: figures of a text that stand beside its score, and beside those of real text.

`survey` goes through a text of any size once and keeps 8 bytes a sentence. What depends on how much text there is
(distinct n-grams, self-BLEU) or would need every n-gram of it (novelty) is measured on a seeded subsample, of the same
size for every text that is compared.
"""

import hashlib
import random
from array import array
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice

import numpy as np
from numpy.typing import NDArray

from textebm.errors import UsageError
from textebm.lm_eval.corpus import UNKNOWN, Vocabulary

HashArray = NDArray[np.int64]
IntArray = NDArray[np.int64]

ORDERS = (1, 2, 3, 4)
"""Lengths of the n-grams that are counted."""

SUBSAMPLE = 10_000
"""Sentences, at most, on which distinct-n and novelty are measured."""

SELF_BLEU_SENTENCES = 200
"""Sentences of self-BLEU: each is compared with all the others, so the work grows with the square."""

SENTENCES_AT_ONCE = 10_000
HASHES_AT_ONCE = 1 << 20


@dataclass(frozen=True)
class SideFigures:
    """Counts and rates of a text.

    Args:
        sentences: number of sentences, empty ones included.
        words: number of words; an end of sentence is none.
        mean_length: words a sentence.
        longest: words of the longest sentence.
        out_of_vocabulary: words outside the vocabulary, which become `<unk>`.
        unknown_rate: share of the words that are or become `<unk>`.
        duplicate_rate: share of the sentences that occurred before in the text.
        empty_rate: share of the sentences without a word.
        copied_rate: share of the sentences that occur in the real training split; None for that split itself.
    """

    sentences: int
    words: int
    mean_length: float
    longest: int
    out_of_vocabulary: int
    unknown_rate: float
    duplicate_rate: float
    empty_rate: float
    copied_rate: float | None


@dataclass(frozen=True)
class Survey:
    """What one pass over a text finds.

    Args:
        figures: the side figures.
        sha256: of the sentences, as `corpus.sha256_of` computes it.
        lengths: number of sentences of 0, 1, 2, ... words; shape (longest + 1,).
        fingerprints: the distinct sentences that have a word, as sorted 64-bit hashes.
    """

    figures: SideFigures
    sha256: str
    lengths: IntArray
    fingerprints: HashArray


def fingerprints(sentences: Iterable[str]) -> HashArray:
    """The distinct sentences that have a word, as sorted 64-bit hashes: 8 bytes each."""
    return _distinct(array("q", (hash(sentence) for sentence in sentences if sentence)))


def survey(sentences: Iterable[str], vocabulary: Vocabulary, training: HashArray | None = None) -> Survey:
    """Measure a text in one pass, in 8 bytes a sentence.

    Args:
        sentences: at least one.
        vocabulary: of the real training split.
        training: `fingerprints` of the real training split; None leaves `copied_rate` out.
    """
    hashes = array("q")
    digest = hashlib.sha256()
    lengths: Counter[int] = Counter()
    words = outside = unknown = 0
    for sentence in sentences:
        digest.update(sentence.encode() + b"\n")
        mapped, new = vocabulary.map(sentence.split())
        lengths[len(mapped)] += 1
        words += len(mapped)
        outside += new
        unknown += mapped.count(UNKNOWN)
        hashes.append(hash(sentence))
    n, empty = len(hashes), lengths[0]
    copied = None if training is None else _count_known(np.frombuffer(hashes, dtype=np.int64), training)
    distinct = _distinct(hashes)
    histogram = np.zeros(max(lengths) + 1, dtype=np.int64)
    for length, count in lengths.items():
        histogram[length] = count
    figures = SideFigures(
        sentences=n,
        words=words,
        mean_length=words / n,
        longest=len(histogram) - 1,
        out_of_vocabulary=outside,
        unknown_rate=unknown / max(words, 1),
        duplicate_rate=1 - len(distinct) / n,
        empty_rate=empty / n,
        copied_rate=None if copied is None else copied / n,
    )
    known = distinct[distinct != hash("")] if empty else distinct
    return Survey(figures, digest.hexdigest(), histogram, known)


def _distinct(hashes: "array[int]") -> HashArray:
    """The different ones, sorted; `hashes` itself is sorted in place."""
    values: HashArray = np.frombuffer(hashes, dtype=np.int64)
    values.sort()
    first = np.ones(len(values), dtype=bool)
    np.not_equal(values[1:], values[:-1], out=first[1:])
    distinct: HashArray = values[first]
    return distinct


def _count_known(hashes: HashArray, known: HashArray) -> int:
    """How many of the hashes stand among the sorted ones."""
    if not len(known):
        return 0
    found = 0
    for begin in range(0, len(hashes), HASHES_AT_ONCE):
        part = hashes[begin : begin + HASHES_AT_ONCE]
        at = np.minimum(np.searchsorted(known, part), len(known) - 1)
        found += int((known[at] == part).sum())
    return found


# ----------------------------------------------------------------------------------------------------------- subsamples


def subsample(sentences: Iterable[str], size: int, seed: int = 0) -> list[str]:
    """`size` sentences drawn without replacement in one pass (Vitter 1985, algorithm R); all where there are fewer."""
    source = random.Random(seed)
    remaining = iter(sentences)
    kept = list(islice(remaining, size))
    for number, sentence in enumerate(remaining, start=size):
        at = source.randrange(number + 1)
        if at < size:
            kept[at] = sentence
    return kept


def distinct_n(sentences: Sequence[str]) -> dict[int, float]:
    """Share of different n-grams among all n-grams of a text, for n of 1 to 4 (Li et al. 2016); 0 where it has none.

    It falls with the amount of text: compare texts of the same number of sentences only.
    """
    found = NgramSets.of(sentences)
    return {n: len(found.distinct[n]) / max(found.total[n], 1) for n in ORDERS}


def self_bleu(sentences: Sequence[str]) -> float | None:
    """BLEU-4 of each sentence with all the others as references (Zhu et al. 2018), as sacrebleu computes it.

    100 says that every sentence is put together from pieces of the others. It grows with the number of sentences.

    Args:
        sentences: tokenised; empty ones are left out. It takes time that grows with the square of their number.

    Returns:
        0 to 100; None where there are fewer than two sentences.

    Raises:
        UsageError: sacrebleu is not installed.
    """
    try:
        from sacrebleu.metrics.bleu import BLEU
    except ImportError:
        raise UsageError("self-BLEU needs sacrebleu: pip install 'textebm[bleu]'") from None
    texts = [sentence for sentence in sentences if sentence]
    if len(texts) < 2:
        return None
    others = [texts[shift:] + texts[:shift] for shift in range(1, len(texts))]
    return float(BLEU(tokenize="none", force=True).corpus_score(texts, others).score)


# ------------------------------------------------------------------------------------------------------------- n-grams


@dataclass(frozen=True)
class NgramSets:
    """The different n-grams of a text, for n of 1 to 4, as sorted 64-bit hashes.

    Args:
        distinct: order -> sorted hashes, 8 bytes for each different n-gram.
        total: order -> number of n-grams.
    """

    distinct: dict[int, HashArray]
    total: dict[int, int]

    @classmethod
    def of(cls, sentences: Iterable[str]) -> "NgramSets":
        """The n-grams of a text; none reaches over the end of a sentence."""
        distinct = {n: np.zeros(0, dtype=np.int64) for n in ORDERS}
        total = dict.fromkeys(ORDERS, 0)
        for grams in _ngrams(sentences):
            for n in ORDERS:
                total[n] += len(grams[n])
                distinct[n] = np.unique(np.concatenate([distinct[n], grams[n]]))
        return cls(distinct, total)

    def novelty(self, sentences: Iterable[str]) -> dict[int, float]:
        """Share of the n-grams of another text that do not occur in this one, for n of 1 to 4; 0 where it has none."""
        total, known = dict.fromkeys(ORDERS, 0), dict.fromkeys(ORDERS, 0)
        for grams in _ngrams(sentences):
            for n in ORDERS:
                total[n] += len(grams[n])
                known[n] += _count_known(grams[n], self.distinct[n])
        return {n: 1 - known[n] / total[n] if total[n] else 0.0 for n in ORDERS}


_MULTIPLIER = np.uint64(0x9E3779B97F4A7C15)  # odd, so that multiplying loses nothing (Knuth 1998, section 6.4)


def _ngrams(sentences: Iterable[str]) -> Iterator[dict[int, HashArray]]:
    """The n-grams of some sentences at a time: order -> a hash for each."""
    remaining = iter(sentences)
    while rows := [sentence.split() for sentence in islice(remaining, SENTENCES_AT_ONCE)]:
        words = np.array([hash(word) for row in rows for word in row], dtype=np.int64).view(np.uint64)
        owner = np.repeat(np.arange(len(rows)), [len(row) for row in rows])
        grams = {1: words.view(np.int64)}
        keys = words
        for n in ORDERS[1:]:
            # Each key is mixed before it takes in the next word, so that word order counts.
            keys = keys[:-1] if len(keys) else keys
            mixed = (keys ^ (keys >> np.uint64(29))) * _MULTIPLIER
            keys = mixed + words[n - 1 :]
            inside = owner[: len(keys)] == owner[n - 1 :]
            grams[n] = keys[inside].view(np.int64)
        yield grams


# ------------------------------------------------------------------------------------------------------------- lengths


def wasserstein(lengths: IntArray, others: IntArray) -> float:
    """Wasserstein-1 distance of two length distributions, in words: how far sentences would have to be lengthened or
    shortened, on average, to turn one into the other.

    Args:
        lengths, others: numbers of sentences of 0, 1, 2, ... words, as in `Survey.lengths`.
    """
    a, b = _as_shares(lengths, others)
    return float(np.abs(np.cumsum(a - b)).sum())


def total_variation(lengths: IntArray, others: IntArray) -> float:
    """Total variation distance of two length distributions: 0 where they are equal, 1 where they share no length."""
    a, b = _as_shares(lengths, others)
    return float(np.abs(a - b).sum() / 2)


def _as_shares(lengths: IntArray, others: IntArray) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    size = max(len(lengths), len(others))
    a, b = (np.pad(counts, (0, size - len(counts))) for counts in (lengths, others))
    return a / a.sum(), b / b.sum()
