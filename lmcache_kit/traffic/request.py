"""One request from its arrival to its end."""

from __future__ import annotations

import asyncio

from lmcache_kit.client import Completion
from lmcache_kit.contracts.trace import TraceRecord
from lmcache_kit.errors import LMCacheKitError
from lmcache_kit.traffic.prompt import BlockPrompt

__all__ = ["Request"]


class Request:
    """What is known of a request while it is under way; afterwards only its numbers are kept.

    ``arrival``, ``sent`` and ``end`` are readings of the run's clock in seconds; ``sent`` is that of the last attempt.
    ``turn`` counts the requests of its session from 0. ``place`` is the instance of the last attempt, ``promised`` the
    tokens that a lookup said it holds (None without a lookup). ``repeated`` is set for a record that a trace has as a
    retry of an earlier one. It ends with a ``completion`` or an ``error``.
    """

    __slots__ = (
        "arrival",
        "attempts",
        "completion",
        "end",
        "ended",
        "error",
        "expired",
        "max_tokens",
        "place",
        "position",
        "promised",
        "prompt",
        "record",
        "repeated",
        "sent",
        "task",
        "turn",
    )

    def __init__(
        self,
        position: int,
        record: TraceRecord,
        prompt: BlockPrompt,
        max_tokens: int,
        arrival: float,
        turn: int | None = None,
    ) -> None:
        self.position = position
        self.turn = turn
        self.record = record
        self.prompt = prompt
        self.max_tokens = max_tokens
        self.arrival = self.sent = self.end = arrival
        self.attempts = 0
        self.place: int | None = None
        self.promised: int | None = None
        self.completion: Completion | None = None
        self.error: LMCacheKitError | None = None
        self.task: asyncio.Task[None] | None = None
        self.ended = self.expired = self.repeated = False

    @property
    def queue_seconds(self) -> float:
        """From the arrival until an instance got it: waiting for a free one, the lookup, and attempts that failed."""
        return self.sent - self.arrival
