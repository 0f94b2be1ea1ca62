"""Interpolated modified Kneser–Ney estimation of an n-gram model, as KenLM's lmplz does it.

Sources: Chen and Goodman 1998 (section 3 and equation 26); Heafield et al. 2013; and, for everything that those leave
open, lmplz itself: each sentence begins with one <s>, which is never predicted; n-grams that begin with <s> keep their
raw counts; unigrams are interpolated with the uniform distribution, whose share is also what an unknown word gets.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from textebm.errors import JudgeError
from textebm.lm_eval.arpa import BOS, EOS, SPECIALS, UNK, FloatArray, Grams, IntArray, NgramModel, before

Counts = NDArray[np.float64]

FALLBACK_DISCOUNTS = (0.5, 1.0, 1.5)
"""For adjusted counts of 1, 2, and 3 or more, where the closed form fails: lmplz's `--discount_fallback`."""


@dataclass(frozen=True)
class _Counted:
    """The distinct n-grams of one order.

    Args (all of shape (grams,) but the last):
        keys: as in `Grams`.
        prefixes, suffixes: numbers of the n-gram without its last and its first word, one order below.
        raw: how often it occurs.
        after_start: whether it begins with <s>.
        at: number of the n-gram that ends at each token of the text, −1 where there is none; shape (tokens,).
    """

    keys: IntArray
    prefixes: IntArray
    suffixes: IntArray
    raw: IntArray
    after_start: NDArray[np.bool_]
    at: IntArray


def estimate(sentences: Iterable[Sequence[str]], order: int, vocabulary_pad: int = 0) -> tuple[NgramModel, list[int]]:
    """Estimate a model.

    Args:
        sentences: the words of each; none of them `<unk>`, `<s>` or `</s>`.
        order: length of the longest n-grams, at least 2.
        vocabulary_pad: number of words, end of sentence included, between which the uniform distribution is divided,
            if that is more than lmplz would take (the words of the text, `</s>` and `<unk>`): its `--vocab_pad`.

    Returns:
        The model; and the orders whose discounts have no closed form in this text, so that `FALLBACK_DISCOUNTS`
        were used (small or repetitive text).

    Raises:
        JudgeError: there is no sentence.
    """
    words, ids = _number_words(sentences)
    counted = _count(ids, order, len(words))
    adjusted = _adjust(counted)
    discounts, failed = _all_discounts(ids, counted, adjusted)
    uniform = 1 / max(vocabulary_pad, len(words) - 1)  # <s> is not a word that can be predicted

    prob = _unigrams(adjusted[0], discounts[0], uniform)
    log10_probs = [_log10(prob)]
    log10_backoffs: list[FloatArray] = []
    for n in range(1, order):
        prob, left_over = _interpolate(counted[n], adjusted[n], discounts[n], prob, len(counted[n - 1].keys))
        log10_probs.append(_log10(prob))
        log10_backoffs.append(_log10(left_over))
    log10_backoffs.append(np.zeros(len(counted[-1].keys), dtype=np.float32))
    grams = zip((c.keys for c in counted), log10_probs, log10_backoffs, strict=True)
    return NgramModel(words, [Grams(*fields) for fields in grams]), failed


def _number_words(sentences: Iterable[Sequence[str]]) -> tuple[list[str], IntArray]:
    """The words, numbered as they first appear; and the text as numbers, each sentence from <s> to </s>."""
    number = {word: n for n, word in enumerate(SPECIALS)}
    ids: list[int] = []
    for sentence in sentences:
        ids.append(BOS)
        ids.extend([number.setdefault(word, len(number)) for word in sentence])
        ids.append(EOS)
    if not ids:
        raise JudgeError("a language model cannot be estimated from no sentence")
    return list(number), np.array(ids, dtype=np.int64)


def _count(ids: IntArray, order: int, size: int) -> list[_Counted]:
    """The distinct n-grams of every order, none of which reaches across a sentence's border."""
    every, none = np.arange(size), np.zeros(size, dtype=np.int64)
    counted = [_Counted(every, none, none, np.bincount(ids, minlength=size), every == BOS, ids)]
    for _ in range(1, order):
        lower = counted[-1]
        prefix = before(lower.at)
        (where,) = np.nonzero((prefix >= 0) & (ids != BOS))
        keys, first, inverse, raw = np.unique(
            prefix[where] * size + ids[where], return_index=True, return_inverse=True, return_counts=True
        )
        at = np.full(len(ids), -1)
        at[where] = inverse
        example = where[first]
        prefixes = prefix[example]
        counted.append(_Counted(keys, prefixes, lower.at[example], raw, lower.after_start[prefixes], at))
    return counted


def _adjust(counted: list[_Counted]) -> list[IntArray]:
    """Adjusted counts: how many different words stand before an n-gram; how often it occurs, if nothing can."""
    adjusted = []
    for lower, higher in pairwise(counted):
        preceded_by = np.bincount(higher.suffixes, minlength=len(lower.keys))
        adjusted.append(np.where(lower.after_start, lower.raw, preceded_by))
    adjusted[0][[UNK, BOS]] = 0
    return [*adjusted, counted[-1].raw]


def _all_discounts(ids: IntArray, counted: list[_Counted], adjusted: list[IntArray]) -> tuple[list[Counts], list[int]]:
    """Discounts by adjusted count (0, 1, 2, 3 or more) of each order, and the orders that needed the fallback."""
    last = _last_in_suffix_order(ids, len(counted))
    discounts, failed = [], []
    for n, (grams, counts) in enumerate(zip(counted, adjusted, strict=True), start=1):
        seen = counts.copy()
        if n < len(counted) and grams.at[last] >= 0:
            # lmplz takes the raw count of the very last n-gram into these statistics, and in a small text it shows.
            seen[grams.at[last]] = grams.raw[grams.at[last]]
        of_order = _closed_form(np.bincount(np.minimum(seen, 5), minlength=6))
        if of_order is None:
            failed.append(n)
        discounts.append(np.array([0, *(FALLBACK_DISCOUNTS if of_order is None else of_order)]))
    return discounts, failed


def _last_in_suffix_order(ids: IntArray, order: int) -> int:
    """The place in the text of the n-gram that comes last when sorted by last word, then the one before, and so on."""
    (ends,) = np.nonzero(ids != BOS)
    starts = np.maximum.accumulate(np.where(ids == BOS, np.arange(len(ids)), 0))
    for back in range(order):
        words = ids[np.maximum(ends - back, starts[ends])]
        ends = ends[words == words.max()]
    return int(ends[0])


def _closed_form(n: IntArray) -> list[float] | None:
    """Chen and Goodman's equation 26, from n[j], the number of n-grams with adjusted count j; None where it fails."""
    if not all(n[1:4]):
        return None
    y = n[1] / (n[1] + 2 * n[2])
    discounts = [float(j - (j + 1) * y * n[j + 1] / n[j]) for j in (1, 2, 3)]
    return discounts if all(0 <= d <= j for j, d in enumerate(discounts, start=1)) else None


def _unigrams(counts: IntArray, discounts: Counts, uniform: float) -> Counts:
    """Probabilities of the words, interpolated with the uniform distribution."""
    discount = discounts[np.minimum(counts, 3)]
    total = counts.sum()
    prob: Counts = (counts - discount + discount.sum() * uniform) / total
    prob[BOS] = 1.0  # the convention of KenLM's files: it is given, never predicted
    return prob


def _interpolate(
    grams: _Counted, counts: IntArray, discounts: Counts, lower_prob: Counts, contexts: int
) -> tuple[Counts, Counts]:
    """Probabilities of the n-grams of an order, and the weight that each context leaves to the order below."""
    discount = discounts[np.minimum(counts, 3)]
    total = np.bincount(grams.prefixes, weights=counts, minlength=contexts)
    discounted = np.bincount(grams.prefixes, weights=discount, minlength=contexts)
    left_over = np.divide(discounted, total, out=np.ones(contexts), where=total > 0)
    prob = (counts - discount) / total[grams.prefixes] + left_over[grams.prefixes] * lower_prob[grams.suffixes]
    return prob, left_over


def _log10(values: Counts) -> FloatArray:
    """As lmplz writes them: float32, and no probability above 1."""
    with np.errstate(divide="ignore"):
        return np.minimum(np.log10(values), 0).astype(np.float32)
