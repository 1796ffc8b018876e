"""Plain counters of the controller; /metrics reads them."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

__all__ = ["Counters"]


@dataclass(slots=True)
class Counters:
    """Counts since the start.

    Args:
        pushed: messages that came on the PULL socket.
        requests: messages that came on the reply and heartbeat sockets.
        malformed: frames that were no message, by socket.
        rejected: messages that were understood but could not be applied, by reason.
        operations: admits and evicts applied.
        discontinuities: operations whose sequence number did not follow.
        syncs_completed: full syncs of one location.
        sync_mismatches: full syncs whose end announced another number of keys than came.
        deaths: workers that were given up for missing heartbeats.
        lookups: lookups answered.
        lookup_tokens: tokens asked for.
        lookup_hit_tokens: tokens of the longest prefix found, summed.
        calls: calls to workers, by outcome.
        http: HTTP answers, by path and status.
    """

    pushed: int = 0
    requests: int = 0
    malformed: Counter[str] = field(default_factory=Counter)
    rejected: Counter[str] = field(default_factory=Counter)
    operations: int = 0
    discontinuities: int = 0
    syncs_completed: int = 0
    sync_mismatches: int = 0
    deaths: int = 0
    lookups: int = 0
    lookup_tokens: int = 0
    lookup_hit_tokens: int = 0
    calls: Counter[str] = field(default_factory=Counter)
    http: Counter[tuple[str, int]] = field(default_factory=Counter)
