"""/metrics: the core's counters under LMCache's names where the meaning is the same, ``lmcache_kit_*`` otherwise."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator, Mapping

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.exposition import CONTENT_TYPE_LATEST
from prometheus_client.registry import Collector

from lmcache_kit.controller.core import ControllerCore

__all__ = ["ControllerMetrics"]

_LMCACHE = "lmcache:cache_controller_"
_OWN = "lmcache_kit_controller_"
_BUCKETS = (0.0002, 0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.5, 1.0, 5.0, 10.0, 30.0)


class _Histogram:
    """Counts by bucket without a lock: one event loop writes, and the same loop reads."""

    def __init__(self) -> None:
        self.counts = [0] * (len(_BUCKETS) + 1)
        self.total = 0.0

    def observe(self, seconds: float) -> None:
        self.counts[bisect_left(_BUCKETS, seconds)] += 1
        self.total += seconds

    def cumulated(self) -> list[tuple[str, float]]:
        """As the Prometheus format wants them."""
        sums, below = [], 0
        for bound, count in zip((*map(str, _BUCKETS), "+Inf"), self.counts, strict=True):
            below += count
            sums.append((bound, float(below)))
        return sums


class _CoreCollector(Collector):
    """Reads the core when it is asked, so that nothing is counted twice."""

    def __init__(self, core: ControllerCore, seconds: Mapping[str, _Histogram]) -> None:
        self._core = core
        self._seconds = seconds

    def collect(self) -> Iterator[Metric]:
        core, counters = self._core, self._core.counters
        workers = list(core.registry)
        sessions = [session for worker in workers for session in worker.syncs.values()]
        running = [session for session in sessions if not session.complete]
        keys = sum(sum(core.contents.key_counts(worker).values()) for worker in workers)
        progress = sum(session.progress for session in running) / len(running) if running else 1.0
        for name, text, value in (
            ("kv_pool_keys_count", "Chunks held, summed over workers and locations", keys),
            ("registered_workers_count", "Registered workers", len(workers)),
            ("pull_socket_message_count", "Messages received on the PULL socket", counters.pushed),
            ("reply_socket_message_count", "Requests received from workers", counters.requests),
            (
                "kv_op_seq_discontinuity_count",
                "Operations whose sequence number did not follow",
                counters.discontinuities,
            ),
            ("full_sync_workers_syncing", "Full syncs under way", len(running)),
            ("full_sync_workers_completed", "Locations whose last full sync is complete", len(sessions) - len(running)),
            ("full_sync_global_progress", "Received part of the syncs under way", progress),
            (
                "full_sync_missing_batches_total",
                "Batches that syncs under way still miss",
                sum(session.batch_count - len(session.received) for session in running),
            ),
        ):
            yield GaugeMetricFamily(_LMCACHE + name, text, value=value)
        yield GaugeMetricFamily(_OWN + "instances", "Registered instances", value=len(core.registry.instances))
        yield GaugeMetricFamily(
            _OWN + "dead_workers", "Workers that missed their heartbeats", value=sum(not w.alive for w in workers)
        )
        yield GaugeMetricFamily(_OWN + "chunks", "Distinct chunks in the index", value=len(core.contents.index.masks))
        yield GaugeMetricFamily(_OWN + "retained_operations", "Operations kept", value=len(core.operations))
        for name, text, value in (
            ("operations_applied", "Admits and evicts applied", counters.operations),
            ("worker_deaths", "Workers given up for missing heartbeats", counters.deaths),
            ("full_syncs", "Full syncs completed", counters.syncs_completed),
            (
                "full_sync_mismatches",
                "Full syncs that carried another number of keys than said",
                counters.sync_mismatches,
            ),
            ("lookups", "Lookups answered", counters.lookups),
            ("lookup_tokens", "Tokens looked up", counters.lookup_tokens),
            ("lookup_hit_tokens", "Tokens of the longest prefix of each lookup", counters.lookup_hit_tokens),
        ):
            yield CounterMetricFamily(_OWN + name, text, value=value)
        yield _labelled("malformed_frames", "Frames that were no message", "socket", counters.malformed)
        yield _labelled("rejected_messages", "Messages that could not be applied", "type", counters.rejected)
        yield _labelled("worker_calls", "Calls to workers by outcome", "outcome", counters.calls)
        http = CounterMetricFamily(_OWN + "http_requests", "HTTP answers", labels=("path", "status"))
        for (path, status), count in sorted(counters.http.items()):
            http.add_metric((path, str(status)), count)
        yield http
        histogram = HistogramMetricFamily(_OWN + "http_request_seconds", "Time to answer", labels=("path",))
        for path, seconds in sorted(self._seconds.items()):
            histogram.add_metric((path,), seconds.cumulated(), seconds.total)
        yield histogram


def _labelled(name: str, text: str, label: str, counts: Mapping[str, int]) -> CounterMetricFamily:
    family = CounterMetricFamily(_OWN + name, text, labels=(label,))
    for value, count in sorted(counts.items()):
        family.add_metric((value,), count)
    return family


class ControllerMetrics:
    """The registry of one controller, apart from the process-wide one."""

    content_type = CONTENT_TYPE_LATEST

    def __init__(self, core: ControllerCore) -> None:
        self._counters = core.counters
        self._registry = CollectorRegistry()
        self._seconds: dict[str, _Histogram] = {}
        self._registry.register(_CoreCollector(core, self._seconds))

    def observe(self, path: str, status: int, seconds: float) -> None:
        """An HTTP answer was sent."""
        self._counters.http[path, status] += 1
        histogram = self._seconds.get(path)
        if histogram is None:
            histogram = self._seconds[path] = _Histogram()
        histogram.observe(seconds)

    def render(self) -> bytes:
        """The Prometheus text."""
        return generate_latest(self._registry)
