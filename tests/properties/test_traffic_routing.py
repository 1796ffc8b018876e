"""Routers and the books they decide by, against the plainest way to do the same."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from lmcache_kit.traffic.load import Load
from lmcache_kit.traffic.routing import LeastLoaded, PrefixAware, RoundRobin


class Books(RuleBasedStateMachine):
    """Load does what a list of counters and a set of names would."""

    @initialize(count=st.integers(1, 6), limit=st.none() | st.integers(1, 3))
    def begin(self, count: int, limit: int | None) -> None:
        self.load = Load(count, limit)
        self.limit = limit
        self.flights = [0] * count
        self.most = [0] * count
        self.down: set[int] = set()

    def free(self) -> list[int]:
        return [
            place
            for place, requests in enumerate(self.flights)
            if place not in self.down and (self.limit is None or requests < self.limit)
        ]

    @precondition(lambda self: self.free())
    @rule(data=st.data())
    def take(self, data: st.DataObject) -> None:
        place = data.draw(st.sampled_from(self.free()))
        self.load.take(place)
        self.flights[place] += 1
        self.most[place] = max(self.most[place], self.flights[place])

    @precondition(lambda self: any(self.flights))
    @rule(data=st.data())
    def release(self, data: st.DataObject) -> None:
        place = data.draw(st.sampled_from([place for place, requests in enumerate(self.flights) if requests]))
        self.load.release(place)
        self.flights[place] -= 1

    @rule(data=st.data(), up=st.booleans())
    def go_or_come(self, data: st.DataObject, up: bool) -> None:
        place = data.draw(st.integers(0, len(self.flights) - 1))
        if up:
            self.load.set_up(place)
            self.down.discard(place)
        else:
            self.load.set_down(place)
            self.down.add(place)

    @invariant()
    def same(self) -> None:
        load, free, flights = self.load, self.free(), self.flights
        assert load.in_flight == flights
        assert load.most_in_flight == self.most
        assert [load.may_take(place) for place in range(len(flights))] == [
            place in free for place in range(len(flights))
        ]
        assert load.any_up == (len(self.down) < len(flights))
        up = [place for place in range(len(flights)) if place not in self.down]
        if self.limit is not None:
            assert load.room == sum(self.limit - flights[place] for place in up)
        else:
            assert load.room == (float("inf") if up else 0)
        assert load.least() == min(free, key=lambda place: (flights[place], place), default=None)
        for start in range(len(flights)):
            circle = [*range(start, len(flights)), *range(start)]
            assert load.next_from(start) == next((place for place in circle if place in free), None)


TestBooks = Books.TestCase
TestBooks.settings = settings(max_examples=60, stateful_step_count=30, deadline=None)


@st.composite
def fleets(draw: st.DrawFn) -> tuple[Load, dict[int, int]]:
    count = draw(st.integers(1, 8))
    limit = draw(st.none() | st.integers(1, 5))
    load = Load(count, limit)
    for place in range(count):
        for _ in range(draw(st.integers(0, 5 if limit is None else limit))):
            load.take(place)
    for place in draw(st.sets(st.integers(0, count - 1))):
        load.set_down(place)
    cached = draw(st.dictionaries(st.integers(0, count - 1), st.integers(1, 40)))
    return load, cached


@given(fleets(), st.sampled_from([0.0, 1.0, 4.0, 10.0, 1000.0]) | st.floats(0, 1e6))
@settings(deadline=None)
def test_prefix_aware_is_the_best_of_all_scores(fleet: tuple[Load, dict[int, int]], weight: float) -> None:
    load, cached = fleet
    rows = [
        (-(cached.get(place, 0) - weight * requests), requests, place)
        for place, requests in enumerate(load.in_flight)
        if load.may_take(place)
    ]
    assert PrefixAware(weight).choose(load, cached) == (min(rows)[2] if rows else None)


@given(fleets())
@settings(deadline=None)
def test_nobody_is_chosen_over_the_limit(fleet: tuple[Load, dict[int, int]]) -> None:
    load, cached = fleet
    for router in (RoundRobin(), LeastLoaded(), PrefixAware(3.0)):
        while (place := router.choose(load, cached)) is not None and load.in_flight[place] < 12:
            assert load.is_up(place)
            assert load.in_flight[place] < load.limit
            load.take(place)


@given(st.integers(1, 9), st.integers(1, 40))
def test_round_robin_deals_evenly(count: int, requests: int) -> None:
    load, router = Load(count), RoundRobin()
    for _ in range(requests):
        place = router.choose(load, {})
        assert place is not None
        load.take(place)
    assert max(load.in_flight) - min(load.in_flight) <= 1
