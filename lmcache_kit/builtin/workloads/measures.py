"""What every result has: counts, tokens, bytes, ratio, seconds and latency percentiles."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from typing import Any, TypeVar

from lmcache_kit.report.percentiles import summarize

__all__ = ["measured", "run_limited"]

T = TypeVar("T")
R = TypeVar("R")


def measured(
    *,
    counts: Mapping[str, int],
    tokens: int,
    bytes_before: int | None,
    bytes_after: int | None,
    seconds: float,
    latencies: Sequence[float],
    **more: Any,
) -> dict[str, Any]:
    """The values of a result.

    Args:
        counts: how many of each thing.
        tokens: tokens worked on.
        bytes_before: bytes before the operation.
        bytes_after: bytes after it.
        seconds: from the first request to the last answer.
        latencies: seconds of each request.
        more: what only this kind of workload has.

    ``ratio`` is bytes before to bytes after.
    """
    ratio = bytes_before / bytes_after if bytes_before is not None and bytes_after else None
    return {
        "counts": dict(counts),
        "tokens": tokens,
        "bytes_before": bytes_before,
        "bytes_after": bytes_after,
        "ratio": ratio,
        "seconds": seconds,
        "latency_seconds": summarize(latencies),
        **more,
    }


async def run_limited(items: Iterable[T], work: Callable[[T], Awaitable[R]], limit: int) -> list[R]:
    """``work`` on every item, at most ``limit`` at a time, started in order; results in order.

    The first error ends what is still running and is raised as it is.
    """
    gate = asyncio.Semaphore(limit)

    async def one(item: T) -> R:
        async with gate:
            return await work(item)

    tasks = [asyncio.ensure_future(one(item)) for item in items]
    try:
        return list(await asyncio.gather(*tasks))
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
