"""What each HTTP path does, between decoded request and answer; HTTP itself is in :mod:`.http`."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

from lmcache_kit import __version__
from lmcache_kit.controller import schemas as s
from lmcache_kit.controller.calls import WorkerCalls
from lmcache_kit.controller.core import ControllerCore
from lmcache_kit.controller.planning import Plan
from lmcache_kit.controller.registry import Worker
from lmcache_kit.errors import InvalidRequestError, LMCacheKitError, NotFoundError, UnknownNameError
from lmcache_kit.messages import ErrorMsg, HealthWorkerRetMsg

__all__ = ["Handlers"]

_RESERVED = frozenset({"event_id", "layout_info", "holders", "prefix", "explain", "detail"})
_WORKER_ID = re.compile("-?[0-9]{1,20}")
_WORKER_ERROR = -1001  # what LMCache's controller reports for a worker that answered with an error


class Handlers:
    """One method per path. They raise LMCacheKitError; its status becomes the HTTP status."""

    def __init__(self, core: ControllerCore, calls: WorkerCalls) -> None:
        self._core = core
        self._calls = calls

    async def lookup(self, request: s.LookupRequest, query: dict[str, str]) -> dict[str, Any]:
        found = self._core.lookup(request.tokens)
        answer: dict[str, Any] = {
            "event_id": self._core.operations.new_event_id(),
            "layout_info": found.layout,
            "holders": found.holders,
            "prefix": found.prefix,
        }
        answer.update({name: place for name, place in found.layout.items() if name not in _RESERVED})
        asked = bool(query) and _flag(query, "explain")
        if request.explain or asked:
            answer["explain"] = self._core.explain(request.tokens, found)
        return answer

    async def compress(self, request: s.CodeRequest, query: dict[str, str]) -> s.OperationResponse:
        plan = self._core.plan.compress(request.instance_id, request.method, request.location, request.tokens)
        return await self._run(plan)

    async def decompress(self, request: s.CodeRequest, query: dict[str, str]) -> s.OperationResponse:
        plan = self._core.plan.decompress(request.instance_id, request.method, request.location, request.tokens)
        return await self._run(plan)

    async def pin(self, request: s.PinRequest, query: dict[str, str]) -> s.OperationResponse:
        plan = self._core.plan.pin(request.instance_id, request.location, request.tokens, request.owner, request.ttl)
        return await self._run(plan)

    async def unpin(self, request: s.UnpinRequest, query: dict[str, str]) -> s.OperationResponse:
        plan = self._core.plan.unpin(request.instance_id, request.location, request.tokens, request.owner)
        return await self._run(plan)

    async def clear(self, request: s.ClearRequest, query: dict[str, str]) -> s.OperationResponse:
        return await self._run(self._core.plan.clear(request.instance_id, request.location))

    async def move(self, request: s.MoveRequest, query: dict[str, str]) -> s.OperationResponse:
        said = {value for value in (request.should_copy, request.copy) if value is not None}
        if len(said) > 1:
            raise InvalidRequestError("should_copy and copy contradict each other", hint="leave one of them out")
        plan = self._core.plan.move(
            request.old_position, request.new_position, request.tokens, copy=bool(said and said.pop())
        )
        return await self._run(plan)

    async def check_finish(self, request: s.CheckFinishRequest, query: dict[str, str]) -> dict[str, Any]:
        plan = self._core.check_finish(request.event_id)
        return self._core.settle_check_finish(plan, await self._calls.make(plan.calls))

    async def health(self, request: s.HealthRequest, query: dict[str, str]) -> s.HealthResponse:
        plan = self._core.plan.health(request.instance_id)
        codes: dict[str, int] = {}
        errors: dict[str, str] = {}
        for call, outcome in zip(plan.calls, await self._calls.make(plan.calls), strict=True):
            worker_id = str(call.worker.worker_id)
            if isinstance(outcome, LMCacheKitError):
                raise outcome
            if isinstance(outcome, HealthWorkerRetMsg):
                codes[worker_id] = outcome.error_code
            else:
                codes[worker_id] = _WORKER_ERROR
                errors[worker_id] = outcome.error if isinstance(outcome, ErrorMsg) else type(outcome).__name__
        return s.HealthResponse(event_id=plan.event_id, error_codes=codes, errors=errors)

    async def query_instance(self, request: s.QueryInstanceRequest, query: dict[str, str]) -> s.QueryInstanceResponse:
        found = list(dict.fromkeys(w.instance_id for w in self._core.registry if w.ip == request.ip))
        if not found:
            raise UnknownNameError("ip", request.ip, {worker.ip for worker in self._core.registry})
        event_id = request.event_id or self._core.operations.new_event_id()
        return s.QueryInstanceResponse(event_id=event_id, res=found[0], instances=found)

    async def query_worker_info(
        self, request: s.QueryWorkerInfoRequest, query: dict[str, str]
    ) -> s.QueryWorkerInfoResponse:
        workers = self._select(request.instance_id, request.worker_ids or None)
        return s.QueryWorkerInfoResponse(
            event_id=self._core.operations.new_event_id(), worker_infos=self._infos(workers)
        )

    async def workers(self, request: None, query: dict[str, str]) -> s.WorkerListResponse | s.WorkerInfo:
        """LMCache's dashboard call: one worker's facts when both parameters are given, else a list."""
        worker_id = query.get("worker_id")
        # Its length too: Python refuses to read very long numbers.
        if worker_id is not None and not _WORKER_ID.fullmatch(worker_id):
            raise InvalidRequestError(f"worker_id must be a number, got {worker_id[:40]!r}")
        ids = None if worker_id is None else [int(worker_id)]
        infos = self._infos(self._select(query.get("instance_id", "all"), ids))
        if worker_id is not None and "instance_id" in query:
            return infos[0]
        return s.WorkerListResponse(workers=infos, total_count=len(infos))

    async def key_stats(self, request: None, query: dict[str, str]) -> s.KeyStatsResponse:
        instances = []
        for instance_id, workers in self._core.registry.instances.items():
            counts: dict[str, int] = {}
            for worker in workers.values():
                for location, count in self._core.contents.key_counts(worker).items():
                    counts[location] = counts.get(location, 0) + count
            instances.append(
                s.InstanceKeyStats(
                    instance_id=instance_id,
                    key_count=sum(counts.values()),
                    worker_count=len(workers),
                    locations=counts,
                )
            )
        return s.KeyStatsResponse(
            total_key_count=sum(instance.key_count for instance in instances),
            total_instance_count=len(instances),
            total_worker_count=len(self._core.registry),
            instances=instances,
        )

    async def liveness(self, request: None, query: dict[str, str]) -> s.LivenessResponse:
        registry = self._core.registry
        return s.LivenessResponse(
            status="ok", instances=len(registry.instances), workers=len(registry), version=__version__
        )

    async def _run(self, plan: Plan) -> s.OperationResponse:
        num_tokens = self._core.settle(plan, await self._calls.make(plan.calls))
        return s.OperationResponse(event_id=plan.event_id, num_tokens=num_tokens)

    def _select(self, instance_id: str, worker_ids: list[int] | None) -> list[Worker]:
        everyone = instance_id == "all"
        workers = list(self._core.registry) if everyone else self._core.registry.workers(instance_id)
        if worker_ids is None:
            return workers
        missing = set(worker_ids) - {worker.worker_id for worker in workers}
        if missing and not everyone:
            known = ", ".join(str(worker.worker_id) for worker in workers)
            raise NotFoundError(f"instance {instance_id!r} has no worker {min(missing)}", hint=f"known: {known}")
        return [worker for worker in workers if worker.worker_id in worker_ids]

    def _infos(self, workers: Iterable[Worker]) -> list[s.WorkerInfo]:
        return [self._info(worker) for worker in workers]

    def _info(self, worker: Worker) -> s.WorkerInfo:
        counts = self._core.contents.key_counts(worker)
        return s.WorkerInfo(
            instance_id=worker.instance_id,
            worker_id=worker.worker_id,
            ip=worker.ip,
            port=worker.port,
            peer_init_url=worker.peer_init_url,
            registration_time=worker.registered_at,
            last_heartbeat_time=worker.heartbeat_at or worker.registered_at,
            key_count=sum(counts.values()),
            alive=worker.alive,
            syncing=any(not session.complete for session in worker.syncs.values()),
            sync_reason=worker.sync_reason,
            chunk_size=worker.spec.chunk_size,
            hash_algorithm=worker.spec.algorithm,
            none_hash=str(worker.spec.none_hash),
            announced=worker.announced,
            methods=None if worker.methods is None else list(worker.methods),
            locations=None if worker.locations is None else list(worker.locations),
            model=worker.model,
            key_counts=counts,
        )


def _flag(query: dict[str, str], name: str) -> bool:
    value = s.FLAGS.get(query.get(name, "false"))
    if value is None:
        raise InvalidRequestError(f"{name} must be true or false, got {query[name][:40]!r}")
    return value
