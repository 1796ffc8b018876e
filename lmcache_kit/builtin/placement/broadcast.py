"""Every object in every tier."""

from __future__ import annotations

from collections.abc import Sequence

from lmcache_kit.builtin.placement.choice import first_fit, fits
from lmcache_kit.contracts.placement import PlacementPolicy, Promotion, TierView

__all__ = ["Broadcast"]


class Broadcast(PlacementPolicy):
    """A store counts once every tier has the object. An eviction drops one copy; a hit below is copied up again."""

    def on_store(self, tiers: Sequence[TierView], nbytes: int) -> Sequence[int]:
        return tuple(index for index, tier in enumerate(tiers) if fits(tier, nbytes))

    def on_hit(self, tiers: Sequence[TierView], tier: int, nbytes: int) -> Promotion | None:
        target = first_fit(tiers, nbytes, stop=tier)
        return None if target is None else Promotion(target=target, keep_source=True)

    def on_evict(self, tiers: Sequence[TierView], tier: int, held: Sequence[int], nbytes: int) -> int | None:
        return None
