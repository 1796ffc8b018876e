"""Links that change while messages pass, in virtual time: arrival times are exact."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lmcache_kit.builtin.transports.link import Link, LinkCutError
from lmcache_kit.builtin.transports.shaping import ShapedChannel
from lmcache_kit.contracts.storage import Buffer
from lmcache_kit.contracts.transport import Channel
from lmcache_kit.errors import ConfigError, UnavailableError
from lmcache_kit.sim.loop import VirtualClock, VirtualLoop


def play(work: Any) -> Any:
    """The result of ``work(loop)`` on a loop of its own."""
    loop = VirtualLoop()
    return loop.run(work(loop))


async def at(loop: VirtualLoop, when: float, call: Any, *args: Any, **more: Any) -> None:
    await asyncio.sleep(when - loop.time())
    call(*args, **more)


async def arrival(loop: VirtualLoop, carrying: Coroutine[Any, Any, None]) -> float:
    await carrying
    return loop.time()


def test_what_is_left_of_a_message_goes_on_at_the_new_bandwidth() -> None:
    async def work(loop: VirtualLoop) -> list[float]:
        link = Link(bandwidth=100.0, clock=VirtualClock(loop))
        return (
            await asyncio.gather(
                arrival(loop, link.outward.carry(1000, 1e9)),
                arrival(loop, link.outward.carry(100, 1e9)),
                at(loop, 4.0, link.change, bandwidth=10.0, latency=0.0),
                at(loop, 14.0, link.change, bandwidth=500.0, latency=0.0),
            )
        )[:2]

    # 400 bytes in 4 s, 100 in 10 s, 500 in 1 s; then the next one.
    assert play(work) == [pytest.approx(15.0), pytest.approx(15.2)]


def test_a_link_without_a_limit_gets_one_and_loses_it() -> None:
    async def work(loop: VirtualLoop) -> list[Any]:
        link = Link(clock=VirtualClock(loop))
        await link.outward.carry(10**9, 1e9)
        assert loop.time() == 0.0
        link.change(bandwidth=100.0, latency=0.25)
        assert (link.bandwidth, link.latency) == (100.0, 0.25)
        times: list[Any] = await asyncio.gather(
            arrival(loop, link.outward.carry(1000, 1e9)),
            arrival(loop, link.outward.carry(1000, 1e9)),
            at(loop, 5.0, link.change, bandwidth=None, latency=0.5),
        )
        assert link.outward.traffic.bytes == 10**9 + 2000
        assert link.outward.traffic.messages == 3
        assert link.outward.traffic.busy_seconds == pytest.approx(5.0)
        return times[:2]

    assert play(work) == [pytest.approx(5.5), pytest.approx(5.5)]


def test_a_deadline_holds_across_a_change_and_bills_what_passed() -> None:
    async def work(loop: VirtualLoop) -> None:
        link = Link(bandwidth=100.0, clock=VirtualClock(loop))
        change = asyncio.ensure_future(at(loop, 2.0, link.change, bandwidth=10.0, latency=0.0))
        with pytest.raises(TimeoutError):
            await link.outward.carry(1000, 5.0)
        await change
        assert loop.time() == 5.0
        assert link.outward.traffic.bytes == 230
        assert link.outward.traffic.busy_seconds == pytest.approx(5.0)
        await link.outward.carry(10, 1e9)
        assert loop.time() == pytest.approx(6.0)

    play(work)


@given(
    st.lists(st.integers(1, 400), min_size=1, max_size=5),
    st.lists(st.tuples(st.integers(1, 30), st.integers(1, 200)), max_size=6),
    st.integers(1, 200),
)
def test_arrivals_are_those_of_the_integral_of_the_bandwidth(
    sizes: list[int], changes: list[tuple[int, int]], first: int
) -> None:
    async def work(loop: VirtualLoop) -> list[float]:
        link = Link(bandwidth=float(first), clock=VirtualClock(loop))

        async def change() -> None:
            for seconds, bandwidth in changes:
                await asyncio.sleep(seconds / 8)
                link.change(bandwidth=float(bandwidth), latency=0.0)

        changing = asyncio.ensure_future(change())
        arrivals = await asyncio.gather(*(arrival(loop, link.inward.carry(size, 1e9)) for size in sizes))
        await changing
        assert link.inward.traffic.bytes == sum(sizes)
        assert link.inward.traffic.busy_seconds == pytest.approx(arrivals[-1])
        return arrivals

    # The oracle walks over the spans of one bandwidth, and asks when the sum of all sizes so far has passed.
    spans, begin, bandwidth = [], 0.0, float(first)
    for seconds, following in changes:
        spans.append((begin, begin + seconds / 8, bandwidth))
        begin, bandwidth = begin + seconds / 8, float(following)
    spans.append((begin, float("inf"), bandwidth))
    expected, total = [], 0.0
    for size in sizes:
        total += size
        passed = 0.0
        for start, end, speed in spans:
            if passed + (end - start) * speed >= total:
                expected.append(start + (total - passed) / speed)
                break
            passed += (end - start) * speed
    assert play(work) == [pytest.approx(moment) for moment in expected]


class Echo(Channel):
    """Answers after ``seconds``."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self.asked = 0

    async def request(self, frames: Any, *, timeout: float) -> list[Buffer]:
        self.asked += 1
        await asyncio.sleep(self._seconds)
        return list(frames)

    async def close(self) -> None:
        """Nothing to close."""


@pytest.mark.parametrize("when", [0.5, 2.5, 4.5], ids=["going out", "at the peer", "coming back"])
def test_a_cut_ends_what_passes_wherever_it_is(when: float) -> None:
    async def work(loop: VirtualLoop) -> None:
        link = Link(bandwidth=100.0, latency=0.0, clock=VirtualClock(loop))
        channel = ShapedChannel(Echo(2.0), link, "tcp://b:1")
        cutting = asyncio.ensure_future(at(loop, when, link.cut))
        with pytest.raises(UnavailableError, match="the link to tcp://b:1 is cut"):
            await channel.request([bytes(200)], timeout=100.0)
        await cutting
        assert loop.time() == when
        assert not asyncio.current_task().cancelling()  # type: ignore[union-attr]
        # Nothing is left behind: after mending the link is free at once.
        link.mend()
        assert await channel.request([bytes(200)], timeout=100.0) == [bytes(200)]
        assert loop.time() == pytest.approx(when + 6.0)

    play(work)


def test_a_cut_link_asks_nobody_and_mending_is_enough() -> None:
    async def work(loop: VirtualLoop) -> None:
        inner = Echo(0.5)
        link = Link(clock=VirtualClock(loop))
        channel = ShapedChannel(inner, link, "tcp://b:1")
        link.cut()
        link.cut()
        for _ in range(3):
            with pytest.raises(UnavailableError, match="is cut"):
                await channel.request([b"x"], timeout=1.0)
        assert inner.asked == 0
        link.mend()
        link.mend()
        assert await channel.request([b"x"], timeout=1.0) == [b"x"]
        # Cut and mended in one breath is cut for what passes.
        request = asyncio.ensure_future(channel.request([b"x"], timeout=1.0))
        await asyncio.sleep(0)
        link.cut()
        link.mend()
        with pytest.raises(UnavailableError, match="is cut"):
            await request

    play(work)


def test_a_deadline_inside_a_passage_stays_a_deadline_and_cancelling_stays_cancelling() -> None:
    async def work(loop: VirtualLoop) -> None:
        link = Link(clock=VirtualClock(loop))
        with pytest.raises(TimeoutError):
            async with link.passage():
                raise TimeoutError
        with pytest.raises(UnavailableError, match="did not carry"):
            await ShapedChannel(Echo(0.0), Link(bandwidth=1.0, clock=VirtualClock(loop)), "b").request(
                [bytes(100)], timeout=1.0
            )

        async def waits() -> None:
            async with link.passage():
                await asyncio.sleep(100)

        task = asyncio.ensure_future(waits())
        await asyncio.sleep(1)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        link.cut()  # what was cancelled is not there any more
        with pytest.raises(LinkCutError):
            async with link.passage():
                raise AssertionError("nothing passes a link that is cut")

    play(work)


def test_an_impossible_change_is_refused_and_changes_nothing() -> None:
    link = Link(bandwidth=5.0, latency=1.0)
    for wrong in ({"bandwidth": 0.0, "latency": 0.0}, {"bandwidth": None, "latency": -1.0}):
        with pytest.raises(ConfigError):
            link.change(**wrong)  # type: ignore[arg-type]
    assert (link.bandwidth, link.latency) == (5.0, 1.0)
