"""Records of the built-in eviction policies."""

from __future__ import annotations

from lmcache_kit.contracts.eviction import EvictionPolicy
from lmcache_kit.contracts.records import EvictionPlugin, Options

__all__ = ["RECORDS"]


def _lru(options: Options, capacity_bytes: int | None) -> EvictionPolicy:
    from lmcache_kit.builtin.eviction.lru import LRU

    return LRU()


def _lfu(options: Options, capacity_bytes: int | None) -> EvictionPolicy:
    from lmcache_kit.builtin.eviction.lfu import LFU

    return LFU()


def _fifo(options: Options, capacity_bytes: int | None) -> EvictionPolicy:
    from lmcache_kit.builtin.eviction.fifo import FIFO

    return FIFO()


def _mru(options: Options, capacity_bytes: int | None) -> EvictionPolicy:
    from lmcache_kit.builtin.eviction.mru import MRU

    return MRU()


def _arc(options: Options, capacity_bytes: int | None) -> EvictionPolicy:
    from lmcache_kit.builtin.eviction.arc import ARC

    return ARC(capacity_bytes)


RECORDS: tuple[EvictionPlugin, ...] = (
    EvictionPlugin(name="lru", summary="evicts what was not used for the longest time", factory=_lru),
    EvictionPlugin(name="lfu", summary="evicts what was used least often, then least recently", factory=_lfu),
    EvictionPlugin(name="fifo", summary="evicts what was stored first", factory=_fifo),
    EvictionPlugin(name="mru", summary="evicts what was used last; for cyclic scans", factory=_mru),
    EvictionPlugin(name="arc", summary="adapts between recency and frequency (ARC, weighted by bytes)", factory=_arc),
)
