"""Work done ahead of the one who asks for it, in the order in which it is asked for."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

S = TypeVar("S")
T = TypeVar("T")


def ahead(make: Callable[[S], T], items: Iterable[S], depth: int = 2) -> Iterator[T]:
    """`make` of each item, in order, computed by a thread of its own while the ones before are in use.

    Args:
        make: what is done with an item; an exception in it is raised where its result is asked for.
        items: what it is done with.
        depth: results that wait ready at most.
    """
    pool = ThreadPoolExecutor(1, thread_name_prefix="textebm-ahead")
    waiting: deque[Future[T]] = deque()
    try:
        for item in items:
            waiting.append(pool.submit(make, item))
            if len(waiting) > depth:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:  # whoever stops asking stops the work too
        pool.shutdown(wait=True, cancel_futures=True)
