from __future__ import annotations

import pytest

from lmcache_kit.traffic.load import Load
from lmcache_kit.traffic.routing import LeastLoaded, PrefixAware, RoundRobin


def test_round_robin_passes_over_who_may_take_none() -> None:
    load, router = Load(3, limit=1), RoundRobin()
    chosen = []
    for _ in range(3):
        place = router.choose(load, {})
        assert place is not None
        load.take(place)
        chosen.append(place)
    assert chosen == [0, 1, 2]
    assert router.choose(load, {}) is None
    load.release(1)
    assert router.choose(load, {}) == 1
    load.set_down(1)
    assert router.choose(load, {}) is None
    load.release(2)
    load.release(0)
    assert [router.choose(load, {}), router.choose(load, {})] == [2, 0]


def test_least_loaded_takes_the_first_of_equals() -> None:
    load, router = Load(3), LeastLoaded()
    chosen = []
    for _ in range(7):
        place = router.choose(load, {})
        assert place is not None
        load.take(place)
        chosen.append(place)
    assert chosen == [0, 1, 2, 0, 1, 2, 0]
    load.release(1)
    load.release(1)
    assert router.choose(load, {}) == 1


@pytest.mark.parametrize(
    ("in_flight", "cached", "weight", "chosen"),
    [
        ([0, 0, 0], {}, 100, 0),
        ([0, 0, 0], {2: 50}, 100, 2),
        ([0, 0, 1], {2: 50}, 100, 0),
        ([1, 1, 1], {1: 1}, 100, 1),
        ([1, 1, 2], {1: 100, 2: 200}, 100, 1),  # equal scores: fewer in flight
        ([2, 1, 1], {1: 100, 2: 100}, 100, 1),  # equal in everything: the first
        ([0, 9, 9], {1: 1}, 0, 1),  # no weight: prefixes alone
        ([1, 0, 9], {}, 0, 1),  # nothing held: the least loaded
        ([0, 0, 0], {0: 10, 1: 30, 2: 20}, 0, 1),
    ],
)
def test_prefixes_are_weighed_against_load(
    in_flight: list[int], cached: dict[int, int], weight: float, chosen: int
) -> None:
    load = Load(len(in_flight))
    for place, requests in enumerate(in_flight):
        for _ in range(requests):
            load.take(place)
    assert PrefixAware(weight).choose(load, cached) == chosen


def test_a_holder_that_is_full_or_away_is_no_candidate() -> None:
    load = Load(3, limit=1)
    load.take(0)
    load.set_down(1)
    assert PrefixAware(0).choose(load, {0: 1000, 1: 1000}) == 2
    load.take(2)
    assert PrefixAware(0).choose(load, {0: 1000, 1: 1000}) is None


def test_load_refuses_what_cannot_be() -> None:
    load = Load(2, limit=1)
    with pytest.raises(ValueError, match="no request to end"):
        load.release(0)
    load.take(0)
    with pytest.raises(ValueError, match="takes no more"):
        load.take(0)
    load.set_down(1)
    with pytest.raises(ValueError, match="takes no more"):
        load.take(1)


def test_room_follows_instances_that_go_and_come() -> None:
    load = Load(2, limit=3)
    load.take(0)
    assert load.room == 5
    load.set_down(0)
    load.set_down(0)
    assert (load.room, load.any_up, load.is_up(0)) == (3, True, False)
    load.release(0)
    assert load.room == 3
    load.set_down(1)
    assert (load.room, load.any_up, load.least(), load.next_from(1)) == (0, False, None, None)
    load.set_up(0)
    load.set_up(0)
    assert (load.room, load.least()) == (3, 0)
    assert Load(2).room == float("inf")
