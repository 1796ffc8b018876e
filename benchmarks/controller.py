"""Speed of the controller: HTTP lookups per second and admits applied per second, beside a real LMCache one if given.

Every lookup is a full hit of its prompt, among many other keys that the controller knows. Admits are messages of 50
operations on distinct keys, sent as fast as the socket takes them; they count when the controller's own statistics
count the keys. With --peer-python, a second controller runs from that environment, sides take turns round by round
under the same load, and ratios are those of the medians (ours / peer; lookup rates and admits: higher is better).
"""

from __future__ import annotations

import random
import time
from collections import defaultdict
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import msgspec
import zmq
from controllers import BATCH, Side, our_controller, peer_controller, peer_facts
from facts import process_cpu_seconds, resident_bytes
from harness import Report, argument_parser, table
from http_load import post_request, run_load

LENGTHS = (12, 256, 2048, 8192)
CONNECTIONS = 8
OTHER_KEYS = 100_000
POLL_SECONDS = 0.01
DISTRIBUTIONS = ("starlette", "uvicorn", "httptools", "uvloop", "msgspec", "pyzmq")

Samples = dict[str, list[float]]


def prompt(length: int) -> list[int]:
    """Token ids of the size that a large vocabulary has."""
    return [100_000 + (length * 7919 + i * 104_729) % 28_000 for i in range(length)]


def random_keys(count: int, seed: int) -> list[int]:
    """Spread over 64 bits, as hashes are; consecutive numbers would flatter a dictionary."""
    generator = random.Random(seed)
    return [generator.getrandbits(64) - 2**63 for _ in range(count)]


def lookup_round(side: Side, length: int, seconds: float, samples: Samples) -> None:
    """All connections ask for one prompt."""
    request = post_request("/lookup", msgspec.json.encode({"tokens": prompt(length)}))
    before = process_cpu_seconds(side.pid)
    load = run_load(side.http, request, connections=CONNECTIONS, seconds=seconds)
    after = process_cpu_seconds(side.pid)
    latencies = sorted(load.latencies)
    samples["requests_per_second"].append(load.requests_per_second)
    samples["latency_p50_ms"].append(1e3 * latencies[len(latencies) // 2])
    samples["latency_p99_ms"].append(1e3 * latencies[len(latencies) * 99 // 100])
    samples["generator_busy"].append(load.generator_busy)
    if before is not None and after is not None:
        samples["server_cpu"].append((after - before) / load.seconds)


def admit_round(side: Side, keys: list[int], samples: Samples) -> None:
    """Push keys, encoded beforehand, and wait until all are counted."""
    frames = side.frames(keys)
    target = side.key_count() + len(keys)
    started = time.perf_counter()
    side.push(frames)
    pushed = time.perf_counter() - started
    while side.key_count() < target:
        # Asking costs the controller time, so not too often: an error of at most one pause.
        time.sleep(POLL_SECONDS)
    elapsed = time.perf_counter() - started
    samples["admits_per_second"].append(len(keys) / elapsed)
    samples["sending_share"].append(pushed / elapsed)


def run(sides: list[Side], rounds: int, seconds: float, operations: int) -> dict[tuple[str, int, str], Samples]:
    """Samples by (what, tokens or operations, side). The first round of each warms up and is not kept."""
    prompts = [prompt(length) for length in LENGTHS]
    for side in sides:
        side.admit(random_keys(OTHER_KEYS, seed=0))
        side.hold(prompts)
    found: dict[tuple[str, int, str], Samples] = defaultdict(lambda: defaultdict(list))
    for turn in range(-1, rounds):
        order = sides if turn % 2 == 0 else sides[::-1]
        for length in LENGTHS:
            for side in order:
                kept = found["lookup", length, side.name] if turn >= 0 else defaultdict(list)
                lookup_round(side, length, seconds if turn >= 0 else min(seconds, 0.3), kept)
    for turn in range(-1, rounds):
        keys = random_keys(operations, seed=turn + 2)
        for side in sides if turn % 2 == 0 else sides[::-1]:
            admit_round(side, keys, found["admit", operations, side.name] if turn >= 0 else defaultdict(list))
    return found


def print_tables(results: list[dict[str, Any]]) -> None:
    rows: dict[str, list[list[object]]] = {"lookup": [], "admit": []}
    rates = {"lookup": "requests_per_second", "admit": "admits_per_second"}
    ours: dict[tuple[str, int], float] = {}
    for result in results:
        name, size, metrics = result["name"], result["size"], result["metrics"]
        rate = metrics[rates[name]]["median"]
        ours.setdefault((name, size), rate)
        row = [result["side"], size, rate]
        if name == "lookup":
            names = ("latency_p50_ms", "latency_p99_ms", "generator_busy", "server_cpu")
            row += [metrics[metric]["median"] if metric in metrics else None for metric in names]
        rows[name].append([*row, ours[name, size] / rate if result["side"] == "peer" else None])
    columns = ["side", "tokens", "lookups/s", "p50 ms", "p99 ms", "generator busy", "server CPU", "ours / peer"]
    print(table(columns, rows["lookup"]))
    print()
    print(table(["side", "operations", "admits/s", "ours / peer"], rows["admit"]))


def main() -> None:
    parser = argument_parser(__doc__, seconds=1.5, each="round of lookups")
    parser.add_argument("--peer-python", type=Path, metavar="PATH", help="python of an environment with lmcache")
    parser.add_argument("--peer-without-access-log", action="store_true", help="silence what the peer logs by default")
    parser.add_argument("--rounds", type=int, default=5, help="of each measurement and side")
    parser.add_argument("--operations", type=int, default=200_000, help="admits of one round")
    arguments = parser.parse_args()
    rounds, seconds, operations = arguments.rounds, arguments.seconds, arguments.operations
    if arguments.quick:
        rounds, seconds, operations = 1, 0.1, 10 * BATCH
    parameters = {
        "rounds": rounds,
        "seconds": seconds,
        "connections": CONNECTIONS,
        "batch": BATCH,
        "other_keys": OTHER_KEYS,
        "peer_access_log": not arguments.peer_without_access_log,
    }
    report = Report("controller", arguments, parameters, DISTRIBUTIONS)
    more: dict[str, Any] = {} if arguments.peer_python is None else {"peer": peer_facts(arguments.peer_python)}
    with zmq.Context() as context, ExitStack() as stack:
        sides = [stack.enter_context(our_controller(context))]
        if arguments.peer_python is not None:
            peer = peer_controller(arguments.peer_python, context, access_log=not arguments.peer_without_access_log)
            sides.append(stack.enter_context(peer))
        more["resident_bytes_idle"] = {side.name: resident_bytes(side.pid) for side in sides}
        for (name, size, side), samples in run(sides, rounds, seconds, operations).items():
            report.add(name, samples, side=side, size=size)
        more["resident_bytes_after"] = {side.name: resident_bytes(side.pid) for side in sides}
    print_tables(report.results)
    for side, idle in more["resident_bytes_idle"].items():
        print(f"{side}: {(idle or 0) / 2**20:,.0f} MiB resident when idle")
    report.write(**more)


if __name__ == "__main__":
    main()
