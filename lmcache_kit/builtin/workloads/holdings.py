"""What the tiers of a running fleet hold, read off its instances' metrics."""

from __future__ import annotations

from collections.abc import Iterable

from prometheus_client.parser import text_string_to_metric_families

from lmcache_kit.contracts.workload import WorkloadContext

__all__ = ["held_bytes"]

_USED = "lmcache_kit_tier_used_bytes"


async def held_bytes(
    context: WorkloadContext, *, instances: Iterable[str] | None = None, location: str | None = None
) -> int | None:
    """Bytes in the tiers of some instances (None: all), in one location or in all.

    None when an instance does not tell, or may tell what was so a while ago: vLLM brings its metrics up to date when it
    works on requests, and what jobs change meanwhile is not in them.
    """
    total = 0
    for instance_id in context.instances if instances is None else instances:
        if context.instances[instance_id].server:
            return None
        metrics = await context.instances[instance_id].client.metrics()
        used = [
            sample
            for family in text_string_to_metric_families(metrics)
            if family.name == _USED
            for sample in family.samples
        ]
        if not used:
            return None
        total += int(sum(sample.value for sample in used if location in (None, sample.labels["location"])))
    return total
