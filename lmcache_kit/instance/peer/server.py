"""Serves an instance's chunks to other instances."""

from __future__ import annotations

import asyncio
import bisect
import logging
from collections.abc import Sequence
from typing import Protocol

from lmcache_kit.contracts.storage import Buffer
from lmcache_kit.contracts.transport import Listener, Transport
from lmcache_kit.errors import ConflictError, InvalidRequestError, LMCacheKitError, UnavailableError
from lmcache_kit.instance.peer.messages import (
    Answer,
    ContentsRequest,
    GetRequest,
    PeerRequest,
    PutRequest,
    decode_request,
    encode_message,
)
from lmcache_kit.instance.peer.url import normal_peer_url
from lmcache_kit.kv import ChunkKey, peek_header

__all__ = ["PeerServer", "PeerStore"]

log = logging.getLogger(__name__)

DEFAULT_MAX_BLOB_BYTES = 2**30


class PeerStore(Protocol):
    """What the peer server needs of an instance's store."""

    @property
    def model(self) -> str: ...

    async def receive(self, location: str, blob: Buffer, *, move: str = "") -> int: ...

    async def read(self, location: str, key: ChunkKey) -> Buffer | None: ...

    def contents(self, location: str) -> list[ChunkKey]: ...

    def locations(self) -> list[str]: ...


class PeerServer:
    """Answers the requests of docs/reference/peer.md over any transport.

    Args:
        max_blob_bytes: a larger blob is refused.
    """

    def __init__(self, *, max_blob_bytes: int = DEFAULT_MAX_BLOB_BYTES) -> None:
        self._max_blob_bytes = max_blob_bytes
        self._listener: Listener | None = None
        self._store: PeerStore | None = None
        self.received_blobs = self.received_bytes = 0
        self.sent_blobs = self.sent_bytes = 0
        self.refused = 0

    async def start(self, address: str, transport: Transport, store: PeerStore) -> None:
        """Serve ``store`` at ``address``; ``host:port`` means TCP. Raises ConflictError when it is in use."""
        if self._listener is not None:
            raise ConflictError(f"the peer server already listens at {self._listener.address}")
        self._store = store
        self._listener = await transport.listen(normal_peer_url(address), self._handle)

    @property
    def address(self) -> str:
        """Where peers reach this server; names the port that was chosen."""
        if self._listener is None:
            raise ConflictError("the peer server was not started")
        return self._listener.address

    async def close(self) -> None:
        """Stop serving; idempotent."""
        if self._listener is not None:
            await self._listener.close()

    def stats(self) -> dict[str, int]:
        """Counts of blobs and bytes exchanged, and of requests refused."""
        return {
            "received_blobs": self.received_blobs,
            "received_bytes": self.received_bytes,
            "sent_blobs": self.sent_blobs,
            "sent_bytes": self.sent_bytes,
            "refused": self.refused,
        }

    async def _handle(self, frames: Sequence[Buffer]) -> Sequence[Buffer]:
        try:
            request = decode_request(frames)
            async with asyncio.timeout(request.seconds):
                return await self._answer(request, frames)
        except TimeoutError:
            error: LMCacheKitError = UnavailableError("the peer could not finish within the requester's deadline")
        except LMCacheKitError as known:
            error = known
        except Exception as unexpected:
            log.exception("a peer's request failed")
            error = LMCacheKitError(f"internal error: {type(unexpected).__name__}", hint="see the instance's log")
        self.refused += 1
        return [encode_message(Answer(status=error.status, error=error.message, hint=error.hint))]

    async def _answer(self, request: PeerRequest, frames: Sequence[Buffer]) -> Sequence[Buffer]:
        store = self._store
        assert store is not None
        match request:
            case PutRequest():
                blob = frames[1]
                self._check_blob(blob, store.model)
                tokens = await store.receive(request.location, blob, move=request.move)
                self.received_blobs += 1
                self.received_bytes += len(blob)
                return [encode_message(Answer(tokens=tokens))]
            case GetRequest():
                found = await store.read(request.location, ChunkKey.parse(request.key))
                if found is None:
                    return [encode_message(Answer())]
                self.sent_blobs += 1
                self.sent_bytes += len(found)
                return [encode_message(Answer(found=True)), found]
            case ContentsRequest():
                names = await asyncio.to_thread(_sorted_names, store.contents(request.location))
                first = bisect.bisect_right(names, request.after)
                last = first + request.limit
                return [encode_message(Answer(keys=names[first:last], more=last < len(names)))]
            case _:
                return [encode_message(Answer(model=store.model, locations=store.locations()))]

    def _check_blob(self, blob: Buffer, model: str) -> None:
        if len(blob) > self._max_blob_bytes:
            raise InvalidRequestError(
                f"a blob of {len(blob)} bytes is too large, this peer takes at most {self._max_blob_bytes}"
            )
        found = peek_header(blob).key.model
        if found != model:
            raise ConflictError(
                f"the chunk was made by model {found}, this instance serves {model}",
                hint="instances exchange chunks only when model, layout and dtype are the same",
            )


def _sorted_names(keys: list[ChunkKey]) -> list[str]:
    return sorted(key.name() for key in keys)
