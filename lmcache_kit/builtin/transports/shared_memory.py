"""Transport on one host: large frames through shared memory, the rest through a local ZeroMQ socket.

The first frame on the socket is a msgpack list ``[segment name or nil, places]``; ``places`` has one entry per frame
of the message: ``nil`` for a frame that follows on the socket, ``[offset, length]`` for one in the segment. When the
memory file system is full, a message goes through the socket whole, slower but complete, and a warning says so once.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import secrets
import time
from collections.abc import Sequence
from pathlib import Path

import msgspec

from lmcache_kit.builtin.transports.common import check_frames, no_answer, split_address
from lmcache_kit.builtin.transports.options import ShmOptions, ZmqOptions
from lmcache_kit.builtin.transports.segments import SegmentFolder, default_folder, lock_file, release_name
from lmcache_kit.builtin.transports.zmq_channel import ZmqChannel
from lmcache_kit.builtin.transports.zmq_listener import ZmqListener
from lmcache_kit.contracts.storage import Buffer
from lmcache_kit.contracts.transport import Channel, FrameHandler, Listener, Transport
from lmcache_kit.errors import ConfigError, ConflictError, TransportError

__all__ = ["ShmTransport"]

log = logging.getLogger(__name__)

_Place = tuple[int, int] | None
_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(tuple[str | None, list[_Place]])
_MAX_PLACES_BYTES = 2 * 2**20
_MAX_SOCKET_PATH = 107  # of a Unix socket address
_IN_THREAD = 4 * 2**20  # copying this much takes long enough to be kept off the event loop
_SWEEP_SECONDS = 5.0
_LOCK_TRIES = 5


class _Packer:
    """Turns messages into socket frames and segments, and back."""

    def __init__(self, folder: SegmentFolder, options: ShmOptions) -> None:
        self.folder = folder
        self._options = options
        self._warned = False

    async def pack(self, frames: Sequence[Buffer]) -> tuple[str | None, list[Buffer]]:
        """Name of the segment written, if any, and the frames for the socket."""
        check_frames(frames, self._options.max_message_bytes)
        large = [memoryview(frame).nbytes >= max(1, self._options.threshold_bytes) for frame in frames]
        shared = [frame for frame, is_large in zip(frames, large, strict=True) if is_large]
        written = await self._write(shared) if shared else None
        if written is None:
            return None, [_encoder.encode((None, [None] * len(frames))), *frames]
        name, offsets = written
        offset = iter(offsets)
        places: list[_Place] = [
            (next(offset), memoryview(frame).nbytes) if is_large else None
            for frame, is_large in zip(frames, large, strict=True)
        ]
        inline = [frame for frame, is_large in zip(frames, large, strict=True) if not is_large]
        return name, [_encoder.encode((name, places)), *inline]

    async def _write(self, frames: list[Buffer]) -> tuple[str, list[int]] | None:
        try:
            if sum(memoryview(frame).nbytes for frame in frames) < _IN_THREAD:
                return self.folder.write(frames)
            writing = asyncio.ensure_future(asyncio.to_thread(self.folder.write, frames))
            try:
                return await asyncio.shield(writing)
            except asyncio.CancelledError:
                writing.add_done_callback(self._discard_written)
                raise
        except OSError as error:
            if not self._warned:
                self._warned = True
                log.warning(
                    "no shared memory in %s (%s): large frames go through the socket", self.folder.path, error.strerror
                )
            return None

    def _discard_written(self, writing: asyncio.Future[tuple[str, list[int]]]) -> None:
        if not writing.cancelled() and writing.exception() is None:
            self.folder.discard(writing.result()[0])

    async def unpack(self, frames: Sequence[Buffer]) -> list[Buffer]:
        """The frames of a message. Raises TransportError when they are not as this transport sends them."""
        try:
            name, places = _decoder.decode(frames[0])
        except (msgspec.DecodeError, IndexError, UnicodeDecodeError):
            raise TransportError("a message does not say where its frames are") from None
        shared = [place for place in places if place is not None]
        if len(places) - len(shared) != len(frames) - 1 or any(min(place) < 0 for place in shared):
            self._drop(name)
            raise TransportError("a message contradicts itself about its frames")
        if sum(length for _, length in shared) > self._options.max_message_bytes or (name is None and shared):
            self._drop(name)
            raise TransportError(f"a message exceeds {self._options.max_message_bytes} bytes or names no segment")
        if not shared or name is None:
            return list(frames[1:])
        if sum(length for _, length in shared) < _IN_THREAD:
            views = self.folder.fetch(name, shared)
        else:
            views = await asyncio.to_thread(self.folder.fetch, name, shared)
        view, inline = iter(views), iter(frames[1:])
        return [next(inline) if place is None else next(view) for place in places]

    def _drop(self, name: str | None) -> None:
        if name is not None:
            self.folder.discard(name)

    def discard_message(self, frames: Sequence[Buffer]) -> None:
        """Free the segment of a message that nobody waits for."""
        with contextlib.suppress(msgspec.DecodeError, IndexError, UnicodeDecodeError):
            self._drop(_decoder.decode(frames[0])[0])


class ShmListener(Listener):
    """Serves ``shm://name``; ``lock`` is the descriptor that holds the name, and belongs to the listener."""

    def __init__(self, name: str, handler: FrameHandler, options: ShmOptions, folder: SegmentFolder, lock: int) -> None:
        self._name = name
        self._handler = handler
        self._options = options
        self._address = f"shm://{name}"
        self._folder = folder
        self._lock = lock
        self._answers: dict[str, float] = {}
        try:
            self._inner = ZmqListener(
                _endpoint(folder.path, name),
                self._address,
                self._handle,
                _socket_options(options),
            )
        except BaseException:
            self._release()
            raise
        self._packer = _Packer(self._folder, options)
        self._sweeper = asyncio.get_running_loop().create_task(self._sweep())
        self._closing: asyncio.Task[None] | None = None

    @property
    def address(self) -> str:
        return self._address

    async def _handle(self, frames: Sequence[Buffer]) -> Sequence[Buffer]:
        received = await self._packer.unpack(frames)
        del frames
        name, answer = await self._packer.pack(list(await self._handler(received)))
        if name is not None:
            self._answers[name] = time.monotonic()
        return answer

    async def _sweep(self) -> None:
        while True:
            await asyncio.sleep(min(_SWEEP_SECONDS, self._options.answer_seconds))
            oldest = time.monotonic() - self._options.answer_seconds
            for name, written in list(self._answers.items()):
                if written < oldest:  # fetched long ago in most cases, then there is nothing to discard
                    self._folder.discard(name)
                    del self._answers[name]
            await asyncio.to_thread(self._folder.sweep)

    def _release(self) -> None:
        release_name(self._folder.path, self._name, self._lock)
        self._folder.close()

    async def close(self) -> None:
        if self._closing is None:
            # In a task of its own: whoever gives up waiting, or is a handler that this cancels, leaves no lock behind.
            self._closing = asyncio.get_running_loop().create_task(self._close())
        await asyncio.shield(self._closing)

    async def _close(self) -> None:
        self._sweeper.cancel()
        await asyncio.gather(self._sweeper, return_exceptions=True)
        await self._inner.close()
        self._release()


class ShmChannel(Channel):
    def __init__(self, name: str, options: ShmOptions, path: Path) -> None:
        self._address = f"shm://{name}"
        self._folder = SegmentFolder(path)
        self._packer = _Packer(self._folder, options)
        try:
            self._inner = ZmqChannel(
                _endpoint(path, name),
                self._address,
                _socket_options(options),
                late=self._packer.discard_message,
            )
        except BaseException:
            self._folder.close()
            raise

    async def request(self, frames: Sequence[Buffer], *, timeout: float) -> list[Buffer]:
        name = None
        try:
            async with asyncio.timeout(timeout):
                name, message = await self._packer.pack(frames)
                return await self._packer.unpack(await self._inner.request(message, timeout=timeout))
        except TimeoutError:
            raise no_answer(self._address, timeout, connected=self._inner.connected) from None
        finally:
            if name is not None:
                self._folder.discard(name)

    async def close(self) -> None:
        await self._inner.close()
        self._folder.close()


class ShmTransport(Transport):
    """Addresses are ``shm://name``; listening on ``shm://*`` chooses a name. Both sides must be the same user."""

    def __init__(self, options: ShmOptions | None = None) -> None:
        self._options = options or ShmOptions()
        self._path = Path(self._options.directory) if self._options.directory else default_folder()

    async def listen(self, address: str, handler: FrameHandler) -> Listener:
        name = split_address(address, "shm", wildcard=True)
        if name == "*":
            name = f"auto-{secrets.token_hex(8)}"
        folder = SegmentFolder(self._path)
        try:
            lock = await _own_name(self._path, name)
        except BaseException:
            folder.close()
            raise
        return ShmListener(name, handler, self._options, folder, lock)

    async def connect(self, address: str) -> Channel:
        return ShmChannel(split_address(address, "shm"), self._options, self._path)


def _socket_options(options: ShmOptions) -> ZmqOptions:
    # A message that was measured here gains the frame that says where its frames are.
    return ZmqOptions(
        max_message_bytes=options.max_message_bytes + _MAX_PLACES_BYTES,
        max_in_flight=options.max_in_flight,
        connect_seconds=options.connect_seconds,
    )


async def _own_name(path: Path, name: str) -> int:
    # ZeroMQ takes over a socket file that exists, so this lock is what tells whether its listener lives.
    for _ in range(_LOCK_TRIES):
        lock = lock_file(path / f"{name}.lock")
        if lock is not None:
            return lock
        await asyncio.sleep(0.02)  # a sweep may hold it for a moment
    raise ConflictError(f"shm://{name} is in use", hint="choose another name or stop its listener")


def _endpoint(path: Path, name: str) -> str:
    socket = path / f"{name}.sock"
    if len(os.fsencode(socket)) > _MAX_SOCKET_PATH:
        raise ConfigError(
            f"the socket path {socket} is longer than {_MAX_SOCKET_PATH} bytes",
            hint="use a shorter name, or set the transport's directory",
        )
    return f"ipc://{socket}"
