"""What the placement policies decide, case by case."""

from __future__ import annotations

import pytest

from lmcache_kit.builtin.placement.broadcast import Broadcast
from lmcache_kit.builtin.placement.demote import Demote
from lmcache_kit.builtin.placement.write_back import WriteBack
from lmcache_kit.contracts import Promotion, TierView


def fleet(*capacities: int | None, read_only: tuple[int, ...] = ()) -> list[TierView]:
    return [
        TierView(location=f"t{index}", capacity_bytes=capacity, used_bytes=0, writable=index not in read_only)
        for index, capacity in enumerate(capacities)
    ]


THREE = fleet(100, 1000, None)
SMALL_TOP = fleet(10, 1000, None)
READ_ONLY_MIDDLE = fleet(100, 1000, None, read_only=(1,))


@pytest.mark.parametrize(
    ("policy", "tiers", "want"),
    [
        (Broadcast(), THREE, (0, 1, 2)),
        (Broadcast(), SMALL_TOP, (1, 2)),
        (Broadcast(), READ_ONLY_MIDDLE, (0, 2)),
        (Broadcast(), fleet(10), ()),
        (WriteBack(), THREE, (0,)),
        (WriteBack(), SMALL_TOP, (1,)),
        (Demote(), THREE, (0,)),
        (Demote(), fleet(10, 10, read_only=(0,)), ()),
        (Demote(), fleet(50), (0,)),
    ],
)
def test_stores(policy, tiers, want):
    assert tuple(policy.on_store(tiers, 50)) == want


@pytest.mark.parametrize(
    ("held", "tiers", "want"),
    [
        ((0,), THREE, (1,)),
        ((1,), THREE, (2,)),
        ((2,), THREE, ()),
        ((0, 1), THREE, ()),
        ((0, 2), THREE, ()),
        ((0,), READ_ONLY_MIDDLE, (2,)),
        ((0,), fleet(100, 10, None), (2,)),
        ((0,), fleet(100), ()),
        ((), THREE, ()),
    ],
)
def test_write_back_aims_at_one_copy_below(held, tiers, want):
    assert tuple(WriteBack().on_idle(tiers, held, 50)) == want


def test_only_write_back_works_in_the_background():
    assert not Broadcast().on_idle(THREE, (0,), 50)
    assert not Demote().on_idle(THREE, (0,), 50)


@pytest.mark.parametrize(
    ("policy", "tiers", "tier", "want"),
    [
        (Broadcast(), THREE, 0, None),
        (Broadcast(), THREE, 2, Promotion(target=0, keep_source=True)),
        (Broadcast(), SMALL_TOP, 1, None),
        (Broadcast(), SMALL_TOP, 2, Promotion(target=1, keep_source=True)),
        (WriteBack(), THREE, 1, Promotion(target=0, keep_source=True)),
        (Demote(), THREE, 1, Promotion(target=0, keep_source=False)),
        (Demote(), THREE, 2, Promotion(target=0, keep_source=False)),
        (Demote(), READ_ONLY_MIDDLE, 1, Promotion(target=0, keep_source=True)),
        (Demote(), fleet(100, 100, read_only=(0,)), 1, None),
    ],
)
def test_hits(policy, tiers, tier, want):
    assert policy.on_hit(tiers, tier, 50) == want


@pytest.mark.parametrize(
    ("policy", "tiers", "tier", "held", "want"),
    [
        (Broadcast(), THREE, 0, (), None),
        (WriteBack(), THREE, 0, (), 1),
        (WriteBack(), THREE, 0, (2,), None),
        (WriteBack(), THREE, 2, (), None),
        (Demote(), THREE, 0, (), 1),
        (Demote(), THREE, 1, (), 2),
        (Demote(), THREE, 2, (), None),
        (Demote(), READ_ONLY_MIDDLE, 0, (), 2),
        (Demote(), fleet(100, 10), 0, (), None),
        (Demote(), THREE, 0, (1,), None),
    ],
)
def test_evictions(policy, tiers, tier, held, want):
    assert policy.on_evict(tiers, tier, held, 50) == want
