"""Speed of a transport within this process: listener and channel share one event loop."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from pathlib import Path

from lmcache_kit.clock import WallClock
from lmcache_kit.contracts.records import Options, TransportPlugin
from lmcache_kit.contracts.storage import Buffer
from lmcache_kit.testing.suites.transport_site import LONG, listen_anywhere

__all__ = ["measure"]

_SMALL = 64
_LARGE = 16 * 2**20
_IN_FLIGHT = 32


def measure(
    record: TransportPlugin, options: Options, *, seconds: float, sample: Path | None
) -> Mapping[str, float | int | str | None]:
    """Round trips per second of 64 bytes, one at a time and 32 in flight, and GB/s (10**9 bytes) of 16 MiB."""
    return asyncio.run(_measure(record, options, seconds))


async def _measure(record: TransportPlugin, options: Options, seconds: float) -> dict[str, float | int | str | None]:
    async def first_byte(frames: Sequence[Buffer]) -> Sequence[Buffer]:
        return [bytes(memoryview(frames[0])[:1])]

    # A transport for each side, as two instances have.
    listener = await listen_anywhere(record.factory(options), record.scheme, None, first_byte)
    try:
        channel = await record.factory(options).connect(listener.address)
        try:

            async def ask(frame: Buffer) -> None:
                await channel.request([frame], timeout=LONG)

            # Not bytes: what may pass by reference would otherwise.
            small, large = bytearray(_SMALL), bytearray(_LARGE)
            return {
                "round trips/s": await _rate(lambda: ask(small), seconds),
                f"round trips/s, {_IN_FLIGHT} in flight": _IN_FLIGHT
                * await _rate(lambda: _together(ask, small), seconds),
                "16 MiB frames GB/s": _LARGE / 1e9 * await _rate(lambda: ask(large), seconds),
            }
        finally:
            await channel.close()
    finally:
        await listener.close()


async def _together(ask: Callable[[Buffer], Awaitable[None]], frame: Buffer) -> None:
    await asyncio.gather(*(ask(frame) for _ in range(_IN_FLIGHT)))


async def _rate(work: Callable[[], Awaitable[None]], seconds: float) -> float:
    """How often in a second ``work`` is done, after a first time that is not counted."""
    clock = WallClock()
    await work()
    count, began = 0, clock.now()
    while (passed := clock.now() - began) < seconds or count == 0:
        await work()
        count += 1
    return count / passed
