"""Shaped links in virtual time: completion times are exact."""

import asyncio
import heapq
import itertools

import pytest

from lmcache_kit.builtin.transports.inproc import InprocTransport
from lmcache_kit.builtin.transports.link import Link
from lmcache_kit.builtin.transports.shaping import ShapedChannel, ShapedTransport
from lmcache_kit.clock import WallClock
from lmcache_kit.errors import ConfigError, TransportError, UnavailableError


class VirtualTime:
    """A clock whose sleepers wake in order as soon as nothing else can run."""

    def __init__(self):
        self.time = 100.0
        self.sleepers = []
        self.numbers = itertools.count()

    def now(self):
        return self.time

    def unix(self):
        return self.time

    async def sleep(self, seconds):
        future = asyncio.get_running_loop().create_future()
        heapq.heappush(self.sleepers, (self.time + seconds, next(self.numbers), future))
        await future

    async def run(self, *coroutines):
        """Results (or errors) of the coroutines and the times, from the start, at which each ended."""
        begin, ends = self.time, {}
        tasks = [asyncio.ensure_future(coroutine) for coroutine in coroutines]
        for number, task in enumerate(tasks):
            task.add_done_callback(lambda _, number=number: ends.setdefault(number, self.time - begin))
        while True:
            for _ in range(40):
                await asyncio.sleep(0)
            if all(task.done() for task in tasks):
                break
            while self.sleepers[0][2].done():
                heapq.heappop(self.sleepers)
            moment, _, future = heapq.heappop(self.sleepers)
            self.time = max(self.time, moment)
            future.set_result(None)
        results = await asyncio.gather(*tasks, return_exceptions=True)
        return results, [ends[number] for number in range(len(tasks))]


@pytest.fixture
def virtual():
    return VirtualTime()


@pytest.fixture
async def shaped(virtual):
    """A function that makes a shaped channel to an echo (or another handler), and closes it at the end."""
    opened = []

    async def make(*, bandwidth=None, latency=0.0, handler=None):
        async def echo(frames):
            return frames

        listener = await InprocTransport().listen("inproc://*", handler or echo)
        link = Link(bandwidth=bandwidth, latency=latency, clock=virtual, sleep=virtual.sleep)
        channel = await ShapedTransport(InprocTransport(), link).connect(listener.address)
        opened.extend((channel, listener))
        return channel

    yield make
    for thing in opened:
        await thing.close()


async def test_one_exchange_takes_size_over_bandwidth_and_latency_each_way(virtual, shaped):
    channel = await shaped(bandwidth=1000.0, latency=0.25)
    results, ends = await virtual.run(channel.request([bytes(400), bytes(100)], timeout=60))
    assert [bytes(frame) for frame in results[0]] == [bytes(400), bytes(100)]
    assert ends == [pytest.approx(0.5 + 0.25 + 0.5 + 0.25)]
    stats = channel.link.stats()
    assert stats["outward"] == {"messages": 1, "bytes": 500, "busy_seconds": 0.5, "queued_seconds": 0.0}
    assert stats["inward"] == {"messages": 1, "bytes": 500, "busy_seconds": 0.5, "queued_seconds": 0.0}
    assert (stats["bandwidth"], stats["latency"]) == (1000.0, 0.25)


async def test_the_answer_is_billed_by_its_own_size(virtual, shaped):
    async def handler(frames):
        return [bytes(30)]

    channel = await shaped(bandwidth=100.0, handler=handler)
    _, ends = await virtual.run(channel.request([bytes(200)], timeout=60))
    assert ends == [pytest.approx(2.0 + 0.3)]


async def test_requests_at_the_same_time_share_the_link_in_order(virtual, shaped):
    async def handler(frames):
        return []

    channel = await shaped(bandwidth=100.0, latency=0.5, handler=handler)
    _, ends = await virtual.run(*(channel.request([bytes(size)], timeout=60) for size in (100, 200, 300)))
    # They leave one after another, the latency of one passes while the next is being sent.
    assert ends == [pytest.approx(moment) for moment in (1 + 1.0, 3 + 1.0, 6 + 1.0)]
    assert channel.link.outward.traffic.busy_seconds == pytest.approx(6.0)
    assert channel.link.outward.traffic.queued_seconds == pytest.approx(0 + 1 + 3)


async def test_the_directions_do_not_slow_each_other_down(virtual, shaped):
    async def handler(frames):
        return [bytes(200)] if bytes(frames[0]) == b"a" else []

    channel = await shaped(bandwidth=100.0, handler=handler)
    _, ends = await virtual.run(channel.request([b"a"], timeout=60), channel.request([bytes(220)], timeout=60))
    assert ends == [pytest.approx(0.01 + 2.0), pytest.approx(0.01 + 2.2)]


async def test_two_channels_may_share_one_link(virtual, shaped):
    async def handler(frames):
        return []

    listener = await InprocTransport().listen("inproc://*", handler)
    link = Link(bandwidth=100.0, clock=virtual, sleep=virtual.sleep)
    channels = [ShapedChannel(await InprocTransport().connect(listener.address), link, "peer") for _ in range(2)]
    _, ends = await virtual.run(*(channel.request([bytes(100)], timeout=60) for channel in channels))
    assert ends == [pytest.approx(1.0), pytest.approx(2.0)]
    for channel in channels:
        await channel.close()
    await listener.close()


async def test_an_idle_link_does_not_save_up_time(virtual, shaped):
    async def handler(frames):
        return []

    channel = await shaped(bandwidth=100.0, handler=handler)
    await virtual.run(channel.request([bytes(100)], timeout=60))
    await virtual.run(virtual.sleep(50))
    _, ends = await virtual.run(channel.request([bytes(100)], timeout=60))
    assert ends == [pytest.approx(1.0)]


async def test_latency_without_a_bandwidth_limit(virtual, shaped):
    channel = await shaped(latency=0.1)
    _, ends = await virtual.run(*(channel.request([bytes(10**6)], timeout=60) for _ in range(3)))
    assert ends == [pytest.approx(0.2)] * 3
    assert channel.link.outward.traffic.bytes == 3 * 10**6
    assert channel.link.outward.traffic.busy_seconds == 0


async def test_the_deadline_ends_a_transfer_half_way_and_bills_what_passed(virtual, shaped):
    channel = await shaped(bandwidth=100.0)
    results, ends = await virtual.run(channel.request([bytes(1000)], timeout=4))
    assert isinstance(results[0], UnavailableError)
    assert "within 4 s" in results[0].message
    assert "100 bytes/s" in results[0].hint
    assert ends == [pytest.approx(4.0)]
    assert channel.link.outward.traffic.bytes == 400
    assert channel.link.outward.traffic.busy_seconds == pytest.approx(4.0)
    assert channel.link.outward.traffic.messages == 0


async def test_the_deadline_also_holds_while_waiting_for_a_turn_and_in_flight(virtual, shaped):
    channel = await shaped(bandwidth=100.0, latency=1.0)
    requests = [
        channel.request([bytes(1000)], timeout=60),
        channel.request([bytes(1)], timeout=3),  # waits for the first until 10
        channel.request([bytes(100)], timeout=60),
    ]
    results, ends = await virtual.run(*requests)
    assert isinstance(results[1], UnavailableError)
    assert ends == [pytest.approx(10 + 1 + 10 + 1), pytest.approx(3.0), pytest.approx(11 + 1 + 10 + 1)]
    results, ends = await virtual.run(channel.request([bytes(100)], timeout=1.5))
    assert isinstance(results[0], UnavailableError)
    assert ends == [pytest.approx(1.5)]


async def test_a_cancelled_transfer_frees_the_link_for_the_next(virtual, shaped):
    async def handler(frames):
        return []

    channel = await shaped(bandwidth=100.0, handler=handler)
    first = asyncio.ensure_future(channel.request([bytes(1000)], timeout=60))

    async def cancel():
        await virtual.sleep(2.5)
        first.cancel()

    results, ends = await virtual.run(first, channel.request([bytes(100)], timeout=60), cancel())
    assert isinstance(results[0], asyncio.CancelledError)
    assert ends[1] == pytest.approx(2.5 + 1.0)
    assert channel.link.outward.traffic.bytes == 250 + 100


async def test_a_refusal_travels_back_over_the_link(virtual, shaped):
    async def handler(frames):
        raise ValueError("no")

    channel = await shaped(bandwidth=100.0, latency=0.5, handler=handler)
    results, ends = await virtual.run(channel.request([bytes(100)], timeout=60))
    assert isinstance(results[0], TransportError)
    assert ends == [pytest.approx(1 + 0.5 + 0.5)]


async def test_a_late_event_loop_does_not_slow_the_link_down(virtual, shaped):
    """Requests that waited for their turn start when the link was free, not when the loop got round to them."""

    async def oversleep(seconds):
        await virtual.sleep(seconds + 0.004)

    async def handler(frames):
        return []

    listener = await InprocTransport().listen("inproc://*", handler)
    link = Link(bandwidth=1000.0, clock=virtual, sleep=oversleep)
    channel = ShapedChannel(await InprocTransport().connect(listener.address), link, "peer")
    _, ends = await virtual.run(*(channel.request([bytes(100)], timeout=60) for _ in range(50)))
    assert ends[-1] == pytest.approx(5.004)
    await channel.close()
    await listener.close()


async def test_the_function_of_the_address_decides_which_channel_is_shaped(virtual):
    async def handler(frames):
        return frames

    inner = InprocTransport()
    link = Link(latency=1.0, clock=virtual, sleep=virtual.sleep)
    transport = ShapedTransport(inner, lambda address: link if address.endswith("far") else None)
    far, near = await transport.listen("inproc://far", handler), await transport.listen("inproc://near", handler)
    channels = [await transport.connect(listener.address) for listener in (far, near)]
    _, ends = await virtual.run(*(channel.request([], timeout=60) for channel in channels))
    assert ends == [pytest.approx(2.0), 0.0]
    for opened in (*channels, far, near):
        await opened.close()


@pytest.mark.parametrize(
    "wrong",
    [
        {"bandwidth": 0},
        {"bandwidth": -1.0},
        {"bandwidth": float("inf")},
        {"bandwidth": float("nan")},
        {"latency": -0.1},
        {"latency": float("nan")},
        {"latency": float("inf")},
    ],
)
def test_impossible_links_are_refused(wrong):
    with pytest.raises(ConfigError, match=next(iter(wrong))):
        Link(**wrong)


async def test_on_the_wall_clock_a_link_is_never_faster_than_its_bandwidth():
    async def handler(frames):
        return []

    listener = await InprocTransport().listen("inproc://*", handler)
    link = Link(bandwidth=1e6, latency=0.01)
    channel = ShapedChannel(await InprocTransport().connect(listener.address), link, "peer")
    clock = WallClock()
    begin = clock.now()
    await asyncio.gather(*(channel.request([bytes(25_000)], timeout=60) for _ in range(4)))
    assert clock.now() - begin >= 0.1 + 0.02 - 0.002
    assert link.outward.traffic.busy_seconds == pytest.approx(0.1)
    await channel.close()
    await listener.close()
