"""Normalised traces: order, first arrival, scope, limit; spreading; lines that read back."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from lmcache_kit.contracts.trace import TraceFormat, TraceRecord
from lmcache_kit.report import trace_info
from lmcache_kit.traces import load_trace, spread_bursts
from lmcache_kit.traces.lines import mooncake_lines
from lmcache_kit.traces.loading import normalise

DATA = Path(__file__).parents[3] / "scenarios" / "data" / "traces"
SHIPPED = {
    "mooncake": "conversations.jsonl",
    "qwen_bailian": "chats.jsonl",
    "kv_cache_tester": "agents",
    "lmcache_lookup": "lookups",
    "azure": "azure.csv",
    "burstgpt": "burstgpt.csv",
}
FORM = TraceFormat(block_size=4, tail="floor", id_scope="session", chained=True, time_unit=1.0)


def record(arrival: float, *ids: int, session: str | None = None) -> TraceRecord:
    tokens = 4 * len(ids)
    return TraceRecord(
        arrival=arrival, input_tokens=tokens, output_tokens=1, block_ids=ids, tail_tokens=0, session=session
    )


def test_records_are_in_order_of_time_from_zero() -> None:
    made = normalise([record(5.0, 1, session="b"), record(3.0, 1, session="a"), record(5.0, 1, 2, session="b")], FORM)
    assert [each.arrival for each in made] == [0.0, 2.0, 2.0]
    assert [each.block_ids for each in made] == [(0,), (1,), (1, 2)]


@pytest.mark.parametrize("reader", SHIPPED)
def test_shipped_traces_load(reader: str) -> None:
    form, records = load_trace(DATA / SHIPPED[reader], reader)
    assert len(records) >= 30
    assert [each.arrival for each in records] == sorted(each.arrival for each in records)
    assert records[0].arrival == 0.0
    assert load_trace(DATA / SHIPPED[reader], reader, limit=7)[1] == records[:7]
    for each in records:
        assert each.input_tokens == len(each.block_ids) * form.block_size + each.tail_tokens
        assert len({*each.block_ids, each.tail_id}) == len(each.block_ids) + 1


@pytest.mark.parametrize("reader", SHIPPED)
def test_what_is_written_as_mooncake_reads_back_the_same(reader: str, tmp_path: Path) -> None:
    form, records = load_trace(DATA / SHIPPED[reader], reader)
    path = tmp_path / "normal.jsonl"
    path.write_bytes(b"\n".join(mooncake_lines(records, form)))
    again, read = load_trace(path)
    assert (again.block_size, again.tail) == (form.block_size, form.tail)
    assert [each.arrival for each in read] == pytest.approx([each.arrival for each in records], abs=1e-9)
    for mine, its in zip(records, read, strict=True):
        for name in ("input_tokens", "output_tokens", "block_ids", "tail_tokens", "tail_id", "session", "request_id"):
            assert getattr(its, name) == getattr(mine, name)
    assert list(mooncake_lines(read, again)) == list(mooncake_lines(records, form))


def test_plain_mooncake_rows_are_written_plainly() -> None:
    form, records = load_trace(DATA / "conversations.jsonl")
    assert b"\n".join(mooncake_lines(records, form)).split() == (
        (DATA / "conversations.jsonl").read_bytes().replace(b" ", b"").split()
    )


def test_traces_say_what_they_cannot_tell() -> None:
    told = {}
    for reader, name in SHIPPED.items():
        form, records = load_trace(DATA / name, reader)
        told[reader] = {line.partition(":")[0] for line in trace_info(records, form)["untold"]}
    assert told == {
        "mooncake": {"conversations", "retries"},
        "qwen_bailian": set(),
        "kv_cache_tester": {"tails"},
        "lmcache_lookup": {"tails", "answers", "conversations"},
        "azure": {"prefixes", "conversations", "retries"},
        "burstgpt": {"prefixes", "retries"},
    }


def test_no_hit_rate_is_told_without_prefixes() -> None:
    form, records = load_trace(DATA / "azure.csv", "azure")
    info = trace_info(records, form)
    assert [info[f"{name}_hit_rate"] for name in ("block", "token", "lmcache_token")] == [None] * 3


def test_bursts_are_spread_in_order() -> None:
    records = [record(at, number) for number, at in enumerate((0.0, 0.0, 0.0, 6.0, 9.0, 9.0))]
    spread, done = spread_bursts(records, random.Random(1))
    assert [each.block_ids for each in spread] == [each.block_ids for each in records]
    arrivals = [each.arrival for each in spread]
    assert arrivals == sorted(arrivals)
    assert (arrivals[0], arrivals[3], arrivals[4]) == (0.0, 6.0, 9.0)
    assert 0 < arrivals[1] < arrivals[2] < 6
    assert 9 < arrivals[5] < 12
    assert (done.bursts, done.largest_burst, done.moved) == (2, 3, 3)
    assert done.longest_shift_seconds == max(arrivals[2], arrivals[5] - 9)
    assert spread_bursts(records, random.Random(1)) == (spread, done)
    assert spread_bursts(records, random.Random(2)) != (spread, done)


def test_spreading_keeps_within_its_bound_and_changes_nothing_without_bursts() -> None:
    records = [record(0.0), record(0.0), record(100.0)]
    spread, done = spread_bursts(records, random.Random(1), longest_gap=2.0)
    assert 0 < spread[1].arrival < 2
    assert done.longest_shift_seconds < 2
    single = [record(0.0), record(1.0)]
    assert spread_bursts(single, random.Random(1))[0] == single
    # One time stamp alone has no gap to spread over.
    alone = [record(0.0), record(0.0)]
    assert spread_bursts(alone, random.Random(1))[0] == alone
    with pytest.raises(ValueError, match="order"):
        spread_bursts(records[::-1], random.Random(1))
