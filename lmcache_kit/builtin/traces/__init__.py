"""Trace readers that come with the core."""

from __future__ import annotations

from lmcache_kit.contracts.records import Options, Plugin, TracePlugin
from lmcache_kit.contracts.trace import TraceReader

__all__ = ["RECORDS"]


def _mooncake(options: Options) -> TraceReader:
    from lmcache_kit.builtin.traces.mooncake import MooncakeReader

    return MooncakeReader()


RECORDS: tuple[Plugin, ...] = (
    TracePlugin(
        name="mooncake",
        summary="JSON lines of the Mooncake FAST'25 traces: 512 tokens per chained id, milliseconds",
        factory=_mooncake,
    ),
)
