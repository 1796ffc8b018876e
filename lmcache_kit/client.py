"""Python clients of the controller and of an instance.

Both speak plain HTTP, so they work with a real LMCache controller and a real vLLM server as well. Errors come back
as the :class:`~lmcache_kit.errors.LMCacheKitError` of their HTTP status, with the server's own text.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

import httpx
import msgspec

from lmcache_kit.errors import ConfigError, LMCacheKitError, UnavailableError, error_from_status

__all__ = ["Completion", "ControllerClient", "InstanceClient", "cache_facts"]

Position = tuple[str, str]
"""``(instance id, location)``."""


class _Client:
    """What both clients share: one connection pool, JSON both ways, errors as exceptions."""

    _what = "server"
    _flag = "--url"

    def __init__(self, url: str, *, token: str | None = None, timeout: float = 30.0) -> None:
        self.url = url.rstrip("/") if "://" in url else f"http://{url.rstrip('/')}"
        _check_url(self.url, self._what, self._flag)
        if not timeout > 0:
            raise ConfigError(f"the timeout must be above 0 seconds, got {timeout:g}", hint="see --timeout")
        headers = {"Authorization": f"Bearer {token}"} if token else {}
        # Proxies of the environment are meant for the world outside, not for a fleet on this host.
        self._http = httpx.AsyncClient(base_url=self.url, headers=headers, timeout=timeout, trust_env=False)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self.close()

    async def close(self) -> None:
        """Close the connections; idempotent."""
        await self._http.aclose()

    async def ready(self) -> bool:
        """Whether the server answers its health check now."""
        try:
            return (await self._http.get("/health")).status_code == 200
        except httpx.HTTPError:
            return False

    async def _call(self, method: str, path: str, body: Any = None, **more: Any) -> Any:
        response = await self._send(method, path, body, **more)
        try:
            return msgspec.json.decode(response.content)
        except msgspec.DecodeError:
            raise LMCacheKitError(f"{self.url}{path} did not answer with JSON: {response.text[:200]!r}") from None

    async def _send(self, method: str, path: str, body: Any = None, **more: Any) -> httpx.Response:
        try:
            content = None if body is None else msgspec.json.encode(body)
            response = await self._http.request(
                method, path, content=content, headers={"Content-Type": "application/json"}, **more
            )
        except httpx.TimeoutException:
            raise self._timed_out(path) from None
        except httpx.HTTPError as error:
            raise self._unreachable(error) from None
        if response.is_error:
            raise error_from_status(response.status_code, _detail(response.content, response.status_code))
        return response

    def _timed_out(self, path: str) -> UnavailableError:
        return UnavailableError(f"the {self._what} at {self.url} did not answer {path} within its deadline")

    def _unreachable(self, error: Exception) -> UnavailableError:
        return UnavailableError(
            f"the {self._what} at {self.url} cannot be reached: {error}", hint=f"is it running? see {self._flag}"
        )


def _check_url(url: str, what: str, flag: str) -> None:
    """Refuse what httpx would stumble over later, or not at all. Raises ConfigError."""
    try:
        parsed = httpx.URL(url)
    except httpx.InvalidURL as error:
        raise ConfigError(f"{url!r} is no address of the {what}: {error}", hint=f"see {flag}") from None
    if parsed.scheme not in ("http", "https") or not parsed.host or (parsed.port or 0) > 65535:
        raise ConfigError(f"{url!r} is no address of the {what}", hint=f"write {flag} like http://localhost:9000")


def _detail(content: bytes, status: int) -> str:
    """The readable part of an error answer of ours (``detail``), or of an OpenAI-style one (``error.message``)."""
    try:
        answer = msgspec.json.decode(content)
    except msgspec.DecodeError:
        return content.decode(errors="replace")[:500] or f"HTTP status {status}"
    if isinstance(answer, dict):
        if isinstance(answer.get("detail"), str):
            return str(answer["detail"]) or f"HTTP status {status}"
        error = answer.get("error")
        if isinstance(error, dict) and "message" in error:
            return str(error["message"])
        if isinstance(error, str):
            return error
    return content.decode(errors="replace")[:500]


class ControllerClient(_Client):
    """Client of a controller.

    Args:
        url: e.g. ``http://localhost:9000``.
        token: bearer token, when the controller wants one.
        timeout: seconds for one call.
    """

    _what = "controller"

    async def lookup(self, tokens: Sequence[int], *, explain: bool = False) -> dict[str, Any]:
        """Who holds how many tokens of this prefix (docs/reference/http.md describes the answer)."""
        params = {"explain": "true"} if explain else {}
        return await self._post("/lookup", {"tokens": list(tokens)}, params=params)

    async def compress(
        self, instance_id: str, method: str, location: str, tokens: Sequence[int] | None = None
    ) -> dict[str, Any]:
        """Start a compress job on the chunks of ``tokens`` (None: all); answers ``event_id`` and ``num_tokens``."""
        return await self._post("/compress", _job(instance_id, method, location, tokens))

    async def decompress(
        self, instance_id: str, method: str, location: str, tokens: Sequence[int] | None = None
    ) -> dict[str, Any]:
        """Start a decompress job; as :meth:`compress`."""
        return await self._post("/decompress", _job(instance_id, method, location, tokens))

    async def pin(
        self, instance_id: str, location: str, tokens: Sequence[int], *, owner: str = "", ttl: float | None = None
    ) -> dict[str, Any]:
        """Keep chunks from eviction until unpinned by the same owner or for ``ttl`` seconds."""
        body = {"instance_id": instance_id, "location": location, "tokens": list(tokens), "owner": owner, "ttl": ttl}
        return await self._post("/pin", body)

    async def unpin(
        self, instance_id: str, location: str, tokens: Sequence[int] | None = None, *, owner: str = ""
    ) -> dict[str, Any]:
        """Release an owner's pins on chunks of ``tokens`` (None: all of its pins in the location)."""
        held = None if tokens is None else list(tokens)
        return await self._post(
            "/unpin", {"instance_id": instance_id, "location": location, "tokens": held, "owner": owner}
        )

    async def clear(self, instance_id: str, location: str) -> dict[str, Any]:
        """Drop everything unpinned from a location."""
        return await self._post("/clear", {"instance_id": instance_id, "location": location})

    async def move(
        self, old: Position, new: Position, tokens: Sequence[int] | None = None, *, copy: bool = False
    ) -> dict[str, Any]:
        """Move or copy chunks from one ``(instance, location)`` to another."""
        return await self._post(
            "/move",
            {
                "old_position": list(old),
                "new_position": list(new),
                "tokens": None if tokens is None else list(tokens),
                "should_copy": copy,
            },
        )

    async def health(self, instance_id: str) -> dict[str, Any]:
        """Error code of each worker of an instance; 0 is healthy."""
        return await self._post("/health", {"instance_id": instance_id})

    async def check_finish(self, event_id: str) -> dict[str, Any]:
        """State of the job that an operation started."""
        return await self._post("/check_finish", {"event_id": event_id})

    async def wait_finished(self, event_id: str, *, timeout: float = 60.0) -> dict[str, Any]:
        """The job's state once it is ``done`` or ``failed``. Raises UnavailableError after ``timeout`` seconds."""
        deadline = time.monotonic() + timeout
        pause = 0.002
        while True:
            state = await self.check_finish(event_id)
            if state["status"] in ("done", "failed"):
                return state
            if time.monotonic() > deadline:
                raise UnavailableError(f"job {event_id} is still {state['status']} after {timeout:g} s")
            await asyncio.sleep(pause)
            pause = min(pause * 1.5, 0.25)

    async def query_instance(self, ip: str) -> dict[str, Any]:
        """Which instance lives at ``ip``."""
        return await self._post("/query_instance", {"ip": ip})

    async def workers(self, instance_id: str = "all") -> dict[str, Any]:
        """Facts of every registered worker of an instance, or of all."""
        return await self._post("/query_worker_info", {"instance_id": instance_id})

    async def key_stats(self) -> dict[str, Any]:
        """How many chunks the controller knows of, by instance and location."""
        return await self._get("/controller/key-stats")

    async def _post(self, path: str, body: Any, **more: Any) -> dict[str, Any]:
        return await self._call("POST", path, body, **more)  # type: ignore[no-any-return]

    async def _get(self, path: str) -> dict[str, Any]:
        return await self._call("GET", path)  # type: ignore[no-any-return]


def _job(instance_id: str, method: str, location: str, tokens: Sequence[int] | None) -> dict[str, Any]:
    held = None if tokens is None else list(tokens)
    return {"instance_id": instance_id, "method": method, "location": location, "tokens": held}


def cache_facts(answer: Mapping[str, Any]) -> dict[str, Any]:
    """What an instance says of its cache beside a completion; empty when it says nothing.

    Our own says it under ``lmcache_kit`` (docs/reference/http.md). vLLM with our connector says the same one level
    deeper, under ``kv_transfer_params``, and nothing beside a streamed answer.
    """
    found = answer.get("lmcache_kit")
    if not isinstance(found, dict):
        params = answer.get("kv_transfer_params")
        found = params.get("lmcache_kit") if isinstance(params, dict) else None
    return found if isinstance(found, dict) else {}


@dataclass(frozen=True, slots=True, kw_only=True)
class Completion:
    """A finished completion.

    Args:
        text: what the model wrote; None in a simulation, where nothing computes it.
        ttft_seconds: from sending the request to the first piece of text.
        seconds: from sending the request to the end of the answer.
        usage: token counts as the server reports them.
        raw: the last chunk that carried a usage, with whatever extra keys the server sent.
    """

    text: str | None
    ttft_seconds: float
    seconds: float
    usage: dict[str, Any]
    raw: dict[str, Any]

    @property
    def cached_tokens(self) -> int:
        """Prompt tokens that were loaded instead of computed."""
        return int((self.usage.get("prompt_tokens_details") or {}).get("cached_tokens") or 0)

    @property
    def cache(self) -> dict[str, Any]:
        """Of :func:`cache_facts`."""
        return cache_facts(self.raw)


class InstanceClient(_Client):
    """Client of an instance with the OpenAI-style API: ours or a real vLLM server.

    Args:
        url: e.g. ``http://localhost:8000``.
        token: bearer token, when the instance wants one.
        timeout: seconds between two pieces of an answer.
        model: model name to ask for; the first one served when None.
    """

    _what = "instance"
    _flag = "--instance-url"

    def __init__(self, url: str, *, token: str | None = None, timeout: float = 120.0, model: str | None = None) -> None:
        super().__init__(url, token=token, timeout=timeout)
        self._model = model

    async def complete(
        self,
        prompt: str | Sequence[int],
        *,
        max_tokens: int = 16,
        temperature: float = 0.0,
        model: str | None = None,
        **more: Any,
    ) -> dict[str, Any]:
        """The whole answer of ``/v1/completions``; ``more`` are further fields of the request."""
        body = await self._request(prompt, max_tokens, temperature, model, more)
        return await self._call("POST", "/v1/completions", body)  # type: ignore[no-any-return]

    async def stream_complete(
        self,
        prompt: str | Sequence[int],
        *,
        max_tokens: int = 16,
        temperature: float = 0.0,
        model: str | None = None,
        **more: Any,
    ) -> Completion:
        """A streamed completion, timed from the outside as a user would see it."""
        body = await self._request(prompt, max_tokens, temperature, model, more)
        body |= {"stream": True, "stream_options": {"include_usage": True}}
        start = time.perf_counter()
        first: float | None = None
        pieces: list[str] = []
        last: dict[str, Any] = {}
        async for chunk in self._stream("/v1/completions", body):
            if chunk.get("error"):
                raise LMCacheKitError(f"the instance at {self.url} failed in mid-answer: {chunk['error']}")
            for choice in chunk.get("choices", ()):
                # The first token may complete no character yet; it counts as the first piece all the same.
                if first is None:
                    first = time.perf_counter()
                pieces.append(choice.get("text", ""))
            if chunk.get("usage"):
                last = chunk
        end = time.perf_counter()
        return Completion(
            text="".join(pieces),
            ttft_seconds=(first or end) - start,
            seconds=end - start,
            usage=last.get("usage", {}),
            raw=last,
        )

    async def tokenize(self, prompt: str, *, model: str | None = None) -> list[int]:
        """Token ids of ``prompt``."""
        answer = await self._call("POST", "/tokenize", {"model": await self.model(model), "prompt": prompt})
        return list(answer["tokens"])

    async def detokenize(self, tokens: Sequence[int], *, model: str | None = None) -> str:
        """Text of ``tokens``."""
        answer = await self._call("POST", "/detokenize", {"model": await self.model(model), "tokens": list(tokens)})
        return str(answer["prompt"])

    async def models(self) -> list[str]:
        """Names of the models served."""
        return [entry["id"] for entry in (await self._call("GET", "/v1/models"))["data"]]

    async def health(self) -> dict[str, Any]:
        """What ``/health`` says; real vLLM answers with an empty body, which gives an empty dictionary."""
        content = (await self._send("GET", "/health")).content
        return msgspec.json.decode(content) if content else {}

    async def metrics(self) -> str:
        """Prometheus text."""
        return (await self._send("GET", "/metrics")).text

    async def model(self, name: str | None = None) -> str:
        """``name``, or the client's model, or the first model served."""
        if name is not None:
            return name
        if self._model is None:
            self._model = (await self.models())[0]
        return self._model

    async def _request(
        self,
        prompt: str | Sequence[int],
        max_tokens: int,
        temperature: float,
        model: str | None,
        more: dict[str, Any],
    ) -> dict[str, Any]:
        return {
            "model": await self.model(model),
            "prompt": prompt if isinstance(prompt, str) else list(prompt),
            "max_tokens": max_tokens,
            "temperature": temperature,
            **more,
        }

    async def _stream(self, path: str, body: dict[str, Any]) -> AsyncIterator[dict[str, Any]]:
        """The JSON chunks of a server-sent event stream, up to ``[DONE]``."""
        finished = False
        try:
            async with self._http.stream(
                "POST", path, content=msgspec.json.encode(body), headers={"Content-Type": "application/json"}
            ) as response:
                if response.is_error:
                    content = await response.aread()
                    raise error_from_status(response.status_code, _detail(content, response.status_code))
                async for line in response.aiter_lines():
                    if not line.startswith("data:"):
                        continue
                    data = line.removeprefix("data:").strip()
                    if data == "[DONE]":
                        finished = True
                        break
                    yield msgspec.json.decode(data)
        except httpx.TimeoutException:
            raise self._timed_out(path) from None
        except httpx.HTTPError as error:
            raise self._unreachable(error) from None
        if not finished:
            raise UnavailableError(f"the instance at {self.url} broke off its answer")
