"""Speed of the controller: HTTP lookups per second and admits applied per second.

    python benchmarks/controller.py --output FILE [--seconds N]

The controller runs as its own process (``lmcache-kit controller``); the load comes from a second one, over raw HTTP/1.1
sockets on 8 connections, because a comfortable HTTP client would be slower than the server that it measures. Every
lookup is a full hit. Admits travel as ZeroMQ messages of 50 operations and count when the controller has applied them
(its own counter). The result file holds machine, versions, raw samples and medians.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import platform
import re
import statistics
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgspec
import zmq

from lmcache_kit import __version__
from lmcache_kit.kv.hashing import ChunkHasher, HashSpec
from lmcache_kit.messages import BatchedKVOperationMsg, KVOpEvent, RegisterMsg, encode

LENGTHS = (12, 256, 2048, 8192)
CONNECTIONS = 8
REPEATS = 5
BATCH = 50
LOCATION = "LocalCPUBackend"
SPEC = HashSpec()


@contextmanager
def controller() -> Iterator[dict[str, int]]:
    """A controller process and its ports."""
    command = [sys.executable, "-m", "lmcache_kit", "controller", "--port", "0", "--monitor-port", "0"]
    process = subprocess.Popen(
        [*command, "--none-hash", str(SPEC.none_hash)], stderr=subprocess.PIPE, text=True, bufsize=1
    )
    try:
        assert process.stderr is not None
        line = next((line for line in process.stderr if line.startswith("controller ready")), "")
        ports = {name: int(port) for name, port in re.findall(r"(pull|reply|heartbeat)=(\d+)", line)}
        http = re.search(r"http=\S+:(\d+)", line)
        if http is None:
            raise SystemExit(f"the controller ended with {process.wait()}")
        yield {**ports, "http": int(http[1]), "pid": process.pid}
    finally:
        process.terminate()
        process.wait()


def prompt(length: int) -> list[int]:
    """Token ids of the size that a large vocabulary has."""
    return [100_000 + (length * 7919 + i * 104_729) % 28_000 for i in range(length)]


def fill(pull: zmq.Socket[bytes]) -> int:
    """Register an instance that holds every prompt; returns how many chunks it announced."""
    pull.send(encode(RegisterMsg(instance_id="bench", worker_id=0, ip="127.0.0.1", port=1)))
    keys = [key for length in LENGTHS for key in ChunkHasher(SPEC).hashes(prompt(length))]
    pull.send(encode(admits(keys, 0)))
    return len(keys)


def admits(keys: list[int], first: int) -> BatchedKVOperationMsg:
    operations = [KVOpEvent(op_type="admit", key=key, seq_num=first + i) for i, key in enumerate(keys)]
    return BatchedKVOperationMsg(instance_id="bench", worker_id=0, location=LOCATION, operations=operations)


# --- lookups ----------------------------------------------------------------------------------------------------------


async def client(port: int, request: bytes, until: float, latencies: list[float]) -> None:
    """One connection that sends the request again and again."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    while (started := time.perf_counter()) < until:
        writer.write(request)
        head = await reader.readuntil(b"\r\n\r\n")
        if not head.startswith(b"HTTP/1.1 200"):
            raise SystemExit(head.decode(errors="replace"))
        found = re.search(rb"content-length: (\d+)", head)
        assert found is not None
        await reader.readexactly(int(found[1]))
        latencies.append(time.perf_counter() - started)
    writer.close()
    await writer.wait_closed()


async def load(port: int, length: int, seconds: float) -> dict[str, Any]:
    """One sample: all connections for ``seconds``."""
    body = msgspec.json.encode({"tokens": prompt(length)})
    head = (
        f"POST /lookup HTTP/1.1\r\nhost: bench\r\ncontent-type: application/json\r\ncontent-length: {len(body)}\r\n\r\n"
    )
    latencies: list[float] = []
    started = time.perf_counter()
    clients = (client(port, head.encode() + body, started + seconds, latencies) for _ in range(CONNECTIONS))
    await asyncio.gather(*clients)
    elapsed = time.perf_counter() - started
    latencies.sort()
    return {
        "requests_per_second": len(latencies) / elapsed,
        "p50_ms": 1e3 * latencies[len(latencies) // 2],
        "p99_ms": 1e3 * latencies[len(latencies) * 99 // 100],
    }


def generate(port: int, length: int, seconds: float) -> None:
    """The load process: samples as JSON on stdout, the first one thrown away."""
    run: Any = asyncio.run
    try:
        import uvloop

        run = uvloop.run
    except ImportError:
        pass
    run(load(port, length, min(0.3, seconds)))
    print(json.dumps([run(load(port, length, seconds)) for _ in range(REPEATS)]))


def lookups(ports: dict[str, int], seconds: float) -> list[dict[str, Any]]:
    results = []
    for length in LENGTHS:
        answer = post(ports["http"], "/lookup", {"tokens": prompt(length)})
        if answer["prefix"] != {"bench": length}:
            raise SystemExit(f"the lookup of {length} tokens found {answer['prefix']}")
        command = [sys.executable, __file__, "--generate", str(ports["http"]), str(length), str(seconds)]
        samples = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
        results.append({"name": "lookup", "tokens": length, "connections": CONNECTIONS, **summary(samples)})
    return results


# --- admits -----------------------------------------------------------------------------------------------------------


def applied(port: int) -> int:
    """Operations that the controller has applied so far."""
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=60) as answer:
        found = re.search(rb"^lmcache_kit_controller_operations_applied_total ([\d.e+]+)", answer.read(), re.M)
    assert found is not None
    return int(float(found[1]))


def admit(ports: dict[str, int], pull: zmq.Socket[bytes], first: int, seconds: float) -> dict[str, Any]:
    """Push distinct keys, encoded beforehand, and wait until all are applied."""
    samples = []
    count = max(1, int(seconds * 300_000) // BATCH)
    for _ in range(REPEATS):
        frames = []
        for _ in range(count):
            # Hashes are spread over 64 bits; consecutive keys would flatter the index's dictionary.
            keys = [hash((first + i, "key")) for i in range(BATCH)]
            frames.append(encode(admits(keys, first)))
            first += BATCH
        before, target = applied(ports["http"]), count * BATCH
        started = time.perf_counter()
        for frame in frames:
            pull.send(frame)
        while applied(ports["http"]) - before < target:
            time.sleep(0.002)
        samples.append({"admits_per_second": target / (time.perf_counter() - started)})
    return {"name": "admit", "batch": BATCH, "operations": count * BATCH, **summary(samples)}


# --- report -----------------------------------------------------------------------------------------------------------


def summary(samples: list[dict[str, Any]]) -> dict[str, Any]:
    """Medians over the samples, beside the samples."""
    return {
        "samples": samples,
        **{name: statistics.median(sample[name] for sample in samples) for name in samples[0]},
    }


def post(port: int, path: str, body: Any) -> Any:
    request = urllib.request.Request(f"http://127.0.0.1:{port}{path}", data=json.dumps(body).encode())
    with urllib.request.urlopen(request, timeout=60) as answer:
        return json.load(answer)


def machine() -> dict[str, Any]:
    model = platform.processor()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        found = re.search(r"model name\s*:\s*(.+)", cpuinfo.read_text())
        model = found[1] if found else model
    return {"cpu": model, "cores": os.cpu_count(), "system": platform.platform(terse=True)}


def versions() -> dict[str, str]:
    from importlib.metadata import version

    names = ("starlette", "uvicorn", "httptools", "uvloop", "msgspec", "pyzmq")
    return {"lmcache_kit": __version__, "python": platform.python_version(), **{name: version(name) for name in names}}


def resident_bytes(pid: int) -> int | None:
    status = Path(f"/proc/{pid}/status")
    found = re.search(r"VmRSS:\s+(\d+) kB", status.read_text()) if status.exists() else None
    return int(found[1]) * 1024 if found else None


def main() -> None:
    if len(sys.argv) == 5 and sys.argv[1] == "--generate":
        generate(int(sys.argv[2]), int(sys.argv[3]), float(sys.argv[4]))
        return
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--output", type=Path, required=True, help="file for the results (JSON)")
    parser.add_argument("--seconds", type=float, default=2.0, help=f"length of one sample; {REPEATS} are taken of each")
    arguments = parser.parse_args()
    with controller() as ports, zmq.Context() as context, context.socket(zmq.PUSH) as pull:
        idle = resident_bytes(ports["pid"])
        pull.sndhwm = 0
        pull.connect(f"tcp://127.0.0.1:{ports['pull']}")
        chunks = fill(pull)
        while applied(ports["http"]) < chunks:
            time.sleep(0.01)
        results = lookups(ports, arguments.seconds)
        results.append(admit(ports, pull, chunks, arguments.seconds))
        memory = {"name": "memory", "idle_bytes": idle, "after_bytes": resident_bytes(ports["pid"])}
    document = {
        "benchmark": "controller",
        "date": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "machine": machine(),
        "versions": versions(),
        "seconds_per_sample": arguments.seconds,
        "results": [*results, memory],
    }
    arguments.output.parent.mkdir(parents=True, exist_ok=True)
    arguments.output.write_text(json.dumps(document, indent=2) + "\n")
    print(f"{'work':<24}{'per second':>12}{'p50 ms':>9}{'p99 ms':>9}")
    for result in results[:-1]:
        name = f"lookup {result['tokens']} tokens"
        print(f"{name:<24}{result['requests_per_second']:>12,.0f}{result['p50_ms']:>9.2f}{result['p99_ms']:>9.2f}")
    print(f"{f'admits, {BATCH} a message':<24}{results[-1]['admits_per_second']:>12,.0f}")
    print(f"resident: {(idle or 0) / 2**20:.0f} MiB idle, {(memory['after_bytes'] or 0) / 2**20:.0f} MiB at the end")


if __name__ == "__main__":
    main()
