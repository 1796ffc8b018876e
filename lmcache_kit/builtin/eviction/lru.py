"""Least recently used."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator, Sequence

from lmcache_kit.contracts.eviction import EvictionPolicy

__all__ = ["LRU"]


class LRU(EvictionPolicy):
    """First out is what was neither stored nor read for the longest time. Rewriting an object is not a use of it."""

    def __init__(self) -> None:
        self._keys: OrderedDict[str, None] = OrderedDict()

    def admit(self, key: str, nbytes: int) -> None:
        self._keys.setdefault(key)

    def touch(self, key: str) -> None:
        if key in self._keys:
            self._keys.move_to_end(key)

    def keep_front(self, keys: Sequence[str]) -> None:
        for key in reversed(keys):
            self.touch(key)

    def remove(self, key: str, *, evicted: bool) -> None:
        self._keys.pop(key, None)

    def victims(self) -> Iterator[str]:
        return iter(self._keys)
