"""What a completions workload leaves for the ones after it."""

from __future__ import annotations

from dataclasses import dataclass

from lmcache_kit.contracts.workload import InstanceHandle, WorkloadContext
from lmcache_kit.errors import InvalidRequestError, LMCacheKitError, UnknownNameError

__all__ = ["Prompt", "Served", "chunk_size_of", "instance_of", "served", "tokens_of"]


@dataclass(frozen=True, slots=True)
class Prompt:
    """A prompt, its group, and the instance it goes to (None: not decided yet)."""

    text: str
    group: int
    instance: str | None = None


@dataclass(frozen=True, slots=True)
class Served:
    """A prompt that was completed.

    Args:
        prompt: the prompt.
        instance_id: the instance that served it.
        text: what the model wrote; None in a simulation.
        ttft_seconds: time to first token, None without streaming.
        tokens: the prompt's token ids, filled in when a later workload first needs them.
    """

    prompt: Prompt
    instance_id: str
    text: str | None
    ttft_seconds: float | None
    tokens: list[int]


def served(context: WorkloadContext, name: str) -> list[Served]:
    """What the completions workload ``name`` served. Raises InvalidRequestError when it is another kind."""
    entries = context.notes.get(name)
    if not isinstance(entries, list) or not all(isinstance(entry, Served) for entry in entries):
        raise InvalidRequestError(f"workload {name!r} served no completions", hint="name one of kind completions")
    return entries


def instance_of(context: WorkloadContext, instance_id: str) -> InstanceHandle:
    """The running instance. Raises UnknownNameError."""
    try:
        return context.instances[instance_id]
    except KeyError:
        raise UnknownNameError("instance", instance_id, context.instances) from None


async def tokens_of(context: WorkloadContext, entry: Served) -> list[int]:
    """The prompt's tokens as its own instance makes them; asked once, then remembered."""
    if not entry.tokens:
        entry.tokens.extend(await instance_of(context, entry.instance_id).client.tokenize(entry.prompt.text))
    return entry.tokens


async def chunk_size_of(handle: InstanceHandle) -> int | None:
    """Tokens per chunk of an instance; None when neither the runner knows nor the instance tells, or it is away."""
    if handle.chunk_size is not None:
        return handle.chunk_size
    try:
        size = (await handle.client.health()).get("chunk_size")
    except LMCacheKitError:
        return None
    return None if size is None else int(size)
