"""Operations of clients: which workers to call with what, and what their answers mean."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

from lmcache_kit.controller.operations import Operation, Operations, WorkerJob
from lmcache_kit.controller.registry import Registry, Worker
from lmcache_kit.errors import (
    ConflictError,
    InvalidRequestError,
    LMCacheKitError,
    NotFoundError,
    UnavailableError,
    UnknownNameError,
    error_from_status,
)
from lmcache_kit.messages import (
    CheckFinishWorkerMsg,
    CheckFinishWorkerRetMsg,
    ClearWorkerMsg,
    CompressWorkerMsg,
    ControlMsg,
    ControlRetMsg,
    DecompressWorkerMsg,
    ErrorMsg,
    HealthWorkerMsg,
    HealthWorkerRetMsg,
    JobInfo,
    MoveWorkerMsg,
    PinWorkerMsg,
    UnpinWorkerMsg,
)

__all__ = ["Call", "Outcome", "Plan", "Planner", "check_finish_plan", "settle", "settle_check_finish"]

_PASSED_ON = frozenset({400, 404, 409, 413, 500, 502, 503, 507})

Outcome: TypeAlias = ControlRetMsg | LMCacheKitError
"""A worker's answer, or why there is none."""


@dataclass(slots=True, frozen=True)
class Call:
    """One message for one worker. ``job`` is its part of the operation (None for a health check)."""

    worker: Worker
    message: ControlMsg
    job: WorkerJob | None = None


@dataclass(slots=True, frozen=True)
class Plan:
    """Calls to make at the same time."""

    event_id: str
    calls: tuple[Call, ...]
    operation: Operation | None = None
    location: str | None = None


class Planner:
    """Checks a request against what the instance's workers announced, and plans its calls.

    Every method raises UnknownNameError for an instance, method or location that is not known, naming those that are,
    and UnavailableError when one of the workers is dead. A worker that announced no methods or locations decides.
    """

    def __init__(self, registry: Registry, operations: Operations) -> None:
        self._registry = registry
        self._operations = operations

    def compress(self, instance_id: str, method: str, location: str, tokens: list[int] | None) -> Plan:
        """``tokens=None`` means every chunk."""
        return self._code("compress", CompressWorkerMsg, instance_id, method, location, tokens)

    def decompress(self, instance_id: str, method: str, location: str, tokens: list[int] | None) -> Plan:
        """``tokens=None`` means every chunk that ``method`` wrote."""
        return self._code("decompress", DecompressWorkerMsg, instance_id, method, location, tokens)

    def pin(self, instance_id: str, location: str, tokens: list[int], owner: str, ttl: float | None) -> Plan:
        """Until unpinned, or for ``ttl`` seconds."""
        _check_tokens(tokens)
        if ttl is not None and not ttl > 0:
            raise InvalidRequestError(f"ttl must be above 0 seconds, got {ttl:g}", hint="leave it out for no end")
        return self._start(
            "pin",
            self._workers(instance_id, location),
            location,
            lambda worker, event: PinWorkerMsg(
                worker_event_id=event, location=location, tokens=tokens, owner=owner, ttl=ttl
            ),
        )

    def unpin(self, instance_id: str, location: str, tokens: list[int] | None, owner: str) -> Plan:
        """``tokens=None`` releases every pin of ``owner`` in the location."""
        _check_tokens(tokens)
        return self._start(
            "unpin",
            self._workers(instance_id, location),
            location,
            lambda worker, event: UnpinWorkerMsg(worker_event_id=event, location=location, tokens=tokens, owner=owner),
        )

    def clear(self, instance_id: str, location: str) -> Plan:
        """Everything that is not pinned."""
        return self._start(
            "clear",
            self._workers(instance_id, location),
            location,
            lambda worker, event: ClearWorkerMsg(worker_event_id=event, location=location),
        )

    def move(self, old: tuple[str, str], new: tuple[str, str], tokens: list[int] | None, *, copy: bool) -> Plan:
        """From ``(instance, location)`` to another; worker i sends to worker i, in order of their ids.

        Within one instance that announced no peer URL the target is the empty string: the worker itself.
        Raises ConflictError when the instances' workers cannot be paired or the target cannot be reached.
        """
        _check_tokens(tokens)
        if old == new:
            raise InvalidRequestError(f"old_position and new_position are the same: {old[0]}/{old[1]}")
        sources, targets = self._workers(*old), self._workers(*new)
        if len(sources) != len(targets):
            raise ConflictError(
                f"instance {old[0]!r} has {len(sources)} workers and {new[0]!r} has {len(targets)}",
                hint="chunks can be moved between instances with as many workers only",
            )
        urls = {}
        for source, target in zip(sources, targets, strict=True):
            if target.peer_init_url is None and old[0] != new[0]:
                raise ConflictError(
                    f"worker {target.name} announced no peer URL, so nothing can be sent to it",
                    hint="set p2p_host and p2p_init_ports in its configuration",
                )
            if source.spec != target.spec:
                raise ConflictError(
                    f"workers {source.name} and {target.name} name their chunks differently, so moved chunks would"
                    " never be found",
                    hint="give both instances the same chunk_size, hash algorithm and NONE_HASH",
                )
            urls[source.id] = target.peer_init_url or ""
        return self._start(
            "move",
            sources,
            old[1],
            lambda worker, event: MoveWorkerMsg(
                worker_event_id=event,
                old_position=old[1],
                new_position=(urls[worker.id], new[1]),
                tokens=tokens,
                copy=copy,
            ),
        )

    def health(self, instance_id: str) -> Plan:
        """Ask every worker for its error code."""
        event_id = self._operations.new_event_id()
        workers = self._registry.workers(instance_id)
        _check_alive(workers)
        return Plan(
            event_id,
            tuple(Call(worker, HealthWorkerMsg(worker_event_id=_worker_event(event_id, worker))) for worker in workers),
        )

    def _code(
        self,
        name: str,
        message: type[CompressWorkerMsg] | type[DecompressWorkerMsg],
        instance_id: str,
        method: str,
        location: str,
        tokens: list[int] | None,
    ) -> Plan:
        _check_tokens(tokens)
        workers = self._workers(instance_id, location)
        for worker in workers:
            if worker.methods is not None and method not in worker.methods:
                raise UnknownNameError(f"compression method of instance {instance_id!r}:", method, worker.methods)
        return self._start(
            name,
            workers,
            location,
            lambda worker, event: message(worker_event_id=event, method=method, location=location, tokens=tokens),
        )

    def _workers(self, instance_id: str, location: str) -> list[Worker]:
        workers = self._registry.workers(instance_id)
        for worker in workers:
            if worker.locations is not None and location not in worker.locations:
                raise UnknownNameError(f"location of instance {instance_id!r}:", location, worker.locations)
        _check_alive(workers)
        return workers

    def _start(
        self, name: str, workers: Sequence[Worker], location: str, message: Callable[[Worker, str], ControlMsg]
    ) -> Plan:
        event_id = self._operations.new_event_id()
        calls, jobs = [], []
        for worker in workers:
            event = _worker_event(event_id, worker)
            job = WorkerJob(instance_id=worker.instance_id, worker_id=worker.worker_id, worker_event_id=event)
            jobs.append(job)
            calls.append(Call(worker, message(worker, event), job))
        return Plan(event_id, tuple(calls), self._operations.start(name, event_id, jobs), location)


def settle(operations: Operations, registry: Registry, plan: Plan, outcomes: Sequence[Outcome]) -> int:
    """Record the answers of a plan; see :meth:`ControllerCore.settle`."""
    operation = plan.operation
    if operation is None:
        raise TypeError("this plan belongs to no operation")
    errors: list[LMCacheKitError] = []
    for call, outcome in zip(plan.calls, outcomes, strict=True):
        job = call.job
        if job is None:
            continue
        if isinstance(outcome, LMCacheKitError):
            operations.failed(operation, job, outcome.detail, answered=False)
            errors.append(outcome)
        elif isinstance(outcome, ErrorMsg):
            errors.append(_worker_error(call.worker, outcome))
            operations.failed(operation, job, outcome.error, answered=True)
        elif isinstance(outcome, HealthWorkerRetMsg | CheckFinishWorkerRetMsg):
            errors.append(_unexpected(call.worker, outcome))
            operations.failed(operation, job, errors[-1].message, answered=True)
        else:
            operations.answered(operation, job, outcome.num_tokens, outcome.job)
    if errors:
        # A worker that cannot be reached says least about the request, so the other reasons go first.
        raise min(errors, key=lambda error: isinstance(error, UnavailableError))
    num_tokens = min(job.info.num_tokens for job in operation.jobs)
    if num_tokens == 0 and not any(job.measured for job in operation.jobs):
        _refuse_nothing(registry, operation, plan)
    return num_tokens


def _refuse_nothing(registry: Registry, operation: Operation, plan: Plan) -> None:
    """A worker that says "0 tokens" did nothing; LMCache's do so for unknown names too. That is no success."""
    worker = plan.calls[0].worker
    seen = worker.location_order()
    unseen = plan.location not in seen
    if operation.name == "unpin" or (operation.name == "clear" and not unseen):
        return
    if unseen:
        raise UnknownNameError(f"location of instance {worker.instance_id!r}:", str(plan.location), seen)
    raise NotFoundError(
        f"instance {worker.instance_id!r} has nothing to {operation.name} in {plan.location}: it holds no chunk of"
        " these tokens there, or does not know how",
        hint="ask /lookup?explain=true which chunks it holds",
    )


def check_finish_plan(operations: Operations, registry: Registry, event_id: str) -> Plan:
    """Calls to the workers whose part of an operation is still open."""
    operation = operations.get(event_id)
    calls = []
    for job in operation.jobs:
        if job.final and job.answered:
            continue
        worker = registry.find(job.instance_id, job.worker_id)
        if worker is None or not worker.alive:
            why = "left" if worker is None else "missed its heartbeats"
            text = f"worker {job.instance_id}/{job.worker_id} {why} before its part was done"
            operations.failed(operation, job, text, answered=worker is None)
        else:
            calls.append(Call(worker, CheckFinishWorkerMsg(worker_event_id=job.worker_event_id), job))
    return Plan(event_id, tuple(calls), operation)


def settle_check_finish(operations: Operations, plan: Plan, outcomes: Sequence[Outcome]) -> dict[str, Any]:
    """Record what workers say of their jobs; see :meth:`ControllerCore.settle_check_finish`."""
    operation = operations.get(plan.event_id)
    silent: list[LMCacheKitError] = []
    for call, outcome in zip(plan.calls, outcomes, strict=True):
        job = call.job
        if job is None:
            continue
        if isinstance(outcome, LMCacheKitError):
            silent.append(outcome)
        elif isinstance(outcome, CheckFinishWorkerRetMsg):
            _take_state(operations, operation, job, outcome)
        elif isinstance(outcome, ErrorMsg):
            if not (job.final and not job.answered):
                # It knew the job once, so it is a new process, or forgot: what became of the job is not known.
                text = f"worker {call.worker.name} does not know this job any more: {outcome.error}"
                operations.failed(operation, job, text, answered=True)
            job.answered = True
        else:
            operations.failed(operation, job, _unexpected(call.worker, outcome).message, answered=True)
    open_parts = [error for error in silent if not operation.final]
    if open_parts:
        raise open_parts[0]
    return operation.report()


def _take_state(operations: Operations, operation: Operation, job: WorkerJob, state: CheckFinishWorkerRetMsg) -> None:
    if state.job is not None:
        job.info, job.measured, job.answered = state.job, True, True
    elif state.status in ("failed", "error"):
        operations.failed(operation, job, f"the worker reports {state.status}", answered=True)
    elif state.status in ("queued", "running"):
        job.info = JobInfo(status="running", num_tokens=job.info.num_tokens)
    else:
        operations.answered(operation, job, job.info.num_tokens, None)


def _worker_event(event_id: str, worker: Worker) -> str:
    return f"{event_id}:{worker.worker_id}"


def _worker_error(worker: Worker, answer: ErrorMsg) -> LMCacheKitError:
    # A worker may send any number; clients see those that the OpenAPI document names.
    status = answer.status
    if status not in _PASSED_ON:
        status = 400 if 400 <= status < 500 else 500
    error = error_from_status(status, f"worker {worker.name}: {answer.error}", hint=answer.hint)
    error.status = status
    return error


def _unexpected(worker: Worker, answer: ControlRetMsg) -> LMCacheKitError:
    return LMCacheKitError(f"worker {worker.name} answered with {type(answer).__name__}, which makes no sense here")


def _check_alive(workers: Sequence[Worker]) -> None:
    for worker in workers:
        if not worker.alive:
            raise UnavailableError(
                f"worker {worker.name} missed its heartbeats and counts as dead",
                hint="it heals by itself when the worker comes back",
            )


def _check_tokens(tokens: list[int] | None) -> None:
    if tokens is not None and not tokens:
        raise InvalidRequestError("tokens is empty", hint="list the token ids of the prefix")
