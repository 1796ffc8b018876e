"""No bytes whatever make a decoder raise anything but InvalidRequestError."""

import contextlib

import msgspec
from hypothesis import given, settings
from hypothesis import strategies as st

from lmcache_kit import messages as m
from lmcache_kit.errors import InvalidRequestError

DECODERS = [
    m.decode_pushed,
    m.decode_worker_request,
    m.decode_worker_reply,
    m.decode_control,
    m.decode_control_reply,
]
NAMES = [name for name in m.__all__ if name.endswith("Msg")]
values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats()
    | st.text(max_size=10)
    | st.binary(max_size=9),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=10,
)
fields = st.sampled_from(
    ["instance_id", "worker_id", "ip", "port", "location", "key", "keys", "operations", "tokens", "job", "commands"]
)
maps = st.builds(
    lambda name, rest: msgspec.msgpack.encode({**rest, "type": name}),
    st.sampled_from(NAMES),
    st.dictionaries(fields, values, max_size=8),
)


@settings(max_examples=300)
@given(st.binary(max_size=60) | maps | st.builds(lambda data, cut: data[:cut], maps, st.integers(0, 80)))
def test_any_bytes(payload):
    for decode in DECODERS:
        with contextlib.suppress(InvalidRequestError):
            message = decode(payload)
            assert decode(m.encode(message)) == message or "nan" in repr(message)


@given(st.lists(st.tuples(st.sampled_from(["admit", "evict"]), st.integers(-(2**63), 2**64 - 1)), max_size=60))
def test_batches_of_operations_keep_their_order_and_every_key(operations):
    batch = m.BatchedKVOperationMsg(
        instance_id="i",
        worker_id=0,
        location="L",
        operations=[
            m.KVOpEvent(op_type=kind, key=key, seq_num=number) for number, (kind, key) in enumerate(operations)
        ],
    )
    found = m.decode_pushed(m.encode(batch))
    assert [(event.op_type, event.key) for event in found.operations] == operations
    assert [event.seq_num for event in found.operations] == list(range(len(operations)))
