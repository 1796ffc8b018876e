"""The cache's metrics on vLLM's own ``/metrics``.

The scheduler side counts, vLLM carries the counts to its API server, and there they become Prometheus metrics: under
LMCache's names where they mean the same, else under names that begin with ``lmcache_kit_``. vLLM collects while it
makes steps, so an engine without requests shows what was so when its last one ended.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from vllm.distributed.kv_transfer.kv_connector.v1.metrics import KVConnectorPromMetrics, KVConnectorStats

__all__ = ["CacheMetrics", "CacheStats", "levels"]

_COUNTERS = {
    "retrieve_requests": ("lmcache:num_retrieve_requests", "Prefix look-ups for requests"),
    "store_requests": ("lmcache:num_store_requests", "Times KV was saved"),
    "requested_tokens": ("lmcache:num_requested_tokens", "Tokens of requests that were looked up"),
    "hit_tokens": ("lmcache:num_hit_tokens", "Tokens loaded from the cache"),
    "stored_tokens": ("lmcache:num_stored_tokens", "Tokens whose KV was stored anew"),
    "lookup_timeouts": ("lmcache_kit_lookup_timeouts", "Requests computed because the cache did not answer in time"),
    "bypassed_requests": ("lmcache_kit_bypassed_requests", "Requests whose KV depends on more than their tokens"),
    "staging_full": ("lmcache_kit_staging_full", "Times there was no staging memory for a copy"),
    "store_errors": ("lmcache_kit_store_errors", "Writes that failed or did not fit"),
    "copy_errors": ("lmcache_kit_copy_errors", "Copies between blocks and staging memory that failed"),
}
_TIMES = {
    "time_to_retrieve": ("lmcache:time_to_retrieve", "Seconds to load a prefix"),
    "time_to_store": ("lmcache:time_to_store", "Seconds to save KV"),
}
_SECONDS = (0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0)
_WORKER_LEVELS = ("registered", "synced", "pending_operations")


class CacheStats(KVConnectorStats):
    """Counts, times and levels since vLLM collected them last.

    ``data`` is empty or has ``counts`` {name: number}, ``times`` {name: [seconds]} and ``levels``
    {"tiers": {location: {name: number}}, "worker": {name: number}}.
    """

    data: dict[str, Any]

    def reset(self) -> None:
        self.data = {}

    def is_empty(self) -> bool:
        return not self.data

    def aggregate(self, other: KVConnectorStats) -> CacheStats:
        counts = dict(self.data.get("counts", {}))
        for name, number in other.data.get("counts", {}).items():
            counts[name] = counts.get(name, 0) + number
        times = {name: list(seconds) for name, seconds in self.data.get("times", {}).items()}
        for name, seconds in other.data.get("times", {}).items():
            times.setdefault(name, []).extend(seconds)
        levels = other.data.get("levels") or self.data.get("levels") or {}
        return CacheStats(data={"counts": counts, "times": times, "levels": levels})

    def reduce(self) -> dict[str, int | float]:
        counts = self.data.get("counts", {})
        shown: dict[str, int | float] = {name.replace("_", " "): number for name, number in counts.items()}
        for name, seconds in self.data.get("times", {}).items():
            if seconds:
                shown[f"mean {name.replace('_', ' ')} (ms)"] = round(1000 * sum(seconds) / len(seconds), 2)
        return shown


def levels(stats: Mapping[str, Any]) -> dict[str, Any]:
    """What of ``InstanceRuntime.stats()`` goes to the API server."""
    tiers = {
        location: {name: value for name, value in tier.items() if isinstance(value, int | float)}
        for location, tier in stats["store"]["tiers"].items()
    }
    worker = {name: int(value) for name, value in (stats["worker"] or {}).items() if name in _WORKER_LEVELS}
    return {"tiers": tiers, "worker": worker}


class CacheMetrics(KVConnectorPromMetrics):
    """The Prometheus metrics of vLLM's API server; arguments as vLLM gives them."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        labels = self._labelnames
        self._counters = {
            name: self._counter_cls(name=metric, documentation=text, labelnames=labels)
            for name, (metric, text) in _COUNTERS.items()
        }
        self._histograms = {
            name: self._histogram_cls(name=metric, documentation=text, buckets=_SECONDS, labelnames=labels)
            for name, (metric, text) in _TIMES.items()
        }
        self._tiers: dict[str, Any] = {}
        self._worker = {
            name: self._gauge_cls(
                name=f"lmcache_kit_worker_{name}", documentation=f"{name.replace('_', ' ')}, now", labelnames=labels
            )
            for name in _WORKER_LEVELS
        }
        for name in self._counters:
            for values in self.per_engine_labelvalues.values():
                self._counters[name].labels(*values)  # so that what has not happened shows as 0

    def observe(self, transfer_stats_data: dict[str, Any], engine_idx: int = 0) -> None:
        values = self.per_engine_labelvalues[engine_idx]
        for name, number in transfer_stats_data.get("counts", {}).items():
            self._counters[name].labels(*values).inc(number)
        for name, seconds in transfer_stats_data.get("times", {}).items():
            for each in seconds:
                self._histograms[name].labels(*values).observe(each)
        shown = transfer_stats_data.get("levels") or {}
        for name, value in shown.get("worker", {}).items():
            self._worker[name].labels(*values).set(value)
        for location, tier in shown.get("tiers", {}).items():
            for name, value in tier.items():
                if name not in self._tiers:
                    self._tiers[name] = self._gauge_cls(
                        name=f"lmcache_kit_tier_{name}",
                        documentation=f"{name.replace('_', ' ')} of a tier",
                        labelnames=[*self._labelnames, "location"],
                    )
                self._tiers[name].labels(*values, location).set(value)
