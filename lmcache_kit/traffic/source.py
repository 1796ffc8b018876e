"""Where requests come from: one stream of records, whatever made them."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from lmcache_kit.contracts.trace import TraceRecord
from lmcache_kit.traffic.prompt import BlockPrompt

__all__ = ["Source"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """Requests to come.

    Args:
        records: requests in the order of their arrival, made as they are asked for.
        block_size: tokens of a record's block; 0 when the records say nothing of prefixes.
        concurrency: how many are under way at any time, each one that ends making way for the next, whatever the
            records' arrivals; None when they arrive by themselves.
        follow: what a conversation says after an answer to a record: seconds of thinking and the next record; None when
            the conversation is over.
        salt: sets tails that have no id apart from those of other sources, at least 0.
        facts: how the records were made, for the report.
    """

    records: Iterator[TraceRecord]
    block_size: int
    concurrency: int | None = None
    follow: Callable[[TraceRecord], tuple[float, TraceRecord] | None] | None = None
    salt: int = 0
    facts: Mapping[str, Any] = field(default_factory=dict)

    def prompt(self, record: TraceRecord, position: int) -> BlockPrompt:
        """The prompt of the record that came at ``position``, counted from 0."""
        size = self.block_size
        if not size:
            # Nothing is known of what prompts share: each is a block of its own.
            size = max(record.input_tokens, 1)
            record = dataclasses.replace(record, block_ids=(), tail_tokens=record.input_tokens, tail_id=None)
        return BlockPrompt(record, size, unique=self.salt + position)
