"""Transports: frames go there and back, several at a time; errors and silence are told apart."""

from __future__ import annotations

import asyncio
import functools
import os
import secrets
from collections.abc import Awaitable, Callable, Sequence

from lmcache_kit.contracts.records import Options, TransportPlugin
from lmcache_kit.contracts.storage import Buffer
from lmcache_kit.contracts.transport import Channel, FrameHandler, Listener, Transport
from lmcache_kit.errors import LMCacheKitError, TransportError, UnavailableError
from lmcache_kit.testing.checks.result import CheckResult, Skipped, require, run_check

__all__ = ["run"]

_TIMEOUT = 20.0


def run(record: TransportPlugin, options: Options) -> list[CheckResult]:
    checks: dict[str, Callable[[Channel], Awaitable[str]]] = {
        "frames there and back": _echo,
        "many requests in flight": _concurrent,
        "an error of the handler": _handler_error,
        "no answer in time": _silence,
    }
    results = []
    for name, check in checks.items():
        results.append(run_check(name, functools.partial(_run, record, options, check)))
        if results[-1].outcome == "skipped":
            return results
    results.append(run_check("closing", lambda: asyncio.run(_closing(record, options))))
    return results


async def _answer(frames: Sequence[Buffer]) -> Sequence[Buffer]:
    first = bytes(frames[0]) if frames else b""
    if first == b"fail":
        raise ValueError("the handler says no")
    if first == b"wait":
        await asyncio.sleep(_TIMEOUT)
    return frames


async def _listen(record: TransportPlugin, transport: Transport, handler: FrameHandler) -> Listener:
    """On an address of this transport: a free port, or else a name of its own."""
    refusals = []
    for rest in ("127.0.0.1:0", f"check-{secrets.token_hex(6)}"):
        try:
            return await transport.listen(f"{record.scheme}://{rest}", handler)
        except LMCacheKitError as error:
            refusals.append(error.message)
    raise Skipped(f"cannot listen here: {'; '.join(refusals)}")


def _run(record: TransportPlugin, options: Options, check: Callable[[Channel], Awaitable[str]]) -> str:
    return asyncio.run(_with_channel(record, options, check))


async def _with_channel(record: TransportPlugin, options: Options, check: Callable[[Channel], Awaitable[str]]) -> str:
    transport = record.factory(options)
    require(isinstance(transport, Transport), "the factory did not make a Transport")
    listener = await _listen(record, transport, _answer)
    try:
        require(
            listener.address.startswith(f"{record.scheme}://"), f"the address {listener.address!r} lacks the scheme"
        )
        channel = await transport.connect(listener.address)
        try:
            return await check(channel)
        finally:
            await channel.close()
            await channel.close()
    finally:
        await listener.close()
        await listener.close()


async def _echo(channel: Channel) -> str:
    large = os.urandom(1 << 20) * 4
    cases: list[list[Buffer]] = [
        [b"one"],
        [b"a", b"", b"\0\xff"],
        [bytearray(b"x"), memoryview(b"abc")[1:]],
        [b"head", large],
    ]
    for frames in cases:
        got = await channel.request(frames, timeout=_TIMEOUT)
        require([bytes(frame) for frame in got] == [bytes(frame) for frame in frames], "frames come back changed")
    return "up to 4 MiB"


async def _concurrent(channel: Channel) -> str:
    frames: list[list[Buffer]] = [[str(number).encode(), os.urandom(number * 50)] for number in range(40)]
    answers = await asyncio.gather(*(channel.request(each, timeout=_TIMEOUT) for each in frames))
    for sent, got in zip(frames, answers, strict=True):
        require([bytes(frame) for frame in got] == sent, "a request got the answer of another one")
    return f"{len(frames)} requests"


async def _handler_error(channel: Channel) -> str:
    try:
        await channel.request([b"fail"], timeout=_TIMEOUT)
    except TransportError as error:
        require("the handler says no" in error.message, f"the handler's text is lost: {error.message}")
    else:
        raise AssertionError("what the handler raised did not reach the caller")
    require(bytes((await channel.request([b"on"], timeout=_TIMEOUT))[0]) == b"on", "the channel is dead after an error")
    return ""


async def _silence(channel: Channel) -> str:
    try:
        async with asyncio.timeout(_TIMEOUT / 2):
            await channel.request([b"wait"], timeout=0.2)
    except UnavailableError:
        pass
    except TimeoutError:
        raise AssertionError("a request does not end at its timeout") from None
    else:
        raise AssertionError("a request without an answer did not end with UnavailableError")
    require(
        bytes((await channel.request([b"on"], timeout=_TIMEOUT))[0]) == b"on", "the channel is dead after a timeout"
    )
    return ""


async def _closing(record: TransportPlugin, options: Options) -> str:
    transport = record.factory(options)
    listener = await _listen(record, transport, _answer)
    channel = await transport.connect(listener.address)
    try:
        await channel.request([b"before"], timeout=_TIMEOUT)
        await listener.close()
        try:
            await channel.request([b"after"], timeout=0.3)
        except UnavailableError:
            return ""
        raise AssertionError("a request is answered after the listener was closed")
    finally:
        await channel.close()
        await listener.close()
