"""Reading ``events.jsonl`` line by line: files may be far larger than memory."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec

from lmcache_kit.errors import ConfigError

__all__ = ["DECISION", "Event", "read_events"]

DECISION = "cache_"
"""How the names of an instance's cache decisions begin."""


class Event(msgspec.Struct, frozen=True, gc=False):
    """The facts of one line that two runs can be compared by, or a time line can show; others are passed over.

    ``time`` is in seconds since the run began.
    """

    event: str
    time: float
    workload: str | None = None
    instance: str | None = None
    location: str | None = None
    key: str | None = None
    cause: str | None = None
    bytes: int | None = None
    position: int | None = None
    session: str | None = None
    turn: int | None = None
    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    cached_tokens: int | None = None
    ttft_seconds: float | None = None
    seconds: float | None = None
    queue_seconds: float | None = None
    error: str | None = None
    what: str | None = None
    target: str | None = None
    cache: dict[str, Any] | None = None

    @property
    def is_decision(self) -> bool:
        """Whether it is a decision of an instance's cache."""
        return self.event.startswith(DECISION)

    @property
    def failed(self) -> bool:
        """Whether a request had no answer. Its text is no part of what two runs must agree in."""
        return self.error is not None


def read_events(path: Path) -> Iterator[Event]:
    """The events of a run in the order of the file. Raises ConfigError naming file and line of what is no event."""
    decoder = msgspec.json.Decoder(Event)
    try:
        with path.open("rb") as lines:
            for number, line in enumerate(lines, start=1):
                try:
                    yield decoder.decode(line)
                except msgspec.DecodeError as error:
                    if not line.endswith(b"\n"):
                        raise ConfigError(
                            f"{path}, line {number}, ends in the middle",
                            hint="the run that wrote it was killed, or still runs; run it again",
                        ) from None
                    raise ConfigError(f"{path}, line {number}, is not an event: {error}") from None
    except OSError as error:
        raise ConfigError(
            f"{path} cannot be read: {error.strerror}", hint="name the output directory of a run"
        ) from None
