"""A run's events as a time line for ui.perfetto.dev or chrome://tracing.

The format is Chrome's trace events as a JSON object: times and durations in microseconds, ``X`` for what takes time,
``i`` for what happens at once, ``C`` for values over time and ``M`` for names. The run and each instance are a process;
requests and operations lie on as many threads as there were at once, and each tier's decisions on a thread of its own.
https://docs.google.com/document/d/1CvAClvFfyA5R-PhYUmn5OOQtYMH4h6I0nSsKchNAySU
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

import msgspec

from lmcache_kit.analysis.events import Event, read_events
from lmcache_kit.analysis.tracks import Tracks
from lmcache_kit.errors import ConfigError

__all__ = ["timeline", "write_timeline", "write_timeline_file"]

_RUN = "run"
_MICRO = 1000
"""Nanoseconds in a microsecond: times are whole nanoseconds inside, so that a part never sticks out of its whole."""

Traced = dict[str, Any]


def write_timeline(events: Iterable[Event], file: BinaryIO) -> int:
    """Write the time line, piece by piece; the answer is how many trace events it has."""
    encoder = msgspec.json.Encoder()
    count = 0
    file.write(b'{"displayTimeUnit":"ms","traceEvents":[')
    for entry in timeline(events):
        file.write((b",\n" if count else b"\n") + encoder.encode(entry))
        count += 1
    file.write(b"\n]}\n")
    return count


def write_timeline_file(events: Path, file: Path) -> None:
    """Write the time line of an ``events.jsonl``. Raises ConfigError when one cannot be read or the other written."""
    try:
        with file.open("wb") as opened:
            write_timeline(read_events(events), opened)
    except OSError as error:
        raise ConfigError(f"{file} cannot be written: {error.strerror}") from None


def timeline(events: Iterable[Event]) -> Iterator[Traced]:
    """The trace events of a run, the names of processes and threads before they are used."""
    tracks = Tracks()
    held = _Held()
    tracks.process(_RUN)
    for event in events:
        traced = list(_traced(event, tracks))
        if event.is_decision and event.location:
            traced += held.after(event, tracks)
        yield from tracks.new_names()
        yield from traced
    yield from tracks.new_names()


def _traced(event: Event, tracks: Tracks) -> Iterator[Traced]:
    if event.event == "request":
        yield from _request(event, tracks)
    elif event.is_decision:
        pid = tracks.process(event.instance or _RUN)
        yield {
            "ph": "i",
            "s": "t",
            "name": event.event.removeprefix("cache_"),
            "cat": "cache",
            "pid": pid,
            "tid": tracks.thread(pid, event.location or "no tier"),
            "ts": _ns(event.time) / _MICRO,
            "args": _present(key=event.key, bytes=event.bytes, cause=event.cause or None, workload=event.workload),
        }
    elif event.event == "workload_started":
        # Its end has the length.
        return
    elif event.seconds is not None:
        name = event.workload if event.event == "workload_finished" else event.event
        group = "workloads" if event.event in ("workload_finished", "fleet_ready") else "operations"
        start, end = _span(event)
        pid = tracks.process(event.instance or _RUN)
        yield _slice(name or event.event, group, pid, tracks.lane(pid, group, start, end), start, end, _facts(event))
    else:
        pid = tracks.process(_RUN)
        name = event.what if event.event == "fault" and event.what else event.event
        yield {
            "ph": "i",
            "s": "g",
            "name": name,
            "cat": event.event,
            "pid": pid,
            "tid": tracks.thread(pid, "events"),
            "ts": _ns(event.time) / _MICRO,
            "args": _facts(event),
        }


def _request(event: Event, tracks: Tracks) -> Iterator[Traced]:
    arrived, end = _span(event)
    # From when the instance got it: thousands may wait for one, and would take a thread each.
    start = min(arrived + _ns(event.queue_seconds or 0.0), end)
    pid = tracks.process(event.instance or _RUN)
    tid = tracks.lane(pid, "requests", start, end)
    name = f"{event.workload or 'request'} {event.position}" if event.position is not None else "request"
    yield _slice(name, "request", pid, tid, start, end, _facts(event))
    cache = event.cache or {}
    first_token = end if event.ttft_seconds is None else max(start, min(arrived + _ns(event.ttft_seconds), end))
    at = start
    for part in ("queue", "load", "prefill"):
        # Measured by another party: what would reach beyond the first token is cut there.
        until = min(at + max(_ns(cache.get(f"{part}_seconds") or 0.0), 0), first_token)
        if until > at:
            yield _slice(part, "request", pid, tid, at, until, {})
        at = until
    if event.ttft_seconds is not None and end > first_token:
        yield _slice("decode", "request", pid, tid, first_token, end, {})


class _Held:
    """Bytes that each tier holds, told by its decisions."""

    def __init__(self) -> None:
        self._sizes: dict[tuple[str, str], dict[str, int]] = {}
        self._totals: dict[tuple[str, str], int] = {}

    def after(self, event: Event, tracks: Tracks) -> Iterator[Traced]:
        """The new value where the decision changed it."""
        kind = event.event.removeprefix("cache_")
        if kind not in ("admit", "revive", "rewrite", "evict") or event.key is None:
            return
        tier = (event.instance or _RUN, event.location or "")
        sizes = self._sizes.setdefault(tier, {})
        total = self._totals.get(tier, 0) - sizes.pop(event.key, 0)
        if kind != "evict":
            sizes[event.key] = event.bytes or 0
            total += event.bytes or 0
        self._totals[tier] = total
        yield {
            "ph": "C",
            "name": f"{tier[1]} bytes",
            "pid": tracks.process(tier[0]),
            "ts": _ns(event.time) / _MICRO,
            "args": {"bytes": total},
        }


def _slice(name: str, category: str, pid: int, tid: int, start: int, end: int, facts: Traced) -> Traced:
    return {
        "ph": "X",
        "name": name,
        "cat": category,
        "pid": pid,
        "tid": tid,
        "ts": start / _MICRO,
        "dur": (end - start) / _MICRO,
        "args": facts,
    }


def _facts(event: Event) -> Traced:
    cache = event.cache or {}
    return _present(
        workload=event.workload,
        position=event.position,
        prompt_tokens=event.prompt_tokens,
        cached_tokens=event.cached_tokens,
        completion_tokens=event.completion_tokens,
        wait_ms=None if event.queue_seconds is None else event.queue_seconds * 1e3,
        ttft_ms=None if event.ttft_seconds is None else event.ttft_seconds * 1e3,
        cached_tokens_by_location=cache.get("cached_tokens_by_location"),
        error=event.error,
        what=event.what,
        target=event.target,
    )


def _present(**facts: Any) -> Traced:
    return {name: value for name, value in facts.items() if value is not None}


def _span(event: Event) -> tuple[int, int]:
    """Start and end of what took ``seconds`` and ended at ``time``, in nanoseconds."""
    end = max(_ns(event.time), 0)
    return min(max(end - _ns(event.seconds or 0.0), 0), end), end


def _ns(seconds: float) -> int:
    return round(seconds * 1e9)
