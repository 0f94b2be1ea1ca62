"""Back-off n-gram models: the ARPA file format, and vectorised queries.

An n-gram is known by the number of its prefix (all words but the last) one order below, and its last word: so an order
is one sorted array of integers, and looking up all n-grams of a text is one binary search an order.
"""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import TextIO

import numpy as np
from numpy.typing import NDArray

from textebm.errors import JudgeError

IntArray = NDArray[np.int64]
FloatArray = NDArray[np.float32]

UNK, BOS, EOS = 0, 1, 2
SPECIALS = ("<unk>", "<s>", "</s>")
"""The words of the numbers above; KenLM numbers them so."""


@dataclass(frozen=True)
class Grams:
    """The n-grams of one order, sorted by key.

    Args:
        keys: number of the prefix among the n-grams one order below × vocabulary size + last word; for unigrams the
            word itself; shape (grams,).
        log10_probs: log10 p(last word | the others); shape (grams,).
        log10_backoffs: log10 of the weight that the n-gram, as a context, leaves to shorter ones; shape (grams,).
    """

    keys: IntArray
    log10_probs: FloatArray
    log10_backoffs: FloatArray


@dataclass(frozen=True)
class NgramModel:
    """A back-off n-gram model that holds the prefixes of all its n-grams.

    Args:
        words: the words in the order of their numbers, the special ones first.
        orders: the unigrams, the bigrams, and so on.
    """

    words: Sequence[str]
    orders: Sequence[Grams]

    def token_log10_probs(self, ids: IntArray) -> NDArray[np.float64]:
        """log10 p of each token given the words before it in its sentence.

        Args:
            ids: word numbers of whole sentences one after the other, each from <s> to </s>; shape (tokens,).

        Returns:
            Shape (tokens,); the values at <s> mean nothing.
        """
        at = ids
        result = self.orders[0].log10_probs[ids].astype(np.float64)
        for lower, grams in pairwise(self.orders):
            # No n-gram has <s> after its first word, so a match never reaches back into the sentence before.
            context = before(at)
            at = find(grams.keys, context, ids, len(self.words))
            backed_off = result + _take(lower.log10_backoffs, context)
            result = np.where(at >= 0, _take(grams.log10_probs, at), backed_off)
        return result

    def write(self, path: Path) -> None:
        """Write the model as an ARPA file; float32 survives the round trip exactly."""
        with path.open("w", encoding="utf-8", newline="\n") as file:
            counts = "".join(f"ngram {n}={len(grams.keys)}\n" for n, grams in enumerate(self.orders, start=1))
            file.write(f"\\data\\\n{counts}")
            texts = list(self.words)
            for n, grams in enumerate(self.orders, start=1):
                if n > 1:
                    texts = self._extend(texts, grams)
                file.write(f"\n\\{n}-grams:\n")
                file.writelines(_entries(grams, texts, with_backoff=n < len(self.orders)))
            file.write("\n\\end\\\n")

    def _extend(self, prefixes: list[str], grams: Grams) -> list[str]:
        """The n-grams of an order as text, from those one order below."""
        above, last = np.divmod(grams.keys, len(self.words))
        return [f"{prefixes[p]} {self.words[w]}" for p, w in zip(above.tolist(), last.tolist(), strict=True)]

    @classmethod
    def read(cls, path: Path) -> "NgramModel":
        """The model of an ARPA file, as lmplz or `write` make it.

        Raises:
            JudgeError: the file is no ARPA file, or ends early, or lacks the prefix of an n-gram.
        """
        with path.open(encoding="utf-8", newline="\n") as file:
            try:
                return cls._read(file)
            except (ValueError, KeyError, StopIteration) as error:
                raise JudgeError(f"{path}: not a whole ARPA file ({error!r})") from error

    @classmethod
    def _read(cls, file: TextIO) -> "NgramModel":
        counts = _read_counts(file)
        fields = _read_section(file, 1, counts[0])
        words = [text for _, text, _ in fields]
        words = [*SPECIALS, *(word for word in words if word not in SPECIALS)]
        number = {word: n for n, word in enumerate(words)}
        orders: list[Grams] = []
        for n, count in enumerate(counts, start=1):
            if n > 1:
                fields = _read_section(file, n, count)
            ids = np.array([number[word] for _, text, _ in fields for word in text.split(" ")], dtype=np.int64)
            values = np.array([(p, b) for p, _, b in fields], dtype=np.float32).reshape(count, 2)
            orders.append(_sorted_grams(ids.reshape(count, n), values, orders, len(words)))
        return cls(words, orders)


def before(at: IntArray) -> IntArray:
    """The values one place earlier; −1 before the first."""
    return np.concatenate([np.full(1, -1), at[:-1]])


def find(keys: IntArray, prefixes: IntArray, words: IntArray, size: int) -> IntArray:
    """Where the n-grams (prefix, word) stand among sorted keys; −1 where they do not, or where the prefix is −1."""
    if not len(keys):
        return np.full(len(words), -1)
    wanted = prefixes * size + words
    at = np.minimum(np.searchsorted(keys, wanted), len(keys) - 1)
    return np.where((keys[at] == wanted) & (prefixes >= 0), at, -1)


def _take(values: FloatArray, at: IntArray) -> FloatArray:
    """`values[at]`, and 0 where `at` is −1."""
    result = np.zeros(len(at), dtype=np.float32)
    hit = at >= 0
    result[hit] = values[at[hit]]
    return result


def _entries(grams: Grams, texts: list[str], *, with_backoff: bool) -> Iterator[str]:
    """Lines of an ARPA section; nine digits give a float32 back exactly."""
    probs, backoffs = grams.log10_probs.tolist(), grams.log10_backoffs.tolist()
    if with_backoff:
        return (f"{p:.9g}\t{text}\t{b:.9g}\n" for p, text, b in zip(probs, texts, backoffs, strict=True))
    return (f"{p:.9g}\t{text}\n" for p, text in zip(probs, texts, strict=True))


def _read_counts(file: TextIO) -> list[int]:
    if next(file).strip() != "\\data\\":
        raise ValueError(r"the first line is not \data\ ")
    counts: list[int] = []
    while line := next(file).strip():
        matched = re.fullmatch(r"ngram (\d+)=(\d+)", line)
        if matched is None or int(matched[1]) != len(counts) + 1:
            raise ValueError(line)
        counts.append(int(matched[2]))
    if not counts:
        raise ValueError("it counts no n-grams")
    return counts


def _read_section(file: TextIO, order: int, count: int) -> list[tuple[float, str, float]]:
    """(log10 p, n-gram, log10 back-off) of each entry of the section that comes next."""
    while not (line := next(file)).strip():
        pass
    if line.strip() != f"\\{order}-grams:":
        raise ValueError(line)
    entries = []
    for _ in range(count):
        prob, text, *backoff = next(file).rstrip("\n").split("\t")
        entries.append((float(prob), text, float(backoff[0]) if backoff else 0.0))
    return entries


def _sorted_grams(ids: IntArray, values: NDArray[np.float32], lower: list[Grams], size: int) -> Grams:
    """One order of a model from its n-grams as rows of word numbers, in any order."""
    prefixes = np.zeros(len(ids), dtype=np.int64) if ids.shape[1] == 1 else ids[:, 0]
    for column, grams in enumerate(lower[1:], start=1):
        prefixes = find(grams.keys, prefixes, ids[:, column], size)
    if (prefixes < 0).any():
        raise ValueError(f"the prefix of a {ids.shape[1]}-gram is missing")
    keys = prefixes * size + ids[:, -1]
    order = np.argsort(keys)
    return Grams(keys[order], values[order, 0], values[order, 1])
