"""Replays: the reference table, LMCache's definition, retries, and the workload."""

from __future__ import annotations

import os
from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path

import pytest

from lmcache_kit.builtin.eviction.fifo import FIFO
from lmcache_kit.builtin.eviction.lru import LRU
from lmcache_kit.contracts.trace import TraceRecord
from lmcache_kit.traces import load_trace, replay

DATA = Path(__file__).parents[3] / "scenarios" / "data" / "traces"
REAL = Path(os.environ.get("LMCACHE_KIT_TRACE", "../shared/traces/conversation_trace.jsonl"))
REFERENCE = {1_000: 0.0445, 10_000: 0.2112, 30_000: 0.3257, 50_000: 0.3546, 100_000: 0.3637, None: 0.3664}


def record(*ids: int, tail: int = 0, tail_id: int | None = None, **more: str) -> TraceRecord:
    return TraceRecord(
        arrival=0.0,
        input_tokens=len(ids) * 10 + tail,
        output_tokens=0,
        block_ids=ids,
        tail_tokens=tail,
        tail_id=tail_id,
        **more,
    )


def lmcache_tokens(records: Sequence[TraceRecord], capacity: int, size: int) -> tuple[int, int, int]:
    """LMCache's definition, stated anew: hit tokens, all tokens, evictions.

    Hits are the chunks that are cached from the first one on without a gap. The hit ones are then refreshed and the
    others stored, in order; a stored one pushes out the least recent one of a full cache.
    """
    cache: OrderedDict[int, None] = OrderedDict()
    hit = total = evictions = 0
    for each in records:
        run = 0
        for chunk in each.block_ids:
            if chunk not in cache:
                break
            run += 1
        hit += run * size
        total += each.input_tokens
        for place, chunk in enumerate(each.block_ids):
            if place >= run and chunk not in cache and len(cache) >= capacity:
                cache.popitem(last=False)
                evictions += 1
            cache[chunk] = None
            cache.move_to_end(chunk)
    return hit, total, evictions


@pytest.fixture(scope="module")
def conversations() -> list[TraceRecord]:
    if not REAL.exists():
        pytest.skip("the Mooncake conversation trace is not on this machine")
    return load_trace(REAL)[1]


@pytest.mark.parametrize("capacity", REFERENCE)
def test_the_reference_table(conversations: list[TraceRecord], capacity: int | None) -> None:
    found = replay(conversations, 512, policy=LRU(), capacity=capacity)
    assert round(found.plain.block_hit_rate or 0, 4) == REFERENCE[capacity]
    held: OrderedDict[int, None] = OrderedDict()
    hits = 0
    for each in conversations:
        ids = [*each.block_ids, *([] if each.tail_id is None else [each.tail_id])]
        known = [each in held for each in ids]
        hits += known.index(False) if False in known else len(known)
        for one in ids:
            held[one] = None
            held.move_to_end(one)
            if capacity is not None and len(held) > capacity:
                held.popitem(last=False)
    assert found.plain.hit_blocks == hits
    assert (found.plain.blocks, found.distinct, found.resident) == (288_500, 182_790, len(held))


def test_the_endless_cache_of_the_reference(conversations: list[TraceRecord]) -> None:
    found = replay(conversations, 512)
    assert round(found.plain.token_hit_rate or 0, 4) == 0.3736
    # Without retries there is less to hit: a request finds what it stored itself the first time.
    assert (found.retries, found.retries_by) == (118, "prompt")
    assert (found.first.block_hit_rate or 0) < (found.plain.block_hit_rate or 0)


# What the cache simulator of LMCache 0.5.6 answers of the same lookups: hit tokens and evictions by capacity in
# chunks. docs/reference/traces.md says how it was run.
SIMULATOR_ON_SHIPPED = {1: (0, 266), 7: (13_568, 207), 25: (42_240, 77), 100: (46_080, 0)}
SIMULATOR_ON_CONVERSATIONS = {
    1: (693_248, 275_136),
    100: (5_967_360, 264_736),
    1_000: (6_621_696, 262_558),
    10_000: (31_741_952, 204_495),
    30_000: (48_797_696, 151_183),
    50_000: (52_525_568, 123_902),
    100_000: (53_722_112, 71_565),
    10**9: (54_063_104, 0),
}


@pytest.mark.parametrize("capacity", SIMULATOR_ON_SHIPPED)
def test_token_hit_rate_is_that_of_lmcaches_simulator(capacity: int) -> None:
    form, records = load_trace(DATA / "lookups", "lmcache_lookup")
    found = replay(records, form.block_size, policy=LRU(), capacity=capacity)
    assert (found.plain.hit_full_tokens, found.evictions) == SIMULATOR_ON_SHIPPED[capacity]
    assert found.plain.lmcache_token_hit_rate == found.plain.token_hit_rate == found.plain.hit_full_tokens / 74_518
    assert lmcache_tokens(records, capacity, 256) == (found.plain.hit_full_tokens, 74_518, found.evictions)


@pytest.mark.parametrize("capacity", SIMULATOR_ON_CONVERSATIONS)
def test_so_it_is_on_the_conversation_trace(conversations: list[TraceRecord], capacity: int) -> None:
    found = replay(conversations, 512, policy=LRU(), capacity=capacity, partial_blocks=False)
    assert (found.plain.hit_full_tokens, found.evictions) == SIMULATOR_ON_CONVERSATIONS[capacity]
    assert found.plain.tokens == 144_793_823


def test_hits_are_leading_and_tails_count_once() -> None:
    records = [record(1, 2, tail=5, tail_id=3), record(1, 2, tail=5, tail_id=3), record(9, 2), record(1, 2, tail=7)]
    found = replay(records, 10)
    assert (found.plain.hit_blocks, found.plain.blocks) == (3 + 0 + 2, 3 + 3 + 2 + 2)
    assert (found.plain.hit_tokens, found.plain.hit_full_tokens) == (25 + 20, 20 + 20)
    without = replay(records, 10, partial_blocks=False)
    assert (without.plain.hit_blocks, without.plain.blocks, without.distinct) == (4, 8, 3)


def test_a_prompt_larger_than_the_cache_leaves_its_end() -> None:
    found = replay([record(1, 2, 3, 4), record(1, 2, 3, 4), record(3, 4)], 10, policy=LRU(), capacity=2)
    assert (found.plain.hit_blocks, found.evictions, found.resident) == (2, 6, 2)


def test_reading_refreshes_in_prompt_order_and_the_policy_decides() -> None:
    records = [record(1, 2), record(1), record(3), record(1, 2)]
    lru = replay(records, 10, policy=LRU(), capacity=2)
    fifo = replay(records, 10, policy=FIFO(), capacity=2)
    assert (lru.plain.hit_blocks, fifo.plain.hit_blocks) == (2, 1)


def test_retries_are_counted_once() -> None:
    named = [record(1, request_id="a"), record(1, request_id="a"), record(1, request_id="b")]
    found = replay(named, 10)
    assert (found.plain.block_hit_rate, found.first.block_hit_rate) == (2 / 3, 1 / 2)
    assert (found.retries, found.retries_by) == (1, "request_id")


def test_equal_prompts_are_retries_only_within_a_session_and_with_known_tails() -> None:
    records = [
        record(1, session="x"),
        record(1, session="y"),
        record(1, session="x"),
        record(1, tail=3),
        record(1, tail=3),
    ]
    found = replay(records, 10)
    assert (found.retries, found.retries_by) == (1, "prompt")
    # A retry still uses the cache.
    assert (found.plain.hit_blocks, found.first.hit_blocks) == (4, 3)


def test_nothing_is_told_of_nothing() -> None:
    assert replay([], 10).facts()["block_hit_rate"] is None
    assert set(replay([record(tail=3)], 0).plain.rates().values()) == {None}


def test_a_capacity_needs_a_policy_and_room() -> None:
    with pytest.raises(ValueError, match="at least 1"):
        replay([], 10, policy=LRU(), capacity=0)
    with pytest.raises(ValueError, match="policy"):
        replay([], 10, capacity=5)
