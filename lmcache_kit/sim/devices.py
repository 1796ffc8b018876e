"""What is shared and serves one after another: a tier's reads and writes, a link's directions, an engine's thread."""

from __future__ import annotations

from dataclasses import dataclass

from lmcache_kit.sim.costs import TierCosts

__all__ = ["Queue", "TierDevice"]


@dataclass(slots=True)
class Queue:
    """First come, first served. ``free_at`` is when the next one begins at the earliest."""

    free_at: float = 0.0
    busy_seconds: float = 0.0
    queued_seconds: float = 0.0
    bytes: int = 0
    messages: int = 0

    def take(self, now: float, seconds: float, nbytes: int = 0) -> float:
        """When something that takes ``seconds`` and comes now is done."""
        start = self.free_at if self.free_at > now else now
        self.queued_seconds += start - now
        self.busy_seconds += seconds
        self.bytes += nbytes
        self.messages += 1
        self.free_at = start + seconds
        return self.free_at


class TierDevice:
    """The times of one tier's reads and writes."""

    def __init__(self, costs: TierCosts) -> None:
        self._costs = costs
        self.reads = Queue()
        self.writes = Queue()

    def forget(self) -> None:
        """What waits for the tier is lost."""
        self.reads.free_at = self.writes.free_at = 0.0

    def read(self, now: float, nbytes: int) -> float:
        """When an object that is asked for now has been read."""
        costs = self._costs
        return self.reads.take(now, costs.read_seconds + nbytes / (costs.read_gbps * 1e9), nbytes)

    def write(self, now: float, nbytes: int, objects: int = 1) -> float:
        """When objects that are handed over now have been written."""
        costs = self._costs
        return self.writes.take(now, objects * costs.write_seconds + nbytes / (costs.write_gbps * 1e9), nbytes)
