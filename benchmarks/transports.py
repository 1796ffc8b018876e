"""Latency and throughput of the transports by frame size.

Each transport echoes one frame between two processes (two tasks of one process for inproc). Latency is that of one
request at a time; throughput has four in flight and counts the frame's bytes in both directions.

Usage: python benchmarks/transports.py [--output FILE] [--seconds S] [--transport NAME]... [--size BYTES]...
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import platform
import statistics
import sys
import time
from pathlib import Path
from typing import Any

from lmcache_kit.contracts.records import TransportPlugin
from lmcache_kit.contracts.transport import Channel, Transport
from lmcache_kit.plugins import registry
from lmcache_kit.units import format_size

ADDRESSES = {"inproc": "inproc://*", "zmq": "tcp://127.0.0.1:0", "shm": "shm://*"}
SIZES = [4 * 2**10, 64 * 2**10, 2**20, 16 * 2**20, 64 * 2**20]
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


async def measure(channel: Channel, size: int, seconds: float) -> dict[str, Any]:
    """Figures of one size, from at least 5 requests each and at most ``seconds`` for either half."""
    frame = os.urandom(size)
    await channel.request([frame], timeout=TIMEOUT)
    latencies: list[float] = []
    begin = time.perf_counter()
    while len(latencies) < 5 or time.perf_counter() - begin < seconds:
        sent = time.perf_counter()
        await channel.request([frame], timeout=TIMEOUT)
        latencies.append(time.perf_counter() - sent)
    done = 0
    begin = time.perf_counter()

    async def keep_asking() -> None:
        nonlocal done
        while done < 5 or time.perf_counter() - begin < seconds:
            await channel.request([frame], timeout=TIMEOUT)
            done += 1

    await asyncio.gather(*(keep_asking() for _ in range(IN_FLIGHT)))
    elapsed = time.perf_counter() - begin
    latencies.sort()
    return {
        "frame_bytes": size,
        "requests": len(latencies) + done,
        "latency_p50_seconds": statistics.median(latencies),
        "latency_p99_seconds": latencies[min(len(latencies) - 1, int(len(latencies) * 0.99))],
        "requests_per_second": done / elapsed,
        "bytes_per_second": 2 * size * done / elapsed,
    }


async def run(name: str, sizes: list[int], seconds: float) -> list[dict[str, Any]]:
    """Results of one transport."""
    process = listener = None
    if name == "inproc":
        listener = await make(name).listen(ADDRESSES[name], echo)
        address = listener.address
    else:
        pipe = asyncio.subprocess.PIPE
        process = await asyncio.create_subprocess_exec(
            sys.executable, __file__, "--serve", name, stdin=pipe, stdout=pipe
        )
        assert process.stdout is not None
        address = (await process.stdout.readline()).decode().strip()
    channel = await make(name).connect(address)
    try:
        return [{"transport": name, **await measure(channel, size, seconds)} for size in sizes]
    finally:
        await channel.close()
        if listener is not None:
            await listener.close()
        if process is not None:
            await process.communicate(b"")  # closes its stdin, which ends it


def table(results: list[dict[str, Any]]) -> str:
    """The results for reading."""
    lines = [f"{'transport':<10} {'frame':>8} {'p50':>10} {'p99':>10} {'requests/s':>11} {'both ways':>12}"]
    lines += [
        f"{row['transport']:<10} {format_size(row['frame_bytes']):>8} {row['latency_p50_seconds'] * 1e3:>7.3f} ms "
        f"{row['latency_p99_seconds'] * 1e3:>7.3f} ms {row['requests_per_second']:>11,.0f} "
        f"{format_size(row['bytes_per_second']):>10}/s"
        for row in results
    ]
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, help="write the results as JSON to this file")
    parser.add_argument("--seconds", type=float, default=1.0, help="time for each half of a measurement")
    parser.add_argument("--transport", action="append", choices=list(ADDRESSES), help="only these")
    parser.add_argument("--size", action="append", type=int, help="only these frame sizes, in bytes")
    parser.add_argument("--serve", choices=list(ADDRESSES), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.serve:
        asyncio.run(serve(arguments.serve))
        return
    results = []
    for name in arguments.transport or ADDRESSES:
        results += asyncio.run(run(name, arguments.size or SIZES, arguments.seconds))
    print(table(results))
    if arguments.output is not None:
        host = {"cpus": os.cpu_count(), "machine": platform.machine(), "python": platform.python_version()}
        document = {"benchmark": "transports", "host": host, "in_flight": IN_FLIGHT, "results": results}
        arguments.output.write_text(json.dumps(document, indent=2) + "\n")


if __name__ == "__main__":
    main()
