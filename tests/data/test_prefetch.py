"""What is computed ahead is what would have been computed, in that order, and no more once nobody asks."""

import threading
import time

import pytest

from textebm.data.prefetch import ahead


@pytest.mark.parametrize("depth", [1, 2, 7])
@pytest.mark.parametrize("count", [0, 1, 2, 20])
def test_results_come_in_order(count, depth):
    assert list(ahead(lambda n: n * n, range(count), depth)) == [n * n for n in range(count)]


def test_the_next_is_ready_before_it_is_asked_for():
    made = []
    results = ahead(lambda n: made.append(n) or n, range(10), depth=2)
    assert next(results) == 0
    deadline = time.monotonic() + 10
    while made != [0, 1, 2] and time.monotonic() < deadline:
        time.sleep(0.01)
    assert made == [0, 1, 2]  # two wait, and no third
    results.close()


def test_an_error_is_raised_where_its_result_is_asked_for():
    results = ahead(lambda n: 1 // (n - 2), range(5))
    assert [next(results), next(results)] == [-1, -1]
    with pytest.raises(ZeroDivisionError):
        next(results)


def test_who_stops_asking_stops_the_work():
    before, made = threading.active_count(), []
    for _ in ahead(made.append, range(1000)):
        break
    assert threading.active_count() == before
    assert len(made) < 10
