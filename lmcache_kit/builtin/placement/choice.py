"""Which tier could take an object."""

from __future__ import annotations

from collections.abc import Sequence

from lmcache_kit.contracts.placement import TierView

__all__ = ["first_fit", "fits"]


def fits(tier: TierView, nbytes: int) -> bool:
    """Whether ``tier`` may be written and could hold ``nbytes`` if it were empty."""
    return tier.writable and (tier.capacity_bytes is None or nbytes <= tier.capacity_bytes)


def first_fit(tiers: Sequence[TierView], nbytes: int, *, start: int = 0, stop: int | None = None) -> int | None:
    """The fastest tier from ``start`` up to ``stop`` (exclusive) that could hold ``nbytes``, or None."""
    for index in range(start, len(tiers) if stop is None else stop):
        if fits(tiers[index], nbytes):
            return index
    return None
