"""Tells the outside what the cache core did: changes of contents and the log of events."""

from __future__ import annotations

from lmcache_kit.clock import Clock
from lmcache_kit.instance.core.events import CacheChange, CacheEvent, ChangeSink, EventSink
from lmcache_kit.instance.core.tiers import Entry, TierState
from lmcache_kit.kv.keys import ChunkKey

__all__ = ["Announcer"]


class Announcer:
    """Keeps each entry's ``listed`` in step with what was announced, so that nothing is announced twice."""

    def __init__(self, clock: Clock, on_change: ChangeSink, on_event: EventSink | None) -> None:
        self._clock = clock
        self._on_change = on_change
        self._on_event = on_event

    def admit(self, tier: TierState, entry: Entry, cause: str) -> None:
        """The object's bytes can be read."""
        if not entry.listed:
            entry.listed = True
            self.event("admit", tier.location, entry.key, entry.nbytes, cause)
            self._on_change(CacheChange("admit", tier.location, entry.key))

    def evict(self, tier: TierState, entry: Entry, cause: str) -> None:
        """The object's bytes are about to go."""
        if entry.listed:
            entry.listed = False
            self.event("evict", tier.location, entry.key, entry.nbytes, cause)
            self._on_change(CacheChange("evict", tier.location, entry.key))

    def event(self, op: str, location: str, key: ChunkKey, nbytes: int, cause: str) -> None:
        """One line of the event log."""
        if self._on_event is not None:
            self._on_event(CacheEvent(self._clock.now(), op, location, key, nbytes, cause))
