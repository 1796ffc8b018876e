"""What a placement policy decides in situations that every store meets."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from lmcache_kit.contracts.placement import Promotion, TierView
from lmcache_kit.contracts.records import Options, PlacementPlugin

__all__ = ["measure"]

_NAMES = ("fast", "middle", "slow")
_TIERS = tuple(
    TierView(location=name, capacity_bytes=capacity, used_bytes=used)
    for name, capacity, used in zip(_NAMES, (8 * 2**30, 64 * 2**30, None), (8 * 2**30, 2**30, 2**35), strict=True)
)
_NBYTES = 4 * 2**20


def measure(
    record: PlacementPlugin, options: Options, *, seconds: float, sample: Path | None
) -> Mapping[str, float | int | str | None]:
    """Decisions for an object of 4 MiB and three tiers: a full fast one, a middle one, an unbounded slow one."""
    policy = record.factory(options)
    stored = policy.on_store(_TIERS, _NBYTES)
    target = policy.on_evict(_TIERS, 0, (), _NBYTES)
    return {
        "a new object goes to": _names(stored),
        "in the background also to": _names(policy.on_idle(_TIERS, stored, _NBYTES)) if stored else "nowhere",
        "when hit in slow": _promotion(policy.on_hit(_TIERS, 2, _NBYTES)),
        "when evicted from fast": "dropped" if target is None or target <= 0 else f"moved to {_NAMES[target]}",
    }


def _names(indices: Sequence[int]) -> str:
    return ", ".join(_NAMES[index] for index in indices) or "nowhere"


def _promotion(promotion: Promotion | None) -> str:
    if promotion is None:
        return "stays"
    return f"{'copied' if promotion.keep_source else 'moved'} to {_NAMES[promotion.target]}"
