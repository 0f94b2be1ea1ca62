"""The n-gram judge as a generator: sentences drawn from the model itself."""

from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from textebm.lm_eval.arpa import BOS, EOS, UNK, NgramModel, find

IntArray = NDArray[np.int64]
FloatArray = NDArray[np.float64]

SENTENCES_AT_ONCE = 20_000
LONGEST = 1000
"""Words at which a sentence is ended, so that a model that never ends one does no harm; language is far from it."""


def sample_ngrams(
    model: NgramModel, n: int, seed: int = 0, unseen: Sequence[str] = (), longest: int = LONGEST
) -> Iterator[list[str]]:
    """Sentences drawn from an interpolated model, word by word, at temperature 1.

    An interpolated model gives a word that followed the context in training its own probability, and shares the rest
    among the other words as the shorter context does. So a draw either falls to one of the former, or is made again
    from the shorter context until it falls to one of the latter.

    Args:
        model: the model.
        n: number of sentences.
        seed: the same seed gives the same sentences.
        unseen: words that the model does not hold; each has the probability of its unknown word. Where there is none,
            neither is that probability: the model keeps it for a word that never comes.
        longest: words at which a sentence is ended.

    Yields:
        The words of each sentence, as the model spells them.
    """
    random = np.random.default_rng(seed)
    drawer = _Drawer(model, random, len(unseen))
    for begin in range(0, n, SENTENCES_AT_ONCE):
        for ids in drawer.sentences(min(SENTENCES_AT_ONCE, n - begin), longest):
            yield [unseen[int(random.integers(len(unseen)))] if i == UNK else model.words[i] for i in ids]


class _Drawer:
    """Draws the next words of many sentences together.

    A context is where its words stand among the n-grams of their order; −1 where they never stood together.
    """

    def __init__(self, model: NgramModel, random: np.random.Generator, unseen: int) -> None:
        self._model = model
        self._random = random
        self._size = len(model.words)
        # The n-grams with one prefix stand together, so a running sum of probabilities serves every prefix.
        probs = [np.power(10.0, grams.log10_probs.astype(np.float64)) for grams in model.orders]
        probs[0][BOS] = 0.0  # no model predicts it, and files write anything there
        # Each unseen word has the unknown word's probability. Where there is none, the model keeps one such share all
        # the same, and a draw that falls to it is made again: in some contexts nothing else is left over.
        probs[0][UNK] *= max(1, unseen)
        self._unknown_can_come = unseen > 0
        self._sums = [np.concatenate([[0.0], np.cumsum(prob)]) for prob in probs]

    def sentences(self, n: int, longest: int) -> list[list[int]]:
        """Ids of the words of n sentences, their ends left out."""
        written: list[list[int]] = [[] for _ in range(n)]
        alive = np.arange(n)
        contexts = [np.full(n, BOS, dtype=np.int64), *(np.full(n, -1) for _ in self._model.orders[2:])]
        for _ in range(longest):
            words = self._next(contexts)
            going = words != EOS
            alive, words = alive[going], words[going]
            if not len(alive):
                break
            for row, word in zip(alive.tolist(), words.tolist(), strict=True):
                written[row].append(word)
            contexts = self._extend([context[going] for context in contexts], words)
        return written

    def _extend(self, contexts: list[IntArray], words: IntArray) -> list[IntArray]:
        """The contexts one word later: of 1, 2, ... words."""
        longer = [words]
        for grams, context in zip(self._model.orders[1:], contexts[:-1], strict=False):
            longer.append(find(grams.keys, context, words, self._size))
        return longer

    def _next(self, contexts: list[IntArray]) -> IntArray:
        """A word that can come, for each sentence."""
        words = self._draw(contexts, len(contexts))
        while not self._unknown_can_come and len(again := np.flatnonzero(words == UNK)):
            words[again] = self._draw([context[again] for context in contexts], len(contexts))
        return words

    def _draw(self, contexts: list[IntArray], length: int) -> IntArray:
        """A word for each sentence, given the last `length` words before it."""
        rows = len(contexts[0])
        if length == 0:
            total = self._sums[0][-1]
            return self._pick(self._sums[0], self._random.random(rows) * total, 0, self._size)
        grams, sums, context = self._model.orders[length], self._sums[length], contexts[length - 1]
        begin = np.searchsorted(grams.keys, context * self._size)
        end = np.searchsorted(grams.keys, (context + 1) * self._size)
        begin, end = np.where(context < 0, 0, begin), np.where(context < 0, 0, end)
        drawn = self._random.random(rows)
        seen = drawn < sums[end] - sums[begin]
        words = np.full(rows, -1, dtype=np.int64)
        at = self._pick(sums, sums[begin[seen]] + drawn[seen], begin[seen], end[seen])
        words[seen] = grams.keys[at] % self._size
        waiting = np.flatnonzero(~seen)
        while len(waiting):
            shorter = self._draw([c[waiting] for c in contexts[: length - 1]] or [context[waiting]], length - 1)
            taken = find(grams.keys, context[waiting], shorter, self._size) < 0
            words[waiting[taken]] = shorter[taken]
            waiting = waiting[~taken]
        return words

    @staticmethod
    def _pick(sums: FloatArray, wanted: FloatArray, begin: IntArray | int, end: IntArray | int) -> IntArray:
        """The n-gram on whose stretch of the running sum a number falls."""
        at = np.searchsorted(sums, wanted, side="right") - 1
        return np.clip(at, begin, np.asarray(end) - 1).astype(np.int64)
