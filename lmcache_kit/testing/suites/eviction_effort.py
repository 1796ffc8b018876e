"""What a call costs, counted and not timed, so that the answer is the same on a busy machine."""

from __future__ import annotations

import gc
import sys
import tracemalloc
from collections.abc import Callable
from types import FrameType
from typing import Any

__all__ = ["allocated_by", "kept_by", "steps_of"]


def steps_of(work: Callable[[], object]) -> int:
    """Lines of Python that run in ``work`` and in what it calls; loops inside compiled code are not seen."""
    count = 0

    def trace(frame: FrameType, event: str, argument: Any) -> Any:
        nonlocal count
        count += 1
        return trace

    # A coverage tool or a debugger that is at work gets its place back.
    before = sys.gettrace()
    sys.settrace(trace)
    try:
        work()
    finally:
        sys.settrace(before)
    return count


def _traced(work: Callable[[], object]) -> tuple[int, int]:
    """Bytes that Python allocated in ``work``: most at a time, and what is left of them afterwards."""
    started = not tracemalloc.is_tracing()
    if started:
        tracemalloc.start()
    try:
        gc.collect()
        before = tracemalloc.get_traced_memory()[0]
        tracemalloc.reset_peak()
        work()
        peak = tracemalloc.get_traced_memory()[1]
        gc.collect()
        return peak - before, tracemalloc.get_traced_memory()[0] - before
    finally:
        if started:
            tracemalloc.stop()


def allocated_by(work: Callable[[], object]) -> int:
    """Most bytes that Python had allocated at a time while ``work`` ran, beyond what was there before."""
    return _traced(work)[0]


def kept_by(work: Callable[[], object]) -> int:
    """Bytes allocated in ``work`` that are still there after it."""
    return _traced(work)[1]
