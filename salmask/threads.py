"""Pools of threads that end early when their work fails."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager


@contextmanager
def thread_pool(threads: int | None = None) -> Iterator[ThreadPoolExecutor]:
    """A pool of threads. An error or a stop signal cancels the calls that have not begun.

    Args:
        threads: the number of threads; None for as many as ThreadPoolExecutor starts.
    """
    pool = ThreadPoolExecutor(threads)
    try:
        yield pool
    finally:
        pool.shutdown(cancel_futures=True)
