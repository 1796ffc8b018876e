"""Whatever bytes arrive, the core answers or leaves them out, and goes on."""

from __future__ import annotations

import msgspec
from hypothesis import given, settings
from hypothesis import strategies as st

from lmcache_kit.clock import ManualClock
from lmcache_kit.controller.core import ControllerCore
from lmcache_kit.messages import ErrorMsg, decode_worker_reply

TYPES = [
    "RegisterMsg",
    "HeartbeatMsg",
    "DeRegisterMsg",
    "BatchedKVOperationMsg",
    "KVAdmitMsg",
    "KVEvictMsg",
    "FullSyncStartMsg",
    "FullSyncStatusMsg",
    "FullSyncBatchMsg",
    "FullSyncEndMsg",
    "BatchedP2PLookupMsg",
]
small = st.integers(-2, 3) | st.sampled_from([-(2**63), 2**63 - 1, 2**64 - 1])
names = st.sampled_from(["a", "b", "", "\x00", "ä" * 100])
right = {
    "instance_id": names,
    "worker_id": small,
    "ip": names,
    "port": small,
    "location": names,
    "sync_id": names,
    "peer_init_url": names | st.none(),
    "key": small,
    "keys": st.lists(small, max_size=4),
    "hashes": st.lists(small, max_size=4),
    "seq_num": small,
    "batch_id": small,
    "batch_count": small,
    "total_keys": small,
    "actual_total_keys": small,
    "chunk_size": small | st.none(),
    "hash_algorithm": st.sampled_from(["builtin", "blake3", "md5"]) | st.none(),
    "none_hash": small | st.none(),
    "methods": st.lists(names, max_size=2) | st.none(),
    "locations": st.lists(names, max_size=2) | st.none(),
    "operations": st.lists(
        st.fixed_dictionaries({"op_type": st.sampled_from(["admit", "evict"]), "key": small, "seq_num": small}),
        max_size=4,
    ),
}
wrong = (
    st.none() | st.booleans() | st.floats() | st.text(max_size=3) | st.binary(max_size=3) | st.lists(small, max_size=2)
)


@st.composite
def nearly_messages(draw):
    """Messages whose fields are mostly right, with some left out or of another type."""
    fields = {"type": draw(st.sampled_from(TYPES) | st.text(max_size=3))}
    for name, good in right.items():
        fate = draw(st.integers(0, 19))
        if fate == 0:
            continue
        fields[name] = draw(wrong if fate == 1 else good)
    return fields


frames = st.one_of(
    st.binary(max_size=60),
    nearly_messages().map(msgspec.msgpack.encode),
    nearly_messages().map(msgspec.json.encode),
    st.text().map(lambda text: b"{" + text.encode("utf-8", "surrogatepass")),
    st.just(b"\x81" * 5000),
    st.just(b'{"type":' * 5000),
)


@given(st.lists(st.tuples(st.booleans(), frames, st.integers(0, 40)), max_size=20))
@settings(max_examples=200, deadline=None)
def test_no_frame_stops_the_core(script):
    clock = ManualClock()
    core = ControllerCore(clock=clock)
    for pushed, frame, seconds in script:
        if pushed:
            core.receive_pushed(frame)
        else:
            decode_worker_reply(core.receive_request(frame))  # always a message that a worker can read
        clock.advance(seconds)
        core.tick()
        core.explain([1, 2, 3], core.lookup([1, 2, 3]))
    # It still serves.
    core.receive_request(
        msgspec.json.encode({"type": "RegisterMsg", "instance_id": "z", "worker_id": 0, "ip": "h", "port": 1})
    )
    operations = [{"op_type": "admit", "key": hash((0, (7,), ())), "seq_num": 0}]
    core.receive_pushed(
        msgspec.msgpack.encode(
            {
                "type": "BatchedKVOperationMsg",
                "instance_id": "z",
                "worker_id": 0,
                "location": "cpu",
                "operations": operations,
            }
        )
    )
    assert core.lookup([7]).layout["z"] == ("cpu", 1)


@given(st.binary(max_size=40))
def test_garbage_is_counted_once(frame):
    core = ControllerCore(clock=ManualClock())
    core.receive_pushed(frame)
    assert core.counters.malformed["pull"] == 1
    assert isinstance(decode_worker_reply(core.receive_request(frame, "heartbeat")), ErrorMsg)
    assert core.counters.malformed["heartbeat"] == 1
