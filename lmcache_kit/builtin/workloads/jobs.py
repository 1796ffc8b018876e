"""Compress and decompress: one job per completed prompt, followed to its end."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any, Literal

from lmcache_kit.builtin.workloads.measures import measured
from lmcache_kit.builtin.workloads.options import JobOptions
from lmcache_kit.builtin.workloads.served import Served, served, tokens_of
from lmcache_kit.contracts.workload import Workload, WorkloadContext, WorkloadResult
from lmcache_kit.errors import LMCacheKitError
from lmcache_kit.report.percentiles import summarize

__all__ = ["JobWorkload", "finished"]


async def finished(context: WorkloadContext, answer: dict[str, Any], timeout: float, what: str) -> dict[str, Any]:
    """The end of the job that ``answer`` started. Raises LMCacheKitError with the job's own error when it failed."""
    state = await context.controller.wait_finished(answer["event_id"], timeout=timeout)
    if state["status"] != "done":
        raise LMCacheKitError(f"{what} failed: {state.get('error') or 'the job gives no reason'}")
    return state


class JobWorkload(Workload):
    """See :class:`~lmcache_kit.builtin.workloads.options.JobOptions`."""

    def __init__(self, options: JobOptions, operation: Literal["compress", "decompress"]) -> None:
        self._options = options
        self._operation = operation

    def needs(self) -> Sequence[str]:
        return [self._options.of]

    def references(self) -> Sequence[tuple[str, str]]:
        return [("compression", self._options.method), ("location", self._options.location)]

    async def run(self, context: WorkloadContext) -> WorkloadResult:
        entries = served(context, self._options.of)
        for entry in entries:
            await tokens_of(context, entry)
        context.progress(f"{self._operation} {len(entries)} prompts with {self._options.method}")
        start = time.perf_counter()
        latencies: list[float] = []
        states: list[dict[str, Any]] = []
        for position, entry in enumerate(entries):
            begin = time.perf_counter()
            state = await self._one(context, entry)
            latencies.append(time.perf_counter() - begin)
            states.append(state)
            context.emit(
                self._operation, position=position, instance=entry.instance_id, seconds=latencies[-1], job=state
            )
        seconds = time.perf_counter() - start
        worked = [state for state in states if state["bytes_before"]]
        values = measured(
            counts={"jobs": len(states), "without_work": len(states) - len(worked)},
            tokens=sum(state["tokens_done"] for state in states),
            bytes_before=sum(state["bytes_before"] for state in states),
            bytes_after=sum(state["bytes_after"] for state in states),
            seconds=seconds,
            latencies=latencies,
            method=self._options.method,
            location=self._options.location,
            job_seconds=summarize([state["seconds"] for state in worked]),
        )
        return WorkloadResult(name=context.name, kind=self._operation, values=values)

    async def _one(self, context: WorkloadContext, entry: Served) -> dict[str, Any]:
        options = self._options
        start = context.controller.compress if self._operation == "compress" else context.controller.decompress
        answer = await start(entry.instance_id, options.method, options.location, entry.tokens)
        return await finished(context, answer, options.timeout_seconds, f"{self._operation} on {entry.instance_id}")
