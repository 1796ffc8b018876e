"""The OpenAPI description of the instance's HTTP interface, made from the request types themselves."""

from __future__ import annotations

from typing import Any

import msgspec

from lmcache_kit import __version__
from lmcache_kit.instance.http.schemas import CompletionBody, DetokenizeBody, StreamOptions, TokenizeBody

__all__ = ["openapi"]

_INTEGER = {"type": "integer"}
_NUMBER = {"type": "number"}
_TEXT = {"type": "string"}
_COUNTS = {"type": "object", "additionalProperties": _INTEGER}
_ERRORS = {
    "400": "The request is wrong; the text says where",
    "404": "The model is not served here; the text names those that are",
    "413": "The body is too large",
    "500": "The engine failed",
    "503": "The instance is shutting down; see Retry-After",
}


def openapi() -> dict[str, Any]:
    """An OpenAPI 3.1 document."""
    _, schemas = msgspec.json.schema_components(
        [CompletionBody, StreamOptions, TokenizeBody, DetokenizeBody], ref_template="#/components/schemas/{name}"
    )
    completion = _object(
        {
            "id": _TEXT,
            "object": {"const": "text_completion"},
            "created": _INTEGER,
            "model": _TEXT,
            "choices": {"type": "array", "items": {"$ref": "#/components/schemas/Choice"}},
            "usage": {"$ref": "#/components/schemas/Usage"},
            "lmcache_kit": {"$ref": "#/components/schemas/CacheFacts"},
        }
    )
    choice = _object(
        {
            "index": _INTEGER,
            "text": _TEXT,
            "logprobs": {"type": "null"},
            "finish_reason": {"enum": ["stop", "length", None]},
            "stop_reason": {"type": ["string", "null"]},
        }
    )
    details = _object({"cached_tokens": _INTEGER})
    usage = _object(
        {
            "prompt_tokens": _INTEGER,
            "completion_tokens": _INTEGER,
            "total_tokens": _INTEGER,
            "prompt_tokens_details": details,
        }
    )
    steps = ("queue", "load", "start", "prefill", "ttft", "copy", "decode", "save")
    seconds = {f"{step}_seconds": _NUMBER for step in steps}
    facts = _object({"cached_tokens_by_location": _COUNTS, "codecs": _COUNTS, **seconds, "stored_tokens": _INTEGER})
    error = _object(
        {
            "error": _object({"message": _TEXT, "type": _TEXT, "param": {"type": "null"}, "code": _INTEGER}),
            "detail": _TEXT,
        }
    )
    token_ids = {"type": "array", "items": _INTEGER}
    token_texts = {"type": ["array", "null"], "items": _TEXT}
    tokens = _object({"count": _INTEGER, "max_model_len": _INTEGER, "tokens": token_ids, "token_strs": token_texts})
    models = _object({"object": {"const": "list"}, "data": {"type": "array", "items": {"type": "object"}}})
    # The data of each event is a completion without some of its keys, an error, or [DONE].
    stream = {"text/event-stream": {"schema": {"description": "server-sent events"}}}
    return {
        "openapi": "3.1.0",
        "info": {"title": "lmcache-kit instance", "version": __version__},
        "paths": {
            "/v1/completions": {"post": _post("Complete a prompt", "CompletionBody", completion, stream)},
            "/tokenize": {"post": _post("Token ids of a text", "TokenizeBody", tokens)},
            "/detokenize": {"post": _post("Text of token ids", "DetokenizeBody", _object({"prompt": _TEXT}))},
            "/v1/models": {"get": _get("Names this instance answers to", "application/json", models)},
            "/health": {"get": _get("Whether the instance serves", "application/json", {"type": "object"}, "503")},
            "/metrics": {"get": _get("Prometheus metrics", "text/plain", _TEXT)},
            "/openapi.json": {"get": _get("This document", "application/json", {"type": "object"})},
        },
        "components": {
            "schemas": {**schemas, "Choice": choice, "Usage": usage, "CacheFacts": facts, "Error": error},
        },
    }


def _object(properties: dict[str, Any]) -> dict[str, Any]:
    return {"type": "object", "properties": properties, "required": list(properties)}


def _post(summary: str, body: str, answer: dict[str, Any], more: dict[str, Any] | None = None) -> dict[str, Any]:
    return {
        "summary": summary,
        "requestBody": {
            "required": True,
            "content": {"application/json": {"schema": {"$ref": f"#/components/schemas/{body}"}}},
        },
        "responses": {
            "200": {"description": "Done", "content": {"application/json": {"schema": answer}, **(more or {})}},
            **_errors(*_ERRORS),
        },
    }


def _get(summary: str, media_type: str, answer: dict[str, Any], *errors: str) -> dict[str, Any]:
    done = {"description": "Done", "content": {media_type: {"schema": answer}}}
    return {"summary": summary, "responses": {"200": done, **_errors(*errors)}}


def _errors(*statuses: str) -> dict[str, Any]:
    body = {"application/json": {"schema": {"$ref": "#/components/schemas/Error"}}}
    retry = {"Retry-After": {"description": "seconds", "schema": {"type": "integer"}}}
    return {
        status: {
            "description": _ERRORS[status],
            "content": body,
            **({"headers": retry} if status == "503" else {}),
        }
        for status in statuses
    }
