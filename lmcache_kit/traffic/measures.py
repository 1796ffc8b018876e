"""What played requests measured: numbers kept per request, not requests."""

from __future__ import annotations

from array import array
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from lmcache_kit.report.percentiles import summarize
from lmcache_kit.traffic.load import Load
from lmcache_kit.traffic.request import Request
from lmcache_kit.traffic.tally import Tally, ratio, whole
from lmcache_kit.traffic.windows import in_windows

__all__ = ["Measures"]

# What only our own server tells beside every answer.
_BYTES = {"stored_tokens", "loaded_bytes", "loaded_kv_bytes", "stored_bytes", "stored_kv_bytes"}


class Measures:
    """Takes requests as they end; what it keeps of one are a few numbers.

    Args:
        instances: ids and chunk sizes (None when not known), in the fleet's order.
        block_size: tokens of the records' blocks; 0 when they say nothing of prefixes.
    """

    def __init__(self, instances: Mapping[str, int | None], block_size: int) -> None:
        self._names = list(instances)
        self._tallies = [Tally(size) for size in instances.values()]
        self._block_size = block_size
        self._requests = self._retried = self._repeated = self._hits = 0
        self._blocks = self._hit_blocks = 0
        self._completion_tokens = self._stored_tokens = 0
        self._raw_bytes = self._held_bytes = 0
        self._tells_bytes = True
        self._first_prompt = self._first_cached = 0
        self._promised = self._asked = self._short = self._short_tokens = self._over_tokens = 0
        self._errors: Counter[str] = Counter()
        self._arrivals, self._failed_arrivals = array("d"), array("d")
        self._prompt, self._cached = array("q"), array("q")
        self._ttft, self._seconds, self._queue, self._tpot = array("d"), array("d"), array("d"), array("d")
        self.start = 0.0
        """The clock's reading at arrival 0."""

    def ended(self, request: Request) -> None:
        """Count a request in."""
        done, place = request.completion, request.place
        self._requests += 1
        if request.attempts > 1:
            self._retried += 1
        if request.repeated:
            self._repeated += 1
        if done is None or place is None:
            self._errors[type(request.error).__name__] += 1
            self._failed_arrivals.append(request.arrival - self.start)
            if place is not None:
                self._tallies[place].failed += 1
            return
        prompt, cached, waited = request.record.input_tokens, done.cached_tokens, request.queue_seconds
        made = int(done.usage.get("completion_tokens") or 0)
        self._tallies[place].add(request, done, cached)
        self._completion_tokens += made
        self._hits += cached > 0
        if request.attempts == 1 and not request.repeated:
            self._first_prompt += prompt
            self._first_cached += cached
        if self._block_size:
            self._blocks += -(-prompt // self._block_size)
            hit = whole(prompt, cached, self._block_size)
            self._hit_blocks += hit + (cached >= prompt - 1 and prompt % self._block_size > 0)
        if request.promised is not None:
            self._promise(request.promised, prompt, cached)
        self._facts(done.cache)
        self._arrivals.append(request.arrival - self.start)
        self._prompt.append(prompt)
        self._cached.append(cached)
        self._ttft.append(waited + done.ttft_seconds)
        self._seconds.append(waited + done.seconds)
        self._queue.append(waited)
        if made > 1:
            self._tpot.append((done.seconds - done.ttft_seconds) / (made - 1))

    def _promise(self, promised: int, prompt: int, cached: int) -> None:
        # No instance serves a prompt's last token from its cache: that is not a promise broken.
        short = min(promised, prompt - 1) - cached
        self._asked += 1
        self._promised += promised
        if short > 0:
            self._short += 1
            self._short_tokens += short
        else:
            self._over_tokens -= short

    def _facts(self, facts: Mapping[str, Any]) -> None:
        if not facts.keys() >= _BYTES:
            self._tells_bytes = False
            return
        self._stored_tokens += facts["stored_tokens"]
        self._raw_bytes += facts["loaded_kv_bytes"] + facts["stored_kv_bytes"]
        self._held_bytes += facts["loaded_bytes"] + facts["stored_bytes"]

    def values(
        self, seconds: float, *, windows: int, load: Load, times_down: Sequence[int], lookups_failed: int
    ) -> dict[str, Any]:
        """The result's values; docs/reference/traffic.md describes them key by key.

        Args:
            seconds: how long the whole took.
            windows: number of parts of the time.
            load: of the instances, for the most that each had in flight.
            times_down: how often each instance was found away.
            lookups_failed: lookups that the controller did not answer.
        """
        failed = sum(self._errors.values())
        prompt = sum(tally.prompt_tokens for tally in self._tallies)
        cached = sum(tally.cached_tokens for tally in self._tallies)
        known_chunks = all(tally.chunk_size is not None for tally in self._tallies if tally.served)
        full = sum(tally.full_chunk_tokens for tally in self._tallies)
        locations: Counter[str] = Counter()
        for tally in self._tallies:
            locations.update(tally.by_location)
        told = all(tally.tells for tally in self._tallies)
        served = self._requests - failed
        return {
            "counts": {
                "requests": self._requests,
                "failed": failed,
                "retried": self._retried,
                "repeated": self._repeated,
                "hits": self._hits,
                "instances": sum(tally.served > 0 for tally in self._tallies),
            },
            "tokens": prompt,
            "bytes_before": self._raw_bytes if self._tells_bytes else None,
            "bytes_after": self._held_bytes if self._tells_bytes else None,
            "ratio": self._raw_bytes / self._held_bytes if self._tells_bytes and self._held_bytes else None,
            "seconds": seconds,
            "latency_seconds": summarize(self._seconds),
            "ttft_seconds": summarize(self._ttft),
            "tpot_seconds": summarize(self._tpot),
            "queue_seconds": summarize(self._queue),
            "errors": dict(sorted(self._errors.items())),
            "prompt_tokens": prompt,
            "completion_tokens": self._completion_tokens,
            "cached_tokens": cached,
            "stored_tokens": self._stored_tokens if self._tells_bytes else None,
            "hit_rate": ratio(cached, prompt),
            "first_admission_hit_rate": ratio(self._first_cached, self._first_prompt),
            "chunk_token_hit_rate": ratio(full, prompt) if known_chunks else None,
            "block_hit_rate": ratio(self._hit_blocks, self._blocks),
            "cached_tokens_by_location": dict(sorted(locations.items())) if told else None,
            "throughput": {
                "requests_per_second": served / seconds if seconds else None,
                "prompt_tokens_per_second": prompt / seconds if seconds else None,
                "completion_tokens_per_second": self._completion_tokens / seconds if seconds else None,
            },
            "staleness": self._staleness(lookups_failed),
            "by_instance": {
                name: tally.values(load.most_in_flight[place], times_down[place])
                for place, (name, tally) in enumerate(zip(self._names, self._tallies, strict=True))
            },
            "windows": in_windows(
                self._arrivals, self._ttft, self._prompt, self._cached, self._failed_arrivals, windows
            ),
        }

    def _staleness(self, lookups_failed: int) -> dict[str, int] | None:
        if not self._asked and not lookups_failed:
            return None
        return {
            "lookups": self._asked,
            "lookups_failed": lookups_failed,
            "promised_tokens": self._promised,
            "broken_promises": self._short,
            "missing_tokens": self._short_tokens,
            "unpromised_tokens": self._over_tokens,
        }
