"""Timing of work on a GPU, and what the figures depend on there.

Calls are timed in batches with the host's clock: the batch ends when the whole device is idle, so that work on any
stream and the host's own share count. Single calls, each waited for, show the latency that batches hide.
"""

from __future__ import annotations

import math
import subprocess
import time
from collections.abc import Callable
from typing import Any

__all__ = ["batch_seconds", "device_facts", "single_seconds"]

_LEAST_SAMPLES = 20
_SLOW_LEAST_SAMPLES = 5
_SLOW_SECONDS = 4.0
_WARM_UP = 3
_BATCH_SECONDS = 5e-3
_MOST_CALLS = 64


def batch_seconds(work: Callable[[int], object], idle: Callable[[], None], seconds: float) -> list[float]:
    """Seconds per call of batches that each take some milliseconds.

    Args:
        work: one call; its argument counts up, so that it can choose among several inputs.
        idle: waits until the device has nothing left to do.
        seconds: how long to go on; at least 20 batches are timed, or 5 where those take long.
    """
    calls = min(_MOST_CALLS, max(1, math.ceil(_BATCH_SECONDS / min(_warm_up(work, idle)))))
    return _samples(work, idle, seconds, calls)


def single_seconds(work: Callable[[int], object], idle: Callable[[], None], seconds: float) -> list[float]:
    """Seconds of single calls, the device idle before and after each."""
    _warm_up(work, idle)
    return _samples(work, idle, seconds, 1)


def _warm_up(work: Callable[[int], object], idle: Callable[[], None]) -> list[float]:
    return [_timed(work, idle, index, 1) for index in range(_WARM_UP)]


def _samples(work: Callable[[int], object], idle: Callable[[], None], seconds: float, calls: int) -> list[float]:
    taken: list[float] = []
    begin = time.perf_counter()
    while True:
        passed = time.perf_counter() - begin
        least = _SLOW_LEAST_SAMPLES if passed > _SLOW_SECONDS else _LEAST_SAMPLES
        if len(taken) >= least and passed >= seconds:
            return taken
        taken.append(_timed(work, idle, len(taken) * calls, calls))


def _timed(work: Callable[[int], object], idle: Callable[[], None], first: int, calls: int) -> float:
    start = time.perf_counter()
    for index in range(first, first + calls):
        work(index)
    idle()
    return (time.perf_counter() - start) / calls


def device_facts() -> dict[str, Any]:
    """Name, memory, multiprocessors, second-level cache and driver of the CUDA device in use."""
    import torch

    properties = torch.cuda.get_device_properties(torch.cuda.current_device())
    return {
        "name": properties.name,
        "memory_bytes": properties.total_memory,
        "multiprocessors": properties.multi_processor_count,
        "l2_bytes": properties.L2_cache_size,
        "compute_capability": f"{properties.major}.{properties.minor}",
        "driver": _driver(),
        "cuda_of_torch": torch.version.cuda,
    }


def _driver() -> str:
    command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        answer = subprocess.run(command, capture_output=True, text=True, check=True, timeout=30)
    except (OSError, subprocess.SubprocessError) as error:
        return f"unknown: {error}"
    return answer.stdout.splitlines()[0].strip()
