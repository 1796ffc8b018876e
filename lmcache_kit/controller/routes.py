"""The paths of the HTTP interface in one table; routing and the OpenAPI document are made from it."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

import msgspec

from lmcache_kit.controller import schemas as s
from lmcache_kit.controller.handlers import Handlers

__all__ = ["Handler", "Route", "routes"]

Handler = Callable[[Any, dict[str, str]], Awaitable[Any]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Route:
    """One path and method. ``query`` maps parameter names to (flag, string or integer; description)."""

    method: str
    path: str
    summary: str
    handler: Handler
    request: type[msgspec.Struct] | None = None
    response: type[msgspec.Struct]
    errors: tuple[int, ...] = ()
    query: tuple[tuple[str, str, str], ...] = ()
    open: bool = False
    """Whether it answers without the bearer token."""


_CALL = (400, 404, 409, 413, 500, 502, 503, 507)
_BODY = (400, 413)


def routes(handlers: Handlers) -> list[Route]:
    """All paths that answer with JSON."""
    operation = s.OperationResponse
    explain = ("explain", "flag", "say chunk by chunk why the prefix ends where it does")
    worker_filters = (("instance_id", "string", "only this instance"), ("worker_id", "integer", "only this worker"))
    return [
        _post("/lookup", "Who holds how much of a prefix", handlers.lookup, s.LookupRequest, s.LookupResponse, _BODY)(
            query=(explain,)
        ),
        _post("/compress", "Compress chunks", handlers.compress, s.CodeRequest, operation, _CALL)(),
        _post("/decompress", "Decompress chunks", handlers.decompress, s.CodeRequest, operation, _CALL)(),
        _post("/pin", "Keep chunks from eviction", handlers.pin, s.PinRequest, operation, _CALL)(),
        _post("/unpin", "Release pins", handlers.unpin, s.UnpinRequest, operation, _CALL)(),
        _post("/clear", "Drop a location's unpinned chunks", handlers.clear, s.ClearRequest, operation, _CALL)(),
        _post("/move", "Move or copy chunks", handlers.move, s.MoveRequest, operation, _CALL)(),
        _post(
            "/check_finish",
            "State of an operation",
            handlers.check_finish,
            s.CheckFinishRequest,
            s.CheckFinishResponse,
            _CALL,
        )(),
        _post("/health", "Error codes of workers", handlers.health, s.HealthRequest, s.HealthResponse, _CALL)(),
        _post(
            "/query_instance",
            "Which instance is at an address",
            handlers.query_instance,
            s.QueryInstanceRequest,
            s.QueryInstanceResponse,
            (400, 404, 413),
        )(),
        _post(
            "/query_worker_info",
            "Facts of workers",
            handlers.query_worker_info,
            s.QueryWorkerInfoRequest,
            s.QueryWorkerInfoResponse,
            (400, 404, 413),
        )(),
        Route(
            method="GET",
            path="/health",
            summary="Whether the controller is up",
            handler=handlers.liveness,
            response=s.LivenessResponse,
            open=True,
        ),
        Route(
            method="GET",
            path="/controller/key-stats",
            summary="How many chunks are known",
            handler=handlers.key_stats,
            response=s.KeyStatsResponse,
        ),
        Route(
            method="GET",
            path="/controller/workers",
            summary="Facts of workers; of a single one when both parameters are given",
            handler=handlers.workers,
            response=s.WorkerListResponse,
            errors=(400, 404),
            query=worker_filters,
        ),
    ]


def _post(
    path: str,
    summary: str,
    handler: Handler,
    request: type[msgspec.Struct],
    response: type[msgspec.Struct],
    errors: tuple[int, ...],
) -> Callable[..., Route]:
    def finish(**more: Any) -> Route:
        return Route(
            method="POST",
            path=path,
            summary=summary,
            handler=handler,
            request=request,
            response=response,
            errors=errors,
            **more,
        )

    return finish
