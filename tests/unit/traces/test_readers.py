"""Readers of formats other than Mooncake's: what their rows become, and which rows they refuse."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest

from lmcache_kit.contracts.trace import TraceRecord
from lmcache_kit.errors import InvalidRequestError, UnknownNameError
from lmcache_kit.traces import load_trace, make_reader

Write = Callable[..., Path]


def read(path: Path, reader: str, **options: Any) -> list[TraceRecord]:
    return list(make_reader(reader, options).read(path))


def chat(number: int, tokens: int, *ids: int, parent: int = -1, at: float = 0.0) -> dict[str, Any]:
    return {
        "chat_id": number,
        "parent_chat_id": parent,
        "timestamp": at,
        "input_length": tokens,
        "output_length": 3,
        "type": "text",
        "turn": 1,
        "hash_ids": list(ids),
    }


def lookup(at: float, tokens: int, *hashes: str, size: int = 4, **more: Any) -> dict[str, Any]:
    row = {"timestamp": at, "request_id": "", "model_name": "m", "chunk_size": size, "seq_len": tokens}
    return {**row, "dtypes": [], "shapes": [], "chunk_hashes": list(hashes), **more}


def call(at: float, tokens: int, *ids: int, kind: str = "s", **more: Any) -> dict[str, Any]:
    return {"t": at, "type": kind, "in": tokens, "out": 2, "hash_ids": list(ids), **more}


def test_blocks_of_qwen_are_chained(write: Write) -> None:
    path = write(chat(1, 40, 7, 8, 9), chat(2, 32, 8, 7), chat(3, 48, 7, 8, 8))
    first, second, third = read(path, "qwen_bailian")
    assert first.tail_tokens == 8
    assert first.tail_id is not None
    # 8 after 7 is not 8 at the start, nor is the second 8 the first.
    assert not set(second.block_ids) & {*first.block_ids, first.tail_id}
    assert third.block_ids[:2] == first.block_ids
    assert len(set(third.block_ids)) == 3


def test_chats_of_qwen_belong_to_the_conversation_that_began_them(write: Write) -> None:
    path = write(chat(5, 16, 1), chat(9, 16, 1, parent=5), chat(2, 16, 1, parent=9), chat(3, 16, 1, parent=77))
    records = read(path, "qwen_bailian")
    assert [record.session for record in records] == ["5", "5", "5", "3"]
    assert [record.request_id for record in records] == ["5", "9", "2", "3"]


def test_qwen_may_leave_out_the_id_of_a_partial_block(write: Write) -> None:
    (record,) = read(write(chat(1, 40, 7, 8)), "qwen_bailian")
    assert (record.block_ids, record.tail_tokens, record.tail_id) == ((0, 1), 8, None)


def test_lookups_are_numbered_and_keep_their_names(write: Write) -> None:
    path = write(
        lookup(1e9, 11, "0xA0", "0xb1", request_id="x"),
        lookup(1e9 + 2, 4, "0xA0", request_id="x"),
        lookup(1e9 + 3, 0),
        lookup(1e9 + 4, 3),
    )
    records = read(path, "lmcache_lookup")
    assert [record.block_ids for record in records] == [(0, 1), (0,), ()]
    assert [record.tail_tokens for record in records] == [3, 0, 3]
    assert [record.request_id for record in records] == ["x", "x", None]
    assert [record.arrival for record in records] == [0, 2, 4]


def test_a_lookup_may_cover_the_start_of_a_prompt_only(write: Write) -> None:
    (record,) = read(write(lookup(0, 11, "0x1")), "lmcache_lookup")
    assert (record.block_ids, record.tail_tokens) == ((0,), 7)


def test_a_folder_of_lookups_is_one_trace(tmp_path: Path) -> None:
    for name, at in (("lookup_hashes_2.jsonl", 5.0), ("lookup_hashes_1.jsonl", 9.0), ("other.jsonl", 1.0)):
        (tmp_path / name).write_bytes(msgspec.json.encode(lookup(at, 4, "0x1")))
    form, records = load_trace(tmp_path, "lmcache_lookup")
    assert form.block_size == 4
    assert [record.arrival for record in records] == [0.0, 4.0]


def test_lookups_of_two_chunk_sizes_need_a_model(write: Write) -> None:
    path = write(lookup(0, 4, "0x1"), lookup(1, 8, "0x2", size=8, model_name="n"))
    with pytest.raises(InvalidRequestError, match=":2: chunks of 8 tokens, rows before have 4"):
        read(path, "lmcache_lookup")
    form, records = load_trace(path, "lmcache_lookup", options={"model": "n"})
    assert (form.block_size, len(records)) == (8, 1)


def conversation(*requests: dict[str, Any], name: str = "a", **more: Any) -> bytes:
    return msgspec.json.encode({"id": name, "block_size": 64, "requests": list(requests), **more})


def test_a_conversation_and_its_pairs(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_bytes(
        conversation(call(0.0, 130, 1, 2), call(1.0, 130, 1, 2, kind="n"), call(2.0, 130, 1, 2), call(3.0, 70))
    )
    records = read(path, "kv_cache_tester")
    assert [(record.block_ids, record.tail_tokens) for record in records] == [((0, 1), 2)] * 3 + [((), 70)]
    # The second asks for the first again; the third is a request of its own.
    assert [record.request_id for record in records] == ["a:0", "a:0", "a:2", "a:3"]


def test_ids_of_conversations_are_apart_unless_they_say_global(tmp_path: Path) -> None:
    for scope, shared in (("local", False), ("global", True)):
        folder = tmp_path / scope
        folder.mkdir()
        for name in ("a", "b"):
            (folder / f"{name}.json").write_bytes(conversation(call(0.0, 64, 1), name=name, hash_id_scope=scope))
        form, records = load_trace(folder, "kv_cache_tester")
        assert form.id_scope == "global"
        assert (records[0].block_ids == records[1].block_ids) is shared


@pytest.mark.parametrize(("inner", "arrivals"), [(0.0, [0.0, 10.0, 12.0]), (10.0, [0.0, 10.0, 12.0])])
def test_subagents_share_ids_and_count_time_either_way(tmp_path: Path, inner: float, arrivals: list[float]) -> None:
    agent = {"type": "subagent", "t": 10.0, "agent_id": "s", "requests": [call(inner, 64, 1), call(inner + 2, 64, 1)]}
    path = tmp_path / "a.json"
    path.write_bytes(conversation(call(0.0, 64, 1), agent))
    records = read(path, "kv_cache_tester")
    assert [record.arrival for record in records] == arrivals
    assert [record.session for record in records] == ["a", "a/s", "a/s"]
    assert {record.block_ids for record in records} == {(0,)}


def test_conversations_may_start_apart(tmp_path: Path) -> None:
    for name in ("a", "b", "c"):
        (tmp_path / f"{name}.json").write_bytes(conversation(call(0.5, 64, 1), name=name))
    _, records = load_trace(tmp_path, "kv_cache_tester", options={"start_gap_seconds": 20})
    assert [record.arrival for record in records] == [0.0, 20.0, 40.0]


def test_azure_dates(tmp_path: Path) -> None:
    path = tmp_path / "azure.csv"
    path.write_text(
        "\ufeffTIMESTAMP,ContextTokens,GeneratedTokens\r\n2023-11-16 23:59:59.5000000,374,44\r\n"
        "2023-11-17 00:00:01,5,0\r\n2023-11-17 01:00:01+01:00,6,1\r\n",
        encoding="utf-8",
    )
    records = read(path, "azure")
    assert [record.arrival for record in records] == [0.0, 1.5, 1.5]
    assert [(record.input_tokens, record.output_tokens) for record in records] == [(374, 44), (5, 0), (6, 1)]
    assert all(record.block_ids == () and record.tail_tokens == record.input_tokens for record in records)


def test_burstgpt_with_and_without_sessions(tmp_path: Path) -> None:
    path = tmp_path / "burst.csv"
    path.write_text("Timestamp,Model,Request tokens,Response tokens,Total tokens,Log Type\n5,a,472,18,490,API log\n")
    assert read(path, "burstgpt")[0].session is None
    path.write_text(
        "Timestamp,Session ID,Elapsed time,Model,Request tokens,Response tokens,Total tokens,Log Type\n"
        '5.0,s-1,2,"GPT-4, say",472,0,472,API log\n7.5,,2,GPT-4,1,2,3,API log\n'
    )
    records = read(path, "burstgpt")
    assert [(record.session, record.arrival) for record in records] == [("s-1", 0.0), (None, 2.5)]


@pytest.mark.parametrize(
    ("reader", "good", "bad", "message"),
    [
        ("qwen_bailian", chat(1, 16, 1), chat(2, 33, 1), "1 hash_ids for 33 tokens"),
        ("qwen_bailian", chat(1, 16, 1), chat(2, 32, 1, 2, 3), "3 hash_ids for 32 tokens"),
        ("qwen_bailian", chat(1, 16, 1), {**chat(2, 16, 1), "timestamp": "soon"}, "timestamp"),
        ("qwen_bailian", chat(1, 16, 1), b"{", "truncated"),
        (
            "lmcache_lookup",
            lookup(0, 4, "0x1"),
            lookup(1, 7, "0x1", "0x2"),
            "2 chunk_hashes for 7 tokens, want at most 1",
        ),
        ("lmcache_lookup", lookup(0, 4, "0x1"), lookup(1, 4, "0x"), "chunk_hashes"),
        ("lmcache_lookup", lookup(0, 4, "0x1"), lookup(1, 4, "key"), "chunk_hashes"),
        ("lmcache_lookup", lookup(0, 4, "0x1"), lookup(1, 4, "0x1", size=0), "chunk_size"),
        ("lmcache_lookup", lookup(0, 4, "0x1"), b"\xff", ""),
        ("azure", b"TIMESTAMP,ContextTokens,GeneratedTokens", b"yesterday,1,1", "'yesterday' is not a time"),
        ("azure", b"TIMESTAMP,ContextTokens,GeneratedTokens", b"2023-11-16 18:15:46,0,1", "ContextTokens '0'"),
        ("azure", b"TIMESTAMP,ContextTokens,GeneratedTokens", b"2023-11-16 18:15:46,5", "GeneratedTokens ''"),
        ("azure", b"TIMESTAMP,ContextTokens,GeneratedTokens", b"2023-11-16 18:15:46,1e3,5", "ContextTokens '1e3'"),
        ("azure", b"TIMESTAMP,ContextTokens,GeneratedTokens", b"\xff,1,1", "utf-8"),
        ("burstgpt", b"Timestamp,Request tokens,Response tokens", b"nan,1,1", "'nan' is not a time"),
        ("burstgpt", b"Timestamp,Request tokens,Response tokens", b"1,1,-1", "Response tokens '-1'"),
        ("burstgpt", b"Timestamp,Request tokens,Response tokens", b'1,"1,1', "unexpected end of data"),
    ],
)
def test_a_bad_row_is_named_by_file_and_line(write: Write, reader: str, good: Any, bad: Any, message: str) -> None:
    path = write(good, bad)
    with pytest.raises(InvalidRequestError) as caught:
        read(path, reader)
    assert f"{path}:2" in caught.value.message
    assert message in caught.value.message


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"{", "truncated"),
        (b"[]", "object"),
        (b'{"id": "a"}', "requests"),
        (
            conversation(call(0.0, 64, 1), call(1.0, 130, 1)),
            "1 hash_ids for 130 tokens, want 2 of 64 tokens - at `$.requests[1]`",
        ),
        (conversation({"t": 0.0, "type": "s", "out": 1}), "`in` - at `$.requests[0]`"),
        (conversation(call(-1.0, 64, 1)), "requests"),
        (conversation(call(0.0, 64, 1), hash_id_scope="odd"), "hash_id_scope"),
        (
            conversation({"type": "subagent", "t": 0.0, "requests": [call(0.0, 65), call(1.0, 64, 1, 2)]}),
            "- at `$.requests[0].requests[1]`",
        ),
    ],
)
def test_a_bad_conversation_is_named_by_file_and_place(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "bad.json"
    path.write_bytes(content)
    with pytest.raises(InvalidRequestError) as caught:
        read(path, "kv_cache_tester")
    assert caught.value.message.startswith(f"{path}: ")
    assert message in caught.value.message


def test_conversations_of_two_block_sizes_are_refused(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_bytes(conversation(call(0.0, 64, 1)))
    (tmp_path / "b.json").write_bytes(msgspec.json.encode({"block_size": 16, "requests": []}))
    with pytest.raises(InvalidRequestError, match=r"b\.json: blocks of 16 tokens, files before have 64"):
        read(tmp_path, "kv_cache_tester")


@pytest.mark.parametrize(
    "reader", ["mooncake", "qwen_bailian", "kv_cache_tester", "lmcache_lookup", "azure", "burstgpt"]
)
def test_what_is_not_there_is_refused(tmp_path: Path, reader: str) -> None:
    with pytest.raises(InvalidRequestError, match="gone"):
        read(tmp_path / "gone", reader)
    with pytest.raises(InvalidRequestError):
        read(tmp_path, reader)


def test_a_csv_without_its_columns(write: Write) -> None:
    with pytest.raises(InvalidRequestError, match=":1: no column 'GeneratedTokens'"):
        read(write(b"TIMESTAMP,ContextTokens", b"1,2"), "azure")
    with pytest.raises(InvalidRequestError, match=":1: no column 'Timestamp'"):
        read(write(b""), "burstgpt")


def test_an_unknown_reader_is_answered_with_the_known_ones(tmp_path: Path) -> None:
    with pytest.raises(UnknownNameError) as caught:
        load_trace(tmp_path, "moncake")
    assert "mooncake" in (caught.value.hint or "")
