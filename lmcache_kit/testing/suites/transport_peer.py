"""Another process that uses the same transport."""

from __future__ import annotations

import asyncio
import multiprocessing
import os
import warnings
from collections.abc import Callable, Sequence
from multiprocessing.connection import Connection
from typing import Any

import pytest

from lmcache_kit.contracts.storage import Buffer
from lmcache_kit.contracts.transport import Channel, Transport
from lmcache_kit.errors import TransportError
from lmcache_kit.testing.suites.transport_site import LONG, listen_anywhere, outcome, plain

__all__ = ["Peer", "converse", "reverse"]

_PATTERN = bytes(range(251)) * 4178


async def reverse(frames: Sequence[Buffer]) -> Sequence[Buffer]:
    """Answers the frames in reverse order; fails or never answers when the first one says so."""
    first = bytes(frames[0][:4]) if frames else b""
    if first == b"fail":
        raise ValueError("the cup is empty")
    if first == b"hang":
        await asyncio.Event().wait()
    return list(reversed(frames))


async def converse(channel: Channel) -> None:
    """What two processes say to each other; raises AssertionError for a wrong answer."""
    for sizes in [(), (0,), (1, 0, 300), (100_000, 5), (len(_PATTERN), 70_000, 1)]:
        frames = [_PATTERN[:size] for size in sizes]
        answer = plain(await channel.request(frames, timeout=LONG))
        assert answer == frames[::-1], f"frames of {sizes} bytes come back changed from the other process"
    many: list[list[bytes]] = [[str(number).encode(), _PATTERN[: number * 5000]] for number in range(30)]
    answers = await asyncio.gather(*(channel.request(frames, timeout=LONG) for frames in many))
    for frames, got in zip(many, answers, strict=True):
        assert plain(got) == frames[::-1], "a request got the answer of another one"
    refused = await outcome(channel.request([b"fail"], timeout=LONG), "a request that the handler refuses")
    assert isinstance(refused, TransportError), f"a handler in another process raised, and the caller got {refused!r}"
    assert "the cup is empty" in refused.message, f"the handler's text is lost between processes: {refused.message}"


def _child(make: Callable[[], Transport], scheme: str, pipe: Connection) -> None:
    command, address = pipe.recv()

    async def main() -> None:
        if command == "listen":
            listener = await listen_anywhere(make(), scheme, address, reverse)
            pipe.send(("listening", listener.address))
            await asyncio.Event().wait()
        channel = await make().connect(address)
        await converse(channel)
        await channel.close()
        pipe.send(("done", ""))

    try:
        asyncio.run(main())
    except BaseException as error:
        pipe.send(("failed", f"{type(error).__name__}: {error}"))
    os._exit(0)  # nothing that the parent had open is this process's to tidy up


class Peer:
    """A process that waits for one command. Made before anything is opened, so that it inherits nothing.

    Args:
        make: makes a transport.
        scheme: of its addresses.
        address: where to listen; None to choose.
    """

    def __init__(self, make: Callable[[], Transport], scheme: str, address: str | None) -> None:
        if "fork" not in multiprocessing.get_all_start_methods():
            pytest.skip("this system cannot fork, and a plugin's record cannot be sent to another process")
        self._address = address
        self._pipe, theirs = multiprocessing.Pipe()
        context: Any = multiprocessing.get_context("fork")
        self._process = context.Process(target=_child, args=(make, scheme, theirs), daemon=True)
        with warnings.catch_warnings():
            # Forking beside threads is risky only for a child that uses what they hold; this one starts afresh.
            warnings.simplefilter("ignore")
            self._process.start()
        theirs.close()

    def start_listening(self, address: str | None = None) -> str:
        """Listen, at ``address`` or anywhere; the address."""
        self._pipe.send(("listen", address or self._address))
        return self._answer()

    def start_asking(self, address: str) -> None:
        """Begin to :func:`converse` with the listener at ``address``."""
        self._pipe.send(("ask", address))

    def _answer(self) -> str:
        assert self._pipe.poll(LONG), f"the other process did not answer within {LONG:g} s"
        try:
            outcome, text = self._pipe.recv()
        except EOFError:
            raise AssertionError("the other process ended without a word") from None
        assert outcome != "failed", f"in the other process: {text}"
        return str(text)

    async def finished(self) -> None:
        """Wait until the conversation is over; fails with what the other process found wrong."""
        await asyncio.to_thread(self._answer)

    def kill(self) -> None:
        """End it at once, as a crash would."""
        self._process.kill()
        self._process.join()
        self._pipe.close()
