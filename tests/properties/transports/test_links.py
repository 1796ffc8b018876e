"""Shaped links against an independent account of a first-in, first-out queue."""

import asyncio
import heapq
import itertools
from fractions import Fraction

from hypothesis import given, settings
from hypothesis import strategies as st

from lmcache_kit.builtin.transports.link import Link


class VirtualTime:
    """A clock in exact fractions; it moves to the next sleeper when nothing else can run."""

    def __init__(self):
        self.time = Fraction(0)
        self.sleepers = []
        self.numbers = itertools.count()

    def now(self):
        return self.time

    def unix(self):
        return self.time

    async def sleep(self, seconds):
        future = asyncio.get_running_loop().create_future()
        heapq.heappush(self.sleepers, (self.time + Fraction(seconds), next(self.numbers), future))
        await future

    async def run_until_done(self, tasks):
        while True:
            for _ in range(12):
                await asyncio.sleep(0)
            if all(task.done() for task in tasks):
                return
            moment, _, future = heapq.heappop(self.sleepers)
            if not future.done():
                self.time = max(self.time, moment)
                future.set_result(None)


def account(transfers, bandwidth, latency):
    """Arrival time or None for each ``(handed over, size, deadline)``, and the bytes that passed."""
    free, results, passed = Fraction(0), [], Fraction(0)
    for start, size, deadline in transfers:
        begin = max(start, free)
        end = begin + Fraction(size) / bandwidth
        if begin >= deadline and begin > start:  # its turn never came
            results.append(None)
            continue
        if end > deadline:
            passed += int((max(deadline, begin) - begin) * bandwidth)
            free = max(deadline, begin)
            results.append(None)
            continue
        free = end
        passed += size
        results.append(end + latency if end + latency <= deadline else None)
    return results, passed


@settings(max_examples=80, deadline=None)
@given(
    transfers=st.lists(
        st.tuples(st.integers(1, 40), st.integers(0, 50), st.sampled_from([3, 7, 1000])), min_size=1, max_size=12
    ),
    bandwidth=st.integers(1, 20),
    latency=st.integers(0, 5),
)
def test_arrival_times_bytes_and_busy_time_are_those_of_a_queue(transfers, bandwidth, latency):
    # Hand-overs a little apart, so that "first in" is well defined, and off the grid of the deadlines.
    steps = itertools.accumulate(Fraction(gap) + Fraction(1, 1009) for gap, _, _ in transfers)
    plan = [
        (start, size, start + wait + Fraction(1, 2027)) for start, (_, size, wait) in zip(steps, transfers, strict=True)
    ]
    virtual = VirtualTime()

    async def scenario():
        link = Link(bandwidth=Fraction(bandwidth), latency=Fraction(latency), clock=virtual, sleep=virtual.sleep)
        arrived = [None] * len(plan)

        async def transfer(number, start, size, deadline):
            await virtual.sleep(start)
            try:
                await link.outward.carry(size, deadline)
            except TimeoutError:
                assert virtual.time == deadline
            else:
                arrived[number] = virtual.time

        tasks = [asyncio.ensure_future(transfer(number, *entry)) for number, entry in enumerate(plan)]
        await virtual.run_until_done(tasks)
        await asyncio.gather(*tasks)
        return link, arrived

    link, arrived = asyncio.run(scenario())
    expected, passed = account(plan, Fraction(bandwidth), Fraction(latency))
    assert arrived == expected
    traffic = link.outward.traffic
    assert traffic.bytes == passed
    assert -1e-6 < float(traffic.busy_seconds * bandwidth - passed) < len(plan)  # parts of a byte are not counted
    assert traffic.messages >= sum(moment is not None for moment in expected)
