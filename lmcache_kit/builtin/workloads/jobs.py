"""Compress and decompress: one job per completed prompt, followed to its end."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

from lmcache_kit.builtin.workloads.distinct import distinct_tokens, without_repeats
from lmcache_kit.builtin.workloads.holdings import held_bytes
from lmcache_kit.builtin.workloads.measures import measured
from lmcache_kit.builtin.workloads.options import JobOptions
from lmcache_kit.builtin.workloads.served import Served, chunk_size_of, served, tokens_of
from lmcache_kit.contracts.workload import Workload, WorkloadContext, WorkloadResult
from lmcache_kit.errors import LMCacheKitError
from lmcache_kit.report.percentiles import summarize
from lmcache_kit.units import format_count

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
        options = self._options
        entries = served(context, options.of)
        for entry in entries:
            await tokens_of(context, entry)
        prompts = [(entry.instance_id, entry.tokens) for entry in entries]
        # A repeated prompt has nothing left to decompress, which would be refused as a conflict.
        chosen = [entries[position] for position in without_repeats(prompts)]
        concerned = list(dict.fromkeys(entry.instance_id for entry in entries))
        context.progress(f"{self._operation} {format_count(len(chosen), 'prompts')} with {options.method}")
        before = await held_bytes(context, instances=concerned, location=options.location)
        latencies: list[float] = []
        states: list[dict[str, Any]] = []
        start = context.clock.now()
        for position, entry in enumerate(chosen):
            begin = context.clock.now()
            state = await self._one(context, entry)
            latencies.append(context.clock.now() - begin)
            states.append(state)
            context.emit(
                self._operation, position=position, instance=entry.instance_id, seconds=latencies[-1], job=state
            )
        seconds = context.clock.now() - start
        # Chunks that an earlier prompt shares were done with it, and a job counts those that it finds done.
        chunk_size = await chunk_size_of(context.instances[concerned[0]]) or 256
        tokens = min(distinct_tokens(prompts, chunk_size), sum(state["tokens_done"] for state in states))
        values = measured(
            counts={"jobs": len(states)},
            tokens=tokens,
            bytes_before=before,
            bytes_after=await held_bytes(context, instances=concerned, location=options.location),
            seconds=seconds,
            latencies=latencies,
            method=options.method,
            location=options.location,
            job_seconds=summarize([state["seconds"] for state in states]),
            devices=sorted({state["device"] for state in states}),
            notes=[state["note"] for state in states if state["note"]],
        )
        return WorkloadResult(name=context.name, kind=self._operation, values=values)

    async def _one(self, context: WorkloadContext, entry: Served) -> dict[str, Any]:
        options = self._options
        start = context.controller.compress if self._operation == "compress" else context.controller.decompress
        answer = await start(entry.instance_id, options.method, options.location, entry.tokens)
        return await finished(context, answer, options.timeout_seconds, f"{self._operation} on {entry.instance_id}")
