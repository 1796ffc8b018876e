"""Time from a new process to cachegen's first payload and first decoded tensor, compiled programs absent and on disk.

Each round is a process of its own. The first of a device starts with an empty folder of compiled programs (cold), the
others use what it left there (warm). Seconds, as that process sees them:

- make: importing the method's packages and making the method, after numpy, PyTorch and jax have been imported;
- encode, decode: the first call of each, one chunk from a tensor on the device (a GPU) or in host memory to bytes and
  back, compilation included;
- second_encode, second_decode: what a call takes from then on.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from harness import Report, argument_parser, table

SHAPE = "32,2,256,8,128"
QUICK_SHAPE = "2,2,128,2,64"
QUANTIZERS = ("lmcache", "uniform")
STEPS = ("make", "encode", "decode", "second_encode", "second_decode")
DISTRIBUTIONS = ("torch", "jax", "jaxlib", "jax-cuda13-plugin", "numba", "lmcache-kit-kernels", "lmcache-kit-cachegen")


def child(device: str, quantizer: str, shape: tuple[int, ...]) -> dict[str, float]:
    """The seconds of each step, in this process."""
    import numpy as np

    from lmcache_kit.codec_tools import random_kv
    from lmcache_kit.kv.layout import KVLayout

    if device == "gpu":
        import jax
        import torch

        torch.zeros(1, device="cuda")
        jax.block_until_ready(jax.numpy.zeros(1))
    layers, planes, tokens, heads, dim = shape
    layout = KVLayout(layers, heads, dim, "bfloat16", planes)
    kv = random_kv(layout, tokens, 0)
    found: dict[str, float] = {}

    def timed(step: str, work: Callable[[], Any]) -> Any:
        begin = time.perf_counter()
        result = work()
        if device == "gpu":
            torch.cuda.synchronize()
        found[step] = time.perf_counter() - begin
        return result

    def make() -> Any:
        from lmcache_kit_cachegen.options import CacheGenOptions
        from lmcache_kit_cachegen.plugin import lmcache_kit_compression_methods

        (record,) = lmcache_kit_compression_methods()
        return record.factory(CacheGenOptions(device=device, quantizer=quantizer))

    method: Any = timed("make", make)
    source = method.device_tensor(kv) if device == "gpu" else kv
    encode = method.encode_tensor if device == "gpu" else method.encode
    decode = method.decode_tensor if device == "gpu" else method.decode
    for prefix in ("", "second_"):
        payload = memoryview(timed(f"{prefix}encode", lambda: encode(source)))
        back = timed(f"{prefix}decode", lambda payload=payload: decode(payload, layout, tokens, method.version))
    values = method._link.array(back) if device == "gpu" else back.data
    if not np.isfinite(values.astype(np.float32)).all():
        raise RuntimeError("decoded values are not finite")
    return found


def run(arguments: list[str], programs: Path) -> dict[str, float]:
    """The seconds that a new process finds, with its compiled programs in a folder."""
    environment = {**os.environ, "XDG_CACHE_HOME": str(programs), "NUMBA_CACHE_DIR": str(programs / "numba")}
    environment.pop("JAX_COMPILATION_CACHE_DIR", None)
    command = [sys.executable, __file__, "--child", *arguments]
    finished = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=600)
    if finished.returncode:
        sys.exit(f"error: {' '.join(arguments)} failed:\n{finished.stderr[-2000:]}")
    taken: dict[str, float] = json.loads(finished.stdout.splitlines()[-1])
    found = {f"{step}_seconds": taken[step] for step in STEPS}
    return {**found, "to_first_payload_seconds": taken["make"] + taken["encode"]}


def main() -> None:
    parser = argument_parser(__doc__)
    parser.add_argument("--shape", default=None, metavar="L,P,T,H,D", help=f"of the chunk; default: {SHAPE}")
    parser.add_argument("--device", choices=("cpu", "gpu"), default="gpu")
    parser.add_argument("--rounds", type=int, default=5, help="processes with programs on disk")
    parser.add_argument("--child", nargs=3, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        device, quantizer, shape = arguments.child
        print(json.dumps(child(device, quantizer, tuple(int(part) for part in shape.split(",")))))
        return
    shape = arguments.shape or (QUICK_SHAPE if arguments.quick else SHAPE)
    rounds = 1 if arguments.quick else arguments.rounds
    parameters = {"shape": shape, "device": arguments.device, "rounds": rounds}
    report = Report("cachegen_first_call", arguments, parameters, DISTRIBUTIONS)
    for quantizer in QUANTIZERS:
        with tempfile.TemporaryDirectory() as folder:
            given = [arguments.device, quantizer, shape]
            taken = [run(given, Path(folder)) for _ in range(1 + rounds)]
        cold, *warm = taken
        metrics = {step: [seconds[step] for seconds in warm] for step in cold}
        report.add(quantizer, metrics, cold=cold)
    report.write()
    columns = [f"{step}_seconds" for step in (*STEPS, "to_first_payload")]
    print(f"seconds, medians where warm; {shape} on {arguments.device}")
    rows = []
    for result in report.results:
        rows.append([f"{result['name']}, cold", *(result["cold"][column] for column in columns)])
        rows.append([f"{result['name']}, warm", *(result["metrics"][column]["median"] for column in columns)])
    print(table(["process", *(column.removesuffix("_seconds") for column in columns)], rows))


if __name__ == "__main__":
    main()
