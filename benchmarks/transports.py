"""Latency and throughput of the transports by frame size.

Each transport echoes one frame between two processes. Latency is that of one request at a time, there and back;
throughput has four in flight and counts the frame's bytes in both directions. `inproc` joins two tasks of one event
loop and passes references: its latency is that of the loop, and it moves no bytes, so it has no byte rate.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import sys
import time
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from typing import Any

from harness import LEAST_CALLS, Report, argument_parser, table

from lmcache_kit.contracts.records import TransportPlugin
from lmcache_kit.contracts.transport import Channel, Transport
from lmcache_kit.plugins import registry
from lmcache_kit.units import format_size

ADDRESSES = {"inproc": "inproc://*", "zmq": "tcp://127.0.0.1:0", "shm": "shm://*"}
BY_REFERENCE = frozenset({"inproc"})
SIZES = (4 * 2**10, 64 * 2**10, 2**20, 16 * 2**20, 64 * 2**20)
QUICK_SIZES = (4 * 2**10, 2**20)
IN_FLIGHT = 4
TIMEOUT = 60.0


def make(name: str) -> Transport:
    record = registry().get(TransportPlugin, name)
    return record.factory(registry().options(record))


async def echo(frames: Any) -> Any:
    return frames


async def serve(name: str) -> None:
    """Echo until stdin ends; the address goes to stdout."""
    listener = await make(name).listen(ADDRESSES[name], echo)
    print(listener.address, flush=True)
    await asyncio.to_thread(sys.stdin.read)
    await listener.close()


@asynccontextmanager
async def listening(name: str) -> AsyncIterator[str]:
    """The address of an echo: in a process of its own, unless the transport cannot leave this one."""
    if name in BY_REFERENCE:
        listener = await make(name).listen(ADDRESSES[name], echo)
        try:
            yield listener.address
        finally:
            await listener.close()
        return
    pipe = asyncio.subprocess.PIPE
    process = await asyncio.create_subprocess_exec(sys.executable, __file__, "--serve", name, stdin=pipe, stdout=pipe)
    try:
        assert process.stdout is not None
        yield (await process.stdout.readline()).decode().strip()
    finally:
        await process.communicate(b"")  # closes its stdin, which ends it


async def one_by_one(channel: Channel, frame: bytes, seconds: float) -> list[float]:
    """Seconds of each request, one at a time."""
    taken: list[float] = []
    begin = time.perf_counter()
    while len(taken) < LEAST_CALLS or time.perf_counter() - begin < seconds:
        sent = time.perf_counter()
        await channel.request([frame], timeout=TIMEOUT)
        taken.append(time.perf_counter() - sent)
    return taken


async def in_flight(channel: Channel, frame: bytes, seconds: float) -> float:
    """Requests per second with several under way."""
    done, begin = 0, time.perf_counter()

    async def keep_asking() -> None:
        nonlocal done
        while done < LEAST_CALLS or time.perf_counter() - begin < seconds:
            await channel.request([frame], timeout=TIMEOUT)
            done += 1

    await asyncio.gather(*(keep_asking() for _ in range(IN_FLIGHT)))
    return done / (time.perf_counter() - begin)


async def run(report: Report, name: str, sizes: Iterable[int], seconds: float, rounds: int) -> None:
    """Results of one transport."""
    async with listening(name) as address:
        channel = await make(name).connect(address)
        try:
            for size in sizes:
                frame = os.urandom(size)
                answer = await channel.request([frame], timeout=TIMEOUT)
                if len(answer) != 1 or bytes(answer[0]) != frame:
                    raise SystemExit(f"{name} brought back something else than the {size} bytes sent")
                await in_flight(channel, frame, 0)
                latencies = await one_by_one(channel, frame, seconds)
                rates = [await in_flight(channel, frame, seconds / rounds) for _ in range(rounds)]
                metrics = {"latency_seconds": latencies, "requests_per_second": rates}
                if name not in BY_REFERENCE:
                    metrics["bytes_per_second"] = [2 * size * rate for rate in rates]
                report.add(name, metrics, frame_bytes=size, by_reference=name in BY_REFERENCE)
        finally:
            await channel.close()


def print_table(results: Iterable[dict[str, Any]]) -> None:
    rows = []
    for result in results:
        metrics = result["metrics"]
        latency, rate = metrics["latency_seconds"], metrics.get("bytes_per_second")
        rows.append(
            [
                result["name"],
                format_size(result["frame_bytes"]),
                1e3 * latency["median"],
                1e3 * latency["p99"],
                metrics["requests_per_second"]["median"],
                "by reference" if rate is None else f"{format_size(rate['median'])}/s",
            ]
        )
    print(table(["transport", "frame", "p50 ms", "p99 ms", f"requests/s, {IN_FLIGHT} in flight", "both ways"], rows))


def main() -> None:
    parser = argument_parser(__doc__, seconds=1.0, each="latency and each throughput")
    parser.add_argument("--rounds", type=int, default=5, help="of throughput")
    parser.add_argument("--transport", action="append", choices=list(ADDRESSES), help="only these")
    parser.add_argument("--size", action="append", type=int, help="only these frame sizes, in bytes")
    parser.add_argument("--serve", choices=list(ADDRESSES), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.serve:
        asyncio.run(serve(arguments.serve))
        return
    seconds, rounds = (0.05, 1) if arguments.quick else (arguments.seconds, arguments.rounds)
    sizes = arguments.size or (QUICK_SIZES if arguments.quick else SIZES)
    report = Report("transports", arguments, {"seconds": seconds, "rounds": rounds, "in_flight": IN_FLIGHT}, ("pyzmq",))
    for name in arguments.transport or ADDRESSES:
        asyncio.run(run(report, name, sizes, seconds, rounds))
    print_table(report.results)
    report.write()


if __name__ == "__main__":
    main()
