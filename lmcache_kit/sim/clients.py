"""Clients of a simulated fleet: the methods of :mod:`lmcache_kit.client`, without HTTP.

The controller's answers are made by the handlers that make them for HTTP.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import Any

import msgspec

from lmcache_kit.client import Completion
from lmcache_kit.contracts.engine import Engine
from lmcache_kit.controller import schemas as s
from lmcache_kit.controller.handlers import Handlers
from lmcache_kit.errors import InvalidRequestError, LMCacheKitError, UnavailableError
from lmcache_kit.sim.instance import Answer, SimInstance

__all__ = ["SimControllerClient", "SimInstanceClient"]

Position = tuple[str, str]

_USED = "lmcache_kit_tier_used_bytes"


class SimControllerClient:
    """Client of the simulated controller.

    Args:
        handlers: gives the controller's handlers; raises UnavailableError while it is down.
        lookup_seconds: of a lookup.
        call_seconds: of everything else.
    """

    url = "sim://controller"

    def __init__(self, handlers: Callable[[], Handlers], *, lookup_seconds: float, call_seconds: float) -> None:
        self._handlers = handlers
        self._lookup_seconds = lookup_seconds
        self._call_seconds = call_seconds

    async def lookup(self, tokens: Sequence[int], *, explain: bool = False) -> dict[str, Any]:
        """As of ControllerClient."""
        if self._lookup_seconds:
            await asyncio.sleep(self._lookup_seconds)
        request = s.LookupRequest(tokens=tokens)  # type: ignore[arg-type]  # a prompt known by its blocks stays one
        answer = await self._handlers().lookup(request, {"explain": "true"} if explain else {})
        answer["layout_info"] = {name: list(place) for name, place in answer["layout_info"].items()}
        return {key: list(value) if isinstance(value, tuple) else value for key, value in answer.items()}

    async def compress(
        self, instance_id: str, method: str, location: str, tokens: Sequence[int] | None = None
    ) -> dict[str, Any]:
        """As of ControllerClient."""
        request = s.CodeRequest(instance_id=instance_id, method=method, location=location, tokens=tokens)  # type: ignore[arg-type]
        return await self._call(lambda handlers: handlers.compress(request, {}))

    async def decompress(
        self, instance_id: str, method: str, location: str, tokens: Sequence[int] | None = None
    ) -> dict[str, Any]:
        """As of ControllerClient."""
        request = s.CodeRequest(instance_id=instance_id, method=method, location=location, tokens=tokens)  # type: ignore[arg-type]
        return await self._call(lambda handlers: handlers.decompress(request, {}))

    async def pin(
        self, instance_id: str, location: str, tokens: Sequence[int], *, owner: str = "", ttl: float | None = None
    ) -> dict[str, Any]:
        """As of ControllerClient."""
        request = s.PinRequest(instance_id=instance_id, location=location, tokens=tokens, owner=owner, ttl=ttl)  # type: ignore[arg-type]
        return await self._call(lambda handlers: handlers.pin(request, {}))

    async def unpin(
        self, instance_id: str, location: str, tokens: Sequence[int] | None = None, *, owner: str = ""
    ) -> dict[str, Any]:
        """As of ControllerClient."""
        request = s.UnpinRequest(instance_id=instance_id, location=location, tokens=tokens, owner=owner)  # type: ignore[arg-type]
        return await self._call(lambda handlers: handlers.unpin(request, {}))

    async def clear(self, instance_id: str, location: str) -> dict[str, Any]:
        """As of ControllerClient."""
        request = s.ClearRequest(instance_id=instance_id, location=location)
        return await self._call(lambda handlers: handlers.clear(request, {}))

    async def move(
        self, old: Position, new: Position, tokens: Sequence[int] | None = None, *, copy: bool = False
    ) -> dict[str, Any]:
        """As of ControllerClient."""
        request = s.MoveRequest(old_position=old, new_position=new, tokens=tokens, should_copy=copy)  # type: ignore[arg-type]
        return await self._call(lambda handlers: handlers.move(request, {}))

    async def health(self, instance_id: str) -> dict[str, Any]:
        """As of ControllerClient."""
        return await self._call(lambda handlers: handlers.health(s.HealthRequest(instance_id=instance_id), {}))

    async def check_finish(self, event_id: str) -> dict[str, Any]:
        """As of ControllerClient."""
        request = s.CheckFinishRequest(event_id=event_id)
        return await self._call(lambda handlers: handlers.check_finish(request, {}))

    async def wait_finished(self, event_id: str, *, timeout: float = 60.0) -> dict[str, Any]:
        """As of ControllerClient; how long a job takes is known to the pause between two questions."""
        loop = asyncio.get_running_loop()
        deadline, pause = loop.time() + timeout, 0.002
        while True:
            state = await self.check_finish(event_id)
            if state["status"] in ("done", "failed"):
                return state
            if loop.time() > deadline:
                raise UnavailableError(f"job {event_id} is still {state['status']} after {timeout:g} s")
            await asyncio.sleep(pause)
            pause = min(pause * 1.5, 0.25)

    async def query_instance(self, ip: str) -> dict[str, Any]:
        """As of ControllerClient."""
        return await self._call(lambda handlers: handlers.query_instance(s.QueryInstanceRequest(ip=ip), {}))

    async def workers(self, instance_id: str = "all") -> dict[str, Any]:
        """As of ControllerClient."""
        request = s.QueryWorkerInfoRequest(instance_id=instance_id)
        return await self._call(lambda handlers: handlers.query_worker_info(request, {}))

    async def key_stats(self) -> dict[str, Any]:
        """As of ControllerClient."""
        return await self._call(lambda handlers: handlers.key_stats(None, {}))

    async def close(self) -> None:
        """Nothing to do."""

    async def _call(self, work: Callable[[Handlers], Any]) -> dict[str, Any]:
        await asyncio.sleep(self._call_seconds)
        found: dict[str, Any] = msgspec.to_builtins(await work(self._handlers()))
        return found


class SimInstanceClient:
    """Client of a simulated instance.

    Args:
        instance: the instance.
        engine: gives the engine, whose tokenizer text prompts need.
        model: the model's name.
    """

    def __init__(self, instance: SimInstance, engine: Callable[[], Engine], model: str) -> None:
        self._instance = instance
        self._engine = engine
        self._model = model
        self.url = f"sim://{instance.instance_id}"

    async def complete(
        self, prompt: str | Sequence[int], *, max_tokens: int = 16, temperature: float = 0.0, **more: Any
    ) -> dict[str, Any]:
        """As of InstanceClient, without a text, which nothing computes."""
        answer = await self._answer(prompt, max_tokens)
        return {"choices": [{"index": 0, "text": None, "finish_reason": "length"}], **answer.body()}

    async def stream_complete(
        self, prompt: str | Sequence[int], *, max_tokens: int = 16, temperature: float = 0.0, **more: Any
    ) -> Completion:
        """As of InstanceClient, without a text, which nothing computes."""
        answer = await self._answer(prompt, max_tokens)
        body = answer.body()
        return Completion(
            text=None, ttft_seconds=answer.ttft_seconds, seconds=answer.seconds, usage=body["usage"], raw=body
        )

    async def _answer(self, prompt: str | Sequence[int], max_tokens: int) -> Answer:
        text = isinstance(prompt, str)
        tokens = self._engine().tokenize(prompt) if isinstance(prompt, str) else prompt
        if not len(tokens) or max_tokens < 1:
            raise InvalidRequestError("a completion needs at least one token of prompt and one of output")
        answered: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()

        def done(answer: Answer | UnavailableError) -> None:
            if answered.done():
                return
            if isinstance(answer, LMCacheKitError):
                answered.set_exception(answer)
            else:
                answered.set_result(answer)

        store = self._instance.store
        self._instance.complete(store.chunks(tokens), len(tokens), max_tokens, done, text=text)
        return await answered

    async def tokenize(self, prompt: str, *, model: str | None = None) -> list[int]:
        """As of InstanceClient."""
        return self._engine().tokenize(prompt)

    async def detokenize(self, tokens: Sequence[int], *, model: str | None = None) -> str:
        """As of InstanceClient."""
        return self._engine().detokenize(tokens, skip_special_tokens=False)

    async def models(self) -> list[str]:
        """As of InstanceClient."""
        return [self._model]

    async def model(self, name: str | None = None) -> str:
        """As of InstanceClient."""
        return name or self._model

    async def health(self) -> dict[str, Any]:
        """As of InstanceClient. Raises UnavailableError while the instance is down."""
        if not self._instance.alive:
            raise UnavailableError(f"the instance {self._instance.instance_id} cannot be reached")
        return {"status": "ok", "chunk_size": self._instance.store.hasher.spec.chunk_size}

    async def metrics(self) -> str:
        """The metrics of an instance that workloads read: the bytes that its tiers hold."""
        used = [f'{_USED}{{location="{tier.location}"}} {tier.state.held}' for tier in self._instance.store.tiers]
        return "\n".join([f"# TYPE {_USED} gauge", *used, ""])

    async def close(self) -> None:
        """Nothing to do."""
