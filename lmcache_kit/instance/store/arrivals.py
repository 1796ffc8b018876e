"""What the moves of other instances have brought so far."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Set

__all__ = ["Arrivals"]


class Arrivals:
    """Storage names by move and location, so that the chunks of one move never make room for each other.

    Args:
        keep: how many moves are remembered; those without a chunk for the longest time are forgotten first.
    """

    def __init__(self, *, keep: int = 64) -> None:
        self._keep = keep
        self._names: OrderedDict[tuple[str, str], set[str]] = OrderedDict()

    def of(self, move: str, location: str) -> Set[str]:
        """The names so far; it grows with :meth:`add`. Empty for a chunk that belongs to no move."""
        if not move:
            return frozenset()
        names = self._names.setdefault((move, location), set())
        self._names.move_to_end((move, location))
        while len(self._names) > self._keep:
            self._names.popitem(last=False)
        return names

    def add(self, move: str, location: str, name: str) -> None:
        """A chunk is there."""
        if move:
            self._names.setdefault((move, location), set()).add(name)
