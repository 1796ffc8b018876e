"""What a control message of the controller does to the instance's store."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Protocol

from lmcache_kit.errors import LMCacheKitError
from lmcache_kit.messages import (
    CheckFinishWorkerMsg,
    CheckFinishWorkerRetMsg,
    ClearWorkerMsg,
    ClearWorkerRetMsg,
    CompressWorkerMsg,
    CompressWorkerRetMsg,
    ControlMsg,
    ControlRetMsg,
    DecompressWorkerMsg,
    DecompressWorkerRetMsg,
    ErrorMsg,
    HealthWorkerMsg,
    HealthWorkerRetMsg,
    JobInfo,
    MoveWorkerMsg,
    MoveWorkerRetMsg,
    PinWorkerMsg,
    PinWorkerRetMsg,
    UnpinWorkerMsg,
    UnpinWorkerRetMsg,
)

__all__ = ["ControlHandlers", "ControlledStore", "HealthCheck", "error_message"]

log = logging.getLogger(__name__)

HealthCheck = Callable[[], Awaitable[int]]
"""0 when everything works, otherwise the number of tiers that cannot be reached."""


class ControlledStore(Protocol):
    """The part of ``KVStore`` that the controller can reach."""

    def pin(self, location: str, tokens: Sequence[int], *, owner: str = "", ttl: float | None = None) -> int: ...

    def unpin(self, location: str, tokens: Sequence[int] | None, *, owner: str = "") -> int: ...

    async def clear(self, location: str) -> int: ...

    def start_compress(self, event_id: str, method: str, location: str, tokens: Sequence[int] | None) -> JobInfo: ...

    def start_decompress(self, event_id: str, method: str, location: str, tokens: Sequence[int] | None) -> JobInfo: ...

    def start_move(
        self,
        event_id: str,
        location: str,
        peer_url: str,
        target_location: str,
        tokens: Sequence[int] | None,
        *,
        copy: bool,
    ) -> JobInfo: ...

    def job(self, event_id: str) -> JobInfo: ...

    def contents(self, location: str) -> list[Any]: ...

    def locations(self) -> list[str]: ...


def error_message(error: Exception) -> ErrorMsg:
    """The error as the controller passes it on to its HTTP client."""
    if isinstance(error, LMCacheKitError):
        return ErrorMsg(error=error.message, status=error.status, hint=error.hint)
    log.error("a control message failed", exc_info=error)
    return ErrorMsg(error=f"the instance failed: {type(error).__name__}: {error}", status=500)


class ControlHandlers:
    """Answers control messages.

    Args:
        store: the instance's store.
        health: asked by HealthWorkerMsg.
        pin_ttl: seconds that a pin without a time to live of its own holds; None: until it is released.
    """

    def __init__(self, store: ControlledStore, *, health: HealthCheck, pin_ttl: float | None = None) -> None:
        self._store = store
        self._health = health
        self._pin_ttl = pin_ttl

    async def handle(self, message: ControlMsg) -> ControlRetMsg:
        """The answer; any error becomes an ErrorMsg."""
        try:
            return await self._answer(message)
        except Exception as error:
            return error_message(error)

    async def _answer(self, message: ControlMsg) -> ControlRetMsg:
        store = self._store
        match message:
            case PinWorkerMsg(location=location, tokens=tokens, owner=owner):
                ttl = self._pin_ttl if message.ttl is None else message.ttl
                return PinWorkerRetMsg(num_tokens=store.pin(location, tokens, owner=owner, ttl=ttl))
            case UnpinWorkerMsg(location=location):
                return UnpinWorkerRetMsg(num_tokens=store.unpin(location, message.tokens, owner=message.owner))
            case ClearWorkerMsg(location=location):
                return ClearWorkerRetMsg(num_tokens=await store.clear(location))
            case CompressWorkerMsg(worker_event_id=event, method=method, location=location):
                job = store.start_compress(event, method, location, message.tokens)
                return CompressWorkerRetMsg(num_tokens=job.num_tokens, job=job)
            case DecompressWorkerMsg(worker_event_id=event, method=method, location=location):
                job = store.start_decompress(event, method, location, message.tokens)
                return DecompressWorkerRetMsg(num_tokens=job.num_tokens, job=job)
            case MoveWorkerMsg(worker_event_id=event, old_position=location, new_position=(peer_url, target)):
                copy = True if message.copy is None else message.copy
                job = store.start_move(event, location, peer_url, target, message.tokens, copy=copy)
                return MoveWorkerRetMsg(num_tokens=job.num_tokens, job=job)
            case HealthWorkerMsg():
                return HealthWorkerRetMsg(error_code=await self._health())
            case CheckFinishWorkerMsg(worker_event_id=event):
                job = store.job(event)
                return CheckFinishWorkerRetMsg(status=job.status, job=job)
