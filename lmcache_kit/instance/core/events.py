"""What the cache core tells the outside: changes of contents, and the log of its decisions."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import msgspec

from lmcache_kit.kv.keys import ChunkKey

__all__ = ["CacheChange", "CacheEvent", "ChangeSink", "EventSink"]


class CacheChange(msgspec.Struct, frozen=True, gc=False):
    """One change of one location's contents, for the controller.

    Changes arrive in the order in which they happened. An ``admit`` comes after the object's bytes can be read, an
    ``evict`` before they disappear.
    """

    op: Literal["admit", "evict"]
    location: str
    key: ChunkKey


class CacheEvent(msgspec.Struct, frozen=True, gc=False):
    """One decision or fact, for event logs and for comparing runs on different clocks.

    Args:
        time: reading of the core's clock, in seconds.
        op: ``hit``, ``miss``, ``admit``, ``evict``, ``rewrite``, ``pin``, ``unpin``, ``revive``.
        location: the tier it happened in; empty for a miss.
        key: the chunk.
        nbytes: stored size of the object; 0 where there is none.
        cause: why: ``store``, ``promote``, ``demote``, ``write_back``, ``receive``, ``move``, ``recover``, ``adopt`` of
            an admit; ``capacity``, ``demote``, ``promote``, ``clear``, ``damaged``, ``missing``, ``move`` of an evict;
            the compression method of a rewrite; the owner of a pin.
    """

    time: float
    op: str
    location: str
    key: ChunkKey
    nbytes: int
    cause: str


ChangeSink = Callable[[CacheChange], None]
EventSink = Callable[[CacheEvent], None]
