"""The driver in virtual time: what is done, when, and in which order."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lmcache_kit.errors import ConfigError, UnavailableError
from lmcache_kit.faults import Fault, FaultDriver, FaultPlan, FaultTarget
from lmcache_kit.sim.loop import VirtualClock, VirtualLoop


class Fleet:
    """Notes what is done to it; ``seconds`` is how long each method takes."""

    def __init__(self, loop: VirtualLoop, seconds: dict[str, float] | None = None) -> None:
        self.done: list[tuple[Any, ...]] = []
        self._loop = loop
        self._seconds = seconds or {}
        self.failing: str | None = None

    def __getattr__(self, name: str) -> Callable[..., Coroutine[Any, Any, None]]:
        async def method(*arguments: Any) -> None:
            self.done.append((self._loop.time(), name, *arguments))
            await asyncio.sleep(self._seconds.get(name, 0.0))
            if name == self.failing:
                raise UnavailableError("it cannot be done")

        return method


class Stage:
    def __init__(self, *faults: Fault, **seconds: float) -> None:
        self.loop = VirtualLoop()
        self.fleet = Fleet(self.loop, seconds)
        self.events: list[tuple[Any, ...]] = []
        target: Any = self.fleet
        self.driver = FaultDriver(FaultPlan(faults), target, clock=VirtualClock(self.loop), emit=self._emit)
        self.left: list[Any] = []

    def _emit(self, event: str, **facts: Any) -> None:
        assert event == "fault"
        self.events.append((self.loop.time(), *facts.values()))

    def play(self, seconds: float, *origins: tuple[float, str]) -> None:
        async def work() -> str:
            for at, name in origins:
                await asyncio.sleep(at - self.loop.time())
                await self.driver.start(name)
            await asyncio.sleep(seconds - self.loop.time())
            return "worked"

        async def run() -> None:
            try:
                await self.driver.start()
                assert await self.driver.run(work()) == "worked"
            finally:
                self.left = await self.driver.close()

        self.loop.run(run())


def fault(position: int, kind: Any, at: float, *target: str, **more: Any) -> Fault:
    return Fault(position=position, kind=kind, at=at, target=target, **more)


def test_each_action_at_its_time() -> None:
    stage = Stage(
        fault(0, "kill", 2.0, "a"),
        fault(1, "restart", 5.0, "a"),
        fault(2, "slow_link", 1.0, "a", "b", until=4.0, bandwidth=100.0, latency=0.5),
        fault(3, "partition", 1.5, "a", "controller", until=1.75),
        fault(4, "full_tier", 0.0, "b", until=3.0, location="disk"),
        restart=2.0,
    )
    stage.play(10.0)
    assert stage.fleet.done == [
        (0.0, "fill_tier", "b", "disk"),
        (1.0, "set_link", "a", "b", 100.0, 0.5),
        (1.5, "cut", "a", "controller"),
        (1.75, "mend", "a", "controller"),
        (2.0, "kill", "a"),
        (3.0, "empty_tier", "b", "disk"),
        (4.0, "set_link", "a", "b", None, None),
        (5.0, "restart", "a"),
    ]
    assert stage.events == [
        (0.0, "full_tier", "b", "begin", "disk"),
        (1.0, "slow_link", "a-b", "begin", 100.0, 0.5),
        (1.5, "partition", "a-controller", "begin"),
        (1.75, "partition", "a-controller", "end"),
        (2.0, "kill", "a", "begin"),
        (3.0, "full_tier", "b", "end", "disk"),
        (4.0, "slow_link", "a-b", "end", 100.0, 0.5),
        (5.0, "restart", "a", "begin"),
        (7.0, "restart", "a", "end"),
    ]
    assert stage.left == []
    assert stage.driver.down == frozenset()


def test_what_counts_from_a_workload_waits_for_it_and_what_is_due_at_once_comes_before_it() -> None:
    stage = Stage(
        fault(0, "kill", 0.0, "a", after="serve"),
        fault(1, "restart", 0.0, "a", after="again"),
        fault(2, "kill", 1.0, "a", after="again"),
        restart=3.0,
        kill=0.25,
    )
    stage.play(20.0, (2.0, "serve"), (6.0, "again"))
    # The instance is back at 9, when `again` begins to work, and is killed 1 s after that.
    assert stage.fleet.done == [(2.0, "kill", "a"), (6.0, "restart", "a"), (10.0, "kill", "a")]
    assert stage.driver.down == {"a"}


def test_one_target_is_not_killed_while_it_still_starts_and_others_are() -> None:
    stage = Stage(
        fault(0, "kill", 0.0, "a"),
        fault(1, "restart", 1.0, "a"),
        fault(2, "kill", 2.0, "a"),
        fault(3, "kill", 2.0, "b"),
        fault(4, "partition", 2.5, "b", "c", after="never"),
        restart=5.0,
    )
    stage.play(20.0)
    assert stage.fleet.done == [(0.0, "kill", "a"), (1.0, "restart", "a"), (2.0, "kill", "b"), (6.0, "kill", "a")]
    assert [action.fault.position for action in stage.left] == [4]


def test_what_the_run_was_too_short_for_is_told() -> None:
    stage = Stage(
        fault(0, "partition", 1.0, "a", "b", until=100.0), fault(1, "kill", 50.0, "a"), fault(2, "restart", 60.0, "a")
    )
    stage.play(10.0)
    assert [(action.fault.position, action.step) for action in stage.left] == [(1, "begin"), (2, "begin")]
    assert stage.fleet.done == [(1.0, "cut", "a", "b")]


def test_an_action_that_fails_ends_the_work_and_says_which() -> None:
    stage = Stage(fault(0, "kill", 1.0, "a"), fault(1, "kill", 2.0, "b"))
    stage.fleet.failing = "kill"
    with pytest.raises(UnavailableError, match=r"faults\.0: kill of a failed: it cannot be done"):
        stage.play(10.0)
    assert stage.loop.time() == 1.0
    assert stage.events == []


def test_an_action_of_time_0_that_fails_is_raised_at_once() -> None:
    stage = Stage(fault(0, "kill", 0.0, "a"))
    stage.fleet.failing = "kill"
    with pytest.raises(UnavailableError, match=r"faults\.0: kill of a failed"):
        stage.play(10.0)


def test_an_order_that_only_the_run_could_show_is_refused_then() -> None:
    # Checked in the order of the workloads; this one is over before the time of the kill.
    stage = Stage(fault(0, "kill", 9.0, "a"), fault(1, "restart", 0.0, "a", after="early"))
    with pytest.raises(ConfigError, match=r"faults\.1: a is not down when its time came"):
        stage.play(20.0, (1.0, "early"))


def test_an_error_of_the_work_is_its_own_and_faults_are_cancelled() -> None:
    stage = Stage(fault(0, "kill", 0.5, "a"), fault(1, "restart", 1.0, "a"), restart=100.0)

    async def broken() -> None:
        await asyncio.sleep(2.0)
        raise UnavailableError("the work is broken")

    async def run() -> None:
        await stage.driver.start()
        try:
            await stage.driver.run(broken())
        finally:
            await stage.driver.close()

    with pytest.raises(UnavailableError, match="the work is broken"):
        stage.loop.run(run())
    assert [event[1:4] for event in stage.events] == [("kill", "a", "begin"), ("restart", "a", "begin")]


@given(
    st.lists(
        st.tuples(
            st.integers(0, 40),
            st.one_of(st.none(), st.integers(1, 20)),
            st.sampled_from((("a", "b"), ("a", "c"), ("b", "c"))),
        ),
        max_size=8,
    ),
    st.integers(0, 50),
)
def test_links_are_cut_exactly_while_a_fault_lasts(
    drawn: list[tuple[int, int | None, tuple[str, str]]], until: int
) -> None:
    """Against an oracle that asks, quarter second by quarter second, whether a partition covers it."""
    kept: list[tuple[int, int | None, tuple[str, str]]] = []
    for at, lasts, pair in drawn:
        spans = [(other_at, other_at + other) for other_at, other, p in kept if p == pair and other is not None]
        if lasts is not None and all(at + lasts <= begin or at >= end for begin, end in spans):
            kept.append((at, lasts, pair))
    stage = Stage(
        *(
            fault(n, "partition", at / 4, *pair, until=None if lasts is None else (at + lasts) / 4)
            for n, (at, lasts, pair) in enumerate(kept)
        )
    )
    stage.play(until / 4 + 0.1)
    for pair in (("a", "b"), ("a", "c"), ("b", "c")):
        for tick in range(until + 1):
            expected = any(p == pair and at <= tick < at + (lasts or 0) for at, lasts, p in kept)
            cut = False
            for when, name, *ends in stage.fleet.done:
                if tuple(ends) == pair and when <= tick / 4:
                    cut = name == "cut"
            assert cut == expected, (pair, tick)


def test_a_fleet_is_a_target() -> None:
    methods = {name for name in vars(FaultTarget) if not name.startswith("_")}
    assert methods == {"kill", "restart", "set_link", "cut", "mend", "fill_tier", "empty_tier"}
