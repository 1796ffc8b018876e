"""Keeping the controller's picture of the contents right: a full sync after joining, single changes afterwards."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable, Sequence
from typing import Literal

from lmcache_kit.errors import LMCacheKitError
from lmcache_kit.instance.worker.change_queue import ChangeQueue
from lmcache_kit.instance.worker.full_sync import BATCH_KEYS, FullSync, Request
from lmcache_kit.instance.worker.push_channel import PushChannel
from lmcache_kit.messages import BatchedKVOperationMsg, KVAdmitMsg, KVEvictMsg, KVOpEvent, PushedMsg

__all__ = ["Reporting"]

log = logging.getLogger(__name__)

FLUSH_OPERATIONS = 50
FLUSH_SECONDS = 0.01
SYNC_TRIES = 3
SYNC_RETRY_SECONDS = 0.2

Snapshot = Callable[[], dict[str, list[int]]]


class Reporting:
    """Reports of one worker.

    Args:
        instance_id: who reports.
        worker_id: who reports.
        snapshot: everything held, by location.
        request: asks the controller; raises LMCacheKitError.
        push: where changes and batches go.
        pushed_only: whether the controller has no reply socket; it then gets the single messages of LMCache 0.3.
        limit: most changes kept while the controller is away.
    """

    def __init__(
        self,
        instance_id: str,
        worker_id: int,
        *,
        snapshot: Snapshot,
        request: Request,
        push: PushChannel,
        pushed_only: Callable[[], bool],
        limit: int,
    ) -> None:
        self._instance_id = instance_id
        self._worker_id = worker_id
        self._snapshot = snapshot
        self._push = push
        self._pushed_only = pushed_only
        self._full_sync = FullSync(instance_id=instance_id, worker_id=worker_id, request=request, push=push.send)
        self._ready = asyncio.Event()
        self._sync_wanted = asyncio.Event()
        self._syncing = False
        self.changes = ChangeQueue(limit, wake=self._ready.set)
        self.synced = asyncio.Event()
        """Set while the controller has been told everything."""
        self.full_syncs = 0
        self.reported = 0

    def joined(self) -> None:
        """The worker (re-)joined the controller: tell it everything, from the start."""
        self._sync_wanted.set()

    def asked(self, reason: str) -> None:
        """The controller asks for a full sync; one that runs already is the answer."""
        if not self._syncing:
            log.info("the controller asks for a full sync: %s", reason)
            self._sync_wanted.set()

    async def run_syncs(self) -> None:
        """One full sync, once it is wanted; begins again when the worker joins anew meanwhile."""
        await self._sync_wanted.wait()
        self._sync_wanted.clear()
        self._syncing = True
        self.synced.clear()
        sync = asyncio.create_task(self._sync())
        again = asyncio.create_task(self._sync_wanted.wait())
        try:
            await asyncio.wait({sync, again}, return_when=asyncio.FIRST_COMPLETED)
            if sync.done() and sync.exception() is not None:
                self._sync_wanted.set()
                sync.result()
        finally:
            for task in (sync, again):
                task.cancel()
            await asyncio.gather(sync, again, return_exceptions=True)
            self._syncing = False

    async def _sync(self) -> None:
        # Held from the snapshot on: a change that overtook the batches could leave a key that is gone.
        self.changes.hold()
        snapshot = self._snapshot()
        if self._pushed_only() or not await self._told(snapshot):
            for location, keys in snapshot.items():
                for start in range(0, len(keys), BATCH_KEYS):
                    events = [KVOpEvent(op_type="admit", key=key) for key in keys[start : start + BATCH_KEYS]]
                    await self._push.send(self._messages(location, events))
        self.full_syncs += 1
        self.synced.set()
        self.changes.release()

    async def _told(self, snapshot: dict[str, list[int]]) -> bool:
        for location, keys in snapshot.items():
            for attempt in range(SYNC_TRIES):
                try:
                    await self._full_sync.run(location, keys)
                    break
                except LMCacheKitError as error:
                    log.warning("%s (try %d of %d)", error.detail, attempt + 1, SYNC_TRIES)
                    await asyncio.sleep(SYNC_RETRY_SECONDS * 2**attempt)
            else:
                return False
        return True

    async def run_changes(self) -> None:
        """Send changes: when ``FLUSH_OPERATIONS`` are there, or ``FLUSH_SECONDS`` after the first one."""
        await self._ready.wait()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(FLUSH_SECONDS):
                while self.changes.ready < FLUSH_OPERATIONS:
                    self._ready.clear()
                    await self._ready.wait()
        self._ready.clear()
        if self.changes.lost:
            log.warning("too many cache changes while the controller was away; a full sync follows")
            self._sync_wanted.set()
        while taken := self.changes.take(FLUSH_OPERATIONS):
            await self._push.send([message for batch in taken for message in self._messages(*batch)])
            self.reported += sum(len(operations) for _, operations in taken)

    def _messages(self, location: str, operations: Sequence[KVOpEvent]) -> list[PushedMsg]:
        if not self._pushed_only():
            return [
                BatchedKVOperationMsg(
                    instance_id=self._instance_id,
                    worker_id=self._worker_id,
                    location=location,
                    operations=list(operations),
                )
            ]
        kinds: dict[Literal["admit", "evict"], type[KVAdmitMsg] | type[KVEvictMsg]]
        kinds = {"admit": KVAdmitMsg, "evict": KVEvictMsg}
        return [
            kinds[operation.op_type](
                instance_id=self._instance_id,
                worker_id=self._worker_id,
                location=location,
                key=operation.key,
                seq_num=operation.seq_num,
            )
            for operation in operations
        ]
