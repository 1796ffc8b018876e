"""First in, first out."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator

from lmcache_kit.contracts.eviction import EvictionPolicy

__all__ = ["FIFO"]


class FIFO(EvictionPolicy):
    """First out is what was stored first; reading and rewriting change nothing."""

    def __init__(self) -> None:
        # Not a plain dict: taking many keys from its front makes finding the next first one slow.
        self._keys: OrderedDict[str, None] = OrderedDict()

    def admit(self, key: str, nbytes: int) -> None:
        self._keys.setdefault(key)

    def touch(self, key: str) -> None:
        pass

    def remove(self, key: str, *, evicted: bool) -> None:
        self._keys.pop(key, None)

    def victims(self) -> Iterator[str]:
        return iter(self._keys)
