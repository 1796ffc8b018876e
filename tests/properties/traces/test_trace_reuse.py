from __future__ import annotations

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lmcache_kit.builtin.eviction.lru import LRU
from lmcache_kit.contracts.records import EvictionPlugin
from lmcache_kit.contracts.trace import TraceRecord
from lmcache_kit.plugins import PluginRegistry
from lmcache_kit.traces import replay, spread_bursts
from lmcache_kit.traces.chaining import Chainer

SIZE = 8
prompts = st.lists(st.lists(st.integers(0, 2), max_size=6), max_size=25)


def records_of(chains: list[list[int]], tails: random.Random) -> list[TraceRecord]:
    chainer = Chainer()
    made = []
    for chain in chains:
        tail = tails.randrange(SIZE)
        made.append(
            TraceRecord(
                arrival=float(tails.randrange(4)),
                input_tokens=len(chain) * SIZE + tail,
                output_tokens=0,
                block_ids=tuple(chainer.chain(chain)),
                tail_tokens=tail,
            )
        )
    return sorted(made, key=lambda record: record.arrival)


@given(prompts)
def test_chained_ids_are_prefixes(chains: list[list[int]]) -> None:
    """Oracle: the prefixes themselves. Chaining what is chained changes nothing but numbers."""
    chainer, again = Chainer(), Chainer()
    prefixes: dict[int, tuple[int, ...]] = {}
    for chain in chains:
        ids = chainer.chain(chain)
        for length, number in enumerate(ids, start=1):
            assert prefixes.setdefault(number, tuple(chain[:length])) == tuple(chain[:length])
        assert again.chain(ids) == ids
    assert len(set(prefixes.values())) == len(prefixes)


@settings(deadline=None)
@given(prompts, st.integers(1, 12), st.randoms(use_true_random=False))
def test_lru_is_a_list_in_order_of_use(chains: list[list[int]], capacity: int, rng: random.Random) -> None:
    """Oracle: the cache is the last ``capacity`` different ids that were used, found by looking back each time."""
    records = records_of(chains, rng)
    used: list[int] = []
    hits = 0
    for record in records:
        held = list(dict.fromkeys(reversed(used)))[:capacity]
        run = 0
        while run < len(record.block_ids) and record.block_ids[run] in held:
            run += 1
        hits += run
        used.extend(record.block_ids)
    found = replay(records, SIZE, policy=LRU(), capacity=capacity)
    assert found.plain.hit_blocks == hits
    assert found.resident == min(capacity, found.distinct)


@settings(deadline=None)
@given(prompts, st.randoms(use_true_random=False))
def test_more_room_never_hurts_lru_and_nothing_beats_endless(chains: list[list[int]], rng: random.Random) -> None:
    records = records_of(chains, rng)
    endless = replay(records, SIZE)
    hits = [replay(records, SIZE, policy=LRU(), capacity=room).plain.hit_blocks for room in range(1, 20)]
    assert hits == sorted(hits)
    assert hits[-1] <= endless.plain.hit_blocks
    room = max(1, endless.distinct)
    assert replay(records, SIZE, policy=LRU(), capacity=room).plain == endless.plain


@pytest.mark.parametrize("policy", ["lru", "lfu", "fifo", "mru", "arc"])
@settings(deadline=None, max_examples=40)
@given(chains=prompts, capacity=st.integers(1, 9), rng=st.randoms(use_true_random=False))
def test_any_policy_keeps_the_books(policy: str, chains: list[list[int]], capacity: int, rng: random.Random) -> None:
    plugins = PluginRegistry(allow=[])
    record = plugins.get(EvictionPlugin, policy)
    records = records_of(chains, rng)
    found = replay(records, SIZE, policy=record.factory(plugins.options(record), capacity), capacity=capacity)
    endless = replay(records, SIZE)
    assert found.resident <= capacity
    assert found.plain.hit_blocks <= endless.plain.hit_blocks
    assert found.distinct == endless.distinct
    # Every id stored is there or was evicted, and each different one was stored at least once.
    assert found.resident + found.evictions >= found.distinct
    assert found.plain.hit_full_tokens <= found.plain.hit_tokens <= found.plain.tokens


@given(prompts, st.randoms(use_true_random=False), st.none() | st.floats(0, 3))
def test_spreading_keeps_order_and_stays_before_what_comes_next(
    chains: list[list[int]], rng: random.Random, bound: float | None
) -> None:
    records = records_of(chains, rng)
    spread, done = spread_bursts(records, rng, longest_gap=bound)
    assert [each.block_ids for each in spread] == [each.block_ids for each in records]
    stamps = sorted({each.arrival for each in records})
    gap = stamps[-1] - stamps[-2] if len(stamps) > 1 else 0.0
    until = dict(zip(stamps, [*stamps[1:], stamps[-1] + gap] if stamps else [], strict=True))
    for before, after in zip(records, spread, strict=True):
        assert before.arrival <= after.arrival <= until[before.arrival]
        assert bound is None or after.arrival <= before.arrival + bound
    assert [each.arrival for each in spread] == sorted(each.arrival for each in spread)
    assert done.moved == sum(a.arrival != b.arrival for a, b in zip(records, spread, strict=True))
