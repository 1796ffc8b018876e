"""Lookups: what the controller knows of every prompt that was completed."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Sequence
from typing import Any

from lmcache_kit.builtin.workloads.holdings import held_bytes
from lmcache_kit.builtin.workloads.measures import measured
from lmcache_kit.builtin.workloads.options import LookupOptions
from lmcache_kit.builtin.workloads.served import Served, served, tokens_of
from lmcache_kit.contracts.workload import Workload, WorkloadContext, WorkloadResult
from lmcache_kit.report.percentiles import summarize
from lmcache_kit.units import format_count

__all__ = ["LookupWorkload", "prefix_held"]


def prefix_held(answer: dict[str, Any], instance_id: str) -> int:
    """Tokens of the prefix that an instance holds, all its locations together, in the answer of a lookup."""
    if "prefix" in answer:
        return int(answer["prefix"].get(instance_id, 0))
    entry = answer.get("layout_info", {}).get(instance_id)
    return int(entry[1]) if entry else 0


class LookupWorkload(Workload):
    """See :class:`~lmcache_kit.builtin.workloads.options.LookupOptions`."""

    kind = "lookup"

    def __init__(self, options: LookupOptions) -> None:
        self._options = options

    def needs(self) -> Sequence[str]:
        return [self._options.of]

    async def run(self, context: WorkloadContext) -> WorkloadResult:
        entries = served(context, self._options.of)
        tokenizing = []
        for entry in entries:
            begin = context.clock.now()
            await tokens_of(context, entry)
            tokenizing.append(context.clock.now() - begin)
        await self._settle(context, entries)
        context.progress(format_count(len(entries), "lookups"))
        before = await held_bytes(context)
        latencies: list[float] = []
        held: Counter[str] = Counter()
        hits = complete = 0
        start = context.clock.now()
        for position, entry in enumerate(entries):
            begin = context.clock.now()
            answer = await context.controller.lookup(entry.tokens)
            latencies.append(context.clock.now() - begin)
            found = prefix_held(answer, entry.instance_id)
            hits += found
            complete += found >= len(entry.tokens)
            best = answer.get("layout_info", {})
            held.update({f"{instance}.{location}": tokens for instance, (location, tokens) in best.items()})
            context.emit(
                "lookup",
                position=position,
                instance=entry.instance_id,
                tokens=len(entry.tokens),
                found=found,
                layout_info=best,
                seconds=latencies[-1],
            )
        seconds = context.clock.now() - start
        tokens = sum(len(entry.tokens) for entry in entries)
        values = measured(
            counts={
                "lookups": len(entries),
                "complete": complete,
                "misses": len(entries) - complete,
            },
            tokens=tokens,
            bytes_before=before,
            bytes_after=await held_bytes(context),
            seconds=seconds,
            latencies=latencies,
            expected_tokens=tokens,
            hit_tokens=hits,
            hit_rate=hits / tokens if tokens else None,
            all_found=complete == len(entries),
            best_tokens_by_location=dict(held),
            tokenize_seconds=summarize(tokenizing),
        )
        return WorkloadResult(name=context.name, kind=self.kind, values=values)

    async def _settle(self, context: WorkloadContext, entries: Sequence[Served]) -> None:
        """Instances report what they stored a moment later, so wait until the controller knows the last prompt."""
        deadline = context.clock.now() + self._options.settle_seconds
        while entries and context.clock.now() < deadline:
            last = entries[-1]
            if prefix_held(await context.controller.lookup(last.tokens), last.instance_id) >= len(last.tokens):
                return
            await asyncio.sleep(0.02)
