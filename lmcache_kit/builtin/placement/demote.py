"""One copy, as high as there is room."""

from __future__ import annotations

from collections.abc import Sequence

from lmcache_kit.builtin.placement.choice import first_fit
from lmcache_kit.contracts.placement import PlacementPolicy, Promotion, TierView

__all__ = ["Demote"]


class Demote(PlacementPolicy):
    """Exclusive tiers: together they hold as much as their capacities add up to.

    New objects enter the fastest tier, evicted ones move to the next, and a hit below moves up. An object hit in a
    tier that cannot be written, and so not be freed, is copied up instead.
    """

    def on_store(self, tiers: Sequence[TierView], nbytes: int) -> Sequence[int]:
        target = first_fit(tiers, nbytes)
        return () if target is None else (target,)

    def on_hit(self, tiers: Sequence[TierView], tier: int, nbytes: int) -> Promotion | None:
        target = first_fit(tiers, nbytes, stop=tier)
        return None if target is None else Promotion(target=target, keep_source=not tiers[tier].writable)

    def on_evict(self, tiers: Sequence[TierView], tier: int, held: Sequence[int], nbytes: int) -> int | None:
        return None if held else first_fit(tiers, nbytes, start=tier + 1)
