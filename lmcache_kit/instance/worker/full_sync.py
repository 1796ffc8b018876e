"""Telling the controller everything that the locations hold."""

from __future__ import annotations

import asyncio
import logging
import uuid
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field

from lmcache_kit.errors import LMCacheKitError, UnavailableError
from lmcache_kit.messages import (
    FullSyncBatchMsg,
    FullSyncEndMsg,
    FullSyncStartMsg,
    FullSyncStartRetMsg,
    FullSyncStatusMsg,
    FullSyncStatusRetMsg,
    WorkerReplyMsg,
    WorkerRequestMsg,
)

__all__ = ["BATCH_KEYS", "FullSync"]

log = logging.getLogger(__name__)

BATCH_KEYS = 2000
"""Keys per FullSyncBatchMsg, as LMCache sends them."""

Request = Callable[[WorkerRequestMsg], Awaitable[WorkerReplyMsg]]
Push = Callable[[Sequence[FullSyncBatchMsg | FullSyncEndMsg]], Awaitable[None]]

_FIRST_POLL = 0.02
_SLOWEST_POLL = 1.0
_MOST_BEGUN = 4
_FRUITLESS_POLLS = 10
"""Answers in a row that nothing is missing and yet the sync is not complete."""


@dataclass(slots=True, kw_only=True)
class FullSync:
    """Syncs one location at a time: start, batches, end, then the status until every batch has arrived.

    Args:
        instance_id: who sends.
        worker_id: who sends.
        request: asks the controller; raises LMCacheKitError.
        push: sends to the controller's PULL socket, in order.
        deadline: seconds that one location may take.
    """

    instance_id: str
    worker_id: int
    request: Request
    push: Push
    deadline: float = 60.0
    _begun: dict[str, list[str]] = field(default_factory=dict, init=False)
    """Location -> syncs of it that may have begun and did not come to their end, the last one first."""

    async def run(self, location: str, keys: Sequence[int]) -> None:
        """Sync one location. Raises LMCacheKitError when the controller refuses it or it does not come to an end."""
        try:
            async with asyncio.timeout(self.deadline):
                await self._run(location, keys)
        except TimeoutError:
            raise UnavailableError(f"the full sync of {location} did not end within {self.deadline:g} s") from None

    async def _run(self, location: str, keys: Sequence[int]) -> None:
        # An empty location sends one empty batch, as LMCache's own workers do.
        count = max(1, -(-len(keys) // BATCH_KEYS))
        sync_id = await self._start(location, len(keys), count)
        await self._send(location, sync_id, keys, range(count))
        status = FullSyncStatusMsg(instance_id=self.instance_id, worker_id=self.worker_id, sync_id=sync_id)
        pause, missing, fruitless = _FIRST_POLL, set[int](), 0
        while True:
            await asyncio.sleep(pause)
            answer = await self.request(status)
            if not isinstance(answer, FullSyncStatusRetMsg):
                raise LMCacheKitError(f"the controller does not answer for the full sync of {location}")
            if answer.is_complete:
                del self._begun[location]
                return
            # The status may overtake batches that are still on their way; lost are those missing twice in a row.
            now = {batch for batch in answer.missing_batches if 0 <= batch < count}
            lost, missing = sorted(now & missing), now
            fruitless = 0 if now else fruitless + 1
            if fruitless > _FRUITLESS_POLLS:
                raise UnavailableError(f"the controller lost track of the full sync of {location}")
            if lost or not now:
                if lost:
                    log.info("full sync of %s: sending %d lost batches again", location, len(lost))
                await self._send(location, sync_id, keys, lost)
            pause = min(pause * 2, _SLOWEST_POLL)

    async def _start(self, location: str, total: int, count: int) -> str:
        """The id of a sync that the controller accepted."""
        why = ""
        # A controller of LMCache 0.5 lets no other sync begin before the last one ended, and waits for that for ever;
        # the same one may begin again.
        begun = self._begun.setdefault(location, [])
        begun.insert(0, f"{self.instance_id}_{self.worker_id}_{uuid.uuid4().hex[:12]}")
        del begun[_MOST_BEGUN:]
        for sync_id in tuple(begun):
            start = FullSyncStartMsg(
                instance_id=self.instance_id,
                worker_id=self.worker_id,
                location=location,
                sync_id=sync_id,
                total_keys=total,
                batch_count=count,
            )
            reply = await self.request(start)  # when no answer comes, it may have been accepted
            if isinstance(reply, FullSyncStartRetMsg) and reply.accepted:
                begun[:] = [sync_id]
                return sync_id
            begun.remove(sync_id)
            why = (reply.error_msg if isinstance(reply, FullSyncStartRetMsg) else None) or "no reason given"
        raise LMCacheKitError(f"the controller did not accept the full sync of {location}: {why}")

    async def _send(self, location: str, sync_id: str, keys: Sequence[int], batches: Sequence[int]) -> None:
        for batch in batches:
            part = list(keys[batch * BATCH_KEYS : (batch + 1) * BATCH_KEYS])
            message = FullSyncBatchMsg(
                instance_id=self.instance_id,
                worker_id=self.worker_id,
                location=location,
                sync_id=sync_id,
                batch_id=batch,
                keys=part,
            )
            await self.push([message])
        await self.push(
            [
                FullSyncEndMsg(
                    instance_id=self.instance_id,
                    worker_id=self.worker_id,
                    location=location,
                    sync_id=sync_id,
                    actual_total_keys=len(keys),
                )
            ]
        )
