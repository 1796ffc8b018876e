"""Speed and memory of the virtual clock: a trace on sixteen instances, made-up requests on a thousand at three sizes.

Every figure is that of a whole `lmcache-kit run` in a process of its own, start and report included:

- seconds: of processor time, which other work on the machine does not change much;
- elapsed_seconds: on the wall;
- peak_bytes: most memory at once.

The trace is not part of this project: --trace names a file in Mooncake's format (12,031 conversations of FAST'25).
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from harness import Report, argument_parser, table

SIZES = (10_000, 100_000, 1_000_000)
QUICK_SIZES = (1_000, 4_000)

# A Llama-3.1-8B: 64 MiB of KV for a chunk of 512 tokens.
ENGINE = {
    "kind": "synthetic",
    "options": {"num_layers": 32, "num_kv_heads": 8, "head_dim": 128, "max_model_len": 1_000_000},
}
COSTS = {
    "engines": {"synthetic": {"profile": "h100-llama-3.1-8b"}},
    "tiers": {"Remote": {"read_gbps": 10, "write_gbps": 10, "read_seconds": 0.001, "write_seconds": 0.001}},
    "request_seconds": 0.001,
    "lookup_seconds": 0.001,
}
TIERS = [
    {"kind": "memory", "capacity": "256GiB"},
    {"kind": "disk", "capacity": "2TiB"},
    {"kind": "disk", "location": "Remote", "capacity": "16TiB"},
]


def scenario(name: str, instances: int, workload: dict[str, Any], tiers: list[dict[str, Any]]) -> dict[str, Any]:
    """A scenario document."""
    return {
        "name": name,
        "clock": "virtual",
        "seed": 1,
        "events": False,
        "costs": COSTS,
        "instance_defaults": {
            "engine": ENGINE,
            "chunk_size": 512,
            "max_num_seqs": 256,
            "placement": "demote",
            "tiers": tiers,
        },
        "instances": [{"id": "node", "count": instances}],
        "workloads": [{"name": "serve", "kind": "traffic", "events": False, "routing": "prefix_aware", **workload}],
        "reporters": [],
    }


def million(requests: int, instances: int) -> dict[str, Any]:
    """Requests that share prefixes of 4,096 tokens in ten thousand groups, two a second and instance."""
    contents = {"kind": "shared_prefix", "groups": 10_000, "prefix_tokens": 4096, "suffix_tokens": 512, "zipf": 0.8}
    return {
        "contents": {**contents, "output_tokens": 128, "block_size": 512},
        "arrivals": {"kind": "poisson", "rate": 2.0 * instances},
        "requests": requests,
    }


def run(document: dict[str, Any]) -> dict[str, Any]:
    """One run: its figures, and its first result."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "scenario.yaml"
        path.write_text(json.dumps(document))
        command = [
            sys.executable,
            "-m",
            "lmcache_kit",
            "run",
            str(path),
            "--output-dir",
            f"{folder}/out",
            "--format",
            "json",
        ]
        begin = time.perf_counter()
        with open(f"{folder}/stdout", "wb") as output, open(f"{folder}/stderr", "wb") as errors:
            child = subprocess.Popen(command, stdout=output, stderr=errors)
            # Waited for here, since this tells what the child took.
            _, status, usage = os.wait4(child.pid, 0)
            child.returncode = os.waitstatus_to_exitcode(status)
        elapsed = time.perf_counter() - begin
        if child.returncode:
            sys.exit(f"error: {document['name']} failed:\n{Path(errors.name).read_text()[-2000:]}")
        (result,) = json.loads(Path(output.name).read_text())["results"]
    used = {"seconds": usage.ru_utime + usage.ru_stime, "peak": usage.ru_maxrss * 1024}
    return {**used, "elapsed": elapsed, "result": result}


def main() -> None:
    parser = argument_parser(__doc__)
    parser.add_argument("--trace", type=Path, metavar="FILE", help="a trace in Mooncake's format")
    parser.add_argument("--instances", type=int, default=1000, help="of the made-up runs; default: 1000")
    parser.add_argument("--rounds", type=int, default=5, help="of the trace; default: 5")
    parser.add_argument("--most", type=int, default=SIZES[-1], help="largest number of requests; default: a million")
    arguments = parser.parse_args()
    sizes = QUICK_SIZES if arguments.quick else [size for size in SIZES if size <= arguments.most]
    instances = 20 if arguments.quick else arguments.instances
    rounds = 1 if arguments.quick else arguments.rounds
    report = Report("simulator", arguments, {"instances": instances, "sizes": list(sizes)}, ("msgspec", "numpy"))
    rows = []

    def record(name: str, document: dict[str, Any], times: int, fleet: int) -> None:
        runs = [run(document) for _ in range(times)]
        samples = {
            "seconds": [one["seconds"] for one in runs],
            "elapsed_seconds": [one["elapsed"] for one in runs],
            "peak_bytes": [one["peak"] for one in runs],
        }
        # One long run is no distribution: its figures stand as they are.
        once = {name: values[0] for name, values in samples.items()} if times == 1 else {}
        result = runs[0]["result"]
        report.add(
            name,
            {} if once else samples,
            instances=fleet,
            requests=result["counts"]["requests"],
            hit_rate=result["hit_rate"],
            virtual_seconds=result["seconds"],
            **once,
        )
        seconds, elapsed = (statistics.median(samples[name]) for name in ("seconds", "elapsed_seconds"))
        requests = result["counts"]["requests"]
        rows.append(
            [name, fleet, requests, result["seconds"], seconds, elapsed, 1e6 * seconds / requests,
             max(samples["peak_bytes"]) / 1e9, result["hit_rate"]]
        )  # fmt: skip
        report.write()

    for size in sizes:
        tiers = [{"kind": "memory", "capacity": "16GiB"}, {"kind": "disk", "capacity": "64GiB"}]
        record(
            f"shared prefixes, {size}", scenario("made-up", instances, million(size, instances), tiers), 1, instances
        )
    if arguments.trace is not None:
        workload = {"trace": {"path": os.path.abspath(arguments.trace)}}
        record("conversation trace", scenario("trace", 16, workload, TIERS), rounds, 16)
    columns = ["run", "instances", "requests", "virtual s", "cpu s", "elapsed s", "us/request", "GB", "hit rate"]
    print(table(columns, rows))


if __name__ == "__main__":
    main()
