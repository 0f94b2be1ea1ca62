"""Which sentences stand together in a batch, and in which order: shuffled, of similar lengths, computed."""

from collections.abc import Iterator
from typing import Protocol

import numpy as np
import numpy.typing as npt

IntArray = npt.NDArray[np.integer]

POOL_BATCHES = 50  # batches that are sorted by length together: enough for little padding, few enough to stay random
FEISTEL_ROUNDS = 8  # four are enough in theory; small halves need more


class Lengths(Protocol):
    """Lengths of sentences by their number: an array, or what looks them up where they are."""

    def __len__(self) -> int:
        """Number of sentences."""
        ...

    def __getitem__(self, rows: npt.NDArray[np.int64], /) -> IntArray:
        """(rows,) lengths of these sentences."""
        ...


def permuted(rows: IntArray, size: int, seed: int, epoch: int) -> npt.NDArray[np.int64]:
    """Where a random order of `size` things, a pure function of seed and epoch, has what stands at `rows`.

    The order is computed, not stored: a Feistel network (a balanced one, on the bits of a row number, with hashed
    halves) permutes a power of four that is at least `size`, and what falls outside walks on until it falls inside
    (Black and Rogaway, "Ciphers with arbitrary finite domains", CT-RSA 2002).

    Args:
        rows: numbers under `size`, of any shape.
        size: how many things are ordered.
        seed: of the run's data order.
        epoch: each epoch has another order.
    """
    half = np.uint64(max(1, ((size - 1).bit_length() + 1) // 2))
    low = np.uint64((1 << int(half)) - 1)
    keys = np.random.SeedSequence([seed, epoch]).generate_state(FEISTEL_ROUNDS, np.uint64)

    def network(values: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
        left, right = values >> half, values & low
        for key in keys:
            left, right = right, left ^ (_mixed(right ^ key) & low)
        return (left << half) | right

    found = network(np.asarray(rows, dtype=np.uint64))
    while (outside := found >= size).any():
        found[outside] = network(found[outside])
    return found.astype(np.int64)


def _mixed(x: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    """A hash of 64-bit numbers in which every bit depends on every bit: SplitMix64's (Steele et al., OOPSLA 2014)."""
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def bucketed_batches(
    lengths: Lengths, batch_size: int, seed: int, epoch: int, first: int = 0
) -> Iterator[npt.NDArray[np.int64]]:
    """Indices of the sentences in shuffled batches of similar length: every sentence once, little padding.

    A pure function of its arguments, so that a resumed run sees the batches it would have seen, in memory that does not
    grow with the text. All sentences are shuffled and cut in pools of 50 batches; each pool is sorted by length and cut
    in batches, which are shuffled. The last batch cut is smaller where the sentences do not come out even.

    Args:
        lengths: of each sentence.
        batch_size: sentences in a batch.
        seed: of the run's data order.
        epoch: each epoch has another order.
        first: number of the batch to begin with.
    """
    size = POOL_BATCHES * batch_size
    skipped = first % POOL_BATCHES
    for pool in range(first // POOL_BATCHES, -(-len(lengths) // size)):
        members = permuted(np.arange(pool * size, min((pool + 1) * size, len(lengths))), len(lengths), seed, epoch)
        # A stable sort leaves equal lengths in the shuffled order.
        batches = _cut(members[np.argsort(lengths[members], kind="stable")], batch_size)
        order = np.random.default_rng([seed, epoch, pool]).permutation(len(batches))
        for index in order[skipped:]:
            yield batches[index]
        skipped = 0


def token_batches(lengths: Lengths, batch_tokens: int, seed: int, epoch: int) -> list[npt.NDArray[np.int64]]:
    """Indices of the sentences in shuffled batches of similar length that are bounded by words, not by sentences.

    A batch of n sentences, the longest of w words, counts n (w + 1) tokens: padding and ends of sentence included. A
    sentence that is longer than the bound is a batch by itself. All sentences are sorted by length, equal lengths in a
    new random order each epoch, and cut as late as the bound allows: so every epoch has as many batches as any other.
    That takes a sort of all sentences: some 30 bytes of memory for each.

    Args:
        lengths: of each sentence.
        batch_tokens: most tokens of a batch.
        seed: of the run's data order.
        epoch: each epoch has another order.
    """
    random = np.random.default_rng([seed, epoch])
    shuffled = random.permutation(len(lengths))
    of_shuffled = lengths[shuffled]
    by_length = np.argsort(of_shuffled, kind="stable")
    order = shuffled[by_length]
    cuts, begin = [], 0
    for place, length in enumerate(of_shuffled[by_length].tolist()):
        if place > begin and (place - begin + 1) * (length + 1) > batch_tokens:
            cuts.append(place)
            begin = place
    batches = np.split(order, cuts)
    return [batches[index] for index in random.permutation(len(batches))]


def sequential_batches(lengths: IntArray, batch_size: int) -> list[npt.NDArray[np.int64]]:
    """Indices of the sentences in batches from the shortest sentence to the longest, for evaluation."""
    return _cut(np.argsort(lengths, kind="stable"), batch_size)


def _cut(indices: npt.NDArray[np.int64], batch_size: int) -> list[npt.NDArray[np.int64]]:
    return [indices[start : start + batch_size] for start in range(0, len(indices), batch_size)]
