"""One pool of threads for compiled loops, which hold no GIL: work goes over ranges of blocks."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

__all__ = ["over_blocks", "usable_cores"]

Result = TypeVar("Result")

# Elements of a range: its symbols and values stay in the second-level cache from one stage to the next, and the calls
# cost little beside the work.
_AT_ONCE = 1 << 18

_lock = threading.Lock()
_pool: ThreadPoolExecutor | None = None


def usable_cores() -> int:
    """Cores that this process may run on."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def over_blocks(count: int, elements: int, work: Callable[[slice], Result]) -> list[Result]:
    """``work`` on every range of ``count`` blocks of ``elements`` each, on all cores; the results in order.

    A single range, or a single core, is worked on in the calling thread. ``work`` must not call this function.
    """
    cores = usable_cores()
    length = max(1, min(_AT_ONCE // max(1, elements), -(-count // cores)))
    ranges = [slice(start, min(count, start + length)) for start in range(0, count, length)]
    if len(ranges) <= 1 or cores == 1:
        return [work(some) for some in ranges]
    return list(_shared_pool(cores).map(work, ranges))


def _shared_pool(cores: int) -> ThreadPoolExecutor:
    global _pool
    with _lock:
        if _pool is None:
            _pool = ThreadPoolExecutor(cores, thread_name_prefix="lmcache-kit-blocks")
        return _pool


def _forget_pool() -> None:
    """In a forked child: its parent's threads do not exist there, and its lock may have been held."""
    global _lock, _pool
    _lock, _pool = threading.Lock(), None


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_pool)
