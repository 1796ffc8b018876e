"""Results over time: the time from the first arrival to the last one in parts of equal length."""

from __future__ import annotations

from array import array
from typing import Any

import numpy as np

from lmcache_kit.report.percentiles import percentile

__all__ = ["in_windows"]


def in_windows(
    arrivals: array[float],
    ttft: array[float],
    prompt_tokens: array[int],
    cached_tokens: array[int],
    failed: array[float],
    count: int,
) -> list[dict[str, Any]]:
    """``count`` parts, by arrival.

    Args:
        arrivals, ttft, prompt_tokens, cached_tokens: of answered requests, in any order; times in seconds.
        failed: arrivals of the others.
        count: number of parts.
    """
    came, lost = np.array(arrivals, np.float64), np.array(failed, np.float64)
    last = max(came.max(initial=0.0), lost.max(initial=0.0))
    width = last / count
    edges = np.arange(1, count) * width
    place, missed = np.searchsorted(edges, came, side="right"), np.searchsorted(edges, lost, side="right")
    times = np.array(ttft, np.float64)
    order = np.argsort(place, kind="stable")
    bounds = np.searchsorted(place[order], np.arange(count + 1))
    totals = [np.bincount(place, weights=np.array(tokens, np.float64), minlength=count)
              for tokens in (prompt_tokens, cached_tokens)]  # fmt: skip
    lost_in = np.bincount(missed, minlength=count)
    found = []
    for number in range(count):
        part = times[order[bounds[number] : bounds[number + 1]]]
        prompt, cached = int(totals[0][number]), int(totals[1][number])
        found.append(
            {
                "start_seconds": float(number * width),
                "arrivals": len(part) + int(lost_in[number]),
                "failed": int(lost_in[number]),
                "prompt_tokens": prompt,
                "cached_tokens": cached,
                "hit_rate": cached / prompt if prompt else None,
                "ttft_p50_seconds": percentile(part.tolist(), 50) if len(part) else None,
            }
        )
    return found
