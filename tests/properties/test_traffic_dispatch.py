"""Every request ends exactly once, whatever instances, time limits and lookups do; nothing is ever over its limit."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from lmcache_kit.client import Completion
from lmcache_kit.contracts.trace import TraceRecord
from lmcache_kit.errors import InvalidRequestError, UnavailableError
from lmcache_kit.sim.loop import VirtualClock, VirtualLoop
from lmcache_kit.traffic.dispatch import Dispatcher
from lmcache_kit.traffic.player import Player
from lmcache_kit.traffic.request import Request
from lmcache_kit.traffic.routing import LeastLoaded, PrefixAware, RoundRobin, Router
from lmcache_kit.traffic.source import Source

SECONDS = st.integers(0, 6).map(lambda n: n / 4)


@dataclass
class Plan:
    arrivals: list[float]
    services: list[float]
    away: list[list[tuple[float, float]]]
    refused: set[int]
    limit: int | None
    timeout: float | None
    retry: bool
    router: Router
    lookup_seconds: list[float]
    concurrency: int | None
    follow: set[int]


@st.composite
def plans(draw: st.DrawFn) -> Plan:
    gaps = draw(st.lists(SECONDS, min_size=1, max_size=14))
    spans = st.tuples(SECONDS, SECONDS).map(lambda pair: (pair[0], pair[0] + pair[1]))
    return Plan(
        arrivals=[sum(gaps[: place + 1]) for place in range(len(gaps))],
        services=draw(st.lists(SECONDS, min_size=1, max_size=5)),
        away=draw(st.lists(st.lists(spans, max_size=2), min_size=1, max_size=4)),
        refused=draw(st.sets(st.integers(0, 14), max_size=2)),
        limit=draw(st.none() | st.integers(1, 3)),
        timeout=draw(st.none() | st.sampled_from([0.25, 0.5, 1.0, 2.0])),
        retry=draw(st.booleans()),
        router=draw(st.sampled_from([RoundRobin, LeastLoaded, lambda: PrefixAware(4.0)]))(),
        lookup_seconds=draw(st.lists(SECONDS, min_size=1, max_size=3)),
        concurrency=draw(st.none() | st.integers(1, 4)),
        follow=draw(st.sets(st.integers(0, 14))),
    )


class Instance:
    def __init__(self, plan: Plan, away: list[tuple[float, float]]) -> None:
        self.plan, self.spans = plan, away
        self.in_flight = self.calls = 0

    def check(self) -> None:
        now = asyncio.get_running_loop().time()
        if any(begin <= now < end for begin, end in self.spans):
            raise UnavailableError("away")

    async def health(self) -> dict[str, Any]:
        self.check()
        return {}

    async def stream_complete(self, prompt: Sequence[int], *, max_tokens: int, **more: Any) -> Completion:
        self.check()
        if len(prompt) - 1 in self.plan.refused:
            raise InvalidRequestError("refused")
        seconds = self.plan.services[self.calls % len(self.plan.services)]
        self.calls += 1
        self.in_flight += 1
        assert self.plan.limit is None or self.in_flight <= self.plan.limit
        try:
            await asyncio.sleep(seconds)
            self.check()
        finally:
            self.in_flight -= 1
        return Completion(text="", ttft_seconds=seconds, seconds=seconds, usage={}, raw={})


@given(plans())
@settings(max_examples=300, deadline=None)
def test_conservation(plan: Plan) -> None:
    loop = VirtualLoop()
    clock = VirtualClock(loop)
    instances = {f"i{place}": Instance(plan, away) for place, away in enumerate(plan.away)}
    ended: list[Request] = []
    submitted: list[Request] = []

    def record(number: int, arrival: float) -> TraceRecord:
        # The prompt's length names the request.
        return TraceRecord(
            arrival=arrival, input_tokens=number + 1, output_tokens=1, block_ids=(), tail_tokens=number + 1
        )

    def follow(before: TraceRecord) -> tuple[float, TraceRecord] | None:
        number = before.input_tokens - 1
        return (0.5, record(number + 100, 0.0)) if number in plan.follow else None

    async def run() -> None:
        lookups = 0

        async def lookup(prompt: Sequence[int]) -> dict[str, Any]:
            nonlocal lookups
            lookups += 1
            await asyncio.sleep(plan.lookup_seconds[lookups % len(plan.lookup_seconds)])
            return {"prefix": {name: len(prompt) % (place + 2) for place, name in enumerate(instances)}}

        player = Player(
            Source(
                records=(record(number, arrival) for number, arrival in enumerate(plan.arrivals)),
                block_size=0,
                concurrency=plan.concurrency,
                follow=follow,
            ),
            clock=clock,
        )

        def end(request: Request) -> None:
            ended.append(request)
            player.ended(request)

        dispatcher = Dispatcher(
            instances,  # type: ignore[arg-type]
            plan.router,
            lookup,
            clock=clock,
            ended=end,
            limit=plan.limit,
            timeout=plan.timeout,
            retry_elsewhere=plan.retry,
            probe_seconds=0.25,
        )
        submit = dispatcher.submit

        def watched(request: Request) -> None:
            submitted.append(request)
            submit(request)

        dispatcher.submit = watched  # type: ignore[method-assign]
        await player.play(dispatcher, start=clock.now())
        assert dispatcher.load.in_flight == [0] * len(instances)
        await dispatcher.close()

    loop.run(run())
    expected = sorted([*range(len(plan.arrivals)), *(100 + n for n in plan.follow if n < len(plan.arrivals))])
    assert sorted(request.record.input_tokens - 1 for request in ended) == expected
    assert {id(request) for request in ended} == {id(request) for request in submitted}
    assert [request.position for request in submitted] == list(range(len(expected)))
    arrivals = [request.arrival for request in submitted]
    assert arrivals == sorted(arrivals)
    for request in ended:
        assert (request.completion is None) != (request.error is None)
        assert request.arrival <= request.sent <= request.end
        assert request.attempts <= (len(instances) if plan.retry else 1)
        if plan.timeout is not None:
            assert request.end <= request.arrival + plan.timeout
        elif not any(plan.away) and request.record.input_tokens - 1 not in plan.refused:
            assert request.completion is not None, "nothing was wrong"
    if not plan.router.wants_lookup and not plan.retry:
        sent = [request.sent for request in sorted(ended, key=lambda request: request.position) if request.attempts]
        assert sent == sorted(sent), "first come, first served"
    assert all(instance.in_flight == 0 for instance in instances.values())
