"""What workers hold: applies their operations and full syncs to the index.

Order matters on the PULL socket, and frames may be lost or come twice there. Every location counts its operations, so a
gap is seen, and the worker is asked for a full sync with its next heartbeat. An operation that was already applied is
left out. Workers that do not count (LMCache 0.3, or others that always send 0) are taken at their word.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence

from lmcache_kit.clock import Clock
from lmcache_kit.controller.counters import Counters
from lmcache_kit.controller.index import ChunkIndex
from lmcache_kit.controller.registry import Worker
from lmcache_kit.controller.session import MAX_BATCHES, SyncSession
from lmcache_kit.errors import InvalidRequestError
from lmcache_kit.messages import KVOpEvent

__all__ = ["Contents"]

log = logging.getLogger(__name__)

MAX_LOCATIONS = 64


class Contents:
    """The index together with the rules for changing it.

    ``version`` grows whenever a slot appears, is replaced or goes away, so that readers can keep tables of slots.
    """

    def __init__(self, clock: Clock, counters: Counters) -> None:
        self._clock = clock
        self._counters = counters
        self.index = ChunkIndex()
        self.version = 0

    # --- operations ---------------------------------------------------------------------------------------------------

    def apply(self, worker: Worker, location: str, operations: Sequence[KVOpEvent], *, counted: bool = True) -> None:
        """Apply changes of one location in order; ``counted`` says whether they carry sequence numbers."""
        bit = self._slot(worker, location)
        session = worker.syncs.get(location)
        if counted:
            operations = self._in_sequence(worker, location, operations, session)
        self.index.change(bit, operations)
        if session is not None and not session.complete:
            session.touched.update(operation.key for operation in operations)
            self.index.change(session.bit, operations)
        self._counters.operations += len(operations)

    def _in_sequence(
        self, worker: Worker, location: str, operations: Sequence[KVOpEvent], session: SyncSession | None
    ) -> Sequence[KVOpEvent]:
        """The operations without those that came before; notes gaps."""
        if not operations:
            return operations
        last, first = worker.seqs.get(location), operations[0].seq_num
        if last is None:
            last = first - 1
            # A fresh worker starts at 0 (ours and LMCache's); anything else began before we listened, which a sync that
            # started since has made good.
            if first != 0 and session is None:
                self._gap(worker, location, "operations_missed")
        elif session is not None and not session.counted and first < last:
            last = first - 1  # it began to count anew, was found out, and was synced
        if session is not None:
            session.counted = True
        expected = last
        for operation in operations:
            expected += 1
            if operation.seq_num != expected:
                break
        else:
            worker.seqs[location] = expected
            return operations
        fresh = []
        for operation in operations:
            seq = operation.seq_num
            if seq > last + 1:
                self._gap(worker, location, "sequence_gap")
            elif seq <= last and not seq == last == 0:  # someone who always sends 0 does not count at all
                self._gap(worker, location, "sequence_repeated")
                continue
            last = seq
            fresh.append(operation)
        worker.seqs[location] = last
        return fresh

    def drop(self, worker: Worker) -> None:
        """Forget everything that a worker holds, and its syncs."""
        for session in worker.syncs.values():
            if not session.complete:
                self.index.retire(session.bit)
        for bit in worker.slots.values():
            self.index.retire(bit)
        worker.syncs.clear()
        worker.slots.clear()
        worker.seqs.clear()
        self.version += 1

    def key_counts(self, worker: Worker) -> dict[str, int]:
        """Chunks held, by location."""
        return {location: len(self.index.keys(bit)) for location, bit in worker.slots.items()}

    def _gap(self, worker: Worker, location: str, reason: str) -> None:
        self._counters.discontinuities += 1
        if worker.sync_reason is None:
            log.info("worker %s: %s in %s, a full sync is needed", worker.name, reason, location)
            worker.sync_reason = reason

    def expect(self, worker: Worker) -> None:
        """Open the slots of the locations that a worker announced.

        One by one, as their first chunks come, each would have every reader make its tables anew: with a thousand
        workers that takes as long as tens of thousands of lookups.
        """
        for location in (worker.locations or ())[:MAX_LOCATIONS]:
            self._slot(worker, location)

    def _slot(self, worker: Worker, location: str) -> int:
        bit = worker.slots.get(location)
        if bit is None:
            if len(worker.slots) >= MAX_LOCATIONS:
                raise InvalidRequestError(f"worker {worker.name} names more than {MAX_LOCATIONS} locations")
            bit = worker.slots[location] = self.index.open_slot()
            self.version += 1
        return bit

    # --- full sync ----------------------------------------------------------------------------------------------------

    def start_sync(self, worker: Worker, location: str, sync_id: str, batch_count: int) -> None:
        """Begin a sync, taking the place of another one of this location; the same one again goes on.

        Raises InvalidRequestError for a batch count or an id that cannot be followed.
        """
        if not 0 <= batch_count <= MAX_BATCHES:
            raise InvalidRequestError(f"batch_count must be between 0 and {MAX_BATCHES}, got {batch_count}")
        self._slot(worker, location)
        worker.sync_reason = worker.sync_asked_at = None
        known = worker.syncs.get(location)
        if known is not None and known.sync_id == sync_id and not known.complete:
            known.active_at = self._clock.now()
            return
        for other in worker.syncs.values():
            if other.sync_id == sync_id and other.location != location:
                raise InvalidRequestError(f"sync_id {sync_id!r} is already used for {other.location}")
        if known is not None and not known.complete:
            self.index.retire(known.bit)
        now = self._clock.now()
        worker.syncs[location] = SyncSession(
            sync_id=sync_id,
            location=location,
            batch_count=batch_count,
            bit=self.index.open_slot(),
            started_at=now,
            active_at=now,
        )

    def sync_batch(self, worker: Worker, location: str, sync_id: str, batch_id: int, keys: list[int]) -> bool:
        """Take one batch; False when it belongs to no running sync or came before."""
        session = worker.syncs.get(location)
        if session is None or session.complete or session.sync_id != sync_id:
            return False
        if not 0 <= batch_id < session.batch_count or batch_id in session.received:
            return False
        session.active_at = self._clock.now()
        session.received.add(batch_id)
        session.keys_received += len(keys)
        touched = session.touched
        self.index.admit(session.bit, [key for key in keys if key not in touched] if touched else keys)
        if session.ready:
            self._complete(worker, session)
        return True

    def sync_end(self, worker: Worker, location: str, sync_id: str, total_keys: int) -> bool:
        """The worker sent all it has; False when no sync of that id is known."""
        session = worker.syncs.get(location)
        if session is None or session.sync_id != sync_id:
            return False
        session.active_at = self._clock.now()
        if session.ready and not session.complete:
            self._complete(worker, session)
        if session.complete and session.keys_received != total_keys:
            self._counters.sync_mismatches += 1
            log.warning(
                "worker %s: sync %s of %s carried %d keys, its end says %d",
                worker.name,
                sync_id,
                location,
                session.keys_received,
                total_keys,
            )
        return True

    def sync_state(self, worker: Worker, sync_id: str) -> SyncSession | None:
        """The sync of that id, finished now if nothing is missing (its end message may have been lost)."""
        for session in worker.syncs.values():
            if session.sync_id == sync_id:
                if session.ready and not session.complete:
                    self._complete(worker, session)
                return session
        return None

    def expire_syncs(self, worker: Worker, timeout: float) -> None:
        """Give up syncs that stand still; the worker is asked again."""
        limit = self._clock.now() - timeout
        for location, session in list(worker.syncs.items()):
            if not session.complete and session.active_at < limit:
                self.index.retire(session.bit)
                del worker.syncs[location]
                worker.sync_reason = worker.sync_reason or "sync_failed_retry"
                log.warning("worker %s: sync %s of %s stood still", worker.name, session.sync_id, location)

    def _complete(self, worker: Worker, session: SyncSession) -> None:
        self.index.retire(worker.slots[session.location])
        worker.slots[session.location] = session.bit
        session.complete = True
        session.touched = set()
        self.version += 1
        self._counters.syncs_completed += 1
        log.info(
            "worker %s: full sync of %s done, %d keys", worker.name, session.location, len(self.index.keys(session.bit))
        )
