"""Most recently used."""

from __future__ import annotations

from collections.abc import Iterator

from lmcache_kit.builtin.eviction.lru import LRU

__all__ = ["MRU"]


class MRU(LRU):
    """The order of LRU, reversed: keeps the old part of a cyclic scan that is larger than the tier."""

    def victims(self) -> Iterator[str]:
        return reversed(self._keys)
