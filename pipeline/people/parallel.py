"""Work on many parts by a few threads, in the order of the parts."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

from pipeline.storage import Storage
from pipeline.storage.uris import is_remote

Result = TypeVar("Result")

PART_THREADS = 4         # a part may have 110 MB, and its vectors as much


def in_order(storage: Storage, work: Callable[[int], Result], count: int) -> Iterator[Result]:
    """The results of work(0), work(1), …, made by some threads, few of them ahead: for a bucket more than CPUs."""
    threads = PART_THREADS if is_remote(storage.root) else min(PART_THREADS, os.cpu_count() or 1)
    ahead: deque[Future[Result]] = deque()
    with ThreadPoolExecutor(threads) as pool:
        try:
            for number in range(count):
                ahead.append(pool.submit(work, number))
                if len(ahead) > threads:
                    yield ahead.popleft().result()
            while ahead:
                yield ahead.popleft().result()
        finally:
            pool.shutdown(cancel_futures=True)
