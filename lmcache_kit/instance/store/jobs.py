"""Jobs: operations on stored chunks that go on after their request was answered."""

from __future__ import annotations

import asyncio
import logging
from collections import OrderedDict, deque
from collections.abc import Awaitable, Callable

from lmcache_kit.clock import Clock
from lmcache_kit.errors import ConflictError, LMCacheKitError, NotFoundError
from lmcache_kit.messages import JobInfo

__all__ = ["Job", "JobTable"]

log = logging.getLogger(__name__)


class Job:
    """A job's progress. Sizes in bytes; ``seconds`` counts from its start to its end, or to now while it runs."""

    def __init__(self, clock: Clock, num_tokens: int) -> None:
        self._clock = clock
        self._started: float | None = None
        self._ended: float | None = None
        self._error: str | None = None
        self.num_tokens = num_tokens
        self.tokens_done = 0
        self.bytes_before = 0
        self.bytes_after = 0
        self.device = "cpu"
        self.notes: list[str] = []

    @property
    def finished(self) -> bool:
        return self._ended is not None

    def start(self) -> None:
        self._started = self._clock.now()

    def end(self, error: str | None = None) -> None:
        self._ended = self._clock.now()
        self._error = error

    def add(self, *, tokens: int, before: int, after: int) -> None:
        """One more chunk is done."""
        self.tokens_done += tokens
        self.bytes_before += before
        self.bytes_after += after

    def info(self) -> JobInfo:
        ended = self._clock.now() if self._ended is None else self._ended
        if self._started is None:
            status = "queued"
        elif self._ended is None:
            status = "running"
        else:
            status = "done" if self._error is None else "failed"
        return JobInfo(
            status=status,  # type: ignore[arg-type]  # one of the four names of JobStatus
            num_tokens=self.num_tokens,
            tokens_done=self.tokens_done,
            bytes_before=self.bytes_before,
            bytes_after=self.bytes_after,
            ratio=self.bytes_before / self.bytes_after if self.bytes_after else None,
            seconds=0.0 if self._started is None else ended - self._started,
            device=self.device,
            error=self._error,
            note="; ".join(self.notes) or None,
        )


class JobTable:
    """Runs jobs one after another, in the order in which they were asked for, and remembers how they ended.

    Args:
        keep: how many finished jobs are remembered; the oldest are forgotten first.
    """

    def __init__(self, clock: Clock, *, keep: int = 1024) -> None:
        self._clock = clock
        self._keep = keep
        self._jobs: OrderedDict[str, Job] = OrderedDict()
        self._queue: deque[tuple[str, Job, Callable[[Job], Awaitable[None]]]] = deque()
        self._task: asyncio.Task[None] | None = None

    def add(self, event_id: str, num_tokens: int, run: Callable[[Job], Awaitable[None]]) -> JobInfo:
        """Queue ``run`` under ``event_id``. Raises ConflictError when the id was used before."""
        if event_id in self._jobs:
            raise ConflictError(f"event {event_id!r} already names a job", hint="use a new event id for each operation")
        job = Job(self._clock, num_tokens)
        self._jobs[event_id] = job
        finished = (
            [known for known, other in self._jobs.items() if other.finished] if len(self._jobs) > self._keep else []
        )
        for known in finished[: max(0, len(self._jobs) - self._keep)]:
            del self._jobs[known]
        self._queue.append((event_id, job, run))
        if self._task is None or self._task.done():
            self._task = asyncio.get_running_loop().create_task(self._run())
        return job.info()

    def get(self, event_id: str) -> JobInfo:
        """Raises NotFoundError for an id that was never used or is forgotten."""
        job = self._jobs.get(event_id)
        if job is None:
            raise NotFoundError(
                f"unknown event {event_id!r}", hint=f"the last {self._keep} finished operations are remembered"
            )
        return job.info()

    def counts(self) -> dict[str, int]:
        """Remembered jobs by status."""
        counts = {"queued": 0, "running": 0, "done": 0, "failed": 0}
        for job in self._jobs.values():
            counts[job.info().status] += 1
        return counts

    async def _run(self) -> None:
        while self._queue:
            event_id, job, run = self._queue.popleft()
            job.start()
            try:
                await run(job)
            except LMCacheKitError as error:
                log.warning("operation %s failed: %s", event_id, error.detail)
                job.end(error.detail)
            except Exception as error:  # a plugin's code may raise anything; the job must not stay "running"
                log.exception("operation %s failed", event_id)
                job.end(f"{type(error).__name__}: {error}")
            else:
                job.end()

    async def idle(self) -> None:
        """Until every job is finished."""
        while self._task is not None and not self._task.done():
            await asyncio.wait([self._task])
