"""Pins: who asked to keep which object, and until when."""

from __future__ import annotations

import math

from lmcache_kit.clock import Clock
from lmcache_kit.errors import InvalidRequestError

__all__ = ["PinTable"]


class PinTable:
    """Pins of one tier, by storage name and owner.

    An object is pinned as long as at least one owner's pin has not run out. The empty owner is the anonymous one.
    """

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._owners: dict[str, dict[str, float]] = {}

    def pin(self, name: str, owner: str = "", ttl: float | None = None) -> None:
        """Pin for ``owner``, for ``ttl`` seconds or without end; replaces the end of a pin that the owner had."""
        self.check_ttl(ttl)
        until = math.inf if ttl is None else self._clock.now() + ttl
        self._owners.setdefault(name, {})[owner] = until

    @staticmethod
    def check_ttl(ttl: float | None) -> None:
        """Raises InvalidRequestError for a time to live that is not a positive number."""
        if ttl is not None and not (ttl > 0 and math.isfinite(ttl)):
            raise InvalidRequestError(
                f"ttl must be a positive number of seconds, got {ttl}", hint="leave it out to pin for ever"
            )

    def unpin(self, name: str, owner: str = "") -> bool:
        """Remove ``owner``'s pin; whether there was one in force."""
        owners = self.owners(name)
        if owner not in owners:
            return False
        del self._owners[name][owner]
        if not self._owners[name]:
            del self._owners[name]
        return True

    def pinned(self, name: str) -> bool:
        return bool(self._owners) and bool(self.owners(name))

    def owners(self, name: str) -> dict[str, float]:
        """Owners whose pins are in force, with the clock reading at which each ends (infinity: never)."""
        owners = self._owners.get(name)
        if not owners:
            return {}
        now = self._clock.now()
        for owner in [owner for owner, until in owners.items() if until <= now]:
            del owners[owner]
        if not owners:
            del self._owners[name]
        return dict(owners)

    def drop(self, name: str) -> None:
        """Forget every pin of an object that is gone."""
        self._owners.pop(name, None)

    def names(self, owner: str | None = None) -> list[str]:
        """Objects pinned by ``owner``, or by anybody for None."""
        return [name for name in list(self._owners) if (held := self.owners(name)) and (owner is None or owner in held)]
