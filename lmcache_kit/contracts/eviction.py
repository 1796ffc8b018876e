"""Eviction policies: in which order a full tier gives up its objects.

A policy only orders; the tier decides how much to evict and skips objects that are pinned or being read. Keys are
the storage names of chunks. Calls come from one thread. Equal calls give an equal order, in any process.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator

__all__ = ["EvictionPolicy"]


class EvictionPolicy(ABC):
    """Bookkeeping over the keys that are in one tier."""

    @abstractmethod
    def admit(self, key: str, nbytes: int) -> None:
        """``key`` entered the tier, or was rewritten with another size (e.g. compressed)."""

    @abstractmethod
    def touch(self, key: str) -> None:
        """``key`` was read. Ignored when it is not in the tier."""

    @abstractmethod
    def remove(self, key: str, *, evicted: bool) -> None:
        """``key`` left the tier; ``evicted`` tells eviction from deletion (policies with ghost lists care).

        Ignored when it is not in the tier.
        """

    @abstractmethod
    def victims(self) -> Iterator[str]:
        """Every key in the tier, first to evict first. The tier stops early; the policy must not change meanwhile.

        Asked for anew for every eviction of a full tier, so the first keys should not cost a walk over all.
        """
