"""Messages from workers to the controller, and the controller's answers.

The first part is pushed and never answered, the second is request and reply.
"""

from __future__ import annotations

from typing import Any, Literal, TypeAlias

import msgspec

from lmcache_kit.messages.base import ErrorMsg, Message

__all__ = [
    "BatchedKVOperationMsg",
    "BatchedP2PLookupMsg",
    "BatchedP2PLookupRetMsg",
    "DeRegisterMsg",
    "FullSyncBatchMsg",
    "FullSyncCommand",
    "FullSyncEndMsg",
    "FullSyncStartMsg",
    "FullSyncStartRetMsg",
    "FullSyncStatusMsg",
    "FullSyncStatusRetMsg",
    "HeartbeatMsg",
    "HeartbeatRetMsg",
    "KVAdmitMsg",
    "KVEvictMsg",
    "KVOpEvent",
    "PushedMsg",
    "RegisterMsg",
    "RegisterRetMsg",
    "WorkerReplyMsg",
    "WorkerRequestMsg",
]


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

    extra_config: dict[str, str] = msgspec.field(default_factory=dict)


class FullSyncCommand(msgspec.Struct, tag="full_sync", tag_field="command_type", kw_only=True, frozen=True):
    """The controller asks for a full sync of every location."""

    reason: str | None = None
    args: dict[str, Any] | None = None


class HeartbeatRetMsg(Message, frozen=True):
    """Commands are executed in order."""

    commands: list[FullSyncCommand] = msgspec.field(default_factory=list)


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
    missing_batches: list[int] = msgspec.field(default_factory=list)


class BatchedP2PLookupRetMsg(Message, frozen=True):
    """``(instance, location, number of hit chunks, peer URL)`` of the best holder, or ``("", "", 0, "")``."""

    layout_info: list[tuple[str, str, int, str]]


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
