"""What a trace holds, and how well an endless cache would do on it."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from lmcache_kit.contracts.trace import TraceFormat, TraceRecord
from lmcache_kit.report.percentiles import summarize

__all__ = ["trace_info"]


def trace_info(records: Iterable[TraceRecord], form: TraceFormat) -> dict[str, Any]:
    """Counts, lengths, arrivals and the hit rates of a cache that never evicts.

    A hit is a leading run of ids seen in earlier requests. ``block_hit_rate`` and ``token_hit_rate`` count a partial
    last block that has an id; ``full_block_token_hit_rate`` counts full blocks only, with tail tokens always missing,
    as LMCache defines its token hit rate.
    """
    seen: set[tuple[str | None, int]] = set()
    inputs: list[int] = []
    outputs: list[int] = []
    first: float | None = None
    last = 0.0
    ids = hit_ids = hit_tokens = hit_full_tokens = 0
    for record in records:
        scope = record.session if form.id_scope == "session" else None
        chain = [(scope, each) for each in record.block_ids]
        if record.tail_id is not None:
            chain.append((scope, record.tail_id))
        hits = 0
        while hits < len(chain) and chain[hits] in seen:
            hits += 1
        seen.update(chain)
        ids += len(chain)
        hit_ids += hits
        hit_tokens += min(hits * form.block_size, record.input_tokens)
        hit_full_tokens += min(hits, len(record.block_ids)) * form.block_size
        inputs.append(record.input_tokens)
        outputs.append(record.output_tokens)
        first = record.arrival if first is None else min(first, record.arrival)
        last = max(last, record.arrival)
    total = sum(inputs)
    return {
        "requests": len(inputs),
        "block_size": form.block_size,
        "input_tokens": total,
        "output_tokens": sum(outputs),
        "input_tokens_per_request": summarize(inputs),
        "output_tokens_per_request": summarize(outputs),
        "block_ids": ids,
        "distinct_block_ids": len(seen),
        "block_hit_rate": hit_ids / ids if ids else None,
        "token_hit_rate": hit_tokens / total if total else None,
        "full_block_token_hit_rate": hit_full_tokens / total if total else None,
        "arrival_span_seconds": last - first if first is not None else 0.0,
    }
