"""Messages from the controller to a worker's control socket, and the worker's answers."""

from __future__ import annotations

from typing import Literal, TypeAlias

import msgspec

from lmcache_kit.messages.base import ErrorMsg, Message

__all__ = [
    "CheckFinishWorkerMsg",
    "CheckFinishWorkerRetMsg",
    "ClearWorkerMsg",
    "ClearWorkerRetMsg",
    "CompressWorkerMsg",
    "CompressWorkerRetMsg",
    "ControlMsg",
    "ControlRetMsg",
    "DecompressWorkerMsg",
    "DecompressWorkerRetMsg",
    "HealthWorkerMsg",
    "HealthWorkerRetMsg",
    "JobInfo",
    "JobStatus",
    "MoveWorkerMsg",
    "MoveWorkerRetMsg",
    "PinWorkerMsg",
    "PinWorkerRetMsg",
    "UnpinWorkerMsg",
    "UnpinWorkerRetMsg",
]


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
