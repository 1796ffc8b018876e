"""Options of the workload `reuse`; light, because every `--help` and schema reads them."""

from __future__ import annotations

from typing import Annotated

import msgspec
from msgspec import Meta

from lmcache_kit.contracts.records import Options

__all__ = ["ReuseOptions"]

Positive = Annotated[int, Meta(ge=1)]
Plain = dict[str, str | int | float | bool]


class ReuseOptions(Options, frozen=True):
    """Replay the block ids of a trace through a cache, without instances and without time.

    Args:
        path: the trace: a file, or a folder where the format has folders.
        reader: name of a trace reader plugin.
        reader_options: options of the reader.
        limit: keep the earliest so many requests.
        capacity: ids that the cache holds; left out: all.
        policy: name of an eviction policy plugin.
        policy_options: options of the policy.
        partial_blocks: cache and count the ids of partial last blocks, where the format has them.
    """

    path: str
    reader: str = "mooncake"
    reader_options: Plain = msgspec.field(default_factory=dict)
    limit: Positive | None = None
    capacity: Positive | None = None
    policy: str = "lru"
    policy_options: Plain = msgspec.field(default_factory=dict)
    partial_blocks: bool = True
