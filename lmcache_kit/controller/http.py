"""The HTTP application: Starlette routes to thin ASGI endpoints that decode, call a handler and encode."""

from __future__ import annotations

import hmac
import logging
import time
from collections.abc import Callable
from typing import Any
from urllib.parse import parse_qsl

import msgspec
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route as StarletteRoute
from starlette.types import ASGIApp, Receive, Scope, Send

from lmcache_kit.controller.config import ControllerConfig
from lmcache_kit.controller.metrics import ControllerMetrics
from lmcache_kit.controller.openapi import openapi_document
from lmcache_kit.controller.routes import Route
from lmcache_kit.errors import InvalidRequestError, LMCacheKitError, UnavailableError

__all__ = ["make_app"]

log = logging.getLogger(__name__)

_MOST_DISCARDED = 256 * 2**20
_JSON = (b"content-type", b"application/json")
_encoder = msgspec.json.Encoder()


class _TooLargeError(LMCacheKitError):
    status = 413


class _UnauthorizedError(LMCacheKitError):
    status = 401


class _Endpoint:
    """One route as an ASGI application, without the layers that a lookup would pay for."""

    def __init__(self, route: Route, config: ControllerConfig, metrics: ControllerMetrics) -> None:
        self._handler = route.handler
        self._decoder = None if route.request is None else msgspec.json.Decoder(route.request)
        self._authorization = None
        if config.token is not None and not route.open:
            self._authorization = f"bearer {config.token}".encode()
        self._limit = config.max_body_bytes
        self._path = route.path
        self._metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        started = time.perf_counter()
        status, headers = 200, [_JSON]
        try:
            if self._authorization is not None:
                self._authorize(scope["headers"])
            request = None if self._decoder is None else self._decode(await self._body(scope, receive))
            raw = scope["query_string"]
            query = dict(parse_qsl(raw.decode("latin-1"), keep_blank_values=True)) if raw else {}
            body = _encoder.encode(await self._handler(request, query))
        except LMCacheKitError as error:
            status, body = error.status, _encoder.encode({"detail": error.detail})
            if isinstance(error, UnavailableError):
                headers = [_JSON, (b"retry-after", str(error.retry_after).encode())]
            elif status == 401:
                headers = [_JSON, (b"www-authenticate", b"Bearer")]
        except Exception as error:
            log.exception("%s failed", self._path)
            status, body = 500, _encoder.encode({"detail": f"the controller failed: {type(error).__name__}"})
        await send(
            {
                "type": "http.response.start",
                "status": status,
                "headers": [*headers, (b"content-length", str(len(body)).encode())],
            }
        )
        await send({"type": "http.response.body", "body": body})
        self._metrics.observe(self._path, status, time.perf_counter() - started)

    def _authorize(self, headers: list[tuple[bytes, bytes]]) -> None:
        given = next((value for name, value in headers if name == b"authorization"), b"")
        scheme, _, token = given.partition(b" ")
        if not hmac.compare_digest(scheme.lower() + b" " + token.strip(), self._authorization or b""):
            raise _UnauthorizedError(
                "the bearer token is missing or wrong", hint="send the header Authorization: Bearer TOKEN"
            )

    async def _body(self, scope: Scope, receive: Receive) -> bytes:
        for name, value in scope["headers"]:
            if name == b"content-length" and value.isdigit() and int(value) > self._limit:
                if not any(other == b"expect" for other, _ in scope["headers"]):
                    await self._discard(receive, int(value))
                raise self._too_large()
        message = await receive()
        body: bytes = message.get("body", b"")
        if not message.get("more_body", False):
            if len(body) > self._limit:
                raise self._too_large()
            return body
        parts, size = [body], len(body)
        while message.get("more_body", False):
            message = await receive()
            if message["type"] == "http.disconnect":
                raise InvalidRequestError("the client left before its request was complete")
            parts.append(message.get("body", b""))
            size += len(parts[-1])
            if size > self._limit:
                parts.clear()
                if message.get("more_body", False):
                    await self._discard(receive, _MOST_DISCARDED)
                raise self._too_large()
        return b"".join(parts)

    async def _discard(self, receive: Receive, size: int) -> None:
        """Read on, up to a bound: a client still sending when we answer and close sees a reset, not the answer."""
        left = min(size, _MOST_DISCARDED)
        while left > 0:
            message = await receive()
            if not message.get("more_body", False):
                return
            left -= len(message.get("body", b""))

    def _too_large(self) -> _TooLargeError:
        return _TooLargeError(
            f"the body is larger than {self._limit} bytes", hint="the controller's --max-body-size sets the limit"
        )

    def _decode(self, body: bytes) -> Any:
        assert self._decoder is not None
        try:
            return self._decoder.decode(body)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            raise InvalidRequestError(str(error) if body else "the body is empty; send a JSON object") from None


def make_app(config: ControllerConfig, routes: list[Route], metrics: ControllerMetrics) -> ASGIApp:
    """The ASGI application."""
    endpoints = {(route.method, route.path): _Endpoint(route, config, metrics) for route in routes}
    starlette = _starlette(config, routes, endpoints, metrics)

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        # Exact paths need no router; all others, and wrong methods, are answered by Starlette.
        endpoint = endpoints.get((scope.get("method", ""), scope.get("path", "")), starlette)
        await endpoint(scope, receive, send)

    return app


def _starlette(
    config: ControllerConfig,
    routes: list[Route],
    endpoints: dict[tuple[str, str], _Endpoint],
    metrics: ControllerMetrics,
) -> ASGIApp:
    document = _encoder.encode(openapi_document(routes, token=config.token is not None))
    get = Route(method="GET", path="", summary="", handler=_nothing, response=msgspec.Struct)
    guard = _Endpoint(get, config, metrics)

    def page(path: str, media_type: str, content: Callable[[], bytes]) -> StarletteRoute:
        async def answer(request: Request) -> Response:
            if config.token is not None:
                guard._authorize(request.scope["headers"])
            return Response(content(), media_type=media_type)

        return StarletteRoute(path, answer, methods=["GET"])

    methods: dict[str, set[str]] = {}
    for route in routes:
        methods.setdefault(route.path, set()).add(route.method)

    async def http_error(request: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        path = request.scope["path"]
        detail, headers = error.detail, dict(error.headers or {})
        if error.status_code == 404:
            detail = f"a controller has no {path}; is an instance meant? (GET /openapi.json lists the paths)"
        elif error.status_code == 405:
            detail = f"{path} does not take {request.method}"
            if path in methods:  # Starlette names the methods of the first route only
                headers["Allow"] = ", ".join(sorted(methods[path] | ({"HEAD"} if "GET" in methods[path] else set())))
        body = _encoder.encode({"detail": detail})
        return Response(body, status_code=error.status_code, media_type="application/json", headers=headers)

    return Starlette(
        routes=[
            *(
                StarletteRoute(route.path, endpoints[route.method, route.path], methods=[route.method])
                for route in routes
            ),
            page("/metrics", metrics.content_type, metrics.render),
            page("/openapi.json", "application/json", lambda: document),
        ],
        exception_handlers={HTTPException: http_error, LMCacheKitError: _kit_error},
    )


async def _nothing(request: Any, query: dict[str, str]) -> None:
    return None


async def _kit_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, LMCacheKitError)
    headers = {"www-authenticate": "Bearer"} if error.status == 401 else None
    body = _encoder.encode({"detail": error.detail})
    return Response(body, status_code=error.status, media_type="application/json", headers=headers)
