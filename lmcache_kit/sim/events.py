"""``events.jsonl`` of a virtual run: the lines of a wall run, written in the order in which they happen."""

from __future__ import annotations

from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, Self

import msgspec

from lmcache_kit.clock import Clock
from lmcache_kit.contracts.workload import EventSink
from lmcache_kit.instance.core.events import CacheEvent

__all__ = ["VirtualEventLog"]


class VirtualEventLog:
    """Takes events of the run, its workloads and the caches.

    Args:
        path: the file; None writes nothing.
        clock: where times come from.
    """

    def __init__(self, path: Path | None, clock: Clock) -> None:
        self._path = path
        self._clock = clock
        self._file: BinaryIO | None = None
        self._encoder = msgspec.json.Encoder()
        self._start = 0.0
        self._workload: str | None = None

    def __enter__(self) -> Self:
        if self._path is not None:
            self._file = self._path.open("wb", buffering=1 << 20)
        self._start = self._clock.now()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None

    def write(self, event: str, *, workload: str | None = None, **facts: Any) -> None:
        """Add one event. The begin and end of a workload say whose cache events those between them are."""
        if event == "workload_started":
            self._workload = workload
        elif event == "workload_finished":
            self._workload = None
        under_way = self._workload if event == "fault" else workload
        self._line({"time": self._clock.now() - self._start, "workload": under_way, "event": event, **facts})

    def cache(self, instance: str, event: CacheEvent) -> None:
        """Add a decision of an instance's cache."""
        self._line(
            {
                "time": event.time - self._start,
                "workload": self._workload,
                "event": f"cache_{event.op}",
                "instance": instance,
                "location": event.location,
                "key": event.key.name(),
                "bytes": event.nbytes,
                "cause": event.cause,
            }
        )

    def sink(self, workload: str) -> EventSink:
        """The sink that a workload gets."""

        def emit(event: str, **facts: Any) -> None:
            self.write(event, workload=workload, **facts)

        return emit

    def _line(self, line: dict[str, Any]) -> None:
        if self._file is not None:
            self._file.write(self._encoder.encode(line) + b"\n")
