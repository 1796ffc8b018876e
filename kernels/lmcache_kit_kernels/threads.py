"""Work on all cores: for loops that hold no GIL, a few of them at a time."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Generic, TypeVar

__all__ = ["block_ranges", "in_parallel", "over_blocks", "usable_cores"]

Item = TypeVar("Item")
Result = TypeVar("Result")

# Elements of a range: its symbols and values stay in a cache from one stage to the next, and the calls
# cost little beside the work.
_AT_ONCE = 1 << 20

_lock = threading.Lock()
_pool: ThreadPoolExecutor | None = None
_here = threading.local()
_NO_MORE: tuple[int, Any] = (-1, None)


def usable_cores() -> int:
    """Cores that this process may run on."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def block_ranges(count: int, elements: int) -> list[slice]:
    """Ranges of ``count`` blocks of ``elements`` each that are worth a call: in order, at least one for each core where
    there are enough blocks."""
    length = max(1, min(_AT_ONCE // max(1, elements), -(-count // usable_cores())))
    return [slice(start, min(count, start + length)) for start in range(0, count, length)]


def over_blocks(count: int, elements: int, work: Callable[[slice], Result]) -> list[Result]:
    """``work`` on every one of :func:`block_ranges`, on all cores; the results in order.

    Within other work done in parallel there is one range, done at once: the cores are busy already.
    """
    if _within():
        return [work(slice(0, count))] if count else []
    return in_parallel(work, block_ranges(count, elements))


def in_parallel(work: Callable[[Item], Result], items: Sequence[Item]) -> list[Result]:
    """``work`` on every item, on all cores, the calling thread's among them; the results in order.

    Raises what the first item raised whose work failed. Work may itself call functions of this module: those then keep
    to the thread that they are called in.
    """
    helpers = min(usable_cores(), len(items)) - 1
    if helpers < 1 or _within():
        return [work(item) for item in items]
    share = _Share(work, items)
    pool = _shared_pool()
    waiting = [pool.submit(share.take) for _ in range(helpers)]
    share.take()
    for helper in waiting:
        if not helper.cancel():  # a helper that has not begun by now is not needed
            helper.result()
    return share.results()


def _within() -> bool:
    """Whether the calling thread is doing a share of some work."""
    return bool(getattr(_here, "busy", False))


class _Share(Generic[Item, Result]):
    """Items to be taken one by one, by whichever thread is free."""

    def __init__(self, work: Callable[[Item], Result], items: Sequence[Item]) -> None:
        self._work = work
        self._items: Iterator[tuple[int, Item]] = iter(enumerate(items))
        self._lock = threading.Lock()
        self._done: dict[int, Result] = {}
        self._errors: dict[int, BaseException] = {}

    def take(self) -> None:
        """Work on items until none is left or one has failed."""
        _here.busy = True
        try:
            # Items are begun in order, so all before one that fails are done or have failed: which error is raised does
            # not depend on the threads.
            while not self._errors:
                with self._lock:
                    place, item = next(self._items, _NO_MORE)
                if place < 0:
                    return
                try:
                    self._done[place] = self._work(item)
                except BaseException as error:  # handed to the caller, whichever thread it is in
                    self._errors[place] = error
        finally:
            _here.busy = False

    def results(self) -> list[Result]:
        if self._errors:
            raise self._errors[min(self._errors)]
        return [self._done[place] for place in range(len(self._done))]


def _shared_pool() -> ThreadPoolExecutor:
    global _pool
    with _lock:
        if _pool is None:
            _pool = ThreadPoolExecutor(usable_cores(), thread_name_prefix="lmcache-kit-blocks")
        return _pool


def _forget_pool() -> None:
    """In a forked child: its parent's threads do not exist there, and its lock may have been held."""
    global _lock, _pool
    _lock, _pool = threading.Lock(), None


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_pool)
