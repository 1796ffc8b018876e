from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from lmcache_kit.builtin.traces.mooncake import MooncakeReader
from lmcache_kit.contracts.trace import TraceRecord
from lmcache_kit.errors import InvalidRequestError
from lmcache_kit.report import trace_info

REAL = Path(os.environ.get("LMCACHE_KIT_TRACE", "../shared/traces/conversation_trace.jsonl"))


def row(timestamp: float, tokens: int, *ids: int, output: int = 1) -> dict[str, Any]:
    return {"timestamp": timestamp, "input_length": tokens, "output_length": output, "hash_ids": list(ids)}


def read(path: Path) -> list[TraceRecord]:
    return list(MooncakeReader().read(path))


def test_blocks_tail_and_times(write: Callable[..., Path]) -> None:
    records = read(write(row(1000, 1024, 0, 1), row(2500, 1025, 0, 1, 2), row(2500, 5, 9, output=7)))
    assert [record.arrival for record in records] == [0.0, 1.5, 1.5]
    assert [record.block_ids for record in records] == [(0, 1), (0, 1), ()]
    assert [(record.tail_tokens, record.tail_id) for record in records] == [(0, None), (1, 2), (5, 9)]
    assert records[2].output_tokens == 7


def test_info_counts_leading_known_ids(write: Callable[..., Path]) -> None:
    path = write(row(0, 1500, 0, 1, 2), row(10, 1500, 0, 1, 2), row(20, 1024, 5, 1), row(4000, 600, 0, 8))
    info = trace_info(read(path), MooncakeReader.format)
    assert (info["requests"], info["block_ids"], info["distinct_block_ids"]) == (4, 10, 5)
    # The second request hits everything; the third knows block 1 but not what stands before it.
    assert info["block_hit_rate"] == (3 + 0 + 1) / 10
    assert info["token_hit_rate"] == (1500 + 512) / (1500 + 1500 + 1024 + 600)
    assert info["lmcache_token_hit_rate"] == (1024 + 512) / 4624
    assert info["arrival_span_seconds"] == 4.0
    assert info["input_tokens_per_request"]["max"] == 1500


def test_an_empty_trace(write: Callable[..., Path]) -> None:
    info = trace_info(read(write(b"")), MooncakeReader.format)
    assert (info["requests"], info["token_hit_rate"], info["arrival_span_seconds"]) == (0, None, 0.0)


def test_ids_of_sessions_are_apart() -> None:
    form = MooncakeReader.format
    by_session = type(form)(block_size=4, tail="floor", id_scope="session", chained=True, time_unit=1.0)
    records = [
        TraceRecord(arrival=0, input_tokens=4, output_tokens=1, block_ids=(1,), tail_tokens=0, session=session)
        for session in ("x", "y", "x")
    ]
    assert trace_info(records, by_session)["block_hit_rate"] == 1 / 3
    assert trace_info(records, by_session)["distinct_block_ids"] == 2


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (b"not json", "JSON"),
        (b"[]", "object"),
        (b'{"timestamp": 1}', "input_length"),
        (row(0, 0), "input_length"),
        (row(-1, 5, 1), "timestamp"),
        (row(0, 513, 1), "1 hash_ids for 513 tokens, want 2"),
        (row(0, 512, 1, 2), "2 hash_ids for 512 tokens, want 1"),
        (row(0, 5, -3), "hash_ids"),
        ({**row(0, 5, 1), "output_length": "many"}, "output_length"),
        (b"\xff\xfe", "made_up.jsonl:2"),
    ],
)
def test_a_bad_row_is_named_by_file_and_line(write: Callable[..., Path], bad: Any, message: str) -> None:
    path = write(row(0, 5, 1), bad)
    with pytest.raises(InvalidRequestError) as caught:
        read(path)
    assert f"{path}:2" in caught.value.message
    assert message in caught.value.message


def test_empty_lines_are_skipped_and_counted(write: Callable[..., Path]) -> None:
    with pytest.raises(InvalidRequestError, match=":3: "):
        read(write(row(0, 5, 1), b"", b"oops"))


def test_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(InvalidRequestError, match="cannot be read"):
        read(tmp_path / "gone.jsonl")


@pytest.mark.skipif(not REAL.exists(), reason="the Mooncake conversation trace is not on this machine")
def test_the_conversation_trace_gives_its_reference_numbers() -> None:
    info = trace_info(MooncakeReader().read(REAL), MooncakeReader.format)
    assert (info["requests"], info["block_ids"], info["distinct_block_ids"]) == (12_031, 288_500, 182_790)
    assert round(info["token_hit_rate"], 4) == 0.3736
    assert round(info["block_hit_rate"], 4) == 0.3664
