"""How many requests each instance has in flight, and which of them may take one more."""

from __future__ import annotations

import math

__all__ = ["Load"]


class Load:
    """Requests in flight of ``count`` instances, known by their place in the fleet's order.

    Instances are kept in sets by their load, each set an integer with one bit per instance, so that the least loaded of
    a thousand is found without looking at each.

    Args:
        count: number of instances.
        limit: most requests in flight on one instance; None for no limit.
    """

    __slots__ = ("_bits", "_by_load", "_down", "_least", "_open", "in_flight", "limit", "most_in_flight", "room")

    def __init__(self, count: int, limit: int | None = None) -> None:
        self.limit: float = math.inf if limit is None else limit
        self.in_flight = [0] * count
        self.most_in_flight = [0] * count
        self.room: float = self.limit * count
        """How many more requests the instances that are up may take together."""
        self._bits = [1 << place for place in range(count)]
        self._open = (1 << count) - 1
        self._by_load = [self._open]
        self._least = 0
        self._down = 0

    @property
    def any_up(self) -> bool:
        """Whether an instance is up, busy or not."""
        return self._down != (1 << len(self._bits)) - 1

    def is_up(self, place: int) -> bool:
        """Whether an instance is up, busy or not."""
        return not self._down & self._bits[place]

    def may_take(self, place: int) -> bool:
        """Whether an instance is up and below the limit."""
        return bool(self._open & self._bits[place])

    def take(self, place: int) -> None:
        """One more request on an instance that :meth:`may_take` it."""
        load, bit = self.in_flight[place], self._bits[place]
        if not self._open & bit:
            raise ValueError(f"instance {place} takes no more requests")
        self.in_flight[place] = load + 1
        if load >= self.most_in_flight[place]:
            self.most_in_flight[place] = load + 1
        self._by_load[load] ^= bit
        self._add(bit, load + 1)
        self.room -= 1

    def release(self, place: int) -> None:
        """One request less on an instance, which may be down by now."""
        load, bit = self.in_flight[place], self._bits[place]
        if not load:
            raise ValueError(f"instance {place} has no request to end")
        self.in_flight[place] = load - 1
        if not self._down & bit:
            self._by_load[load] ^= bit
            self._add(bit, load - 1)
            self.room += 1

    def set_down(self, place: int) -> None:
        """The instance takes no requests until :meth:`set_up`; idempotent."""
        load, bit = self.in_flight[place], self._bits[place]
        if not self._down & bit:
            self._down |= bit
            self._by_load[load] ^= bit
            self._open &= ~bit
            self._count_room()

    def set_up(self, place: int) -> None:
        """The instance takes requests again; idempotent."""
        load, bit = self.in_flight[place], self._bits[place]
        if self._down & bit:
            self._down ^= bit
            self._add(bit, load)
            self._count_room()

    def least(self) -> int | None:
        """The first of those with the fewest requests in flight that may take one more; None when none may."""
        if not self._open:
            return None
        by_load = self._by_load
        while not by_load[self._least]:
            self._least += 1
        lowest = by_load[self._least]
        return (lowest & -lowest).bit_length() - 1

    def next_from(self, place: int) -> int | None:
        """The first at or after ``place``, in a circle, that may take one more; None when none may."""
        after = self._open >> place << place
        chosen = after or self._open
        return (chosen & -chosen).bit_length() - 1 if chosen else None

    def _add(self, bit: int, load: int) -> None:
        while load >= len(self._by_load):
            self._by_load.append(0)
        self._by_load[load] |= bit
        if load < self.limit:
            self._open |= bit
            self._least = min(self._least, load)
        else:
            self._open &= ~bit

    def _count_room(self) -> None:
        up = [load for place, load in enumerate(self.in_flight) if self.is_up(place)]
        self.room = sum(self.limit - load for load in up) if up else 0
