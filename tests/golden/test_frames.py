"""Our codec against the payloads of real LMCache (frames.json, made by capture.py).

A frame's ``source`` says where it is from: ``captured`` between a real controller and real workers, ``encoded`` by
LMCache's own classes since nothing of LMCache sends it, or ``documented``: written down, as of LMCache 0.3.
tests/interop/lmcache/test_golden.py shows that LMCache reads what we make of the same fields.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args

import msgspec
import pytest

from lmcache_kit import messages as m
from lmcache_kit.errors import InvalidRequestError
from lmcache_kit.messages import ControlMsg, ControlRetMsg, PushedMsg, WorkerReplyMsg, WorkerRequestMsg

FRAMES = json.loads(Path(__file__).with_name("frames.json").read_text())
DECODERS: dict[str, Callable[[bytes], Any]] = {
    "worker pushes": m.decode_pushed,
    "worker asks": m.decode_worker_request,
    "controller answers": m.decode_worker_reply,
    "controller asks": m.decode_control,
    "worker answers": m.decode_control_reply,
}
UNIONS = {
    "worker pushes": PushedMsg,
    "worker asks": WorkerRequestMsg,
    "controller answers": WorkerReplyMsg,
    "controller asks": ControlMsg,
    "worker answers": ControlRetMsg,
}
# Keys that we add, which LMCache does not know and leaves out when it reads them.
OURS = {
    "RegisterMsg": ["chunk_size", "hash_algorithm", "none_hash", "save_unfull_chunk", "methods", "locations", "model"],
    "PinWorkerMsg": ["owner", "ttl"],
    "ErrorMsg": ["status", "hint"],
    "CheckFinishWorkerRetMsg": ["job"],
    **{f"{name}WorkerRetMsg": ["job"] for name in ("Clear", "Pin", "Compress", "Decompress", "Move")},
}
OURS["HeartbeatMsg"] = OURS["RegisterMsg"]
OF_OURS_ALONE = {"UnpinWorkerMsg", "UnpinWorkerRetMsg"}
"""LMCache has no unpin."""

every_frame = pytest.mark.parametrize("frame", FRAMES, ids=[frame["name"] for frame in FRAMES])
of_today = pytest.mark.parametrize(
    "frame",
    [frame for frame in FRAMES if frame["source"] != "documented"],
    ids=[frame["name"] for frame in FRAMES if frame["source"] != "documented"],
)


def payload(frame: dict[str, Any]) -> bytes:
    return bytes.fromhex(frame["hex"])


@every_frame
def test_it_is_read_as_what_it_says(frame: dict[str, Any]) -> None:
    read = DECODERS[frame["direction"]](payload(frame))
    assert type(read).__name__ == frame["fields"]["type"]
    ours = msgspec.to_builtins(read)
    # Compared as it would be in JSON: a tuple is a list there. 0.3 sent a field that nobody reads.
    want = {name: value for name, value in frame["fields"].items() if name != "distributed_url"}
    assert {name: json.loads(json.dumps(ours[name])) for name in want} == want


@every_frame
def test_no_other_socket_takes_it(frame: dict[str, Any]) -> None:
    kind = getattr(m, frame["fields"]["type"])
    for direction, decode in DECODERS.items():
        allowed = kind in get_args(UNIONS[direction])
        if allowed:
            assert isinstance(decode(payload(frame)), kind)
        else:
            with pytest.raises(InvalidRequestError):
                decode(payload(frame))


@every_frame
def test_no_cut_frame_is_read(frame: dict[str, Any]) -> None:
    whole = payload(frame)
    for length in range(len(whole)):
        with pytest.raises(InvalidRequestError):
            DECODERS[frame["direction"]](whole[:length])


@of_today
def test_the_same_fields_are_the_same_bytes(frame: dict[str, Any]) -> None:
    """Byte for byte; where we add keys, they follow LMCache's and nothing else differs."""
    kind = getattr(m, frame["fields"]["type"])
    made = m.encode(msgspec.convert(frame["fields"], kind))
    added = OURS.get(kind.__name__, [])
    if not added:
        assert made == payload(frame)
        return
    fields = msgspec.msgpack.decode(made)
    assert list(fields) == [*msgspec.msgpack.decode(payload(frame)), *added]
    assert msgspec.msgpack.encode({name: fields[name] for name in fields if name not in added}) == payload(frame)


def test_every_message_that_we_speak_has_a_frame() -> None:
    spoken = {kind.__name__ for union in UNIONS.values() for kind in get_args(union)}
    shown = {frame["fields"]["type"] for frame in FRAMES if frame["source"] != "documented"}
    assert spoken - shown == OF_OURS_ALONE
    assert shown <= spoken
    old = {frame["fields"]["type"] for frame in FRAMES if frame["version"] == "0.3"}
    assert old == {"RegisterMsg", "DeRegisterMsg", "KVAdmitMsg", "KVEvictMsg"}


def test_what_lmcache_sends_was_captured() -> None:
    """All but what its parts never send, or what needs more than a standalone worker."""
    captured = {frame["fields"]["type"] for frame in FRAMES if frame["source"] == "captured"}
    encoded = {frame["fields"]["type"] for frame in FRAMES if frame["source"] == "encoded"}
    assert encoded - captured == {
        "BatchedP2PLookupMsg",  # sent by engines that load asynchronously
        "CheckFinishWorkerMsg",
        "CheckFinishWorkerRetMsg",
        "DeRegisterMsg",  # queued at shutdown, and lost with the queue
        "KVAdmitMsg",
        "KVEvictMsg",
    }
