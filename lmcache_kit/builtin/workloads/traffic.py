"""Traffic: requests arrive by themselves, are routed to instances, queue, and are measured; on either clock."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from typing import Any

from lmcache_kit.builtin.workloads.served import chunk_size_of
from lmcache_kit.builtin.workloads.traffic_options import TrafficOptions
from lmcache_kit.contracts.workload import Workload, WorkloadContext, WorkloadResult
from lmcache_kit.errors import ConfigError
from lmcache_kit.traffic.dispatch import Dispatcher
from lmcache_kit.traffic.draws import Draws
from lmcache_kit.traffic.measures import Measures
from lmcache_kit.traffic.player import Player
from lmcache_kit.traffic.request import Request
from lmcache_kit.traffic.routing import LeastLoaded, PrefixAware, RoundRobin, Router
from lmcache_kit.traffic.source import Source, made_up, recorded
from lmcache_kit.traffic.specs import Closed
from lmcache_kit.units import format_count

__all__ = ["TrafficWorkload"]


class TrafficWorkload(Workload):
    """See :class:`~lmcache_kit.builtin.workloads.traffic_options.TrafficOptions`."""

    kind = "traffic"

    def __init__(self, options: TrafficOptions) -> None:
        if (options.trace is None) == (options.contents is None):
            few = "neither a trace nor contents" if options.trace is None else "both a trace and contents"
            raise ConfigError(f"traffic names {few}", hint="name one: trace replays a file, contents makes requests up")
        if options.trace is None:
            missing = [name for name in ("arrivals", "requests") if getattr(options, name) is None]
            if missing:
                raise ConfigError(
                    f"contents without {' and '.join(missing)}",
                    hint="e.g. arrivals: {kind: poisson, rate: 5} and requests: 100",
                )
        elif options.requests is not None:
            raise ConfigError("requests counts made-up requests", hint="shorten a trace with its limit")
        if isinstance(options.arrivals, Closed) and options.time_scale != 1.0 and options.trace is not None:
            raise ConfigError("time_scale changes nothing in a closed loop over a trace", hint="leave it out")
        if len(set(options.instances)) < len(options.instances):
            raise ConfigError("instances names one twice")
        self._options = options

    def references(self) -> Sequence[tuple[str, str]]:
        return [("instance", name) for name in self._options.instances]

    def configures(self) -> Sequence[tuple[str, str, Mapping[str, Any]]]:
        trace = self._options.trace
        return () if trace is None else (("trace", trace.reader, trace.options),)

    async def run(self, context: WorkloadContext) -> WorkloadResult:
        options = self._options
        handles = {name: context.instances[name] for name in options.instances or context.instances}
        source = self._source(context)
        sizes = await asyncio.gather(*(chunk_size_of(handle) for handle in handles.values()))
        measures = Measures(dict(zip(handles, sizes, strict=True)), source.block_size)
        player = Player(
            source, clock=context.clock, time_scale=options.time_scale, max_output_tokens=options.max_output_tokens
        )
        names = list(handles)

        def ended(request: Request) -> None:
            measures.ended(request)
            if options.events:
                _emit(context, names, request, measures.start)
            player.ended(request)

        dispatcher = Dispatcher(
            {name: handle.client for name, handle in handles.items()},
            _router(options),
            context.controller.lookup,
            clock=context.clock,
            ended=ended,
            limit=options.max_in_flight,
            timeout=options.timeout_seconds,
            retry_elsewhere=options.on_failure == "retry_elsewhere",
            probe_seconds=options.probe_seconds,
        )
        context.progress(f"{_described(source)} on {format_count(len(names), 'instances')}, {options.routing}")
        measures.start = context.clock.now()
        try:
            await player.play(dispatcher, start=measures.start)
        finally:
            await dispatcher.close()
        values = measures.values(
            context.clock.now() - measures.start,
            windows=options.windows,
            load=dispatcher.load,
            times_down=dispatcher.times_down,
            lookups_failed=dispatcher.lookups_failed,
        )
        values |= {
            "source": dict(source.facts),
            "routing": options.routing,
            "time_scale": options.time_scale,
            "most_late_seconds": player.most_late,
        }
        return WorkloadResult(name=context.name, kind=self.kind, values=values)

    def _source(self, context: WorkloadContext) -> Source:
        options, draws = self._options, Draws(context.rng)
        trace = options.trace
        if trace is not None:
            return recorded(
                context.base_dir / trace.path,
                trace.reader,
                draws,
                options=trace.options,
                limit=trace.limit,
                spread=trace.spread,
                arrivals=options.arrivals,
            )
        assert options.contents is not None, "checked when it was made"
        assert options.arrivals is not None
        assert options.requests is not None
        return made_up(options.contents, options.arrivals, options.requests, draws, cap=options.max_output_tokens)


def _router(options: TrafficOptions) -> Router:
    if options.routing == "prefix_aware":
        return PrefixAware(options.load_tokens)
    return LeastLoaded() if options.routing == "least_loaded" else RoundRobin()


def _described(source: Source) -> str:
    kind = str(source.facts["kind"])
    return f"{format_count(source.facts['requests'], 'requests')} ({kind.replace('_', ' ')})"


def _emit(context: WorkloadContext, names: Sequence[str], request: Request, start: float) -> None:
    done, record = request.completion, request.record
    facts: dict[str, Any] = {
        "position": request.position,
        "instance": None if request.place is None else names[request.place],
        "session": record.session,
        "turn": request.turn,
        "arrival": request.arrival - start,
        "queue_seconds": request.queue_seconds,
        "prompt_tokens": record.input_tokens,
        "attempts": request.attempts,
    }
    if request.promised is not None:
        facts["promised_tokens"] = request.promised
    if done is None:
        assert request.error is not None, "it ended"
        facts |= {"seconds": request.end - request.arrival, "error": request.error.message}
    else:
        facts |= {
            "completion_tokens": done.usage.get("completion_tokens"),
            "cached_tokens": done.cached_tokens,
            "ttft_seconds": request.queue_seconds + done.ttft_seconds,
            "seconds": request.queue_seconds + done.seconds,
            "cache": done.cache,
        }
    context.emit("request", **facts)
