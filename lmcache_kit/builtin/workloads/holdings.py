"""What the tiers of a running fleet hold, as its instances tell."""

from __future__ import annotations

from lmcache_kit.contracts.workload import WorkloadContext

__all__ = ["held_bytes"]


async def held_bytes(context: WorkloadContext) -> int | None:
    """Bytes in all tiers of all instances; None when one of them does not tell."""
    total = 0
    for handle in context.instances.values():
        tiers = (await handle.client.health()).get("tiers")
        if not isinstance(tiers, list):
            return None
        total += sum(int(tier["used_bytes"]) for tier in tiers)
    return total
