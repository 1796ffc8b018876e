"""One full sync of one location: which batches came, and what changed meanwhile."""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import islice

__all__ = ["MAX_BATCHES", "SyncSession"]

MAX_BATCHES = 2**20
_MOST_REPORTED = 1000


@dataclass(slots=True, kw_only=True, eq=False)
class SyncSession:
    """A sync under way, or the last one that ended.

    The batches go into a slot of their own, ``bit``, which takes the place of the location's slot when all have come.
    A key that was admitted or evicted since the start is ``touched``: its last change is at least as new as the
    snapshot that the batches carry, so batches leave it alone.
    """

    sync_id: str
    location: str
    batch_count: int
    bit: int
    started_at: float
    active_at: float
    received: set[int] = field(default_factory=set)
    touched: set[int] = field(default_factory=set)
    keys_received: int = 0
    complete: bool = False
    counted: bool = False
    """Whether an operation with a sequence number came since the start."""

    @property
    def ready(self) -> bool:
        """Whether every batch has come."""
        return len(self.received) >= self.batch_count

    @property
    def progress(self) -> float:
        """Received part of the batches, 0 to 1."""
        return 1.0 if self.complete or self.batch_count == 0 else len(self.received) / self.batch_count

    def missing(self) -> list[int]:
        """Batch ids that have not come, in order, at most a thousand at a time."""
        if self.complete:
            return []
        return list(islice((i for i in range(self.batch_count) if i not in self.received), _MOST_REPORTED))
