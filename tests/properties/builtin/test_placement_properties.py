"""Placement decisions hold together for every fleet."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lmcache_kit.builtin.placement.broadcast import Broadcast
from lmcache_kit.builtin.placement.demote import Demote
from lmcache_kit.builtin.placement.write_back import WriteBack
from lmcache_kit.contracts import TierView

POLICIES = [Broadcast(), WriteBack(), Demote()]

tiers = st.lists(
    st.builds(
        TierView,
        location=st.just("t"),
        capacity_bytes=st.none() | st.integers(0, 100),
        used_bytes=st.integers(0, 100),
        writable=st.booleans(),
    ),
    min_size=1,
    max_size=5,
)


def takes(tier: TierView, nbytes: int) -> bool:
    return tier.writable and (tier.capacity_bytes is None or tier.capacity_bytes >= nbytes)


@pytest.mark.parametrize("policy", POLICIES)
@given(fleet=tiers, nbytes=st.integers(0, 100))
def test_only_tiers_that_can_take_the_object_are_named(policy, fleet, nbytes):
    able = {index for index, tier in enumerate(fleet) if takes(tier, nbytes)}
    stored = set(policy.on_store(fleet, nbytes))
    assert stored <= able
    assert bool(stored) == bool(able)  # whatever can be stored is
    for tier in range(len(fleet)):
        promotion = policy.on_hit(fleet, tier, nbytes)
        assert promotion is None or (promotion.target in able and promotion.target < tier)
        target = policy.on_evict(fleet, tier, (), nbytes)
        assert target is None or (target in able and target > tier)


@given(fleet=tiers, nbytes=st.integers(0, 100))
def test_demote_loses_an_object_only_at_the_bottom_and_keeps_one_copy(fleet, nbytes):
    policy, holders = Demote(), set(Demote().on_store(fleet, nbytes))
    assert len(holders) <= 1
    visited = []
    while holders:
        (tier,) = holders
        visited.append(tier)
        target = policy.on_evict(fleet, tier, (), nbytes)
        holders = set() if target is None else {target}
    assert visited == [index for index, tier in enumerate(fleet) if takes(tier, nbytes)]


@given(fleet=tiers, nbytes=st.integers(0, 100))
def test_write_back_comes_to_rest_with_two_copies_where_two_fit(fleet, nbytes):
    policy, held = WriteBack(), set(WriteBack().on_store(fleet, nbytes))
    able = sum(takes(tier, nbytes) for tier in fleet)
    for _ in range(len(fleet) + 1):
        more = set(policy.on_idle(fleet, sorted(held), nbytes)) - held
        if not more:
            break
        held |= more
    assert len(held) == min(2, able)
