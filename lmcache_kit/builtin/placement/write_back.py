"""Fast to store, one copy below soon after."""

from __future__ import annotations

from collections.abc import Sequence

from lmcache_kit.builtin.placement.choice import first_fit
from lmcache_kit.contracts.placement import PlacementPolicy, Promotion, TierView

__all__ = ["WriteBack"]


class WriteBack(PlacementPolicy):
    """A store counts once the fastest tier has the object; in the background it is copied to the tier below.

    What is aimed at is one copy just below the fastest one, so that evicting the fastest costs nothing. An object
    that is evicted before it has a second copy moves down instead of being lost. A hit below is copied up.
    """

    def on_store(self, tiers: Sequence[TierView], nbytes: int) -> Sequence[int]:
        target = first_fit(tiers, nbytes)
        return () if target is None else (target,)

    def on_idle(self, tiers: Sequence[TierView], held: Sequence[int], nbytes: int) -> Sequence[int]:
        if not held:
            return ()
        target = first_fit(tiers, nbytes, start=min(held) + 1)
        # A copy further down than the next tier is a copy too: only an object with a single holder needs one.
        return () if target is None or len(set(held)) > 1 else (target,)

    def on_hit(self, tiers: Sequence[TierView], tier: int, nbytes: int) -> Promotion | None:
        target = first_fit(tiers, nbytes, stop=tier)
        return None if target is None else Promotion(target=target, keep_source=True)

    def on_evict(self, tiers: Sequence[TierView], tier: int, held: Sequence[int], nbytes: int) -> int | None:
        return None if held else first_fit(tiers, nbytes, start=tier + 1)
