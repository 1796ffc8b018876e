"""Prometheus metrics of one instance.

Names are vLLM's and LMCache's where the meaning is the same, so that their dashboards work; what they have no name
for begins with ``lmcache_kit_``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.exposition import generate_latest
from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from lmcache_kit.instance.http.completion import GenerationFacts

__all__ = ["InstanceMetrics"]

_LATENCY = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0)
_SHORT = (0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0)

# What LMCache calls the bytes held by the tiers that it knows.
_USAGE_NAME = {
    "LocalCPUBackend": ("lmcache:local_cache_usage", "Bytes held in the memory tier"),
    "LocalDiskBackend": ("lmcache:local_storage_usage", "Bytes held in the disk tier"),
    "RemoteBackend": ("lmcache:remote_cache_usage", "Bytes held in the remote tier"),
}

# Numbers of ``stats()`` that go up and down; the others only grow.
_LEVELS = {
    *("capacity_bytes", "used_bytes", "chunks", "tokens", "pinned", "available"),
    *("registered", "pushed_registration", "synced", "pending_operations", "last_heartbeat_unix"),
}
_NO_METRICS = {"control_port"}

_Family = GaugeMetricFamily | CounterMetricFamily


class InstanceMetrics:
    """Counters of one instance in a registry of their own.

    Args:
        model_name: value of the label ``model_name``.
        instance_id: value of the label ``instance_id`` of the cache metrics.
        stats: gives ``InstanceRuntime.stats()``, asked at every scrape.
    """

    def __init__(self, model_name: str, instance_id: str, stats: Callable[[], Mapping[str, Any]]) -> None:
        self._registry = CollectorRegistry()
        self._model = model_name
        vllm = {"model_name": model_name}
        cache = {"model_name": model_name, "instance_id": instance_id}

        def counter(name: str, text: str, labels: dict[str, str]) -> Counter:
            return Counter(name, text, list(labels), registry=self._registry).labels(**labels)

        def histogram(name: str, text: str, labels: dict[str, str], buckets: tuple[float, ...]) -> Histogram:
            made = Histogram(name, text, list(labels), registry=self._registry, buckets=buckets)
            return made.labels(**labels)

        def gauge(name: str, text: str, labels: dict[str, str]) -> Gauge:
            return Gauge(name, text, list(labels), registry=self._registry).labels(**labels)

        self.running = gauge("vllm:num_requests_running", "Requests being worked on", vllm)
        self.waiting = gauge("vllm:num_requests_waiting", "Requests waiting for their turn", vllm)
        self._prompt_tokens = counter("vllm:prompt_tokens", "Prompt tokens of finished requests", vllm)
        self._generation_tokens = counter("vllm:generation_tokens", "Output tokens of finished requests", vllm)
        self._ttft = histogram("vllm:time_to_first_token_seconds", "Arrival to first token", vllm, _LATENCY)
        self._tpot = histogram("vllm:time_per_output_token_seconds", "Mean time of later tokens", vllm, _SHORT)
        self._e2e = histogram("vllm:e2e_request_latency_seconds", "Arrival to last token", vllm, _LATENCY)
        self._queue = histogram("vllm:request_queue_time_seconds", "Arrival to start of work", vllm, _LATENCY)
        self._prefill = histogram("vllm:request_prefill_time_seconds", "Prefill in the engine", vllm, _LATENCY)
        self._success = Counter(
            "vllm:request_success", "Finished requests", ["model_name", "finished_reason"], registry=self._registry
        )
        self._retrieves = counter("lmcache:num_retrieve_requests", "Prefix look-ups for completions", cache)
        self._stores = counter("lmcache:num_store_requests", "Times KV was saved", cache)
        self._requested = counter("lmcache:num_requested_tokens", "Prompt tokens looked up", cache)
        self._hits = counter("lmcache:num_hit_tokens", "Prompt tokens found and loaded", cache)
        self._stored = counter("lmcache:num_stored_tokens", "Tokens whose KV was stored anew", cache)
        self._to_retrieve = histogram("lmcache:time_to_retrieve", "Seconds to load a prefix", cache, _SHORT)
        self._to_store = histogram("lmcache:time_to_store", "Seconds to save KV", cache, _SHORT)
        self._hit_rate = gauge("lmcache:retrieve_hit_rate", "Hit tokens of requested tokens, since start", cache)
        self._sums = [0, 0]  # tokens requested and hit
        self._registry.register(_CacheCollector(stats, instance_id))

    def retrieved(self, requested: int, hit: int, seconds: float) -> None:
        """A prefix was looked for."""
        self._retrieves.inc()
        self._requested.inc(requested)
        self._hits.inc(hit)
        self._to_retrieve.observe(seconds)
        self._sums[0] += requested
        self._sums[1] += hit
        self._hit_rate.set(self._sums[1] / self._sums[0])

    def stored(self, tokens: int, seconds: float) -> None:
        """KV was saved; ``tokens`` of it were new."""
        self._stores.inc()
        self._stored.inc(tokens)
        self._to_store.observe(seconds)

    def finished(self, facts: GenerationFacts, seconds: float) -> None:
        """A completion came to its end after ``seconds``."""
        self._success.labels(self._model, facts.finish_reason or "stop").inc()
        self._prompt_tokens.inc(facts.prompt_tokens)
        self._generation_tokens.inc(facts.completion_tokens)
        self._ttft.observe(facts.ttft_seconds)
        self._e2e.observe(seconds)
        self._queue.observe(facts.queue_seconds)
        self._prefill.observe(facts.prefill_seconds)
        if facts.completion_tokens > 1:
            self._tpot.observe((seconds - facts.ttft_seconds) / (facts.completion_tokens - 1))

    def aborted(self, reason: str) -> None:
        """A completion was given up: ``abort`` by its client, ``error`` by the engine."""
        self._success.labels(self._model, reason).inc()

    def exposition(self) -> bytes:
        """The text that Prometheus scrapes."""
        return generate_latest(self._registry)


class _CacheCollector(Collector):
    """The counts of the store, the controller worker and the peer server at the time of the scrape.

    Numbers of ``stats()[SECTION]`` become ``lmcache_kit_SECTION_*``, those of each tier in ``["store"]["tiers"]``
    become ``lmcache_kit_tier_*`` with the label ``location``, the counts of ``["store"]["jobs"]`` become
    ``lmcache_kit_jobs`` with the label ``status``, and the traffic of ``["links"]`` becomes ``lmcache_kit_link_*`` with
    the labels ``peer`` and ``direction``.
    """

    def __init__(self, stats: Callable[[], Mapping[str, Any]], instance_id: str) -> None:
        self._stats = stats
        self._instance_id = instance_id

    def describe(self) -> Iterable[Metric]:
        # Without this the registry would scrape once at registration, before the store is open.
        return ()

    def collect(self) -> Iterable[Metric]:
        stats = self._stats()
        for section, facts in stats.items():
            for name, value in _numbers(facts or {}):
                family = _family(f"lmcache_kit_{section}_{name}", name, ["instance_id"])
                family.add_metric([self._instance_id], value)
                yield family
        jobs = GaugeMetricFamily("lmcache_kit_jobs", "Jobs remembered, by status", labels=["instance_id", "status"])
        for status, count in stats["store"]["jobs"].items():
            jobs.add_metric([self._instance_id, status], count)
        yield jobs
        yield from self._links(stats["links"])
        families: dict[str, _Family] = {}
        for location, tier in stats["store"]["tiers"].items():
            for name, value in _numbers(tier):
                if name not in families:
                    families[name] = _family(f"lmcache_kit_tier_{name}", name, ["instance_id", "location"])
                families[name].add_metric([self._instance_id, location], value)
            if location in _USAGE_NAME and "used_bytes" in tier:
                usage = GaugeMetricFamily(*_USAGE_NAME[location], labels=["instance_id"])
                usage.add_metric([self._instance_id], tier["used_bytes"])
                yield usage
        yield from families.values()

    def _links(self, links: Mapping[str, Mapping[str, Any]]) -> Iterable[Metric]:
        families: dict[str, _Family] = {}
        for peer, link in links.items():
            for direction in ("outward", "inward"):
                for name, value in _numbers(link[direction]):
                    if name not in families:
                        labels = ["instance_id", "peer", "direction"]
                        families[name] = _family(f"lmcache_kit_link_{name}", name, labels)
                    families[name].add_metric([self._instance_id, peer, direction], value)
        yield from families.values()


def _numbers(values: Mapping[str, Any]) -> Iterable[tuple[str, float]]:
    return [
        (name, float(value))
        for name, value in values.items()
        if isinstance(value, int | float) and name not in _NO_METRICS
    ]


def _family(name: str, field: str, labels: list[str]) -> _Family:
    text = field.replace("_", " ")
    if field in _LEVELS:
        return GaugeMetricFamily(name, f"{text}, now", labels=labels)
    return CounterMetricFamily(name, f"{text}, since the start", labels=labels)
