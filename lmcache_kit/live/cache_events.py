"""Bringing the instances' cache events into the run's ``events.jsonl``, in the order of time."""

from __future__ import annotations

import heapq
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import msgspec

__all__ = ["merge_cache_events", "set_aside"]

Event = dict[str, Any]


def set_aside(log: Path) -> None:
    """Keep the event log of an instance that was killed and will write the same file again."""
    if log.exists():
        log.rename(_kept(log)[-1])


def _kept(log: Path) -> list[Path]:
    """The logs set aside, oldest first, and the name of the next one."""
    kept = [log.with_suffix(".0.jsonl")]
    while kept[-1].exists():
        kept.append(log.with_suffix(f".{len(kept)}.jsonl"))
    return kept


def merge_cache_events(events: Path, instances: Mapping[str, Path], *, start: float) -> None:
    """Merge the event log of each instance into ``events``, which is replaced.

    Cache events get the name of their instance and of the workload that was under way.

    Args:
        events: the run's own events, their times counted from ``start``.
        instances: event log by instance id; one that does not exist is skipped, those set aside come before it.
        start: reading of the machine's monotonic clock at time 0. Instances of one machine share that clock.
    """
    merged = events.with_suffix(".merged")
    streams = [_lines(events)]
    for name, log in instances.items():
        streams += [_cache_events(path, name, start) for path in (*_kept(log), log) if path.exists()]
    workload: str | None = None
    encoder = msgspec.json.Encoder()
    with merged.open("wb") as file:
        for event in heapq.merge(*streams, key=lambda event: event["time"]):
            if event["event"] == "workload_started":
                workload = event["workload"]
            elif event["event"] == "workload_finished":
                workload = None
            elif event["workload"] is None:
                event["workload"] = workload
            file.write(encoder.encode(event) + b"\n")
    merged.replace(events)


def _cache_events(path: Path, instance: str, start: float) -> Iterator[Event]:
    for line in _lines(path):
        yield {
            "time": line.pop("time") - start,
            "workload": None,
            "event": line.pop("event"),
            "instance": instance,
            **line,
        }


def _lines(path: Path) -> Iterator[Event]:
    decoder = msgspec.json.Decoder(dict[str, Any])
    with path.open("rb") as lines:
        for line in lines:
            # An instance that was killed in mid-write leaves half a line.
            if line.endswith(b"\n"):
                yield decoder.decode(line)
