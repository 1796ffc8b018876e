"""What a played source measured: numbers kept per request, not requests."""

from __future__ import annotations

from array import array
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from lmcache_kit.report.percentiles import summarize
from lmcache_kit.traffic.request import Request

__all__ = ["Measures"]


class Measures:
    """Takes requests as they end; what it keeps of one are a few numbers.

    Args:
        instances: ids, in the fleet's order.
    """

    def __init__(self, instances: Sequence[str]) -> None:
        self._instances = instances
        self._prompt_tokens = self._completion_tokens = self._cached_tokens = 0
        self._errors: Counter[str] = Counter()
        self._retried = 0
        self._ttft, self._seconds, self._queue, self._tpot = array("d"), array("d"), array("d"), array("d")

    def ended(self, request: Request) -> None:
        """Count a request in."""
        done = request.completion
        if request.attempts > 1:
            self._retried += 1
        if done is None:
            self._errors[type(request.error).__name__] += 1
            return
        cached, made = done.cached_tokens, int(done.usage.get("completion_tokens") or 0)
        self._prompt_tokens += request.record.input_tokens
        self._cached_tokens += cached
        self._completion_tokens += made
        self._ttft.append(request.queue_seconds + done.ttft_seconds)
        self._seconds.append(request.queue_seconds + done.seconds)
        self._queue.append(request.queue_seconds)
        if made > 1:
            self._tpot.append((done.seconds - done.ttft_seconds) / (made - 1))

    def values(self, seconds: float) -> Mapping[str, Any]:
        """The result's values; ``seconds`` is how long the whole took."""
        failed = sum(self._errors.values())
        return {
            "counts": {"requests": len(self._ttft) + failed, "failed": failed, "retried": self._retried},
            "tokens": self._prompt_tokens,
            "completion_tokens": self._completion_tokens,
            "cached_tokens": self._cached_tokens,
            "hit_rate": self._cached_tokens / self._prompt_tokens if self._prompt_tokens else None,
            "seconds": seconds,
            "ttft_seconds": summarize(self._ttft),
            "tpot_seconds": summarize(self._tpot),
            "latency_seconds": summarize(self._seconds),
            "queue_seconds": summarize(self._queue),
        }
