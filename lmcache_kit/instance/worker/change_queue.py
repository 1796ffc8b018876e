"""Cache changes on their way to the controller: ordered, numbered and bounded, without any I/O."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Literal

from lmcache_kit.messages import KVOpEvent

__all__ = ["ChangeQueue"]

Operation = Literal["admit", "evict"]


class ChangeQueue:
    """Changes that were not reported yet.

    The queue starts held: before a sync the controller has nothing that changes could be applied to. Numbers count per
    location and are given when a change leaves, so dropped changes leave no gap; what makes up for them is the full
    sync that :attr:`lost` asks for.

    Args:
        limit: most changes kept; when one more comes all are dropped and ``lost`` is set.
        wake: called when changes can be taken that could not be before.
    """

    def __init__(self, limit: int, *, wake: Callable[[], None] = lambda: None) -> None:
        self._limit = limit
        self._wake = wake
        self._pending: deque[tuple[str, Operation, int]] = deque()
        self._numbers: dict[str, int] = {}
        self._held = True
        self.lost = False
        self.dropped = 0

    def __len__(self) -> int:
        return len(self._pending)

    @property
    def ready(self) -> int:
        """Changes that :meth:`take` could give out now."""
        return 0 if self._held else len(self._pending)

    def add(self, operation: Operation, location: str, key: int) -> None:
        """Append one change."""
        if len(self._pending) >= self._limit:
            self.dropped += len(self._pending) + 1
            self._pending.clear()
            self.lost = True
        else:
            self._pending.append((location, operation, key))
        if not self._held:
            self._wake()

    def hold(self) -> None:
        """Give out nothing until :meth:`release`, and forget what is pending: a snapshot taken now contains it."""
        self._held = True
        self.lost = False
        self._pending.clear()

    def release(self) -> None:
        """Give out changes again; those since :meth:`hold` come first."""
        self._held = False
        if self._pending or self.lost:
            self._wake()

    def take(self, most: int) -> list[tuple[str, list[KVOpEvent]]]:
        """Up to ``most`` changes in order, one entry per location."""
        batches: dict[str, list[KVOpEvent]] = {}
        for _ in range(min(most, self.ready)):
            location, operation, key = self._pending.popleft()
            number = self._numbers.get(location, 0)
            self._numbers[location] = number + 1
            batches.setdefault(location, []).append(KVOpEvent(op_type=operation, key=key, seq_num=number))
        return list(batches.items())
