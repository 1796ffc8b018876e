"""The endpoint of the faults: ``PUT /faults``, in front of the instance's application and only where a token is set."""

from __future__ import annotations

import hmac
from collections.abc import Callable

from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Receive, Scope, Send

from lmcache_kit.errors import LMCacheKitError
from lmcache_kit.instance.faults import InstanceFaults, decode_faults
from lmcache_kit.instance.http.answers import error_body

__all__ = ["FaultEndpoint"]

PATH = "/faults"
_MOST_BYTES = 2**20


class FaultEndpoint:
    """An ASGI application that answers ``PUT /faults`` and leaves everything else to another one.

    Args:
        inner: the instance's application.
        token: what the header ``Authorization: Bearer TOKEN`` must carry.
        apply: makes the faults of a request the ones in force; may raise LMCacheKitError.
    """

    def __init__(self, inner: ASGIApp, token: str, apply: Callable[[InstanceFaults], None]) -> None:
        self._inner = inner
        self._authorization = f"Bearer {token}".encode()
        self._apply = apply

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["path"] != PATH:
            await self._inner(scope, receive, send)
            return
        status, error = await self._answer(Request(scope, receive))
        await JSONResponse(error_body(status, error) if error else {"status": "ok"}, status)(scope, receive, send)

    async def _answer(self, request: Request) -> tuple[int, str]:
        given = request.headers.get("authorization", "").encode()
        if not hmac.compare_digest(given, self._authorization):
            return 401, "the bearer token is missing or wrong"
        if request.method != "PUT":
            return 405, f"{PATH} takes PUT"
        body = bytearray()
        async for part in request.stream():
            body += part
            if len(body) > _MOST_BYTES:
                return 413, f"the request body is larger than {_MOST_BYTES} bytes"
        try:
            self._apply(decode_faults(bytes(body)))
        except LMCacheKitError as error:
            return error.status, error.detail
        return 200, ""
