"""What the cache core decided and an adapter has to carry out."""

from __future__ import annotations

from collections.abc import Set

import msgspec

from lmcache_kit.instance.core.tiers import Entry

__all__ = ["Removal", "WriteTicket"]


class Removal(msgspec.Struct, eq=False):
    """An object on its way out of tier ``tier``; ``demotion`` is the write that must end before it goes.

    ``listed`` and ``doubtful`` are what the object was when this was decided.
    """

    tier: int
    entry: Entry
    cause: str
    listed: bool
    doubtful: bool = False
    demotion: WriteTicket | None = None


class WriteTicket(msgspec.Struct, eq=False):
    """A write: first carry out ``removals``, then ``start`` it, then write, then ``commit`` it.

    Args:
        tier: index of the tier.
        entry: the object, new or to be replaced.
        nbytes: its stored size after the commit.
        growth: what the tier's account grows by until the commit: all of a new object; for a rewrite, what it is
            larger than the object it replaces.
        cause: as in CacheEvent.
        protect: storage names that must not be evicted for it.
        codec: compression method of the new bytes.
        rewrite: whether it replaces an object that stays readable meanwhile.
        started: whether the bytes count as held.
        removals: what has to go first; an adapter takes entries out as it begins to carry them out.
    """

    tier: int
    entry: Entry
    nbytes: int
    growth: int
    cause: str
    protect: Set[str]
    codec: str
    rewrite: bool = False
    started: bool = False
    removals: list[Removal] = []
