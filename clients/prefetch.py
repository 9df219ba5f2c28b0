"""Work ahead: the next items are made in the background while the present one is used."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from typing import TypeVar

T = TypeVar("T")
R = TypeVar("R")

AHEAD = 2
"""Items that are made before they are asked for: while one is late, another still waits to be used."""


def ahead(make: Callable[[T], R], items: Iterable[T]) -> Iterator[R]:
    """``map(make, items)`` with ``make`` in a thread, at most :data:`AHEAD` items early.

    Items are taken where the results are asked for, so that only ``make`` has to bear another thread. What it raises
    arrives with its traceback, in the place of its result. The thread ends with the iterator: used up, closed or
    dropped.
    """
    items = iter(items)
    waiting: deque[Future[R]] = deque()
    with ThreadPoolExecutor(max_workers=1, thread_name_prefix="ahead") as thread:
        try:
            waiting.extend(thread.submit(make, item) for item in islice(items, AHEAD))
            while waiting:
                result = waiting.popleft().result()
                waiting.extend(thread.submit(make, item) for item in islice(items, 1))
                yield result
        finally:
            thread.shutdown(wait=False, cancel_futures=True)
