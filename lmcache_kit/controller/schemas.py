"""Bodies of the HTTP interface. Field names and paths are LMCache's; keys that we do not know are ignored, as there."""

from __future__ import annotations

from typing import Any

import msgspec
from msgspec import UNSET, UnsetType

__all__ = [
    "FLAGS",
    "CheckFinishRequest",
    "CheckFinishResponse",
    "ClearRequest",
    "CodeRequest",
    "ErrorResponse",
    "HealthRequest",
    "HealthResponse",
    "InstanceKeyStats",
    "KeyStatsResponse",
    "LivenessResponse",
    "LookupRequest",
    "LookupResponse",
    "MoveRequest",
    "OperationResponse",
    "PinRequest",
    "QueryInstanceRequest",
    "QueryInstanceResponse",
    "QueryWorkerInfoRequest",
    "QueryWorkerInfoResponse",
    "UnpinRequest",
    "WorkerInfo",
    "WorkerListResponse",
]

FLAGS = {
    **dict.fromkeys(("true", "True", "1", "yes", ""), True),
    **dict.fromkeys(("false", "False", "0", "no"), False),
}
"""Spellings of a flag among the query's parameters; Python's clients write a boolean with a capital."""


class LookupRequest(msgspec.Struct, kw_only=True):
    """Token ids of a prompt, from its first one."""

    tokens: tuple[int, ...]  # what is hashed are tuples, and slices of a tuple are
    explain: bool = False


class LookupResponse(msgspec.Struct, kw_only=True):
    """Who holds a prefix of the tokens; every instance also stands beside these keys as ``instance: [location, n]``.

    ``layout_info`` names the best location of each instance, ``holders`` all of them, and ``prefix`` counts what an
    instance holds over all its locations together.
    """

    event_id: str
    layout_info: dict[str, tuple[str, int]]
    holders: dict[str, dict[str, int]]
    prefix: dict[str, int]
    explain: dict[str, Any] | UnsetType = UNSET


class CodeRequest(msgspec.Struct, kw_only=True):
    """Compress or decompress the chunks of ``tokens``; ``null`` stands for every chunk of the location."""

    instance_id: str
    method: str
    location: str
    tokens: list[int] | None


class PinRequest(msgspec.Struct, kw_only=True):
    """Keep the chunks of ``tokens`` until they are unpinned, or for ``ttl`` seconds."""

    instance_id: str
    location: str
    tokens: list[int]
    owner: str = ""
    ttl: float | None = None


class UnpinRequest(msgspec.Struct, kw_only=True):
    """Release an owner's pins on the chunks of ``tokens``; without tokens all of its pins in the location."""

    instance_id: str
    location: str
    tokens: list[int] | None = None
    owner: str = ""


class ClearRequest(msgspec.Struct, kw_only=True):
    """Drop everything unpinned from a location."""

    instance_id: str
    location: str


class MoveRequest(msgspec.Struct, kw_only=True):
    """Move chunks from one ``[instance, location]`` to another, or copy them with ``should_copy`` (or ``copy``)."""

    old_position: tuple[str, str]
    new_position: tuple[str, str]
    tokens: list[int] | None
    should_copy: bool | None = None
    copy: bool | None = None


class OperationResponse(msgspec.Struct, kw_only=True):
    """What was started: ``num_tokens`` is the number of tokens that it concerns."""

    event_id: str
    num_tokens: int


class CheckFinishRequest(msgspec.Struct, kw_only=True):
    event_id: str


class CheckFinishResponse(msgspec.Struct, kw_only=True):
    """State of an operation; sizes in bytes, times in seconds, ``ratio`` is before / after; ``workers`` has the parts.

    ``status`` is queued, running, done or failed. A worker that reports no sizes leaves them 0 and ``device`` null.
    """

    event_id: str
    operation: str
    status: str
    num_tokens: int
    tokens_done: int
    bytes_before: int
    bytes_after: int
    ratio: float | None
    seconds: float
    device: str | None
    error: str | None
    note: str | None
    workers: dict[str, dict[str, Any]]


class HealthRequest(msgspec.Struct, kw_only=True):
    instance_id: str


class HealthResponse(msgspec.Struct, kw_only=True):
    """Error code by worker, 0 is healthy; ``errors`` holds what workers said that answered with an error (-1001)."""

    event_id: str
    error_codes: dict[str, int]
    errors: dict[str, str]


class QueryInstanceRequest(msgspec.Struct, kw_only=True):
    ip: str
    event_id: str | None = None


class QueryInstanceResponse(msgspec.Struct, kw_only=True):
    """``res`` is the instance that registered first from that address, ``instances`` are all of them."""

    event_id: str
    res: str
    instances: list[str]


class QueryWorkerInfoRequest(msgspec.Struct, kw_only=True):
    """``instance_id`` may be "all"; no ``worker_ids`` means every worker."""

    instance_id: str
    worker_ids: list[int] | None = None


class WorkerInfo(msgspec.Struct, kw_only=True):
    """One worker. Times are seconds since 1970; ``none_hash`` is text since JSON readers round large numbers."""

    instance_id: str
    worker_id: int
    ip: str
    port: int
    peer_init_url: str | None
    registration_time: float
    last_heartbeat_time: float
    key_count: int
    alive: bool
    syncing: bool
    sync_reason: str | None
    chunk_size: int
    hash_algorithm: str
    none_hash: str
    announced: bool
    methods: list[str] | None
    locations: list[str] | None
    model: str | None
    key_counts: dict[str, int]


class QueryWorkerInfoResponse(msgspec.Struct, kw_only=True):
    event_id: str
    worker_infos: list[WorkerInfo]


class WorkerListResponse(msgspec.Struct, kw_only=True):
    workers: list[WorkerInfo]
    total_count: int


class InstanceKeyStats(msgspec.Struct, kw_only=True):
    """Chunks of one instance, summed over its workers, and by location."""

    instance_id: str
    key_count: int
    worker_count: int
    locations: dict[str, int]


class KeyStatsResponse(msgspec.Struct, kw_only=True):
    total_key_count: int
    total_instance_count: int
    total_worker_count: int
    instances: list[InstanceKeyStats]


class LivenessResponse(msgspec.Struct, kw_only=True):
    """The controller itself is up."""

    status: str
    instances: int
    workers: int
    version: str


class ErrorResponse(msgspec.Struct, kw_only=True):
    """What went wrong, naming the culprit and what would have been accepted."""

    detail: str
