"""Traffic: requests arrive by themselves, are routed to instances, queue, and are measured; on either clock."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from lmcache_kit.builtin.workloads.traffic_options import TrafficOptions
from lmcache_kit.contracts.workload import Workload, WorkloadContext, WorkloadResult
from lmcache_kit.errors import ConfigError
from lmcache_kit.traces import load_trace
from lmcache_kit.traffic.dispatch import Dispatcher
from lmcache_kit.traffic.measures import Measures
from lmcache_kit.traffic.player import Player
from lmcache_kit.traffic.request import Request
from lmcache_kit.traffic.routing import LeastLoaded, PrefixAware, RoundRobin, Router
from lmcache_kit.traffic.source import Source

__all__ = ["TrafficWorkload"]


class TrafficWorkload(Workload):
    """See :class:`~lmcache_kit.builtin.workloads.traffic_options.TrafficOptions`."""

    kind = "traffic"

    def __init__(self, options: TrafficOptions) -> None:
        if options.trace is None:
            raise ConfigError("traffic names no source of requests", hint="give trace")
        self._options = options

    def references(self) -> Sequence[tuple[str, str]]:
        named = [("instance", name) for name in self._options.instances]
        if self._options.trace is not None:
            named.append(("trace", self._options.trace.reader))
        return named

    async def run(self, context: WorkloadContext) -> WorkloadResult:
        options = self._options
        handles = [context.instances[name] for name in options.instances or context.instances]
        names = [handle.instance_id for handle in handles]
        source = self._source(context)
        measures = Measures(names)
        player = Player(
            source, clock=context.clock, time_scale=options.time_scale, max_output_tokens=options.max_output_tokens
        )

        def ended(request: Request) -> None:
            measures.ended(request)
            if options.events:
                _emit(context, names, request, player.start)
            player.ended(request)

        dispatcher = Dispatcher(
            {handle.instance_id: handle.client for handle in handles},
            _router(options),
            context.controller.lookup,
            clock=context.clock,
            ended=ended,
            limit=options.max_in_flight,
            timeout=options.timeout,
            retry_elsewhere=options.on_failure == "retry_elsewhere",
            probe_seconds=options.probe_seconds,
        )
        begin = context.clock.now()
        try:
            await player.play(dispatcher)
        finally:
            await dispatcher.close()
        values = measures.values(context.clock.now() - begin)
        return WorkloadResult(name=context.name, kind=self.kind, values=values)

    def _source(self, context: WorkloadContext) -> Source:
        trace = self._options.trace
        assert trace is not None
        form, records = load_trace(
            context.base_dir / trace.path, trace.reader, limit=trace.limit, options=trace.options
        )
        return Source(records=iter(records), block_size=form.block_size)


def _router(options: TrafficOptions) -> Router:
    if options.routing == "prefix_aware":
        return PrefixAware(options.load_tokens)
    return LeastLoaded() if options.routing == "least_loaded" else RoundRobin()


def _emit(context: WorkloadContext, names: Sequence[str], request: Request, start: float) -> None:
    done, record = request.completion, request.record
    facts: dict[str, Any] = {
        "position": request.position,
        "instance": None if request.place is None else names[request.place],
        "session": record.session,
        "arrival": request.arrival - start,
        "queue_seconds": request.queue_seconds,
        "prompt_tokens": record.input_tokens,
        "attempts": request.attempts,
    }
    if done is None:
        assert request.error is not None, "it ended"
        facts |= {"seconds": request.end - request.arrival, "error": request.error.message}
    else:
        facts |= {
            "completion_tokens": done.usage.get("completion_tokens"),
            "cached_tokens": done.cached_tokens,
            "ttft_seconds": request.queue_seconds + done.ttft_seconds,
            "seconds": request.queue_seconds + done.seconds,
            "cache": done.raw.get("lmcache_kit", {}),
        }
    context.emit("request", **facts)
