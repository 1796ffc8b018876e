"""Simulated engines against engines that are simulated plainly: a queue item by item, and time in small steps."""

from __future__ import annotations

from dataclasses import dataclass, field

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from lmcache_kit.sim.costs import EngineCosts, prefill_passes
from lmcache_kit.sim.engine import BatchedEngine, SerialEngine, make_engine
from lmcache_kit.sim.loop import VirtualLoop

BLOCK = 16


@dataclass
class Request:
    """Arrives, is prefilled, and makes ``steps`` more tokens. What became of it is in the rest."""

    arrival: float
    new: int
    cached: int
    steps: int
    first: float = -1.0
    copied: float = -1.0
    last: float = -1.0
    own: float = -1.0
    ended: int = field(default=0)


def play(engine, loop: VirtualLoop, requests: list[Request]) -> list[int]:
    """Put the requests through the engine as an instance does; the order in which they ended."""
    order: list[int] = []

    def arrive(place: int, request: Request) -> None:
        def prefilled() -> None:
            request.first = loop.time()
            engine.show(shown)

        def shown() -> None:
            engine.go_on(request.new, copied, request.steps, request.new + request.cached, done)

        def copied() -> None:
            assert request.copied < 0
            request.copied = loop.time()

        def done(seconds: float) -> None:
            request.ended += 1
            request.last, request.own = loop.time(), seconds
            order.append(place)

        engine.prefill(request.new, request.cached, prefilled)

    async def work() -> None:
        while loop._heap:
            await _pause(loop)

    for place, request in enumerate(requests):
        loop.at(request.arrival, arrive, place, request)
    loop.run(work())
    assert all(request.ended == 1 for request in requests), "every one ends, once"
    return order


async def _pause(loop: VirtualLoop) -> None:
    """Until what is next in the heap has happened, without adding to it what would never end."""
    woken = loop.create_future()
    loop.at(loop._heap[0][0], lambda: woken.done() or woken.set_result(None))
    await woken


# Times without ties: arrivals end in a place that no sum of costs reaches.
ARRIVALS = st.lists(st.integers(0, 400), min_size=1, max_size=7).map(
    lambda ticks: [tick * 0.05 + place * 0.00137 for place, tick in enumerate(ticks)]
)


@st.composite
def traffic(draw) -> list[Request]:
    return [
        Request(arrival, draw(st.integers(1, 40)), draw(st.integers(0, 40)), draw(st.integers(0, 12)))
        for arrival in draw(ARRIVALS)
    ]


COSTS = st.builds(
    EngineCosts,
    prefill_base=st.sampled_from([0.0, 0.0713]),
    prefill_pass=st.sampled_from([0.0, 0.0317]),
    prefill_token=st.sampled_from([0.00311, 0.0171]),
    prefill_attention=st.sampled_from([0.0, 0.000113]),
    decode_base=st.sampled_from([0.0219, 0.0911]),
    decode_sequence=st.sampled_from([0.0, 0.0103]),
    decode_context=st.sampled_from([0.0, 0.000173]),
    copy_token=st.sampled_from([0.0, 0.00057]),
    start_token=st.sampled_from([0.0, 0.00119]),
    handoff=st.sampled_from([0.0, 0.0047]),
)


# --- one thing after another -----------------------------------------------------------------------------------------


def fifo(costs: EngineCosts, requests: list[Request]) -> list[tuple[float, float, float]]:
    """First token, copy and end of each request when one thread does what was asked for first, step by step."""
    found = [[0.0, 0.0, 0.0] for _ in requests]
    todo, number = [], len(requests)
    for place, request in enumerate(requests):
        context = request.new + request.cached
        work = [
            ("start", request.cached * costs.start_token),
            (
                "prefill",
                costs.prefill_base
                + prefill_passes(request.new, request.cached, BLOCK) * costs.prefill_pass
                + request.new * costs.prefill_token
                + sum(request.cached + token + 0.5 for token in range(request.new)) * costs.prefill_attention,
            ),
            ("show", 0.0),
            ("copy", request.new * costs.copy_token),
        ]
        work += [
            ("step", costs.decode_base + costs.decode_sequence + (context + step) * costs.decode_context)
            for step in range(request.steps)
        ]
        todo.append([(request.arrival, place), place, work])
    free = 0.0
    while any(work for _, _, work in todo):
        entry = min((entry for entry in todo if entry[2]), key=lambda entry: entry[0])
        (asked, _), place, work = entry
        what, seconds = work.pop(0)
        free = max(free, asked) + seconds
        # Of what is asked for at the same moment, that comes first whose earlier step was begun first.
        number += 1
        entry[0] = (free + costs.handoff, number)
        if what in ("prefill", "copy"):
            found[place][what == "copy"] = free + costs.handoff
        if not work:
            found[place][2] = free + costs.handoff
    return [tuple(times) for times in found]


@settings(max_examples=150, deadline=None)
@given(COSTS, traffic())
def test_one_thread_does_first_what_was_asked_first(costs, requests):
    loop = VirtualLoop()
    play(SerialEngine(loop, costs, BLOCK), loop, requests)
    for request, times in zip(requests, fifo(costs, requests), strict=True):
        assert (request.first, request.copied, request.last) == pytest.approx(times, abs=1e-9)
        context = request.new + request.cached
        own = sum(costs.step(1, context + step) for step in range(request.steps))
        assert request.own == pytest.approx(own)


# --- continuous batching ---------------------------------------------------------------------------------------------

TICK = 0.002


def integrate(costs: EngineCosts, requests: list[Request]) -> list[tuple[float, float]]:
    """First token and end of each request, time advancing by small steps.

    A sequence's context is what it is half way, throughout, as the engine says that it counts it.
    """
    waiting = sorted(range(len(requests)), key=lambda place: requests[place].arrival)
    queue: list[int] = []
    left = {}
    prefill = 0.0
    first, last, now = {}, {}, 0.0
    while len(last) < len(requests):
        while waiting and requests[waiting[0]].arrival <= now:
            queue.append(waiting.pop(0))
            if len(queue) == 1:
                prefill = _prefill(costs, requests[queue[0]])
        if queue:
            prefill -= TICK
            if prefill <= 0:
                place = queue.pop(0)
                first[place] = now
                if requests[place].steps:
                    left[place] = float(requests[place].steps)
                else:
                    last[place] = now
                if queue:
                    prefill += _prefill(costs, requests[queue[0]])
        elif left:
            context = sum(requests[place].new + requests[place].cached + requests[place].steps / 2 for place in left)
            step = costs.decode_base + len(left) * costs.decode_sequence + context * costs.decode_context
            for place in list(left):
                left[place] -= TICK / step
                if left[place] <= 0:
                    del left[place]
                    last[place] = now
        now += TICK
    return [(first[place], last[place]) for place in range(len(requests))]


def _prefill(costs: EngineCosts, request: Request) -> float:
    return costs.start(request.cached) + costs.prefill(request.new, request.cached, BLOCK)


@settings(max_examples=60, deadline=None)
@given(COSTS, traffic())
def test_batches_advance_together_and_stand_still_for_prefills(costs, requests):
    loop = VirtualLoop()
    order = play(BatchedEngine(loop, costs, BLOCK), loop, requests)
    expected = integrate(costs, requests)
    tolerance = 4 * TICK * (len(requests) + 1)
    # Whoever arrives just before another one's end delays it by a whole prefill, just after it by nothing; which of the
    # two it is, small steps of time cannot tell.
    for request in requests:
        assume(not request.steps or all(abs(other.arrival - request.last) > tolerance for other in requests))
    for request, (first, last) in zip(requests, expected, strict=True):
        assert request.first == pytest.approx(first, abs=tolerance)
        assert request.last == pytest.approx(last, abs=tolerance)
        assert request.own == pytest.approx(request.last - request.first, abs=1e-9)
        assert request.copied == pytest.approx(request.first + request.new * costs.copy_token, abs=1e-9)
    ends = [requests[place].last for place in order]
    assert ends == sorted(ends)
    firsts = sorted(range(len(requests)), key=lambda place: requests[place].arrival)
    assert [requests[place].first for place in firsts] == sorted(request.first for request in requests), "in turn"


def test_nothing_is_decoded_during_a_prefill():
    loop = VirtualLoop()
    costs = EngineCosts(prefill_token=1.0, decode_base=1.0, batched=True)
    early, late = Request(0.0, 1, 0, 10), Request(4.5, 100, 0, 1)
    play(make_engine(loop, costs, BLOCK), loop, [early, late])
    assert (early.first, late.first) == (1.0, 104.5)
    assert late.last == 105.5
    assert early.last == 111.0, "3.5 steps before the prefill, 6.5 after it"


@pytest.mark.parametrize("steps", [10, 1000, 100_000])
def test_work_does_not_grow_with_a_sequences_length(steps):
    loop = VirtualLoop()
    costs = EngineCosts(prefill_token=0.001, decode_base=0.01, decode_context=1e-6, batched=True)
    requests = [Request(place * 0.3, 5, 0, steps + place) for place in range(8)]
    play(make_engine(loop, costs, BLOCK), loop, requests)
    assert loop._sequence < 200


def test_steps_that_cost_nothing_end_too():
    for batched in (False, True):
        loop = VirtualLoop()
        requests = [Request(0.0, 3, 0, 5), Request(0.0, 3, 0, 0), Request(1.0, 1, 9, 1)]
        play(make_engine(loop, EngineCosts(batched=batched), BLOCK), loop, requests)
        assert [request.last for request in requests] == pytest.approx([0.0, 0.0, 1.0], abs=1e-6)


@given(st.integers(1, 80), st.integers(0, 80), st.integers(1, 20))
def test_passes_are_those_of_blocks_counted_from_token_zero(new, cached, block):
    """One by one: all but the last token, in blocks that begin at multiples of ``block``."""
    touched = {token // block for token in range(cached, cached + new - 1)}
    assert prefill_passes(new, cached, block) == len(touched)
