"""``events.jsonl``: one JSON object per line, in the order in which things happened."""

from __future__ import annotations

from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, Self

import msgspec

from lmcache_kit.clock import Clock
from lmcache_kit.contracts.workload import EventSink

__all__ = ["EventLog"]


class EventLog:
    """Writes each event with ``time`` (seconds since the log was opened), its workload and its name.

    Args:
        path: the file, replaced.
        clock: where times come from.
    """

    def __init__(self, path: Path, clock: Clock) -> None:
        self._path = path
        self._clock = clock
        self._file: BinaryIO | None = None
        self._encoder = msgspec.json.Encoder()
        self._start = 0.0

    def __enter__(self) -> Self:
        self._file = self._path.open("wb")
        self._start = self._clock.now()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._file is not None
        self._file.close()
        self._file = None

    @property
    def start(self) -> float:
        """Reading of the clock at time 0."""
        return self._start

    def write(self, event: str, *, workload: str | None = None, **facts: Any) -> None:
        """Add one event. Each line reaches the file at once, so a run that dies leaves what it saw."""
        assert self._file is not None, "open"
        line = {"time": self._clock.now() - self._start, "workload": workload, "event": event, **facts}
        self._file.write(self._encoder.encode(line) + b"\n")
        self._file.flush()

    def sink(self, workload: str) -> EventSink:
        """The sink that a workload gets."""

        def emit(event: str, **facts: Any) -> None:
            self.write(event, workload=workload, **facts)

        return emit
