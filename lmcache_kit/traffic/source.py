"""Where requests come from: one stream of records, whatever made them."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

import msgspec

from lmcache_kit.contracts.trace import TraceRecord
from lmcache_kit.traces.loading import load_trace
from lmcache_kit.traces.spreading import spread_bursts
from lmcache_kit.traffic.arrivals import arrival_times
from lmcache_kit.traffic.contents import single_requests
from lmcache_kit.traffic.conversations import Conversations
from lmcache_kit.traffic.draws import Draws
from lmcache_kit.traffic.prompt import BlockPrompt
from lmcache_kit.traffic.specs import Arrivals, Closed, Contents, MultiTurn

__all__ = ["Source", "made_up", "recorded"]


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


def recorded(
    path: Path,
    reader: str,
    draws: Draws,
    *,
    options: Mapping[str, Any] | None = None,
    limit: int | None = None,
    spread: bool | float = False,
    arrivals: Arrivals | None = None,
) -> Source:
    """The requests of a trace.

    Args:
        path: its file or folder.
        reader: name of a trace reader plugin.
        draws: for the spreading and the arrivals.
        options: of the reader.
        limit: keep the earliest so many.
        spread: spread requests of one time stamp over the time up to the next one, or over this many seconds at most.
        arrivals: other arrivals than the recorded ones, in their order.

    Raises what :func:`~lmcache_kit.traces.load_trace` does.
    """
    form, records = load_trace(path, reader, limit=limit, options=options)
    facts: dict[str, Any] = {"kind": "trace", "reader": reader, "requests": len(records)}
    salt, spreading, times = draws.below(2**53), draws.child(), draws.child()
    if spread is not False:
        gap = None if spread is True else spread
        records, done = spread_bursts(records, spreading.generator, longest_gap=gap)
        facts["spread"] = dataclasses.asdict(done)
    stream: Iterator[TraceRecord] = iter(records)
    if arrivals is not None:
        facts["arrivals"] = _named(arrivals)
        stream = (
            dataclasses.replace(record, arrival=arrival)
            for record, arrival in zip(records, arrival_times(arrivals, times), strict=False)
        )
    return Source(
        records=stream, block_size=form.block_size, concurrency=_concurrency(arrivals), salt=salt, facts=facts
    )


def made_up(spec: Contents, arrivals: Arrivals, requests: int, draws: Draws, *, cap: int | None = None) -> Source:
    """``requests`` requests as ``spec`` describes them; ``cap`` is the most output tokens of one."""
    salt, lengths, times = draws.below(2**53), draws.child(), arrival_times(arrivals, draws.child())
    follow = None
    if isinstance(spec, MultiTurn):
        talks = Conversations(spec, times, lengths, salt, requests=requests, cap=cap)
        records, follow = talks.first_turns(), talks.follow
    else:
        records = islice(single_requests(spec, times, lengths, salt), requests)
    return Source(
        records=records,
        block_size=spec.block_size,
        concurrency=_concurrency(arrivals),
        follow=follow,
        salt=salt,
        facts={**_named(spec), "requests": requests, "arrivals": _named(arrivals)},
    )


def _concurrency(arrivals: Arrivals | None) -> int | None:
    return arrivals.concurrency if isinstance(arrivals, Closed) else None


def _named(spec: Any) -> dict[str, Any]:
    return dict(msgspec.to_builtins(spec))
