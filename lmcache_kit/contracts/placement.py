"""Placement policies: which tiers hold an object. Tiers are ordered, fastest first, and named by their index.

Calls come from one thread, several for every chunk; sizes are bytes.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

import msgspec

__all__ = ["PlacementPolicy", "Promotion", "TierView"]


class TierView(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """What a policy may know of a tier. ``capacity_bytes=None`` is unbounded.

    A struct, since several are made for every decision.
    """

    location: str
    capacity_bytes: int | None
    used_bytes: int
    writable: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class Promotion:
    """Copy a hit object to tier ``target``; ``keep_source=False`` moves it."""

    target: int
    keep_source: bool


class PlacementPolicy(ABC):
    """Pure decisions: the same arguments give the same answer."""

    @abstractmethod
    def on_store(self, tiers: Sequence[TierView], nbytes: int) -> Sequence[int]:
        """Tiers that a new object is written to before the store counts as done. Tiers that are not writable or
        smaller than the object are left out by the caller.

        When none of them could take it, because what they hold is in use or they are down, the caller asks again with
        those as not writable.
        """

    def on_idle(self, tiers: Sequence[TierView], held: Sequence[int], nbytes: int) -> Sequence[int]:
        """More tiers that an object held by ``held`` is copied to in the background (write-back). Default: none."""
        return ()

    @abstractmethod
    def on_hit(self, tiers: Sequence[TierView], tier: int, nbytes: int) -> Promotion | None:
        """What to do with an object that was read from ``tier``, its fastest holder."""

    @abstractmethod
    def on_evict(self, tiers: Sequence[TierView], tier: int, held: Sequence[int], nbytes: int) -> int | None:
        """The tier that takes an object evicted from ``tier``, or None to drop it; ``held`` are the other tiers that
        hold it. A target below ``tier`` (a larger index) is a demotion; any other is ignored."""
