"""Options of the workload `traffic`; light, because every `--help` and schema reads them."""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from lmcache_kit.contracts.records import Options

__all__ = ["TraceOptions", "TrafficOptions"]

Positive = Annotated[int, Meta(ge=1)]
Seconds = Annotated[float, Meta(gt=0)]


class TraceOptions(Options, frozen=True):
    """A file of recorded requests.

    Args:
        path: the file.
        reader: name of a trace reader plugin.
        options: options of the reader.
        limit: keep the earliest so many requests.
    """

    path: str
    reader: str = "mooncake"
    options: dict[str, str | int | float | bool] = msgspec.field(default_factory=dict)
    limit: Positive | None = None


class TrafficOptions(Options, frozen=True):
    """Requests that arrive by themselves, are routed to instances, queue, and are measured."""

    trace: TraceOptions | None = None
    instances: list[str] = msgspec.field(default_factory=list)
    routing: Literal["round_robin", "least_loaded", "prefix_aware"] = "round_robin"
    load_tokens: Annotated[float, Meta(ge=0)] = 1024.0
    max_in_flight: Positive | None = None
    timeout: Seconds | None = None
    on_failure: Literal["report", "retry_elsewhere"] = "report"
    probe_seconds: Seconds = 1.0
    time_scale: Seconds = 1.0
    max_output_tokens: Positive | None = None
    events: bool = True
