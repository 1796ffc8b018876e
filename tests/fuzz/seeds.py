"""Where the fuzzer starts from: real frames, blobs, payloads and files, made by our own encoders."""

from __future__ import annotations

from pathlib import Path

import msgspec
from targets import CACHEGEN, LAYOUT, READERS, SEGMENT, blob_of, join, small_kv

from lmcache_kit import messages as m
from lmcache_kit.builtin.transports.zmq_wire import ANSWER, REFUSAL, REQUEST, pack_header, pack_refusal
from lmcache_kit.instance.peer.messages import (
    Answer,
    ContentsRequest,
    GetRequest,
    PingRequest,
    PutRequest,
    encode_message,
)
from lmcache_kit.kv import ChunkKey

__all__ = ["seeds"]

DATA = Path(__file__).parents[2] / "scenarios" / "data" / "traces"
FILES = {
    "mooncake": DATA / "conversations.jsonl",
    "qwen_bailian": DATA / "chats.jsonl",
    "kv_cache_tester": DATA / "agents" / "trace_0001.json",
    "lmcache_lookup": DATA / "lookups" / "lookup_hashes_20260101_000000_000000.jsonl",
    "azure": DATA / "azure.csv",
    "burstgpt": DATA / "burstgpt.csv",
}


def seeds() -> dict[str, list[bytes]]:
    """Inputs by the name of their target."""
    return {
        "messages": [m.encode(message) for message in (*_pushed(), *_requests(), *_replies(), *_control())],
        "controller": list(_scripts()),
        "blob": [blob_of(codec, number) for codec in ("naive", "zstd", "fp8") for number in (1, -2)],
        "peer": list(_peers()),
        "transport": list(_transport()),
        "cachegen": [
            bytes([number]) + bytes(method.encode(small_kv(tokens, LAYOUT)))
            for number, (method, tokens) in enumerate(CACHEGEN)
        ],
        "traces": [bytes([number]) + _start(FILES[name]) for number, name in enumerate(READERS)],
        "bodies": list(_bodies()),
    }


def _start(path: Path) -> bytes:
    whole = path.read_bytes()
    return whole if len(whole) < 3000 else b"".join(whole.splitlines(keepends=True)[:6])[:3000]


_WHO = {"instance_id": "a", "worker_id": 0}
_AT = {**_WHO, "ip": "127.0.0.1", "port": 8000}


def _pushed() -> list[m.Message]:
    place = {**_WHO, "location": "cpu"}
    operations = [m.KVOpEvent(op_type=kind, key=key, seq_num=key) for key, kind in enumerate(["admit", "evict"])]
    return [
        m.BatchedKVOperationMsg(**place, operations=operations),
        m.KVAdmitMsg(**place, key=-5),
        m.KVEvictMsg(**place, key=2**63),
        m.FullSyncBatchMsg(**place, sync_id="s", batch_id=0, keys=[1, 2]),
        m.FullSyncEndMsg(**place, sync_id="s", actual_total_keys=2),
        m.DeRegisterMsg(**_AT),
    ]


def _requests() -> list[m.Message]:
    spec = {"chunk_size": 4, "hash_algorithm": "builtin", "none_hash": 0, "save_unfull_chunk": True}
    return [
        m.RegisterMsg(**_AT, **spec, peer_init_url="localhost:9", methods=["zstd"], locations=["cpu"], model="m"),
        m.HeartbeatMsg(**_AT),
        m.FullSyncStartMsg(**_WHO, location="cpu", sync_id="s", total_keys=2, batch_count=1),
        m.FullSyncStatusMsg(**_WHO, sync_id="s"),
        m.BatchedP2PLookupMsg(**_WHO, hashes=[1, 2]),
    ]


def _replies() -> list[m.Message]:
    return [
        m.ErrorMsg(error="no", status=404, hint="yes"),
        m.RegisterRetMsg(extra_config={"heartbeat_url": "h:1"}),
        m.HeartbeatRetMsg(commands=[m.FullSyncCommand(reason="r", args={"a": 1})]),
        m.FullSyncStartRetMsg(sync_id="s", accepted=True),
        m.FullSyncStatusRetMsg(
            sync_id="s", is_complete=False, global_progress=0.5, can_exit_freeze=False, missing_batches=[1]
        ),
        m.BatchedP2PLookupRetMsg(layout_info=[("a", "cpu", 1, "u")]),
    ]


def _control() -> list[m.Message]:
    event, code = {"worker_event_id": "e"}, {"method": "zstd", "location": "cpu"}
    job = m.JobInfo(status="running", num_tokens=2, ratio=1.5)
    return [
        m.ClearWorkerMsg(**event, location="cpu"),
        m.PinWorkerMsg(**event, location="cpu", tokens=[1], ttl=1.5),
        m.UnpinWorkerMsg(**event, location="cpu"),
        m.CompressWorkerMsg(**event, **code, tokens=[1]),
        m.DecompressWorkerMsg(**event, **code),
        m.MoveWorkerMsg(**event, old_position="cpu", new_position=("u", "disk"), tokens=[1]),
        m.HealthWorkerMsg(**event),
        m.CheckFinishWorkerMsg(**event),
        m.CompressWorkerRetMsg(num_tokens=2, job=job),
        m.HealthWorkerRetMsg(error_code=0),
        m.CheckFinishWorkerRetMsg(status="running", job=job),
    ]


def _scripts() -> list[bytes]:
    register, heartbeat, start, status, peers = (m.encode(message) for message in _requests())
    pushed = [(0, m.encode(message)) for message in _pushed()]
    return [
        join([(1, register), pushed[0], (4, bytes(9)), (3, bytes(30)), (2, heartbeat), (3, bytes(200))]),
        join([(1, register), (1, start), *pushed[:5], (1, status), (4, bytes(4)), (1, peers), pushed[5]]),
        join([(2, heartbeat), (1, start), pushed[1], pushed[2], (3, bytes(100)), (1, status), (2, heartbeat)]),
        join([pushed[0], (1, msgspec.json.encode(_requests()[0])), (0, msgspec.json.encode(_pushed()[1]))]),
    ]


def _peers() -> list[bytes]:
    header = [
        PingRequest(),
        PutRequest(location="cpu", move="x"),
        GetRequest(location="cpu", key=ChunkKey("m", 1).name()),
        ContentsRequest(location="cpu", after="m.1", limit=1),
        Answer(found=True),
        Answer(keys=["m.1"], more=True, model="m", locations=["cpu"], status=404, error="e", hint="h"),
    ]
    messages = [encode_message(each) for each in header]
    blob = blob_of("naive")
    return [
        *(join([(0, each)]) for each in messages),
        join([(0, messages[1]), (0, blob)]),
        join([(0, messages[4]), (0, blob)]),
        *(join([(0, url)]) for url in (b"localhost:8200", b"tcp://[::1]:1", b"shm://name", b"*:70000")),
    ]


def _transport() -> list[bytes]:
    places = msgspec.msgpack.encode((SEGMENT, [(0, 16), None, (64, 100)]))
    return [
        *(join([(0, pack_header(kind, 2**40))]) for kind in (REQUEST, ANSWER, REFUSAL)),
        join([(0, pack_refusal("no", "yes"))]),
        join([(0, pack_refusal("no", None))]),
        join([(0, places), (0, b"inline")]),
        join([(0, msgspec.msgpack.encode((None, [None, None]))), (0, b"one"), (0, b"two")]),
    ]


def _bodies() -> list[bytes]:
    values = [
        {"prompt": "text", "max_tokens": 2, "temperature": 0.5, "top_p": 0.9, "top_k": 3, "seed": 1, "stop": ["a"]},
        {"prompt": [1, 2], "stream": True, "stream_options": {"include_usage": True}, "n": 1, "logit_bias": {}},
        {"prompt": [[1, 2]], "stop": "x", "echo": True, "ignore_eos": True, "user": "u"},
        {"prompt": "text", "model": "m", "add_special_tokens": False, "return_token_strs": True},
        {"tokens": [1, 2], "model": None},
        {"links": {"tcp://h:1": {"bandwidth": 1.0, "latency": 0, "cut": True}}, "full_tiers": ["cpu"]},
    ]
    return [msgspec.json.encode(value) for value in values]
