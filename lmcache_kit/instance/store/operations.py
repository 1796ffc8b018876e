"""What jobs do: compress, decompress and move stored chunks, each chunk as one transaction."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence, Set
from typing import Protocol

from lmcache_kit.contracts.storage import Buffer
from lmcache_kit.errors import (
    BlobError,
    ConflictError,
    LMCacheKitError,
    NotFoundError,
    TransportError,
    UnavailableError,
)
from lmcache_kit.instance.core.cache import CacheCore
from lmcache_kit.instance.core.tiers import Entry, TierState
from lmcache_kit.instance.store.codecs import CodecSet
from lmcache_kit.instance.store.execution import Signal, Work
from lmcache_kit.instance.store.jobs import Job
from lmcache_kit.instance.store.reader import check_header
from lmcache_kit.instance.store.recoding import Recoded, Recoder
from lmcache_kit.instance.store.tier_io import TierIO
from lmcache_kit.instance.store.writer import Writer
from lmcache_kit.kv.blob import unpack_blob
from lmcache_kit.kv.keys import ChunkKey
from lmcache_kit.kv.layout import KVLayout

__all__ = ["Operations", "PeerLink"]

RAW = "naive"
PEER_TIMEOUT = 30.0


class PeerLink(Protocol):
    """The part of the peer client that moves need."""

    async def send(self, peer_url: str, location: str, blob: Buffer, *, timeout: float, move: str) -> int:
        """Tokens of the chunk once the peer verified and stored it, without evicting others of this ``move``."""
        ...

    def is_self(self, peer_url: str) -> bool:
        """Whether the address is this instance's own."""
        ...


class Operations:
    """Carries out the work of jobs, chunk by chunk, in order.

    A job ends at the first chunk that fails and leaves that chunk as it was; running it again goes on from there.
    """

    def __init__(
        self,
        core: CacheCore,
        io: TierIO,
        work: Work,
        signal: Signal,
        writer: Writer,
        codecs: CodecSet,
        layout: KVLayout,
        peers: PeerLink | None,
    ) -> None:
        self._core = core
        self._io = io
        self._work = work
        self._signal = signal
        self._writer = writer
        self._codecs = codecs
        self._recoder = Recoder(codecs, layout)
        self._layout = layout
        self._peers = peers

    # --- compress and decompress -------------------------------------------------------------------------------------

    async def recode(self, job: Job, tier: int, keys: Sequence[ChunkKey], method: str, source: str | None) -> None:
        """Put every chunk into ``method``; only those that are in ``source`` when it is given."""
        job.device = (await self._work.call(self._codecs.get, source or method)).device
        together = await self._work.call(self._recoder.batches, source or method)
        ahead: dict[str, tuple[Entry, Recoded]] = {}
        looked = 0
        same = gone = other = 0
        for place, key in enumerate(keys):
            if together and place >= looked:
                ahead, looked = await self._look_ahead(tier, keys, place, method, source)
            entry = self._core.acquire(tier, key.name())
            if entry is None:
                gone += 1
                continue
            try:
                if source is not None and entry.codec not in (source, ""):
                    other += 1
                elif entry.codec == method:
                    job.add(tokens=entry.num_tokens, before=entry.nbytes, after=entry.nbytes)
                    same += 1
                else:
                    known = ahead.pop(key.name(), None)
                    new = known[1] if known is not None and known[0] is entry else None
                    gone += not await self._recode_one(job, tier, entry, method, new)
            finally:
                self._core.release(tier, entry)
                self._signal.notify()
        if same:
            job.notes.append(f"{same} of {len(keys)} chunks already in {method!r}: nothing to do for them")
        if gone:
            job.notes.append(f"{gone} of {len(keys)} chunks left the location before their turn")
        if other:
            job.notes.append(f"{other} of {len(keys)} chunks were put into another method before their turn")

    async def _look_ahead(
        self, tier: int, keys: Sequence[ChunkKey], place: int, method: str, source: str | None
    ) -> tuple[dict[str, tuple[Entry, Recoded]], int]:
        """Put the next few chunks into ``method`` together, without replacing any; and say where the rest begin.

        Each is then replaced in its turn if it is still the same object. All are let go of before: making room for one
        may have to wait for the readers of another.
        """
        found: list[tuple[Buffer, Entry]] = []
        held: list[Entry] = []
        try:
            stop = len(keys)
            while place < stop:
                entry = self._core.acquire(tier, keys[place].name())
                place += 1
                if entry is None:
                    continue
                held.append(entry)
                if entry.codec == method or (source is not None and entry.codec not in (source, "")):
                    continue
                try:
                    found.append((await self._read(tier, entry), entry))
                except LMCacheKitError:
                    break  # its turn comes, and tells
                if len(found) == 1:
                    stop = min(stop, place - 1 + self._recoder.at_once(entry.num_tokens))
            if len(found) < 2:
                return {}, place
            recoded = await self._work.call(self._recoder.many, found, method)
        finally:
            for entry in held:
                self._core.release(tier, entry)
            self._signal.notify()
        entries = {entry.name: entry for _, entry in found}
        return {name: (entries[name], new) for name, new in recoded.items()}, place

    async def _recode_one(self, job: Job, tier: int, entry: Entry, method: str, new: Recoded | None) -> bool:
        """Whether the object was still there to be replaced; by ``new`` where it was recoded ahead of its turn."""
        with _naming(entry):
            if new is None:
                blob = await self._read(tier, entry)
                new = await self._work.call(self._recoder.one, blob, entry, method)
            if new is None:
                self._core.learn(tier, entry, nbytes=memoryview(blob).nbytes, codec=method)
                job.add(tokens=entry.num_tokens, before=entry.nbytes, after=entry.nbytes)
                return True
            if not await self._writer.rewrite(tier, entry, new.blob, method):
                return False
            job.add(tokens=entry.num_tokens, before=new.before, after=len(new.blob))
            return True

    async def _read(self, tier: int, entry: Entry) -> Buffer:
        blob = await self._io.get(tier, entry.name)
        if blob is None:
            raise NotFoundError(f"{self._io.tiers[tier].location} does not have it any more")
        return blob

    # --- move --------------------------------------------------------------------------------------------------------

    def check_target(self, tier: TierState, peer_url: str, target: str) -> int | None:
        """The target tier when it is this instance's own, None for a peer's.

        Raises UnknownNameError, ConflictError for a move onto itself, NotFoundError when no peer can be reached.
        """
        if peer_url and not (self._peers is not None and self._peers.is_self(peer_url)):
            if self._peers is None:
                raise NotFoundError(
                    f"this instance has no peer links, {peer_url!r} cannot be reached",
                    hint="configure a peer address for it",
                )
            return None
        index = self._core.tier(target).index
        if index == tier.index:
            raise ConflictError(f"the chunks are already in {target}", hint="name another location or instance")
        return index

    async def move(
        self,
        job: Job,
        tier: int,
        keys: Sequence[ChunkKey],
        target: int | None,
        peer: tuple[str, str],
        copy: bool,
        event_id: str,
    ) -> None:
        """Take every chunk, as it is stored, to tier ``target`` or to the peer ``(url, location)``.

        The source is freed, unless ``copy``, only after the destination has verified the chunk; a pinned source stays.
        """
        gone = held = pinned = 0
        protect = frozenset(key.name() for key in keys)  # what was moved already must not be evicted for the rest
        for key in keys:
            entry = self._core.acquire(tier, key.name())
            if entry is None:
                gone += 1
                continue
            try:
                with _naming(entry):
                    blob = await self._read(tier, entry)
                    header = (await self._work.call(unpack_blob, blob)).header
                    check_header(header, key, self._layout, entry.num_tokens)
                    if target is None:
                        await self._send(peer, blob, entry.num_tokens, event_id)
                    else:
                        held += not await self.deliver(
                            target,
                            key,
                            blob,
                            num_tokens=entry.num_tokens,
                            codec=header.codec,
                            cause="move",
                            protect=protect,
                        )
                    nbytes = memoryview(blob).nbytes
            finally:
                self._core.release(tier, entry)
                self._signal.notify()
            job.add(tokens=entry.num_tokens, before=nbytes, after=nbytes)
            if not copy:
                with _naming(entry):
                    await self._writer.remove(tier, key.name(), cause="move")
                pinned += self._core.tiers[tier].ready(key.name()) is entry
        if gone:
            job.notes.append(f"{gone} of {len(keys)} chunks left the location before their turn")
        if held:
            job.notes.append(f"{held} of {len(keys)} chunks were at the destination already")
        if pinned:
            job.notes.append(f"{pinned} of {len(keys)} chunks are pinned and stay at the source too")

    async def _send(self, peer: tuple[str, str], blob: Buffer, num_tokens: int, event_id: str) -> None:
        assert self._peers is not None
        url, location = peer
        accepted = await self._peers.send(url, location, blob, timeout=PEER_TIMEOUT, move=event_id)
        if accepted != num_tokens:
            raise TransportError(f"peer {url} accepted {accepted} of {num_tokens} tokens")

    async def deliver(
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
        """Write a chunk and check what the tier gives back; False when it was there already.

        Raises CapacityError, UnavailableError, and BlobError when the tier gives back other bytes.
        """
        written = await self._writer.put(
            tier, key, blob, num_tokens=num_tokens, codec=codec, cause=cause, protect=protect
        )
        back = await self._io.get(tier, key.name())
        try:
            if back is None:
                raise BlobError(f"{self._io.tiers[tier].location} lost the chunk")
            if written and memoryview(back) != memoryview(blob):
                raise BlobError(f"{self._io.tiers[tier].location} gave back other bytes")
            if not written:
                await self._work.call(unpack_blob, back)
        except BlobError:
            with contextlib.suppress(UnavailableError):
                await self._writer.remove(tier, key.name(), cause="damaged", force=True)
            raise
        return written


@contextlib.contextmanager
def _naming(entry: Entry) -> Iterator[None]:
    """Adds the chunk's name to errors about it."""
    try:
        yield
    except LMCacheKitError as error:
        if entry.name in error.message:
            raise
        error.message = f"chunk {entry.name}: {error.message}"
        error.args = (error.message,)
        raise
