"""What a trace holds, what it cannot tell, and how well an endless cache would do on it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import groupby
from typing import Any

from lmcache_kit.contracts.trace import TraceFormat, TraceRecord
from lmcache_kit.report.percentiles import summarize
from lmcache_kit.traces.loading import normalise
from lmcache_kit.traces.reuse import replay

__all__ = ["trace_info", "untold"]


def trace_info(records: Iterable[TraceRecord], form: TraceFormat) -> dict[str, Any]:
    """Counts, lengths, arrivals and the hit rates of a cache that never evicts.

    A hit is a leading run of ids seen in earlier requests. ``block_hit_rate`` and ``token_hit_rate`` count a partial
    last block that has an id; ``lmcache_token_hit_rate`` counts full blocks only, with tail tokens always missing, as
    LMCache defines its token hit rate. All are None without ids. ``first_admission`` has the same without retries.
    """
    ordered = normalise(records, form)
    found = replay(ordered, form.block_size)
    inputs = [record.input_tokens for record in ordered]
    outputs = [record.output_tokens for record in ordered]
    bursts = [len(list(group)) for _, group in groupby(ordered, key=lambda record: record.arrival)]
    facts = found.facts()
    return {
        "requests": found.plain.requests,
        "block_size": form.block_size,
        "input_tokens": found.plain.tokens,
        "output_tokens": sum(outputs),
        "input_tokens_per_request": summarize(inputs),
        "output_tokens_per_request": summarize(outputs),
        "sessions": len({record.session for record in ordered} - {None}),
        "block_ids": found.plain.blocks,
        "distinct_block_ids": found.distinct,
        **found.plain.rates(),
        "first_admission": facts["first_admission"],
        "arrival_span_seconds": ordered[-1].arrival if ordered else 0.0,
        "arrival_times": len(bursts),
        "largest_burst": max(bursts, default=0),
        "untold": untold(ordered, form),
    }


def untold(records: Sequence[TraceRecord], form: TraceFormat) -> list[str]:
    """What the trace says nothing of, in words; nothing is known to be untold of no records."""
    if not records:
        return []
    found = []
    if not form.block_size:
        found.append("prefixes: it has no block ids, so no hit rate can be told")
    elif all(record.tail_id is None for record in records) and any(record.tail_tokens for record in records):
        found.append("tails: partial last blocks have no id and count as never shared")
    if all(record.output_tokens == 0 for record in records):
        found.append("answers: every completion has 0 tokens")
    if all(record.session is None for record in records):
        found.append("conversations: requests are not assigned to sessions")
    if all(record.request_id is None for record in records):
        guess = ", so an equal prompt of the same session is taken for one" if form.block_size else ""
        found.append(f"retries: requests have no names{guess}")
    return found
