"""Copies that ranks were told to make and have not all reported yet."""

from __future__ import annotations

import itertools
from collections.abc import Callable

from lmcache_kit_vllm.plan import Report

__all__ = ["OpenCopies"]


class OpenCopies:
    """Counts the ranks that are through with each copy.

    Args:
        ranks: how many take part in every copy.
    """

    def __init__(self, ranks: int) -> None:
        self._ranks = ranks
        self._numbers = itertools.count()
        self._open: dict[int, tuple[int, Callable[[bool], None]]] = {}
        self._failed: set[int] = set()

    def __len__(self) -> int:
        return len(self._open)

    def add(self, then: Callable[[bool], None]) -> int:
        """The number of a new copy; ``then`` is told once, when all ranks are through with it, whether it worked."""
        number = next(self._numbers)
        self._open[number] = (self._ranks, then)
        return number

    def reported(self, report: Report) -> None:
        """What ranks have done."""
        self._failed |= report.failed
        for number, ranks in report.done.items():
            left, then = self._open[number]
            if left > ranks:
                self._open[number] = (left - ranks, then)
            else:
                del self._open[number]
                then(number not in self._failed)
                self._failed.discard(number)
