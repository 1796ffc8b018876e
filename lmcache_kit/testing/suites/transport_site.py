"""Where the tests of a transport happen: an event loop, and what was opened on it."""

from __future__ import annotations

import asyncio
import contextlib
import secrets
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from typing import Any, TypeVar

import pytest

from lmcache_kit.contracts.storage import Buffer
from lmcache_kit.contracts.transport import Channel, FrameHandler, Listener, Transport
from lmcache_kit.errors import LMCacheKitError, UnavailableError

__all__ = ["LONG", "SHORT", "Site", "echo", "listen_anywhere", "outcome", "plain", "within"]

T = TypeVar("T")

LONG = 30.0
"""Seconds for what must happen; a test that waits so long has failed."""

SHORT = 0.2
"""Seconds until a request is given up that is not going to be answered."""


async def echo(frames: Sequence[Buffer]) -> Sequence[Buffer]:
    """A handler that answers what it was asked."""
    return frames


def plain(frames: Sequence[Buffer]) -> list[bytes]:
    """Copies of frames."""
    return [bytes(frame) for frame in frames]


async def within(seconds: float, waiting: Awaitable[T], what: str) -> T:
    """The result of ``waiting``; fails the test, saying that ``what`` did not happen, when it takes longer."""
    task = asyncio.ensure_future(waiting)
    done, _ = await asyncio.wait([task], timeout=seconds)
    if not done:
        task.cancel()
        # Not awaited: what ignores its deadline may ignore this too.
        raise AssertionError(f"{what} did not happen within {seconds:g} s")
    if task.cancelled():
        raise AssertionError(f"{what} came by cancellation, which nobody asked for")
    return task.result()


async def outcome(request: Awaitable[Sequence[Buffer]], what: str) -> list[bytes] | Exception:
    """Copies of the frames that ``request`` is answered with, or the error that it ends with."""
    try:
        return plain(await within(LONG, request, f"the end of {what}"))
    except AssertionError:
        raise
    except Exception as error:
        return error


async def listen_anywhere(transport: Transport, scheme: str, address: str | None, handler: FrameHandler) -> Listener:
    """A listener at ``address``, or where none was given at a free port, or at a new name.

    Raises UnavailableError when the transport says that it cannot be used here, AssertionError when it takes none.
    """
    refusals: list[LMCacheKitError] = []
    choices = [address] if address else [f"{scheme}://127.0.0.1:0", f"{scheme}://check-{secrets.token_hex(6)}"]
    for choice in choices:
        try:
            return await transport.listen(choice, handler)
        except UnavailableError:
            raise
        except LMCacheKitError as error:
            refusals.append(error)
    told = "; ".join(error.detail for error in refusals)
    raise AssertionError(f"cannot listen: {told}. The fixture `address` may name an address that any test can use")


class Site:
    """An event loop, two transports of the same options for the two sides, and all that was opened through them.

    Args:
        make: makes a transport.
        scheme: of its addresses.
        address: where to listen; None to choose.
    """

    def __init__(self, make: Callable[[], Transport], scheme: str, address: str | None) -> None:
        self._scheme, self._address = scheme, address
        self.near, self.far = make(), make()
        self.complaints: list[str] = []
        self._runner = asyncio.Runner()
        self._opened: list[Listener | Channel] = []

    def run(self, scenario: Coroutine[Any, Any, T]) -> T:
        """The scenario's result; it runs on this site's loop, which goes on with its tasks at the next one."""

        async def guarded() -> T:
            asyncio.get_running_loop().set_exception_handler(
                lambda loop, context: self.complaints.append(str(context.get("exception") or context["message"]))
            )
            return await within(4 * LONG, scenario, "the end of this test")

        return self._runner.run(guarded())

    async def listen(self, handler: FrameHandler = echo, address: str | None = None) -> Listener:
        if address is None:
            try:
                listener = await listen_anywhere(self.far, self._scheme, self._address, handler)
            except UnavailableError as error:
                pytest.skip(f"it cannot listen here: {error.detail}")
        else:
            listener = await self.far.listen(address, handler)
        self._opened.append(listener)
        return listener

    async def connect(self, address: str) -> Channel:
        channel = await within(LONG, self.near.connect(address), "connecting, which waits for nobody,")
        self._opened.append(channel)
        return channel

    async def pair(self, handler: FrameHandler = echo) -> tuple[Listener, Channel]:
        listener = await self.listen(handler)
        return listener, await self.connect(listener.address)

    async def free_address(self) -> str:
        """An address where nobody listens, and where it is possible to."""
        listener = await self.listen()
        await listener.close()
        return listener.address

    async def close_opened(self) -> None:
        """Close whatever is open, the newest first."""
        for opened in reversed(self._opened):
            await opened.close()
        self._opened.clear()

    def close(self) -> None:
        """Close everything and the loop."""
        with contextlib.suppress(Exception):  # the tests of closing have said what is wrong
            self.run(self.close_opened())
        self._runner.close()
