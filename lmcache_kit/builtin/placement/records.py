"""Records of the built-in placement policies."""

from __future__ import annotations

from lmcache_kit.contracts.placement import PlacementPolicy
from lmcache_kit.contracts.records import Options, PlacementPlugin

__all__ = ["RECORDS"]


def _broadcast(options: Options) -> PlacementPolicy:
    from lmcache_kit.builtin.placement.broadcast import Broadcast

    return Broadcast()


def _write_back(options: Options) -> PlacementPolicy:
    from lmcache_kit.builtin.placement.write_back import WriteBack

    return WriteBack()


def _demote(options: Options) -> PlacementPolicy:
    from lmcache_kit.builtin.placement.demote import Demote

    return Demote()


RECORDS: tuple[PlacementPlugin, ...] = (
    PlacementPlugin(name="broadcast", summary="writes every object to every tier at once", factory=_broadcast),
    PlacementPlugin(
        name="write_back",
        summary="writes to the fastest tier, copies to the next one in the background",
        factory=_write_back,
    ),
    PlacementPlugin(
        name="demote",
        summary="one copy: stored in the fastest tier, moved down on eviction, up on a hit",
        factory=_demote,
    ),
)
