"""Time enters the cores only through a clock, so that the same cores run on real and on virtual time."""

from __future__ import annotations

import time
from typing import Protocol, runtime_checkable

__all__ = ["Clock", "ManualClock", "WallClock"]


@runtime_checkable
class Clock(Protocol):
    """Two readings in seconds: ``now`` never goes backwards, ``unix`` is the calendar time shown to users."""

    def now(self) -> float: ...

    def unix(self) -> float: ...


class WallClock:
    """The machine's clock."""

    def now(self) -> float:
        return time.monotonic()

    def unix(self) -> float:
        return time.time()


class ManualClock:
    """A clock that moves only when told to.

    Args:
        start: first reading of ``now``, in seconds.
        epoch: calendar time of reading 0, in seconds since 1970.
    """

    def __init__(self, start: float = 0.0, *, epoch: float = 0.0) -> None:
        self._now = start
        self._epoch = epoch

    def now(self) -> float:
        return self._now

    def unix(self) -> float:
        return self._epoch + self._now

    def advance(self, seconds: float) -> None:
        """Move forward by ``seconds`` (at least 0)."""
        if seconds < 0:
            raise ValueError(f"a clock cannot go back by {-seconds} s")
        self._now += seconds
