"""Eviction policies: in which order a full tier gives up its objects.

A policy only orders; the tier decides how much to evict and skips objects that are pinned or being read. Keys are
the storage names of chunks. Calls come from one thread. Equal calls give an equal order, in any process.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence

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

    def keep_front(self, keys: Sequence[str]) -> None:  # noqa: B027  (a policy may leave it out)
        """A prompt was saved or copied here; ``keys``, front first, are those of its chunks that the tier has now.

        A chunk serves nobody without those in front of it, so among chunks that were used alike the front should go
        last. It is no use of a chunk beyond the one that :meth:`admit` or :meth:`touch` told. Keys that are not in the
        tier are ignored. Default: nothing.
        """

    @abstractmethod
    def victims(self) -> Iterator[str]:
        """Every key in the tier, first to evict first. The tier stops early; the policy must not change meanwhile.

        Asked for anew for every eviction of a full tier, so the first keys should not cost a walk over all.
        """
