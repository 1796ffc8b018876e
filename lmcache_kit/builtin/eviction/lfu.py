"""Least frequently used."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator, Sequence

from lmcache_kit.contracts.eviction import EvictionPolicy

__all__ = ["LFU"]


class LFU(EvictionPolicy):
    """First out is what was used least often; among equals, what was not used for the longest time.

    Storing counts as the first use; a key that leaves and comes back starts again at one. Every call takes constant
    time: keys sit in one queue per count, and a key enters the end of a queue when it is used, so a queue is in order
    of last use. (The constant-time scheme of Shah, Mitra and Matani, 2010.)
    """

    def __init__(self) -> None:
        self._counts: dict[str, int] = {}
        self._queues: dict[int, OrderedDict[str, None]] = {}

    def admit(self, key: str, nbytes: int) -> None:
        if key not in self._counts:
            self._enter(key, 1)

    def touch(self, key: str) -> None:
        count = self._counts.get(key)
        if count is not None:
            self._leave(key, count)
            self._enter(key, count + 1)

    def keep_front(self, keys: Sequence[str]) -> None:
        for key in reversed(keys):
            if key in self._counts:
                self._queues[self._counts[key]].move_to_end(key)

    def remove(self, key: str, *, evicted: bool) -> None:
        count = self._counts.pop(key, None)
        if count is not None:
            self._leave(key, count)

    def victims(self) -> Iterator[str]:
        for count in sorted(self._queues):
            yield from self._queues[count]

    def _enter(self, key: str, count: int) -> None:
        self._counts[key] = count
        self._queues.setdefault(count, OrderedDict())[key] = None

    def _leave(self, key: str, count: int) -> None:
        queue = self._queues[count]
        del queue[key]
        if not queue:
            del self._queues[count]
