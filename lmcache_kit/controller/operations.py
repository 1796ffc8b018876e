"""Operations under way: event ids, the jobs that workers run for them, and what /check_finish says of them."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

from lmcache_kit.clock import Clock
from lmcache_kit.errors import NotFoundError
from lmcache_kit.messages import JobInfo

__all__ = ["Operation", "Operations", "WorkerJob", "new_event_id"]

FINAL = ("done", "failed")


def new_event_id() -> str:
    """An id that no other event has: 32 hexadecimal digits."""
    return uuid.uuid4().hex


@dataclass(slots=True, kw_only=True)
class WorkerJob:
    """One worker's part of an operation. ``answered`` is false until the worker answered at all."""

    instance_id: str
    worker_id: int
    worker_event_id: str
    info: JobInfo = field(default_factory=lambda: JobInfo(status="queued"))
    answered: bool = False
    measured: bool = False
    """Whether the worker reports sizes (``info`` came from it) or only that it is done."""

    @property
    def final(self) -> bool:
        return self.info.status in FINAL


@dataclass(slots=True, kw_only=True)
class Operation:
    """One call of a client that changes something, spread over the workers of an instance."""

    event_id: str
    name: str
    started_at: float
    jobs: list[WorkerJob]
    seconds: float = 0.0

    @property
    def final(self) -> bool:
        return all(job.final for job in self.jobs)

    @property
    def status(self) -> str:
        """``queued`` before any worker began, ``running`` while one works, then ``failed`` if any did, or ``done``."""
        states = {job.info.status for job in self.jobs}
        if states <= {"queued"}:
            return "queued"
        if states & {"queued", "running"}:
            return "running"
        return "failed" if "failed" in states else "done"

    def report(self) -> dict[str, Any]:
        """The answer of /check_finish. Ranks share the tokens and add up their bytes."""
        infos = [job.info for job in self.jobs]
        measured = [job.info for job in self.jobs if job.measured]
        before = sum(info.bytes_before for info in measured)
        after = sum(info.bytes_after for info in measured)
        several = len(self.jobs) > 1
        return {
            "event_id": self.event_id,
            "operation": self.name,
            "status": self.status,
            "num_tokens": min(info.num_tokens for info in infos),
            "tokens_done": min(info.tokens_done for info in infos),
            "bytes_before": before,
            "bytes_after": after,
            "ratio": before / after if before and after else None,
            "seconds": max((info.seconds for info in measured), default=self.seconds),
            "device": ", ".join(dict.fromkeys(info.device for info in measured)) or None,
            "error": _join(self.jobs, "error", several),
            "note": _join(self.jobs, "note", several),
            "workers": {str(job.worker_id): _worker_report(job) for job in self.jobs},
        }


def _join(jobs: Iterable[WorkerJob], what: str, several: bool) -> str | None:
    texts = [(job.worker_id, getattr(job.info, what)) for job in jobs]
    said = [f"worker {worker_id}: {text}" if several else text for worker_id, text in texts if text]
    return "; ".join(said) or None


def _worker_report(job: WorkerJob) -> dict[str, Any]:
    info = job.info
    return {
        "status": info.status,
        "num_tokens": info.num_tokens,
        "tokens_done": info.tokens_done,
        "bytes_before": info.bytes_before,
        "bytes_after": info.bytes_after,
        "ratio": info.ratio,
        "seconds": info.seconds,
        "device": info.device if job.measured else None,
        "error": info.error,
        "note": info.note,
    }


class Operations:
    """The operations of the last while: at most ``limit``, finished ones go first, oldest first.

    ``new_event_id`` makes the ids of new ones.
    """

    def __init__(self, clock: Clock, *, limit: int = 10_000, new_event_id: Callable[[], str] = new_event_id) -> None:
        self.new_event_id = new_event_id
        self._clock = clock
        self._limit = limit
        self._operations: dict[str, Operation] = {}

    def __len__(self) -> int:
        return len(self._operations)

    def start(self, name: str, event_id: str, jobs: list[WorkerJob]) -> Operation:
        """Remember a new operation."""
        if len(self._operations) >= self._limit:
            self._make_room()
        operation = Operation(event_id=event_id, name=name, started_at=self._clock.now(), jobs=jobs)
        self._operations[event_id] = operation
        return operation

    def get(self, event_id: str) -> Operation:
        """The operation. Raises NotFoundError when it never was or was forgotten."""
        operation = self._operations.get(event_id)
        if operation is None:
            raise NotFoundError(
                f"unknown event {event_id!r}",
                hint=f"events of compress, decompress, move, pin, unpin and clear are kept, the last {self._limit}, "
                "until the controller restarts",
            )
        return operation

    def answered(self, operation: Operation, job: WorkerJob, num_tokens: int, info: JobInfo | None) -> None:
        """A worker answered the call: with a job that goes on, or (a real LMCache worker) when all was done."""
        operation.seconds = self._clock.now() - operation.started_at
        job.answered = True
        job.measured = info is not None
        job.info = info or JobInfo(
            status="done", num_tokens=num_tokens, tokens_done=num_tokens, seconds=operation.seconds
        )

    def failed(self, operation: Operation, job: WorkerJob, error: str, *, answered: bool) -> None:
        """A worker refused, or did not answer: then it may still have begun, and is asked again later."""
        operation.seconds = self._clock.now() - operation.started_at
        job.answered = answered
        job.info = JobInfo(
            status="failed",
            num_tokens=job.info.num_tokens,
            tokens_done=job.info.tokens_done,
            seconds=operation.seconds,
            error=error,
        )

    def _make_room(self) -> None:
        for event_id, operation in self._operations.items():
            if operation.final:
                del self._operations[event_id]
                return
        del self._operations[next(iter(self._operations))]
