"""LMCache's controller protocol as typed messages (docs/reference/protocol.md).

Every message is one msgpack map whose ``type`` is the class name. Keys that LMCache 0.5.6 does not know are ignored
by it, so the fields marked *extension* are safe to send to a real LMCache peer, and have defaults for when a real
peer does not send them. On the controller's inbound sockets a payload that starts with ``{`` is read as JSON.
"""

from __future__ import annotations

from typing import Any, Literal, TypeAlias

import msgspec

from lmcache_kit.errors import InvalidRequestError

__all__ = [
    "BatchedKVOperationMsg",
    "BatchedP2PLookupMsg",
    "BatchedP2PLookupRetMsg",
    "CheckFinishWorkerMsg",
    "CheckFinishWorkerRetMsg",
    "ClearWorkerMsg",
    "ClearWorkerRetMsg",
    "CompressWorkerMsg",
    "CompressWorkerRetMsg",
    "ControlMsg",
    "ControlRetMsg",
    "DeRegisterMsg",
    "DecompressWorkerMsg",
    "DecompressWorkerRetMsg",
    "ErrorMsg",
    "FullSyncBatchMsg",
    "FullSyncCommand",
    "FullSyncEndMsg",
    "FullSyncStartMsg",
    "FullSyncStartRetMsg",
    "FullSyncStatusMsg",
    "FullSyncStatusRetMsg",
    "HealthWorkerMsg",
    "HealthWorkerRetMsg",
    "HeartbeatMsg",
    "HeartbeatRetMsg",
    "JobInfo",
    "JobStatus",
    "KVAdmitMsg",
    "KVEvictMsg",
    "KVOpEvent",
    "MoveWorkerMsg",
    "MoveWorkerRetMsg",
    "PinWorkerMsg",
    "PinWorkerRetMsg",
    "PushedMsg",
    "RegisterMsg",
    "RegisterRetMsg",
    "UnpinWorkerMsg",
    "UnpinWorkerRetMsg",
    "WorkerReplyMsg",
    "WorkerRequestMsg",
    "decode_control",
    "decode_control_reply",
    "decode_pushed",
    "decode_worker_reply",
    "decode_worker_request",
    "encode",
]


class Message(msgspec.Struct, tag=True, kw_only=True, frozen=True):
    """Base of all messages; the tag is the class name under the key ``type``."""


# --- worker to controller, pushed ------------------------------------------------------------------------------------


class _Registration(Message, frozen=True):
    """What registration and heartbeat share.

    The extensions after ``peer_init_url`` tell the controller how this instance names its chunks, and which compression
    methods and locations (fastest first) it has, so that requests for others are refused by name.
    """

    instance_id: str
    worker_id: int
    ip: str
    port: int
    peer_init_url: str | None = None
    chunk_size: int | None = None
    hash_algorithm: str | None = None
    none_hash: int | None = None
    save_unfull_chunk: bool | None = None
    methods: list[str] | None = None
    locations: list[str] | None = None
    model: str | None = None


class RegisterMsg(_Registration, frozen=True):
    """A worker joins. Sent as a request; workers of LMCache 0.3 push it instead."""


class HeartbeatMsg(_Registration, frozen=True):
    """A worker is alive; registers it when the controller does not know it."""


class DeRegisterMsg(Message, frozen=True):
    """A worker leaves in good order."""

    instance_id: str
    worker_id: int
    ip: str
    port: int


class KVOpEvent(msgspec.Struct, kw_only=True, frozen=True):
    """One change of one location's contents; ``seq_num`` counts per location."""

    op_type: Literal["admit", "evict"]
    key: int
    seq_num: int = 0


class BatchedKVOperationMsg(Message, frozen=True):
    """Changes of one location, in the order in which they happened."""

    instance_id: str
    worker_id: int
    location: str
    operations: list[KVOpEvent]


class KVAdmitMsg(Message, frozen=True):
    """One chunk arrived (LMCache 0.3)."""

    instance_id: str
    worker_id: int
    key: int
    location: str
    seq_num: int = 0


class KVEvictMsg(Message, frozen=True):
    """One chunk left (LMCache 0.3)."""

    instance_id: str
    worker_id: int
    key: int
    location: str
    seq_num: int = 0


class FullSyncBatchMsg(Message, frozen=True):
    """Part ``batch_id`` (from 0) of everything that a location holds."""

    instance_id: str
    worker_id: int
    location: str
    sync_id: str
    batch_id: int
    keys: list[int]


class FullSyncEndMsg(Message, frozen=True):
    """All batches of a sync were pushed."""

    instance_id: str
    worker_id: int
    location: str
    sync_id: str
    actual_total_keys: int


# --- worker to controller, request and reply -------------------------------------------------------------------------


class FullSyncStartMsg(Message, frozen=True):
    """A worker announces a sync of one location."""

    instance_id: str
    worker_id: int
    location: str
    sync_id: str
    total_keys: int
    batch_count: int


class FullSyncStatusMsg(Message, frozen=True):
    """A worker asks how far its sync has come."""

    instance_id: str
    worker_id: int
    sync_id: str


class BatchedP2PLookupMsg(Message, frozen=True):
    """Who else holds the longest prefix of these chunk hashes?"""

    hashes: list[int]
    instance_id: str
    worker_id: int


class RegisterRetMsg(Message, frozen=True):
    """``extra_config["heartbeat_url"]`` is ``host:port`` without a scheme when there is a heartbeat socket."""

    extra_config: dict[str, str] = {}


class FullSyncCommand(msgspec.Struct, tag="full_sync", tag_field="command_type", kw_only=True, frozen=True):
    """The controller asks for a full sync of every location."""

    reason: str | None = None
    args: dict[str, Any] | None = None


class HeartbeatRetMsg(Message, frozen=True):
    """Commands are executed in order."""

    commands: list[FullSyncCommand] = []


class FullSyncStartRetMsg(Message, frozen=True):
    sync_id: str
    accepted: bool
    error_msg: str | None = None


class FullSyncStatusRetMsg(Message, frozen=True):
    """``global_progress`` is 0 to 1 over all syncs under way; ``missing_batches`` must be sent again."""

    sync_id: str
    is_complete: bool
    global_progress: float
    can_exit_freeze: bool
    missing_batches: list[int] = []


class BatchedP2PLookupRetMsg(Message, frozen=True):
    """``(instance, location, number of hit chunks, peer URL)`` of the best holder, or ``("", "", 0, "")``."""

    layout_info: list[tuple[str, str, int, str]]


class ErrorMsg(Message, frozen=True):
    """The peer could not do what was asked.

    ``status`` and ``hint`` are extensions: an HTTP status and what to do next.
    """

    error: str
    status: int = 500
    hint: str | None = None


# --- controller to worker --------------------------------------------------------------------------------------------


class ClearWorkerMsg(Message, frozen=True):
    worker_event_id: str
    location: str


class PinWorkerMsg(Message, frozen=True):
    """Extensions: ``owner`` names who pins (default: anyone), ``ttl`` is in seconds (None: until unpinned)."""

    worker_event_id: str
    location: str
    tokens: list[int]
    owner: str = ""
    ttl: float | None = None


class UnpinWorkerMsg(Message, frozen=True):
    """Extension: LMCache has no unpin. ``tokens=None`` releases every pin of ``owner`` in the location."""

    worker_event_id: str
    location: str
    tokens: list[int] | None = None
    owner: str = ""


class CompressWorkerMsg(Message, frozen=True):
    """``tokens=None`` means every chunk of the location."""

    worker_event_id: str
    method: str
    location: str
    tokens: list[int] | None = None


class DecompressWorkerMsg(Message, frozen=True):
    """``tokens=None`` means every chunk of the location that ``method`` wrote."""

    worker_event_id: str
    method: str
    location: str
    tokens: list[int] | None = None


class MoveWorkerMsg(Message, frozen=True):
    """``new_position`` is ``(peer URL of the target, location)``."""

    worker_event_id: str
    old_position: str
    new_position: tuple[str, str]
    tokens: list[int] | None = None
    copy: bool | None = True


class HealthWorkerMsg(Message, frozen=True):
    worker_event_id: str


class CheckFinishWorkerMsg(Message, frozen=True):
    """Defined by LMCache but never sent by it; our controller sends it, a real worker answers ErrorMsg."""

    worker_event_id: str


JobStatus: TypeAlias = Literal["queued", "running", "done", "failed"]


class JobInfo(msgspec.Struct, kw_only=True, frozen=True):
    """State of a job as ``/check_finish`` shows it. Sizes in bytes, times in seconds; ``ratio`` is before / after."""

    status: JobStatus
    num_tokens: int = 0
    tokens_done: int = 0
    bytes_before: int = 0
    bytes_after: int = 0
    ratio: float | None = None
    seconds: float = 0.0
    device: str = "cpu"
    error: str | None = None
    note: str | None = None


class _Planned(Message, frozen=True):
    """Answer to an operation. ``job`` (extension) is present when the work goes on after this answer."""

    num_tokens: int
    job: JobInfo | None = None


class ClearWorkerRetMsg(_Planned, frozen=True):
    pass


class PinWorkerRetMsg(_Planned, frozen=True):
    pass


class UnpinWorkerRetMsg(_Planned, frozen=True):
    pass


class CompressWorkerRetMsg(_Planned, frozen=True):
    pass


class DecompressWorkerRetMsg(_Planned, frozen=True):
    pass


class MoveWorkerRetMsg(_Planned, frozen=True):
    pass


class HealthWorkerRetMsg(Message, frozen=True):
    """0 is healthy."""

    error_code: int


class CheckFinishWorkerRetMsg(Message, frozen=True):
    status: str
    job: JobInfo | None = None


PushedMsg: TypeAlias = (
    RegisterMsg
    | DeRegisterMsg
    | BatchedKVOperationMsg
    | KVAdmitMsg
    | KVEvictMsg
    | FullSyncBatchMsg
    | FullSyncEndMsg
    | HeartbeatMsg
)
WorkerRequestMsg: TypeAlias = (
    RegisterMsg | HeartbeatMsg | FullSyncStartMsg | FullSyncStatusMsg | BatchedP2PLookupMsg | DeRegisterMsg
)
WorkerReplyMsg: TypeAlias = (
    RegisterRetMsg | HeartbeatRetMsg | FullSyncStartRetMsg | FullSyncStatusRetMsg | BatchedP2PLookupRetMsg | ErrorMsg
)
ControlMsg: TypeAlias = (
    ClearWorkerMsg
    | PinWorkerMsg
    | UnpinWorkerMsg
    | CompressWorkerMsg
    | DecompressWorkerMsg
    | MoveWorkerMsg
    | HealthWorkerMsg
    | CheckFinishWorkerMsg
)
ControlRetMsg: TypeAlias = (
    ClearWorkerRetMsg
    | PinWorkerRetMsg
    | UnpinWorkerRetMsg
    | CompressWorkerRetMsg
    | DecompressWorkerRetMsg
    | MoveWorkerRetMsg
    | HealthWorkerRetMsg
    | CheckFinishWorkerRetMsg
    | ErrorMsg
)

_encoder = msgspec.msgpack.Encoder()
_pushed = msgspec.msgpack.Decoder(PushedMsg)
_pushed_json = msgspec.json.Decoder(PushedMsg)
_request = msgspec.msgpack.Decoder(WorkerRequestMsg)
_request_json = msgspec.json.Decoder(WorkerRequestMsg)
_reply = msgspec.msgpack.Decoder(WorkerReplyMsg)
_control = msgspec.msgpack.Decoder(ControlMsg)
_control_reply = msgspec.msgpack.Decoder(ControlRetMsg)


def encode(message: Message) -> bytes:
    """The msgpack payload of a message."""
    return _encoder.encode(message)


def _decode(msgpack: Any, json: Any, payload: Any) -> Any:
    try:
        # A msgpack map starts with 0x80-0x8f, 0xde or 0xdf, never with '{'.
        if json is not None and bytes(payload[:1]) == b"{":
            return json.decode(payload)
        return msgpack.decode(payload)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise InvalidRequestError(f"malformed message: {error}") from None


def decode_pushed(payload: Any) -> PushedMsg:
    """A message of the controller's PULL socket. Raises InvalidRequestError for anything else."""
    return _decode(_pushed, _pushed_json, payload)  # type: ignore[no-any-return]


def decode_worker_request(payload: Any) -> WorkerRequestMsg:
    """A message of the controller's reply or heartbeat socket. Raises InvalidRequestError for anything else."""
    return _decode(_request, _request_json, payload)  # type: ignore[no-any-return]


def decode_worker_reply(payload: Any) -> WorkerReplyMsg:
    """The controller's answer to a worker's request. Raises InvalidRequestError for anything else."""
    return _decode(_reply, None, payload)  # type: ignore[no-any-return]


def decode_control(payload: Any) -> ControlMsg:
    """A message of a worker's control socket. Raises InvalidRequestError for anything else."""
    return _decode(_control, None, payload)  # type: ignore[no-any-return]


def decode_control_reply(payload: Any) -> ControlRetMsg:
    """A worker's answer on its control socket. Raises InvalidRequestError for anything else."""
    return _decode(_control_reply, None, payload)  # type: ignore[no-any-return]
