"""Carries out the writes and removals that the cache core decides."""

from __future__ import annotations

import logging
from collections.abc import Set

from lmcache_kit.contracts.storage import Buffer
from lmcache_kit.errors import BlobError, CapacityError, UnavailableError
from lmcache_kit.instance.core.cache import CacheCore
from lmcache_kit.instance.core.tickets import Removal, WriteTicket
from lmcache_kit.instance.core.tiers import Entry, EntryState
from lmcache_kit.instance.store.execution import Signal, Work
from lmcache_kit.instance.store.tier_io import TierIO
from lmcache_kit.kv.blob import peek_header
from lmcache_kit.kv.keys import ChunkKey

__all__ = ["Writer"]

log = logging.getLogger(__name__)


class Writer:
    """Every method leaves core and backends in agreement, also when the caller is cancelled meanwhile."""

    def __init__(self, core: CacheCore, io: TierIO, work: Work, signal: Signal) -> None:
        self._core = core
        self._io = io
        self._work = work
        self._signal = signal

    async def settled(self, tier: int, name: str) -> Entry | None:
        """The tier's readable object, or None, once no write or removal of it is in progress.

        Raises UnavailableError when it is not known what is there and it cannot be deleted.
        """
        state = self._core.tiers[tier]
        while (now := state.state(name)) not in (EntryState.READY, EntryState.ABSENT):
            if now is EntryState.DOUBTFUL:
                await self.remove(tier, name, cause="doubtful", force=True)
            else:
                await self._signal.wait()
        return state.ready(name)

    async def put(
        self,
        tier: int,
        key: ChunkKey,
        blob: Buffer,
        *,
        num_tokens: int,
        codec: str,
        cause: str,
        protect: Set[str] = frozenset(),
    ) -> bool:
        """Write an object unless the tier has it; whether it was written.

        Raises CapacityError when it does not fit and UnavailableError when the backend fails.
        """
        name = key.name()
        if await self.settled(tier, name) is not None:
            return False
        if self._io.tiers[tier].shared and (there := await self._io.size(tier, name)) is not None:
            if await self.settled(tier, name) is None:
                self._core.adopt(tier, key, nbytes=there, num_tokens=num_tokens, codec="")
                self._signal.notify()
            return False
        if await self.settled(tier, name) is not None:
            return False
        nbytes = memoryview(blob).nbytes
        ticket = self._core.begin_put(
            tier, key, nbytes=nbytes, num_tokens=num_tokens, codec=codec, cause=cause, protect=protect
        )
        await self._work.finish(self._write(ticket, blob))
        return True

    async def rewrite(self, tier: int, entry: Entry, blob: Buffer, codec: str) -> bool:
        """Replace an object that the caller acquired by another encoding of it; False when it is leaving meanwhile.

        Raises CapacityError or UnavailableError; the old object is then still there.
        """
        if entry.state is not EntryState.READY:
            return False
        ticket = self._core.begin_rewrite(tier, entry, nbytes=memoryview(blob).nbytes, codec=codec)
        await self._work.finish(self._write(ticket, blob))
        return True

    async def remove(self, tier: int, name: str, *, cause: str, force: bool = False) -> int:
        """Remove an object; its tokens, or 0 when there is none or it is pinned. Raises UnavailableError."""
        removal = self._core.begin_remove(tier, name, cause=cause, force=force)
        if removal is None:
            return 0
        removed = await self._work.finish(self._carry_out(removal))
        if not removed:
            raise UnavailableError(f"{self._io.tiers[tier].location} could not delete {name}")
        return removal.entry.num_tokens if removal.listed and not removal.entry.foreign else 0

    async def carry_out(self, removal: Removal) -> bool:
        """Carry out a removal that the core decided; False when the object could not be deleted."""
        return await self._work.finish(self._carry_out(removal))

    async def _write(self, ticket: WriteTicket, blob: Buffer) -> None:
        try:
            await self._make_room(ticket)
        except BaseException:
            self._core.abort(ticket)
            self._signal.notify()
            raise
        try:
            await self._io.put(ticket.tier, ticket.entry.name, blob)
        except (CapacityError, UnavailableError):
            self._io.counters[ticket.tier].failed_writes += 1
            await self._after_failure(ticket)
            raise
        self._core.commit(ticket)
        self._signal.notify()

    async def _after_failure(self, ticket: WriteTicket) -> None:
        """Find out what a put that failed left behind: with an answer that was lost, it may have taken place.

        A new object is deleted. What a rewrite replaced is there as one encoding or the other.
        """
        name = ticket.entry.name
        try:
            if ticket.rewrite:
                blob = await self._io.get(ticket.tier, name)
                landed = blob is not None and peek_header(blob).codec == ticket.codec
            else:
                await self._io.delete(ticket.tier, name)
                landed = False
        except BlobError:
            self._core.abort(ticket)
        except UnavailableError:
            self._core.doubt_write(ticket)
        else:
            if landed:
                self._core.commit(ticket)
            else:
                self._core.abort(ticket)
        self._signal.notify()

    async def _make_room(self, ticket: WriteTicket) -> None:
        while True:
            while ticket.removals:
                if not await self._carry_out(ticket.removals.pop(0)):
                    raise UnavailableError(f"{self._io.tiers[ticket.tier].location} could not make room")
            if self._core.start(ticket):
                return
            if not self._core.plan(ticket):
                await self._signal.wait()

    async def _carry_out(self, removal: Removal) -> bool:
        if removal.demotion is not None:
            await self._demote(removal, removal.demotion)
        self._core.retire(removal)
        while removal.entry.readers:
            await self._signal.wait()
        if (not removal.entry.foreign or removal.cause == "damaged") and not await self._delete(removal):
            self._signal.notify()
            return False
        self._core.forget(removal)
        self._signal.notify()
        self._io.counters[removal.tier].evictions += removal.cause in ("capacity", "demote")
        return True

    async def _delete(self, removal: Removal) -> bool:
        name = removal.entry.name
        try:
            await self._io.delete(removal.tier, name)
        except UnavailableError:
            try:
                there = await self._io.size(removal.tier, name) is not None
            except UnavailableError:
                self._core.doubt_removal(removal)
                return False
            if there:
                self._core.revive(removal)
                return False
        return True

    async def _demote(self, removal: Removal, demotion: WriteTicket) -> None:
        try:
            blob = await self._io.get(removal.tier, removal.entry.name)
        except UnavailableError:
            blob = None
        if blob is None:
            self._core.abort(demotion)
            self._signal.notify()
            return
        try:
            await self._write(demotion, blob)
        except (CapacityError, UnavailableError) as error:
            log.warning("chunk %s is dropped, its demotion failed: %s", removal.entry.name, error.message)
        else:
            self._io.counters[removal.tier].demotions += 1
