"""Whether the tiers can be reached, asked of their backends beside everything else that they do."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping, Sequence
from typing import Any

from lmcache_kit.contracts.storage import SupportsHealth
from lmcache_kit.errors import LMCacheKitError
from lmcache_kit.instance.core.tiers import Tier

__all__ = ["TierHealth"]

log = logging.getLogger(__name__)


class TierHealth:
    """Asks backends that can tell, each in a thread of its own kind, so that a store that hangs holds up nobody.

    Args:
        tiers: the instance's tiers.
        seconds: how long an answer is waited for. A backend that has not answered yet is not asked again.
    """

    def __init__(self, tiers: Sequence[Tier], *, seconds: float = 2.0) -> None:
        self._tiers = list(tiers)
        self._seconds = seconds
        self._asked: dict[str, asyncio.Task[dict[str, Any]]] = {}
        self._told: dict[str, bool] = {}

    async def facts(self, stats: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
        """Per location: ``available``, and what the backend has to say or the ``error``.

        ``stats`` are the store's by location; they speak for backends that cannot be asked.
        """
        for tier in self._tiers:
            known = self._asked.get(tier.location)
            if isinstance(tier.backend, SupportsHealth) and (known is None or known.done()):
                self._asked[tier.location] = asyncio.create_task(_ask(tier.backend), name=f"health of {tier.location}")
        if self._asked:
            await asyncio.wait(self._asked.values(), timeout=self._seconds)
        return {tier.location: self._one(tier.location, stats[tier.location]) for tier in self._tiers}

    def _one(self, location: str, stats: Mapping[str, Any]) -> dict[str, Any]:
        asked = self._asked.get(location)
        if asked is None:
            error = stats.get("last_error")
            return {"available": True} if stats["available"] else {"available": False, "error": error}
        if not asked.done():
            return {"available": False, "error": f"no answer within {self._seconds:g} s"}
        facts = asked.result()
        if facts["available"] != self._told.get(location, True):  # only what is news
            log.warning("%s is %s", location, "back" if facts["available"] else f"not healthy: {facts['error']}")
        self._told[location] = facts["available"]
        return facts


async def _ask(backend: SupportsHealth) -> dict[str, Any]:
    try:
        return {**await asyncio.to_thread(backend.health), "available": True}
    except LMCacheKitError as error:
        return {"available": False, "error": error.detail}
    except Exception as error:  # a backend is a plugin and may raise anything
        return {"available": False, "error": f"{type(error).__name__}: {error}"}
