"""Options of the trace readers; light, because every `--help` and schema reads them."""

from __future__ import annotations

from typing import Annotated

from msgspec import Meta

from lmcache_kit.contracts.records import Options

__all__ = ["KVCacheTesterOptions", "LMCacheLookupOptions"]


class KVCacheTesterOptions(Options, frozen=True):
    """Conversations of kv-cache-tester.

    Args:
        start_gap_seconds: each file counts its time from its own start; in a folder, a conversation starts this long
            after the one before.
    """

    start_gap_seconds: Annotated[float, Meta(ge=0)] = 0.0


class LMCacheLookupOptions(Options, frozen=True):
    """LMCache's lookup logs.

    Args:
        model: read the lookups of this model only; left out: all.
    """

    model: str | None = None
