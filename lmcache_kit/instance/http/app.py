"""The instance's HTTP interface: the part of the OpenAI and vLLM interfaces that a KV cache needs.

Errors have the shape of OpenAI's, with the text under ``detail`` as well, where the controller's clients look.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping, Sequence
from typing import Any

import msgspec
from prometheus_client.exposition import CONTENT_TYPE_LATEST
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response, StreamingResponse
from starlette.routing import Route
from starlette.types import Send

from lmcache_kit.clock import Clock
from lmcache_kit.errors import LMCacheKitError, UnavailableError, UnknownNameError
from lmcache_kit.instance.http.answers import Answer, completion_events, error_body
from lmcache_kit.instance.http.completion import GenerationRequest
from lmcache_kit.instance.http.generation import Generator
from lmcache_kit.instance.http.metrics import InstanceMetrics
from lmcache_kit.instance.http.openapi import openapi
from lmcache_kit.instance.http.schemas import CompletionBody, DetokenizeBody, TokenizeBody, decode_body

__all__ = ["InstanceApp"]

_CLIENT_GONE = 499  # never sent; nobody is left to read it


class InstanceApp:
    """The ASGI application of one instance, under ``app``.

    Args:
        generator: makes completions.
        metrics: what ``/metrics`` shows.
        clock: for the time stamps of answers.
        served_models: names that requests may use; the first is the one that answers carry when none was given.
        health: facts for ``/health``; raises UnavailableError while the instance cannot serve.
        max_body_bytes: larger request bodies are refused with 413.
    """

    def __init__(
        self,
        generator: Generator,
        metrics: InstanceMetrics,
        *,
        clock: Clock,
        served_models: Sequence[str],
        health: Callable[[], Awaitable[Mapping[str, Any]]],
        max_body_bytes: int = 16 * 2**20,
    ) -> None:
        self._generator = generator
        self._metrics = metrics
        self._clock = clock
        self._models = list(served_models)
        self._health = health
        self._max_body_bytes = max_body_bytes
        self._started = int(clock.unix())
        self._openapi = msgspec.json.encode(openapi())
        self.app = Starlette(
            routes=[
                Route("/v1/completions", self._completions, methods=["POST"]),
                Route("/v1/models", self._list_models, methods=["GET"]),
                Route("/tokenize", self._tokenize, methods=["POST"]),
                Route("/detokenize", self._detokenize, methods=["POST"]),
                Route("/health", self._show_health, methods=["GET"]),
                Route("/metrics", self._show_metrics, methods=["GET"]),
                Route("/openapi.json", self._show_openapi, methods=["GET"]),
            ],
            exception_handlers={
                LMCacheKitError: _on_error,
                HTTPException: _on_http_error,
                ClientDisconnect: _on_disconnect,
                Exception: _on_bug,
            },
        )

    async def _completions(self, request: Request) -> Response:
        body = decode_body(await self._body(request), CompletionBody)
        model = self._model(body.model)
        include_usage = body.include_usage()
        prompt = body.single_prompt()
        sampling, stops, max_tokens = body.sampling(), body.stop_strings(), body.output_tokens()
        tokens = await self._generator.tokenize(prompt) if isinstance(prompt, str) else prompt
        checked = self._generator.check(
            GenerationRequest(
                tokens=tokens, max_tokens=max_tokens, sampling=sampling, stop=stops, ignore_eos=body.ignore_eos
            )
        )
        echoed = ""
        if body.echo:
            echoed = prompt if isinstance(prompt, str) else await self._generator.detokenize(tokens)
        answer = Answer(
            model=model,
            created=int(self._clock.unix()),
            prompt_tokens=tokens,
            echoed=echoed,
            with_token_ids=body.return_token_ids,
        )
        pieces = self._generator.generate(checked)
        if body.stream:
            return _EventStream(completion_events(pieces, answer, include_usage=include_usage))
        return await _unless_disconnected(request, answer.collect(pieces))

    async def _list_models(self, request: Request) -> Response:
        info = self._generator.info
        models = [
            {
                "id": name,
                "object": "model",
                "created": self._started,
                "owned_by": "lmcache-kit",
                "root": info.model,
                "parent": None,
                "max_model_len": info.max_model_len,
            }
            for name in self._models
        ]
        return _json({"object": "list", "data": models})

    async def _tokenize(self, request: Request) -> Response:
        body = decode_body(await self._body(request), TokenizeBody)
        self._model(body.model)
        tokens = await self._generator.tokenize(body.prompt, add_special_tokens=body.add_special_tokens)
        texts = await self._generator.token_texts(tokens) if body.return_token_strs else None
        max_len = self._generator.info.max_model_len
        return _json({"count": len(tokens), "max_model_len": max_len, "tokens": tokens, "token_strs": texts})

    async def _detokenize(self, request: Request) -> Response:
        body = decode_body(await self._body(request), DetokenizeBody)
        self._model(body.model)
        return _json({"prompt": await self._generator.detokenize(body.tokens)})

    async def _show_health(self, request: Request) -> Response:
        return _json(dict(await self._health()))

    async def _show_metrics(self, request: Request) -> Response:
        return Response(self._metrics.exposition(), headers={"Content-Type": CONTENT_TYPE_LATEST})

    async def _show_openapi(self, request: Request) -> Response:
        return Response(self._openapi, media_type="application/json")

    def _model(self, name: str | None) -> str:
        """The name to answer with. Raises UnknownNameError for one that is not served."""
        if name is None:
            return self._models[0]
        if name not in self._models:
            raise UnknownNameError("model", name, self._models, hint=f"this instance serves {', '.join(self._models)}")
        return name

    async def _body(self, request: Request) -> bytes:
        limit = self._max_body_bytes
        too_large = HTTPException(413, f"the request body is larger than the {limit} bytes that are allowed")
        announced = request.headers.get("content-length", "0")
        if announced.isdigit() and int(announced) > limit:
            raise too_large
        body = bytearray()
        async for part in request.stream():
            body += part
            if len(body) > limit:
                raise too_large
        return bytes(body)


class _EventStream(StreamingResponse):
    """Server-sent events; their source is closed at the end, also when the client leaves between two of them."""

    def __init__(self, events: AsyncGenerator[bytes, None]) -> None:
        super().__init__(events, media_type="text/event-stream", headers={"Cache-Control": "no-cache"})
        self._events = events

    async def stream_response(self, send: Send) -> None:
        async with contextlib.aclosing(self._events):
            await super().stream_response(send)


async def _unless_disconnected(request: Request, work: Awaitable[Mapping[str, Any]]) -> Response:
    """The answer as JSON; the work is cancelled when the client leaves before it is done."""
    answer = asyncio.ensure_future(work)
    gone = asyncio.ensure_future(_disconnected(request))
    try:
        await asyncio.wait({answer, gone}, return_when=asyncio.FIRST_COMPLETED)
        if answer.done():
            return _json(answer.result())
        return Response(status_code=_CLIENT_GONE)
    finally:
        for task in (answer, gone):
            task.cancel()
        await asyncio.gather(answer, gone, return_exceptions=True)


async def _disconnected(request: Request) -> None:
    # The body has been read, so what follows is the end of the connection.
    while (await request.receive())["type"] != "http.disconnect":
        pass


def _json(value: Any, status: int = 200, headers: Mapping[str, str] | None = None) -> Response:
    return Response(msgspec.json.encode(value), status, headers=headers, media_type="application/json")


async def _on_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, LMCacheKitError)
    headers = {"Retry-After": str(error.retry_after)} if isinstance(error, UnavailableError) else None
    return _json(error_body(error.status, error.detail), error.status, headers)


async def _on_http_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    text = error.detail
    if error.status_code == 404:
        text = f"an instance has no {request.url.path}; is the controller meant? (see /openapi.json)"
    elif error.status_code == 405:
        text = f"{request.url.path} does not take {request.method} (see /openapi.json)"
    return _json(error_body(error.status_code, text), error.status_code, error.headers)


async def _on_disconnect(request: Request, error: Exception) -> Response:
    return Response(status_code=_CLIENT_GONE)


async def _on_bug(request: Request, error: Exception) -> Response:
    # Starlette raises it again after this answer, and the server writes the traceback to the log.
    return _json(error_body(500, f"{type(error).__name__}: {error}"), 500)
