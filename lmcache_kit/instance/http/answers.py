"""What the instance answers: a completion as one JSON object or as OpenAI's server-sent events, and errors.

The extra key ``lmcache_kit`` says where cached tokens came from; in a stream it is on the last event that carries a
usage or, without usage, a finish reason.
"""

from __future__ import annotations

import contextlib
import logging
import uuid
from collections.abc import AsyncGenerator, Mapping
from typing import Any

import msgspec

from lmcache_kit.errors import LMCacheKitError
from lmcache_kit.instance.http.completion import Delta, GenerationFacts

__all__ = ["Answer", "cache_facts", "completion_events", "error_body", "usage"]

log = logging.getLogger(__name__)

_ERROR_TYPES = {400: "BadRequestError", 404: "NotFoundError", 503: "ServiceUnavailableError"}


class Answer:
    """The parts of an answer that do not depend on the output.

    Args:
        model: the model's name as the request wrote it.
        created: seconds since 1970.
        prompt_tokens: the prompt.
        echoed: text to put before the output, for ``echo``.
        with_token_ids: whether choices carry ``token_ids`` and ``prompt_token_ids``, as vLLM's ``return_token_ids``.
    """

    def __init__(
        self, *, model: str, created: int, prompt_tokens: list[int], echoed: str = "", with_token_ids: bool = False
    ) -> None:
        self._head = {
            "id": f"cmpl-{uuid.uuid4().hex}",
            "object": "text_completion",
            "created": created,
            "model": model,
        }
        self._prompt_tokens = prompt_tokens
        self._with_token_ids = with_token_ids
        self.echoed = echoed

    async def collect(self, pieces: AsyncGenerator[Delta, None]) -> Mapping[str, Any]:
        """The whole answer at once."""
        texts, tokens = [self.echoed], list[int]()
        facts: GenerationFacts | None = None
        async with contextlib.aclosing(pieces) as source:
            async for piece in source:
                texts.append(piece.text)
                tokens += piece.tokens
                facts = piece.facts
        assert facts is not None, "a completion has at least one piece"
        choice = self._choice("".join(texts), tokens, facts, first=True)
        return {**self._head, "choices": [choice], "usage": usage(facts), "lmcache_kit": cache_facts(facts)}

    def event(self, text: str, piece: Delta, *, first: bool, **more: Any) -> dict[str, Any]:
        """One event of a stream."""
        return {**self._head, "choices": [self._choice(text, piece.tokens, piece.facts, first=first)], **more}

    def last_event(self, facts: GenerationFacts) -> dict[str, Any]:
        """The event that carries the usage, without a choice."""
        return {**self._head, "choices": [], "usage": usage(facts), "lmcache_kit": cache_facts(facts)}

    def _choice(self, text: str, tokens: list[int], facts: GenerationFacts, *, first: bool) -> dict[str, Any]:
        choice: dict[str, Any] = {
            "index": 0,
            "text": text,
            "logprobs": None,
            "finish_reason": facts.finish_reason,
            "stop_reason": facts.stop_reason,
        }
        if self._with_token_ids:
            choice["token_ids"] = tokens
            choice["prompt_token_ids"] = self._prompt_tokens if first else None
        return choice


def usage(facts: GenerationFacts) -> dict[str, Any]:
    """OpenAI's ``usage``."""
    return {
        "prompt_tokens": facts.prompt_tokens,
        "completion_tokens": facts.completion_tokens,
        "total_tokens": facts.prompt_tokens + facts.completion_tokens,
        "prompt_tokens_details": {"cached_tokens": facts.cached_tokens},
    }


def cache_facts(facts: GenerationFacts) -> dict[str, Any]:
    """The key ``lmcache_kit``: where cached tokens came from, what was stored, and times in seconds."""
    return {
        "cached_tokens_by_location": facts.cached_tokens_by_location,
        "codecs": facts.codecs,
        "queue_seconds": facts.queue_seconds,
        "load_seconds": facts.load_seconds,
        "start_seconds": facts.start_seconds,
        "prefill_seconds": facts.prefill_seconds,
        "copy_seconds": facts.copy_seconds,
        "decode_seconds": facts.decode_seconds,
        "save_seconds": facts.save_seconds,
        "ttft_seconds": facts.ttft_seconds,
        "stored_tokens": facts.stored_tokens,
        "loaded_bytes": facts.loaded_bytes,
        "loaded_kv_bytes": facts.loaded_kv_bytes,
        "stored_bytes": facts.stored_bytes,
        "stored_kv_bytes": facts.stored_kv_bytes,
    }


def error_body(status: int, text: str) -> dict[str, Any]:
    """An error in OpenAI's shape, and under ``detail`` as the controller writes it."""
    kind = _ERROR_TYPES.get(status, "InternalServerError" if status >= 500 else "BadRequestError")
    return {"error": {"message": text, "type": kind, "param": None, "code": status}, "detail": text}


async def completion_events(
    pieces: AsyncGenerator[Delta, None], answer: Answer, *, include_usage: bool
) -> AsyncGenerator[bytes, None]:
    """Server-sent events of a completion, ``[DONE]`` at last.

    The status line is sent before the engine starts, so an error after that is an event of its own.
    """
    text, first = answer.echoed, True
    try:
        async with contextlib.aclosing(pieces) as source:
            async for piece in source:
                done = piece.facts.finish_reason is not None
                more = {"lmcache_kit": cache_facts(piece.facts)} if done and not include_usage else {}
                yield _event(answer.event(text + piece.text, piece, first=first, **more))
                text, first = "", False
                if done and include_usage:
                    yield _event(answer.last_event(piece.facts))
    except LMCacheKitError as error:
        yield _event(error_body(error.status, error.detail))
    except Exception as error:  # an engine plugin may raise anything
        log.exception("a completion failed while it was streamed")
        yield _event(error_body(500, f"{type(error).__name__}: {error}"))
    yield b"data: [DONE]\n\n"


def _event(value: Any) -> bytes:
    return b"data: " + msgspec.json.encode(value) + b"\n\n"
