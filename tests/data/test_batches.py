"""Orders and batches: permutations, partitions, little padding, no memory that grows."""

import tracemalloc

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from textebm.data.batches import bucketed_batches, permuted, sequential_batches, token_batches


def ptb_like_lengths(count: int) -> np.ndarray:
    """Lengths with the mean (21), spread (about 10) and tail (82) of PTB's sentences."""
    return np.random.default_rng(1).gamma(4.4, 4.8, count).round().clip(1, 82).astype(np.int64)


@pytest.mark.parametrize(("count", "batch_size"), [(1, 32), (31, 32), (32, 32), (33, 32), (5000, 64), (4999, 1)])
def test_batches_are_a_partition(count, batch_size):
    lengths = ptb_like_lengths(count)
    for batches in (list(bucketed_batches(lengths, batch_size, 0, 0)), sequential_batches(lengths, batch_size)):
        assert sorted(np.concatenate(batches).tolist()) == list(range(count))
        assert sorted(map(len, batches), reverse=True)[:-1] == [batch_size] * (len(batches) - 1)
        assert len(batches) == -(-count // batch_size)


def test_batches_are_a_pure_function_of_seed_and_epoch():
    lengths = ptb_like_lengths(3000)

    def order(seed, epoch):
        return [batch.tolist() for batch in bucketed_batches(lengths, 32, seed, epoch)]

    assert order(3, 4) == order(3, 4)
    assert order(3, 4) != order(4, 3)
    assert order(3, 4) != order(3, 5)
    # Another epoch has other batches, not the same ones in another order.
    assert not {tuple(sorted(batch)) for batch in order(3, 4)} & {tuple(sorted(batch)) for batch in order(3, 5)}


@pytest.mark.parametrize("first", [0, 1, 49, 50, 51, 93, 94])
def test_batches_can_begin_anywhere(first):
    lengths = ptb_like_lengths(3000)
    whole = [batch.tolist() for batch in bucketed_batches(lengths, 32, 3, 4)]
    assert [batch.tolist() for batch in bucketed_batches(lengths, 32, 3, 4, first)] == whole[first:]


@given(st.integers(1, 3000), st.integers(0, 10), st.integers(0, 10))
def test_an_order_is_a_permutation(size, seed, epoch):
    assert sorted(permuted(np.arange(size), size, seed, epoch).tolist()) == list(range(size))


def test_an_order_of_many_is_one_too():
    size = 1_000_003
    order = permuted(np.arange(size), size, 0, 0)
    assert np.bincount(order, minlength=size).max() == 1
    some = np.array([5, 999_999, 0])
    assert permuted(some, size, 0, 0).tolist() == order[some].tolist()


@pytest.mark.parametrize("size", [5, 10, 1000])
def test_orders_are_uniform(size):
    """Where one thing goes, over 4,000 orders: a χ² test with a bound that chance exceeds once in 10,000 runs."""
    bins = min(size, 10)
    for row in (0, size - 1):
        places = [permuted(np.array([row]), size, seed, 1)[0] * bins // size for seed in range(4000)]
        chi2 = ((np.bincount(places, minlength=bins) - 4000 / bins) ** 2).sum() / (4000 / bins)
        assert chi2 < {5: 23.5, 10: 33.7}[bins]


def test_neighbours_do_not_stay_together():
    order = permuted(np.arange(100_000), 100_000, 0, 0).astype(float)
    assert abs(np.corrcoef(order[:-1], order[1:])[0, 1]) < 0.015
    assert abs(np.corrcoef(order, np.arange(100_000))[0, 1]) < 0.015


def test_an_epoch_takes_no_memory_that_grows_with_the_text():
    class Many:
        def __len__(self):
            return 50_000_000

        def __getitem__(self, rows):
            return rows % 40

    tracemalloc.start()
    batches = bucketed_batches(Many(), 64, 0, 0)
    for _ in range(200):
        next(batches)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 2e6


@pytest.mark.parametrize("batch_size", [32, 64, 128])
def test_little_padding_on_ptb_like_lengths(batch_size):
    lengths = ptb_like_lengths(42_068)
    targets = lengths + 1
    cells = sum(len(batch) * targets[batch].max() for batch in bucketed_batches(lengths, batch_size, 0, 0))
    assert 1 - targets.sum() / cells < 0.10


def test_batches_come_in_no_order_of_length():
    lengths = ptb_like_lengths(20_000)
    means = [lengths[batch].mean() for batch in bucketed_batches(lengths, 32, 0, 0)]
    assert abs(np.corrcoef(means, np.arange(len(means)))[0, 1]) < 0.15


def test_equal_lengths_are_shuffled():
    first = next(bucketed_batches(np.full(1000, 7), 1000, 0, 0))
    assert first.tolist() != sorted(first.tolist())


def test_sequential_batches_rise_in_length():
    lengths = ptb_like_lengths(1000)
    ordered = lengths[np.concatenate(sequential_batches(lengths, 64))]
    assert (np.diff(ordered) >= 0).all()


# --- batches bounded by words ---


@pytest.mark.parametrize("bound", [1, 50, 700, 10**9])
def test_token_batches_are_a_partition_within_the_bound(bound):
    lengths = ptb_like_lengths(3000)
    batches = token_batches(lengths, bound, 0, 0)
    assert sorted(np.concatenate(batches).tolist()) == list(range(3000))
    for batch in batches:
        assert len(batch) == 1 or len(batch) * (lengths[batch].max() + 1) <= bound


def test_every_epoch_has_as_many_token_batches():
    lengths = ptb_like_lengths(3000)
    assert {len(token_batches(lengths, 700, seed, epoch)) for seed in range(3) for epoch in range(5)} == {
        len(token_batches(lengths, 700, 0, 0))
    }


def test_token_batches_are_a_pure_function_of_seed_and_epoch():
    lengths = ptb_like_lengths(3000)

    def order(seed, epoch):
        return [batch.tolist() for batch in token_batches(lengths, 700, seed, epoch)]

    assert order(3, 4) == order(3, 4)
    assert order(3, 4) != order(4, 3)
    repeated = {tuple(sorted(batch)) for batch in order(3, 4)} & {tuple(sorted(batch)) for batch in order(3, 5)}
    assert len(repeated) < 0.1 * len(order(3, 4))  # lengths that few sentences have leave few choices


def test_token_batches_hold_little_padding_and_fill_the_bound():
    lengths = ptb_like_lengths(42_068)
    batches = token_batches(lengths, 1500, 0, 0)
    cells = sum(len(batch) * (lengths[batch].max() + 1) for batch in batches)
    assert 1 - (lengths + 1).sum() / cells < 0.02
    assert cells > 0.9 * 1500 * len(batches)
