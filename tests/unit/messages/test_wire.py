"""Every message is exactly the map that the protocol page shows, and nothing else decodes."""

import json

import msgspec
import pytest

from lmcache_kit import messages as m
from lmcache_kit.errors import InvalidRequestError

ME = {"instance_id": "i", "worker_id": 0}
ADDRESS = {**ME, "ip": "127.0.0.1", "port": 8001}
EXTENSIONS = {
    "chunk_size": None,
    "hash_algorithm": None,
    "none_hash": None,
    "save_unfull_chunk": None,
    "methods": None,
    "locations": None,
    "model": None,
}
BIG = [-(2**63), -1, 0, 2**63, 2**64 - 1]

# (message, its map without the type)
PUSHED = [
    (m.RegisterMsg(**ADDRESS), {**ADDRESS, "peer_init_url": None, **EXTENSIONS}),
    (
        m.HeartbeatMsg(**ADDRESS, peer_init_url="localhost:8200"),
        {**ADDRESS, "peer_init_url": "localhost:8200", **EXTENSIONS},
    ),
    (m.DeRegisterMsg(**ADDRESS), ADDRESS),
    (
        m.BatchedKVOperationMsg(**ME, location="L", operations=[m.KVOpEvent(op_type="admit", key=-5, seq_num=3)]),
        {**ME, "location": "L", "operations": [{"op_type": "admit", "key": -5, "seq_num": 3}]},
    ),
    (m.KVAdmitMsg(**ME, key=2**64 - 1, location="L"), {**ME, "key": 2**64 - 1, "location": "L", "seq_num": 0}),
    (m.KVEvictMsg(**ME, key=-(2**63), location="L"), {**ME, "key": -(2**63), "location": "L", "seq_num": 0}),
    (
        m.FullSyncBatchMsg(**ME, location="L", sync_id="s", batch_id=0, keys=BIG),
        {**ME, "location": "L", "sync_id": "s", "batch_id": 0, "keys": BIG},
    ),
    (
        m.FullSyncEndMsg(**ME, location="L", sync_id="s", actual_total_keys=5),
        {**ME, "location": "L", "sync_id": "s", "actual_total_keys": 5},
    ),
]
REQUESTS = [
    PUSHED[0],
    PUSHED[1],
    PUSHED[2],
    (
        m.FullSyncStartMsg(**ME, location="L", sync_id="s", total_keys=5, batch_count=1),
        {**ME, "location": "L", "sync_id": "s", "total_keys": 5, "batch_count": 1},
    ),
    (m.FullSyncStatusMsg(**ME, sync_id="s"), {**ME, "sync_id": "s"}),
    (m.BatchedP2PLookupMsg(hashes=BIG, **ME), {"hashes": BIG, **ME}),
]
REPLIES = [
    (m.RegisterRetMsg(extra_config={"heartbeat_url": "h:1"}), {"extra_config": {"heartbeat_url": "h:1"}}),
    (m.RegisterRetMsg(), {"extra_config": {}}),
    (
        m.HeartbeatRetMsg(commands=[m.FullSyncCommand(reason="worker_re_registered")]),
        {"commands": [{"command_type": "full_sync", "reason": "worker_re_registered", "args": None}]},
    ),
    (m.FullSyncStartRetMsg(sync_id="s", accepted=True), {"sync_id": "s", "accepted": True, "error_msg": None}),
    (
        m.FullSyncStatusRetMsg(sync_id="s", is_complete=False, global_progress=0.5, can_exit_freeze=True),
        {"sync_id": "s", "is_complete": False, "global_progress": 0.5, "can_exit_freeze": True, "missing_batches": []},
    ),
    (
        m.BatchedP2PLookupRetMsg(layout_info=[("i", "L", 3, "localhost:8200")]),
        {"layout_info": [["i", "L", 3, "localhost:8200"]]},
    ),
    (m.ErrorMsg(error="no"), {"error": "no", "status": 500, "hint": None}),
]
EVENT = {"worker_event_id": "e"}
CONTROL = [
    (m.ClearWorkerMsg(**EVENT, location="L"), {**EVENT, "location": "L"}),
    (
        m.PinWorkerMsg(**EVENT, location="L", tokens=[1]),
        {**EVENT, "location": "L", "tokens": [1], "owner": "", "ttl": None},
    ),
    (m.UnpinWorkerMsg(**EVENT, location="L"), {**EVENT, "location": "L", "tokens": None, "owner": ""}),
    (
        m.CompressWorkerMsg(**EVENT, method="zstd", location="L", tokens=[1]),
        {**EVENT, "method": "zstd", "location": "L", "tokens": [1]},
    ),
    (
        m.DecompressWorkerMsg(**EVENT, method="zstd", location="L"),
        {**EVENT, "method": "zstd", "location": "L", "tokens": None},
    ),
    (
        m.MoveWorkerMsg(**EVENT, old_position="L", new_position=("h:1", "M"), tokens=[1], copy=False),
        {**EVENT, "old_position": "L", "new_position": ["h:1", "M"], "tokens": [1], "copy": False},
    ),
    (m.HealthWorkerMsg(**EVENT), EVENT),
    (m.CheckFinishWorkerMsg(**EVENT), EVENT),
]
JOB = {
    "status": "running",
    "num_tokens": 5,
    "tokens_done": 0,
    "bytes_before": 0,
    "bytes_after": 0,
    "ratio": None,
    "seconds": 0.0,
    "device": "cpu",
    "error": None,
    "note": None,
}
PLANNED = [
    m.ClearWorkerRetMsg,
    m.PinWorkerRetMsg,
    m.UnpinWorkerRetMsg,
    m.CompressWorkerRetMsg,
    m.DecompressWorkerRetMsg,
]
CONTROL_REPLIES = [
    *((kind(num_tokens=5), {"num_tokens": 5, "job": None}) for kind in (*PLANNED, m.MoveWorkerRetMsg)),
    (
        m.CompressWorkerRetMsg(num_tokens=5, job=m.JobInfo(status="running", num_tokens=5)),
        {"num_tokens": 5, "job": JOB},
    ),
    (m.HealthWorkerRetMsg(error_code=0), {"error_code": 0}),
    (
        m.CheckFinishWorkerRetMsg(status="running", job=m.JobInfo(status="running", num_tokens=5)),
        {"status": "running", "job": JOB},
    ),
    (m.ErrorMsg(error="no", status=404, hint="look"), {"error": "no", "status": 404, "hint": "look"}),
]
SOCKETS = {
    m.decode_pushed: PUSHED,
    m.decode_worker_request: REQUESTS,
    m.decode_worker_reply: REPLIES,
    m.decode_control: CONTROL,
    m.decode_control_reply: CONTROL_REPLIES,
}
ALL = [(decode, *pair) for decode, pairs in SOCKETS.items() for pair in pairs]
IDS = [f"{decode.__name__}-{type(message).__name__}" for decode, message, _ in ALL]
each = pytest.mark.parametrize(("decode", "message", "fields"), ALL, ids=IDS)


@each
def test_a_message_is_exactly_this_map_and_comes_back_equal(decode, message, fields):
    payload = m.encode(message)
    assert msgspec.msgpack.decode(payload) == {"type": type(message).__name__, **fields}
    assert decode(payload) == message
    assert decode(memoryview(payload)) == message
    assert decode(bytearray(payload)) == message


@each
def test_keys_come_in_any_order_and_unknown_ones_are_ignored(decode, message, fields):
    shuffled = dict(reversed({"type": type(message).__name__, **fields, "from_the_future": [1, {"x": 2}]}.items()))
    assert decode(msgspec.msgpack.encode(shuffled)) == message


@each
def test_a_real_worker_sends_no_extensions(decode, message, fields):
    """Every field that has a default may be missing, and each that has none may not."""
    kinds = {field.encode_name: field for field in msgspec.structs.fields(type(message))}
    required = {name: fields[name] for name, field in kinds.items() if field.required}
    tag = {"type": type(message).__name__}
    assert type(decode(msgspec.msgpack.encode({**tag, **required}))) is type(message)
    for name in required:
        partial = {**tag, **{key: value for key, value in required.items() if key != name}}
        with pytest.raises(InvalidRequestError, match=name):
            decode(msgspec.msgpack.encode(partial))


@each
def test_wrong_types_are_refused(decode, message, fields):
    for name, value in fields.items():
        for wrong in ({"a": {}}, [[[]]], b"\xff", 1.5 if not isinstance(value, float) else "x"):
            spoiled = {"type": type(message).__name__, **fields, name: wrong}
            if name == "ttl" and isinstance(wrong, float):
                continue
            with pytest.raises(InvalidRequestError, match="malformed message"):
                decode(msgspec.msgpack.encode(spoiled))


@pytest.mark.parametrize("decode", SOCKETS, ids=lambda decode: decode.__name__)
def test_messages_of_the_other_sockets_are_refused(decode):
    own = {type(message) for message, _ in SOCKETS[decode]}
    for _, message, _ in ALL:
        if type(message) not in own:
            with pytest.raises(InvalidRequestError, match="malformed message"):
                decode(m.encode(message))


@pytest.mark.parametrize("decode", SOCKETS, ids=lambda decode: decode.__name__)
@pytest.mark.parametrize(
    "payload",
    [
        b"",
        b"\xc0",
        b"\xc1",
        b"\x80",
        b"\x90",
        b"\x81\xa4type\xa5Magic",
        b"\x81\xa4type\x01",
        b"\x81\xa4type\xa2\xff\xfe",
        b"\xdf\xff\xff\xff\xff",
        b"\xdd\xff\xff\xff\xff",
        b"\xc6\xff\xff\xff\xff",
        b"\x91" * 20_000,
        b"{",
        b"{}",
        b'{"type": 5}',
        b'{"type": "RegisterMsg"}',
        b'{"type": "RegisterMsg", "worker_id": 1e400}',
        b'{"type": "KVAdmitMsg", "instance_id": "i", "worker_id": 0, "location": "L", "key": ' + b"9" * 5000 + b"}",
        b"{" + b'"a":{' * 20_000,
        b"[" * 20_000,
        b'{"type": "\xff"}',
        "{\x00}".encode("utf-16"),
    ],
    ids=range(22),
)
def test_garbage_raises_nothing_but_invalid_request(decode, payload):
    with pytest.raises(InvalidRequestError, match="malformed message"):
        decode(payload)


@pytest.mark.parametrize(("decode", "pairs"), [(m.decode_pushed, PUSHED), (m.decode_worker_request, REQUESTS)])
def test_json_is_read_on_the_inbound_sockets(decode, pairs):
    for message, fields in pairs:
        text = json.dumps({"type": type(message).__name__, **fields})
        assert decode(text.encode()) == message


@pytest.mark.parametrize("decode", [m.decode_worker_reply, m.decode_control, m.decode_control_reply])
def test_json_is_not_read_anywhere_else(decode):
    for message, fields in SOCKETS[decode]:
        text = json.dumps({"type": type(message).__name__, **fields})
        with pytest.raises(InvalidRequestError):
            decode(text.encode())


def test_no_message_starts_like_json():
    assert all(m.encode(message)[:1] != b"{" for _, message, _ in ALL)


def test_every_message_class_is_tested_here():
    tested = {type(message).__name__ for _, message, _ in ALL}
    exported = {name for name in m.__all__ if name.endswith("Msg") and isinstance(getattr(m, name), type)}
    assert tested == exported - {"Message"}
