"""Most recently used."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from lmcache_kit.builtin.eviction.lru import LRU

__all__ = ["MRU"]


class MRU(LRU):
    """The order of LRU, reversed: keeps the old part of a cyclic scan that is larger than the tier."""

    def keep_front(self, keys: Sequence[str]) -> None:
        for key in keys:  # the back is the first to go here as well
            self.touch(key)

    def victims(self) -> Iterator[str]:
        return reversed(self._keys)
