"""The bitmask index on its own."""

from lmcache_kit.controller.index import ChunkIndex


def test_slots_are_distinct_bits_and_masks_join_them():
    index = ChunkIndex()
    a, b = index.open_slot(), index.open_slot()
    assert a & b == 0
    index.admit(a, [1, 2])
    index.admit(b, [2, -3, 2**70])
    assert index.masks == {1: a, 2: a | b, -3: b, 2**70: b}


def test_admit_twice_and_evict_what_is_not_there_change_nothing():
    index = ChunkIndex()
    a = index.open_slot()
    index.admit(a, [1])
    index.admit(a, [1])
    index.evict(a, 2)
    assert index.masks == {1: a}
    index.evict(a, 1)
    assert index.masks == {}
    assert index.keys(a) == set()


def test_sweep_keeps_to_its_budget_and_frees_the_bit_only_when_it_is_clean():
    index = ChunkIndex()
    old = index.open_slot()
    index.admit(old, range(100))
    index.retire(old)
    assert index.sweep(30)
    assert index.retired_keys == 70
    fresh = index.open_slot()
    assert fresh != old, "a bit that still stands in masks must not be given out"
    index.admit(fresh, [99])
    assert not index.sweep(1000)
    assert index.masks == {99: fresh}
    assert index.open_slot() == old


def test_retired_slots_without_keys_are_freed_at_once():
    index = ChunkIndex()
    bits = [index.open_slot() for _ in range(5)]
    for bit in bits:
        index.retire(bit)
    assert not index.sweep(0)
    assert {index.open_slot() for _ in range(5)} == set(bits)
