"""Options of the workload `traffic`; light, because every `--help` and schema reads them."""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from lmcache_kit.contracts.records import Options
from lmcache_kit.traffic.specs import Arrivals, Contents

__all__ = ["TraceOptions", "TrafficOptions"]

Positive = Annotated[int, Meta(ge=1)]
Seconds = Annotated[float, Meta(gt=0)]


class TraceOptions(Options, frozen=True):
    """A file of recorded requests.

    Args:
        path: the file, or the folder in formats that have folders.
        reader: name of a trace reader plugin.
        options: options of the reader.
        limit: keep the earliest so many requests.
        spread: spread requests that share a time stamp over the time up to the next one; a number bounds that time, in
            seconds.
    """

    path: str
    reader: str = "mooncake"
    options: dict[str, str | int | float | bool] = msgspec.field(default_factory=dict)
    limit: Positive | None = None
    spread: bool | Seconds = False


class TrafficOptions(Options, frozen=True):
    """Requests that arrive by themselves, are routed to instances, queue, and are measured.

    Exactly one of ``trace`` and ``contents`` is named.

    Args:
        trace: recorded requests.
        contents: made-up requests.
        arrivals: when made-up requests arrive; with a trace, instead of the recorded times.
        requests: how many made-up requests.
        instances: which instances serve; left out: all.
        routing: how an instance is chosen.
        load_tokens: with ``prefix_aware``, how many cached tokens one request in flight outweighs.
        max_in_flight: most requests in flight on one instance; others wait in a queue in front of all.
        timeout_seconds: most seconds from a request's arrival to its end.
        on_failure: what happens to a request whose instance is away.
        probe_seconds: with ``retry_elsewhere``, pause between two questions to an instance that is away.
        time_scale: seconds of the source that pass in one second.
        max_output_tokens: cap on a request's output.
        windows: number of parts of the time in which results are shown over time.
        events: record an event for each request.
    """

    trace: TraceOptions | None = None
    contents: Contents | None = None
    arrivals: Arrivals | None = None
    requests: Positive | None = None
    instances: list[str] = msgspec.field(default_factory=list)
    routing: Literal["round_robin", "least_loaded", "prefix_aware"] = "round_robin"
    load_tokens: Annotated[float, Meta(ge=0)] = 1024.0
    max_in_flight: Positive | None = None
    timeout_seconds: Seconds | None = None
    on_failure: Literal["report", "retry_elsewhere"] = "report"
    probe_seconds: Seconds = 1.0
    time_scale: Seconds = 1.0
    max_output_tokens: Positive | None = None
    windows: Annotated[int, Meta(ge=1, le=10_000)] = 20
    events: bool = True
