"""Whatever a file holds, a reader reads it or refuses it by its name."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lmcache_kit.errors import InvalidRequestError
from lmcache_kit.traces import load_trace, replay

DATA = Path(__file__).parents[3] / "scenarios" / "data" / "traces"
SAMPLES = {
    "mooncake": DATA / "conversations.jsonl",
    "qwen_bailian": DATA / "chats.jsonl",
    "kv_cache_tester": DATA / "agents" / "trace_0001.json",
    "lmcache_lookup": DATA / "lookups" / "lookup_hashes_20260101_000000_000000.jsonl",
    "azure": DATA / "azure.csv",
    "burstgpt": DATA / "burstgpt.csv",
}
# Pieces that mean something to one of the formats, put where they do not belong.
pieces = st.binary(max_size=6) | st.sampled_from(
    [
        b"-1",
        b"0",
        b"1e999",
        b"NaN",
        b"9" * 5000,
        b"null",
        b"[" * 3000,
        b'{"requests": [' * 400,
        b'"',
        b"\n",
        b",",
        b"{}",
        b"\x00",
    ]
)


@pytest.mark.parametrize("reader", SAMPLES)
@settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_any_change_is_read_or_refused_by_name(reader: str, tmp_path: Path, data: st.DataObject) -> None:
    whole = SAMPLES[reader].read_bytes()[:3000]
    cut = data.draw(st.integers(0, len(whole)))
    until = data.draw(st.integers(cut, min(len(whole), cut + 30)))
    path = tmp_path / "changed"
    path.write_bytes(whole[:cut] + data.draw(pieces) + whole[until:])
    refusal = None
    try:
        form, records = load_trace(path, reader)
    except InvalidRequestError as error:
        refusal = error.message
    if refusal is not None:
        assert refusal.startswith(str(path))
        return
    for record in records:
        assert record.input_tokens == len(record.block_ids) * form.block_size + record.tail_tokens >= 1
        assert record.arrival >= 0
    assert replay(records, form.block_size).plain.requests == len(records)
