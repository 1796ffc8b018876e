"""What the controller can do to an instance in virtual time: pins, clearing, jobs."""

from __future__ import annotations

import asyncio
import functools
from collections.abc import Callable, Sequence
from typing import Protocol

from lmcache_kit.errors import ConflictError, NotFoundError, UnavailableError
from lmcache_kit.instance.core.tiers import Entry, EntryState, TierState
from lmcache_kit.instance.store.arrivals import Arrivals
from lmcache_kit.instance.store.jobs import Job, JobTable
from lmcache_kit.instance.store.operations import RAW
from lmcache_kit.instance.store.planning import entries_in_method, readable_entries
from lmcache_kit.kv.keys import ChunkKey
from lmcache_kit.messages import JobInfo
from lmcache_kit.sim.loop import VirtualClock, VirtualLoop
from lmcache_kit.sim.store import SimStore

__all__ = ["ControlledSimStore", "Peers"]


class Peers(Protocol):
    """Reaches other instances: their stores, and the time that bytes take to them."""

    def store(self, url: str) -> ControlledSimStore:
        """Raises UnavailableError for one that cannot be reached."""
        ...

    async def carry(self, url: str, nbytes: int) -> None:
        """Return when so many bytes, and the answer to them, have passed the link. Raises UnavailableError."""
        ...

    def is_self(self, url: str) -> bool: ...


class ControlledSimStore:
    """The part of :class:`lmcache_kit.instance.store.store.KVStore` that the controller and peers reach.

    Args:
        loop: virtual time.
        store: what it acts on.
        peers: the other instances.
        methods: compression methods that are installed.
    """

    def __init__(self, loop: VirtualLoop, store: SimStore, peers: Peers, methods: Callable[[str], object]) -> None:
        self._loop = loop
        self._store = store
        self._core = store.core
        self._peers = peers
        self._known = methods
        self._jobs = JobTable(VirtualClock(loop))
        self._arrivals = Arrivals()

    # --- at once -----------------------------------------------------------------------------------------------------

    def locations(self) -> list[str]:
        """Fastest first."""
        return [tier.location for tier in self._store.tiers]

    def contents(self, location: str) -> list[ChunkKey]:
        """Keys that were announced as admitted and not as evicted. Raises UnknownNameError."""
        return [entry.key for entry in self._core.tier(location).listed()]

    def pin(self, location: str, tokens: Sequence[int], *, owner: str = "", ttl: float | None = None) -> int:
        """As of the store."""
        tier = self._core.tier(location)
        tier.pins.check_ttl(ttl)
        entries = readable_entries(tier, self._names(tokens))
        return sum(entry.num_tokens for entry in entries if self._core.pin(tier.index, entry.name, owner, ttl))

    def unpin(self, location: str, tokens: Sequence[int] | None, *, owner: str = "") -> int:
        """As of the store."""
        tier = self._core.tier(location)
        names = tier.pins.names(owner) if tokens is None else self._names(tokens)
        entries = [tier.entries[name] for name in names if name in tier.entries]
        return sum(entry.num_tokens for entry in entries if self._core.unpin(tier.index, entry.name, owner))

    async def clear(self, location: str) -> int:
        """As of the store."""
        tier = self._core.tier(location)
        return sum(self._store.remove(tier.index, name, cause="clear") for name in list(tier.entries))

    def _names(self, tokens: Sequence[int]) -> list[str]:
        return [chunk.name for chunk in self._store.chunks(tokens)]

    # --- jobs --------------------------------------------------------------------------------------------------------

    def job(self, event_id: str) -> JobInfo:
        """As of the store."""
        return self._jobs.get(event_id)

    def start_compress(self, event_id: str, method: str, location: str, tokens: Sequence[int] | None) -> JobInfo:
        """As of the store."""
        tier = self._core.tier(location)
        self._known(method)
        entries = readable_entries(tier, None if tokens is None else self._names(tokens))
        return self._start_recode(event_id, tier, entries, method, None)

    def start_decompress(self, event_id: str, method: str, location: str, tokens: Sequence[int] | None) -> JobInfo:
        """As of the store."""
        tier = self._core.tier(location)
        self._known(method)
        entries = readable_entries(tier, None if tokens is None else self._names(tokens))
        return self._start_recode(event_id, tier, entries_in_method(tier, entries, method), RAW, method)

    def _start_recode(
        self, event_id: str, tier: TierState, entries: Sequence[Entry], method: str, source: str | None
    ) -> JobInfo:
        keys = [entry.key for entry in entries]
        work = functools.partial(self._recode, tier=tier.index, keys=keys, method=method, source=source)
        return self._jobs.add(event_id, sum(entry.num_tokens for entry in entries), work)

    async def _recode(self, job: Job, tier: int, keys: Sequence[ChunkKey], method: str, source: str | None) -> None:
        for key in keys:
            entry = self._core.acquire(tier, key.name())
            if entry is None:
                continue
            try:
                if source is not None and entry.codec not in (source, ""):
                    continue
                if entry.codec == method:
                    job.add(tokens=entry.num_tokens, before=entry.nbytes, after=entry.nbytes)
                    continue
                await self._recode_one(job, tier, entry, method)
            finally:
                self._store.release(tier, entry)

    async def _recode_one(self, job: Job, tier: int, entry: Entry, method: str) -> None:
        store, device = self._store, self._store.tiers[tier].device
        read = device.read(self._loop.time(), entry.nbytes) - self._loop.time()
        coding = store.decode_seconds(entry.codec or RAW, entry.num_tokens)
        coding += store.encode_seconds(method, entry.num_tokens)
        coding += store.decode_seconds(method, entry.num_tokens)  # what was encoded is verified by decoding it
        self._check(tier, entry)
        await self._pause(read + coding + store.costs.recode_seconds)
        nbytes, before = store.size(entry.name, entry.num_tokens, method), entry.nbytes
        await self._pause(device.write(self._loop.time(), nbytes) - self._loop.time())
        if entry.state is not EntryState.READY:
            return  # it was removed meanwhile
        ticket = self._core.begin_rewrite(tier, entry, nbytes=nbytes, codec=method)
        store.write(ticket, billed=True)
        job.add(tokens=entry.num_tokens, before=before, after=nbytes)

    def _check(self, tier: int, entry: Entry) -> None:
        """Raises NotFoundError for what another instance deleted from a shared tier."""
        own = self._store.tiers[tier]
        if own.shared is not None and entry.name not in own.shared:
            raise NotFoundError(f"chunk {entry.name}: {own.location} does not have it any more")

    async def _pause(self, seconds: float) -> None:
        """Raises UnavailableError when the instance was killed meanwhile: its jobs end with it."""
        if seconds:
            await asyncio.sleep(seconds)
        if self._store.dead:
            raise UnavailableError("the instance was killed")

    def start_move(
        self,
        event_id: str,
        location: str,
        peer_url: str,
        target_location: str,
        tokens: Sequence[int] | None,
        *,
        copy: bool,
    ) -> JobInfo:
        """As of the store."""
        tier = self._core.tier(location)
        target = None
        if not peer_url or self._peers.is_self(peer_url):
            target = self._core.tier(target_location).index
            if target == tier.index:
                raise ConflictError(
                    f"the chunks are already in {target_location}", hint="name another location or instance"
                )
        entries = readable_entries(tier, None if tokens is None else self._names(tokens))
        work = functools.partial(
            self._move,
            tier=tier.index,
            keys=[entry.key for entry in entries],
            target=target,
            peer=(peer_url, target_location),
            copy=copy,
            event_id=event_id,
        )
        return self._jobs.add(event_id, sum(entry.num_tokens for entry in entries), work)

    async def _move(
        self,
        job: Job,
        tier: int,
        keys: Sequence[ChunkKey],
        target: int | None,
        peer: tuple[str, str],
        copy: bool,
        event_id: str,
    ) -> None:
        protect = frozenset(key.name() for key in keys)
        for key in keys:
            entry = self._core.acquire(tier, key.name())
            if entry is None:
                continue
            try:
                nbytes = entry.nbytes
                device = self._store.tiers[tier].device
                self._check(tier, entry)
                await self._pause(device.read(self._loop.time(), nbytes) - self._loop.time())
                if target is None:
                    costs = self._store.costs
                    await self._pause(costs.transfer_seconds + nbytes / (costs.transfer_gbps * 1e9))
                    await self._peers.carry(peer[0], nbytes)
                    await self._pause(0.0)
                    receiver = self._peers.store(peer[0])
                    await receiver.receive(peer[1], key, nbytes, entry.num_tokens, entry.codec, event_id)
                else:
                    self._store.put(target, key, nbytes, entry.num_tokens, entry.codec, "move", protect)
                    await self._checked(target, nbytes)
            finally:
                self._store.release(tier, entry)
            job.add(tokens=entry.num_tokens, before=nbytes, after=nbytes)
            if not copy:
                self._store.remove(tier, key.name(), cause="move")

    async def receive(self, location: str, key: ChunkKey, nbytes: int, num_tokens: int, codec: str, move: str) -> None:
        """Store a chunk that a peer sent. Raises UnknownNameError, ConflictError, CapacityError, UnavailableError."""
        tier = self._core.tier(location)
        if key.model != self._store.model:
            raise ConflictError(f"the chunk belongs to model {key.model}, this instance serves {self._store.model}")
        protect = self._arrivals.of(move, location)
        self._store.put(tier.index, key, nbytes, num_tokens, codec, "receive", protect)
        self._arrivals.add(move, location, key.name())
        await self._checked(tier.index, nbytes)

    async def _checked(self, tier: int, nbytes: int) -> None:
        """What is delivered is read back and compared, once it is written."""
        device = self._store.tiers[tier].device
        written = max(device.writes.free_at, self._loop.time())
        await self._pause(device.read(written, nbytes) - self._loop.time())
