import math

import pytest

from lmcache_kit.clock import ManualClock
from lmcache_kit.errors import InvalidRequestError
from lmcache_kit.instance.core.pins import PinTable


@pytest.fixture
def clock():
    return ManualClock(10.0)


@pytest.fixture
def pins(clock):
    return PinTable(clock)


def test_a_pin_without_ttl_does_not_run_out(pins, clock):
    pins.pin("a")
    clock.advance(1e9)
    assert pins.pinned("a")
    assert pins.owners("a") == {"": math.inf}


def test_a_pin_ends_exactly_at_its_ttl(pins, clock):
    pins.pin("a", "x", ttl=5)
    clock.advance(4.5)
    assert pins.pinned("a")
    clock.advance(0.5)
    assert not pins.pinned("a")
    assert pins.names() == []
    assert not pins.unpin("a", "x")


def test_each_owner_holds_on_its_own(pins, clock):
    pins.pin("a", "x", ttl=1)
    pins.pin("a", "y")
    clock.advance(2)
    assert pins.owners("a") == {"y": math.inf}
    assert not pins.unpin("a", "x")
    assert not pins.unpin("a")
    assert pins.unpin("a", "y")
    assert not pins.pinned("a")


def test_pinning_again_replaces_the_end(pins, clock):
    pins.pin("a", ttl=1)
    pins.pin("a", ttl=10)
    clock.advance(5)
    assert pins.pinned("a")
    pins.pin("a", ttl=1)
    clock.advance(2)
    assert not pins.pinned("a")


def test_names_by_owner(pins):
    pins.pin("a", "x")
    pins.pin("b", "y")
    assert pins.names("x") == ["a"]
    assert sorted(pins.names()) == ["a", "b"]
    pins.drop("a")
    pins.drop("a")
    assert pins.names() == ["b"]


@pytest.mark.parametrize("ttl", [0, -1, math.nan, math.inf])
def test_a_ttl_is_a_positive_number(pins, ttl):
    with pytest.raises(InvalidRequestError, match="ttl must be"):
        pins.pin("a", ttl=ttl)
    assert not pins.pinned("a")
