"""Messages from workers: decides what each one does to registry and contents, and what to answer."""

from __future__ import annotations

import logging
from collections.abc import Callable

from lmcache_kit.clock import Clock
from lmcache_kit.controller.contents import Contents
from lmcache_kit.controller.counters import Counters
from lmcache_kit.controller.lookup import LookupTable
from lmcache_kit.controller.registry import Registry, Worker, announced_spec
from lmcache_kit.errors import ConflictError, InvalidRequestError, LMCacheKitError, NotFoundError
from lmcache_kit.messages import (
    BatchedKVOperationMsg,
    BatchedP2PLookupMsg,
    BatchedP2PLookupRetMsg,
    DeRegisterMsg,
    ErrorMsg,
    FullSyncBatchMsg,
    FullSyncCommand,
    FullSyncEndMsg,
    FullSyncStartMsg,
    FullSyncStartRetMsg,
    FullSyncStatusMsg,
    FullSyncStatusRetMsg,
    HeartbeatMsg,
    HeartbeatRetMsg,
    KVAdmitMsg,
    KVEvictMsg,
    KVOpEvent,
    PushedMsg,
    RegisterMsg,
    RegisterRetMsg,
    WorkerReplyMsg,
    WorkerRequestMsg,
    decode_pushed,
    decode_worker_request,
    encode,
)

__all__ = ["Inbound"]

log = logging.getLogger(__name__)

_NOBODY = BatchedP2PLookupRetMsg(layout_info=[("", "", 0, "")])
_MOST_STRANGERS = 1000
_MOST_WARNINGS = 10
_SLOWEST_BEAT = 300.0


class Inbound:
    """The worker side of the core; see :class:`~lmcache_kit.controller.core.ControllerCore` for the arguments."""

    def __init__(
        self,
        clock: Clock,
        counters: Counters,
        registry: Registry,
        contents: Contents,
        table: LookupTable,
        *,
        heartbeat_address: Callable[[str], str | None],
        worker_timeout: float | None,
        sync_timeout: float,
    ) -> None:
        self._clock = clock
        self._counters = counters
        self._registry = registry
        self._contents = contents
        self._table = table
        self._heartbeat_address = heartbeat_address
        self._worker_timeout = worker_timeout
        self._sync_timeout = sync_timeout
        self._strangers: dict[tuple[str, int], None] = {}

    @property
    def strangers(self) -> list[str]:
        """Workers whose operations were left out because they are not registered."""
        return [f"{instance_id}/{worker_id}" for instance_id, worker_id in self._strangers]

    # --- frames -------------------------------------------------------------------------------------------------------

    def receive_pushed(self, payload: bytes) -> None:
        """One frame of the PULL socket; never raises."""
        try:
            message = decode_pushed(payload)
        except InvalidRequestError as error:
            self._malformed("pull", error)
            return
        try:
            self.on_pushed(message)
        except LMCacheKitError as error:
            self._counters.rejected[type(message).__name__] += 1
            log.debug("%s left out: %s", type(message).__name__, error)
        except Exception:
            # The socket must go on serving the other workers whatever one message met.
            self._counters.rejected[type(message).__name__] += 1
            log.exception("%s left out", type(message).__name__)

    def receive_request(self, payload: bytes, socket: str) -> bytes:
        """The answer to one frame of the reply or heartbeat socket; never raises."""
        try:
            message = decode_worker_request(payload)
        except InvalidRequestError as error:
            self._malformed(socket, error)
            return encode(ErrorMsg(error=error.message, status=error.status))
        try:
            return encode(self.on_request(message))
        except Exception as error:
            self._counters.rejected[type(message).__name__] += 1
            log.exception("%s refused", type(message).__name__)
            return encode(ErrorMsg(error=f"the controller failed on {type(message).__name__}: {type(error).__name__}"))

    def _malformed(self, socket: str, error: InvalidRequestError) -> None:
        self._counters.malformed[socket] += 1
        if self._counters.malformed[socket] <= _MOST_WARNINGS:
            log.warning("frame on the %s socket left out: %s", socket, error)
            if self._counters.malformed[socket] == _MOST_WARNINGS:
                log.warning("more of them on the %s socket are only counted, see /metrics", socket)

    # --- messages -----------------------------------------------------------------------------------------------------

    def on_pushed(self, message: PushedMsg) -> None:
        """Apply one message. Raises LMCacheKitError when it names an unknown worker or holds impossible values."""
        self._counters.pushed += 1
        if isinstance(message, BatchedKVOperationMsg):
            self._contents.apply(self._known(message), message.location, message.operations)
        elif isinstance(message, KVAdmitMsg):
            operation = KVOpEvent(op_type="admit", key=message.key)
            self._contents.apply(self._known(message), message.location, (operation,), counted=False)
        elif isinstance(message, KVEvictMsg):
            operation = KVOpEvent(op_type="evict", key=message.key)
            self._contents.apply(self._known(message), message.location, (operation,), counted=False)
        elif isinstance(message, FullSyncBatchMsg):
            worker = self._known(message)
            if not self._contents.sync_batch(worker, message.location, message.sync_id, message.batch_id, message.keys):
                raise ConflictError(f"batch {message.batch_id} belongs to no running sync of worker {worker.name}")
        elif isinstance(message, FullSyncEndMsg):
            worker = self._known(message)
            if not self._contents.sync_end(worker, message.location, message.sync_id, message.actual_total_keys):
                raise ConflictError(f"worker {worker.name} ends a sync that is not running")
        elif isinstance(message, RegisterMsg):
            self._register(message, "worker_re_registered")
        elif isinstance(message, HeartbeatMsg):
            self._heartbeat(message)
        else:
            self._deregister(message)

    def on_request(self, message: WorkerRequestMsg) -> WorkerReplyMsg:
        """The answer to one message."""
        self._counters.requests += 1
        try:
            return self._answer(message)
        except LMCacheKitError as error:
            self._counters.rejected[type(message).__name__] += 1
            log.info("%s refused: %s", type(message).__name__, error)
            return ErrorMsg(error=error.message, status=error.status, hint=error.hint)

    def expire(self) -> None:
        """Give up workers that missed their heartbeats and syncs that stand still."""
        now = self._clock.now()
        for worker in self._registry:
            self._contents.expire_syncs(worker, self._sync_timeout)
            if (
                self._worker_timeout is not None
                and worker.alive
                and worker.heartbeat_at is not None
                # Someone who beats slowly by configuration is not dead for being slow.
                and now - worker.seen_at > max(self._worker_timeout, 2.5 * worker.beat_seconds)
            ):
                log.warning("worker %s missed its heartbeats; what it held is dropped", worker.name)
                worker.alive = False
                worker.sync_reason = "worker_was_dead"
                worker.sync_asked_at = None
                self._counters.deaths += 1
                self._contents.drop(worker)

    def _answer(self, message: WorkerRequestMsg) -> WorkerReplyMsg:
        if isinstance(message, HeartbeatMsg):
            return self._heartbeat(message)
        if isinstance(message, RegisterMsg):
            self._register(message, "worker_re_registered")
            address = self._heartbeat_address(message.ip)
            return RegisterRetMsg(extra_config={"heartbeat_url": address} if address else {})
        if isinstance(message, FullSyncStartMsg):
            return self._sync_start(message)
        if isinstance(message, FullSyncStatusMsg):
            return self._sync_status(message)
        if isinstance(message, BatchedP2PLookupMsg):
            return self._peers(message)
        self._deregister(message)
        return RegisterRetMsg()

    # --- joining and leaving ------------------------------------------------------------------------------------------

    def _register(self, message: RegisterMsg | HeartbeatMsg, reason: str) -> Worker:
        announced_spec(message, self._registry.default_spec)  # refuses before anything is dropped
        known = self._registry.find(message.instance_id, message.worker_id)
        if known is not None:
            # Its process may be another one now, so what it held is unknown until it says so again.
            self._contents.drop(known)
        worker = self._registry.add(message)
        missed = self._strangers.pop(worker.id, self) is None
        if known is not None or missed or isinstance(message, HeartbeatMsg):
            worker.sync_reason = reason
        self._contents.version += 1
        self._contents.expect(worker)
        log.info("worker %s registered at %s:%d", worker.name, worker.ip, worker.port)
        return worker

    def _deregister(self, message: DeRegisterMsg) -> None:
        worker = self._registry.find(message.instance_id, message.worker_id)
        if worker is None:
            return
        if (worker.ip, worker.port) != (message.ip, message.port):
            raise ConflictError(f"worker {worker.name} registered anew at {worker.ip}:{worker.port} meanwhile")
        self._contents.drop(worker)
        self._registry.remove(worker)
        log.info("worker %s left", worker.name)

    def _heartbeat(self, message: HeartbeatMsg) -> HeartbeatRetMsg:
        worker = self._registry.find(message.instance_id, message.worker_id)
        if worker is None or self._changed(worker, message):
            worker = self._register(message, "worker_re_registered")
        now = self._clock.now()
        if worker.heartbeat_at is not None:
            worker.beat_seconds = min(now - worker.seen_at, _SLOWEST_BEAT)
        worker.alive = True
        worker.seen_at = now
        worker.heartbeat_at = self._clock.unix()
        if worker.sync_reason is None:
            return HeartbeatRetMsg()
        if worker.sync_asked_at is not None and now - worker.sync_asked_at < self._sync_timeout:
            return HeartbeatRetMsg()
        worker.sync_asked_at = now
        return HeartbeatRetMsg(commands=[FullSyncCommand(reason=worker.sync_reason)])

    def _changed(self, worker: Worker, message: HeartbeatMsg) -> bool:
        """Whether a heartbeat speaks of another address or other chunk names than those registered."""
        if (worker.ip, worker.port, worker.peer_init_url) != (message.ip, message.port, message.peer_init_url):
            return True
        spec, announced = announced_spec(message, self._registry.default_spec)
        # A heartbeat that announces nothing (a real LMCache worker's) takes nothing back.
        return announced and spec != worker.spec

    def _known(
        self, message: BatchedKVOperationMsg | KVAdmitMsg | KVEvictMsg | FullSyncBatchMsg | FullSyncEndMsg
    ) -> Worker:
        worker = self._registry.find(message.instance_id, message.worker_id)
        if worker is None:
            if len(self._strangers) < _MOST_STRANGERS:
                self._strangers[message.instance_id, message.worker_id] = None
            raise NotFoundError(f"worker {message.instance_id}/{message.worker_id} is not registered")
        return worker

    # --- full sync and peers ------------------------------------------------------------------------------------------

    def _sync_start(self, message: FullSyncStartMsg) -> FullSyncStartRetMsg:
        worker = self._registry.find(message.instance_id, message.worker_id)
        if worker is None:
            text = f"worker {message.instance_id}/{message.worker_id} is not registered"
            return FullSyncStartRetMsg(sync_id=message.sync_id, accepted=False, error_msg=text)
        try:
            self._contents.start_sync(worker, message.location, message.sync_id, message.batch_count)
        except LMCacheKitError as error:
            return FullSyncStartRetMsg(sync_id=message.sync_id, accepted=False, error_msg=error.message)
        return FullSyncStartRetMsg(sync_id=message.sync_id, accepted=True)

    def _sync_status(self, message: FullSyncStatusMsg) -> FullSyncStatusRetMsg:
        worker = self._registry.find(message.instance_id, message.worker_id)
        session = None if worker is None else self._contents.sync_state(worker, message.sync_id)
        running = [s.progress for w in self._registry for s in w.syncs.values() if not s.complete]
        progress = sum(running) / len(running) if running else 1.0
        if session is None:
            # Superseded, given up, or of before a restart: nobody waits for it, so the worker need not stay frozen;
            # if its contents are unknown, its next heartbeat brings a new command.
            return FullSyncStatusRetMsg(
                sync_id=message.sync_id, is_complete=False, global_progress=progress, can_exit_freeze=True
            )
        return FullSyncStatusRetMsg(
            sync_id=message.sync_id,
            is_complete=session.complete,
            global_progress=progress,
            can_exit_freeze=session.complete,
            missing_batches=session.missing(),
        )

    def _peers(self, message: BatchedP2PLookupMsg) -> BatchedP2PLookupRetMsg:
        asking = self._registry.find(message.instance_id, message.worker_id)
        best = None if asking is None else self._table.peers(message.hashes, asking)
        if best is None:
            return _NOBODY
        worker, location, chunks = best
        return BatchedP2PLookupRetMsg(layout_info=[(worker.instance_id, location, chunks, worker.peer_init_url or "")])
