"""Adaptive replacement cache, weighted by bytes.

N. Megiddo and D. S. Modha, "ARC: a self-tuning, low overhead replacement cache", FAST 2003. Two differences, both
because the tier evicts before it admits: objects weigh their bytes instead of one page each, and the target moves at
the admission that reveals a ghost hit, so it acts from the next eviction on.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator, Sequence

from lmcache_kit.contracts.eviction import EvictionPolicy

__all__ = ["ARC"]


class _Queue:
    """Keys in order of use, oldest first, with their bytes."""

    def __init__(self) -> None:
        self.sizes: OrderedDict[str, int] = OrderedDict()
        self.nbytes = 0

    def push(self, key: str, nbytes: int) -> None:
        self.sizes[key] = nbytes
        self.nbytes += nbytes

    def pop(self, key: str) -> int:
        nbytes = self.sizes.pop(key)
        self.nbytes -= nbytes
        return nbytes

    def resize(self, key: str, nbytes: int) -> None:
        self.nbytes += nbytes - self.sizes[key]
        self.sizes[key] = nbytes

    def drop_oldest(self) -> None:
        self.nbytes -= self.sizes.popitem(last=False)[1]


class ARC(EvictionPolicy):
    """Balances what was used once lately (T1) against what was used again (T2) by what it regrets having evicted.

    ``B1`` and ``B2`` remember keys evicted from T1 and T2, without their data. A key that comes back from B1 says
    that T1 was too small, one from B2 that T2 was; the target size of T1 moves accordingly.

    Args:
        capacity_bytes: the tier's capacity. None: the most bytes that were ever held stand for it.
    """

    def __init__(self, capacity_bytes: int | None) -> None:
        self._fixed = capacity_bytes
        self._peak = 0
        self._target = 0.0  # bytes that T1 should have: p of the paper
        self._recent, self._frequent = _Queue(), _Queue()  # T1, T2
        self._recent_ghosts, self._frequent_ghosts = _Queue(), _Queue()  # B1, B2

    @property
    def target_bytes(self) -> float:
        """Bytes that the list of objects used once should have; 0 to the capacity."""
        return self._target

    def admit(self, key: str, nbytes: int) -> None:
        recent, frequent = self._recent_ghosts, self._frequent_ghosts
        if key in self._recent.sizes:
            self._recent.resize(key, nbytes)
        elif key in self._frequent.sizes:
            self._frequent.resize(key, nbytes)
        elif key in recent.sizes:
            self._move_target(nbytes * max(1.0, frequent.nbytes / max(1, recent.nbytes)))
            recent.pop(key)
            self._frequent.push(key, nbytes)
        elif key in frequent.sizes:
            self._move_target(-nbytes * max(1.0, recent.nbytes / max(1, frequent.nbytes)))
            frequent.pop(key)
            self._frequent.push(key, nbytes)
        else:
            self._recent.push(key, nbytes)
        self._peak = max(self._peak, self._recent.nbytes + self._frequent.nbytes)
        self._forget()

    def touch(self, key: str) -> None:
        if key in self._recent.sizes:
            self._frequent.push(key, self._recent.pop(key))
        elif key in self._frequent.sizes:
            self._frequent.sizes.move_to_end(key)

    def keep_front(self, keys: Sequence[str]) -> None:
        for key in reversed(keys):
            for queue in (self._recent, self._frequent):
                if key in queue.sizes:
                    queue.sizes.move_to_end(key)

    def remove(self, key: str, *, evicted: bool) -> None:
        for queue, ghosts in ((self._recent, self._recent_ghosts), (self._frequent, self._frequent_ghosts)):
            if key in queue.sizes:
                nbytes = queue.pop(key)
                if evicted:
                    ghosts.push(key, nbytes)
                    self._forget()

    def victims(self) -> Iterator[str]:
        recent, frequent = iter(self._recent.sizes.items()), iter(self._frequent.sizes)
        left = self._recent.nbytes
        first, second = next(recent, None), next(frequent, None)
        while first is not None or second is not None:
            if first is not None and (second is None or left > self._target):
                yield first[0]
                left -= first[1]
                first = next(recent, None)
            elif second is not None:
                yield second
                second = next(frequent, None)

    @property
    def _capacity(self) -> int:
        return self._peak if self._fixed is None else self._fixed

    def _move_target(self, by: float) -> None:
        self._target = min(float(self._capacity), max(0.0, self._target + by))

    def _forget(self) -> None:
        """Bound the ghosts as the paper does: T1 + B1 within the capacity, all four lists within twice of it."""
        capacity, ghosts = self._capacity, self._recent_ghosts
        while ghosts.sizes and self._recent.nbytes + ghosts.nbytes > capacity:
            ghosts.drop_oldest()
        resident = self._recent.nbytes + self._frequent.nbytes
        for ghosts in (self._frequent_ghosts, self._recent_ghosts):
            while ghosts.sizes and (
                resident + self._recent_ghosts.nbytes + self._frequent_ghosts.nbytes > 2 * capacity
            ):
                ghosts.drop_oldest()
