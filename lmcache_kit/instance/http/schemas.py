"""Request bodies of the instance's HTTP interface, and what of the OpenAI and vLLM parameters is honoured.

A parameter that would change the answer and is not implemented is refused by name, unless it carries the value that
changes nothing; an unknown one is refused with the nearest known name. So no answer silently leaves out a wish.
"""

from __future__ import annotations

import functools
from typing import Any, TypeVar

import msgspec

from lmcache_kit.contracts.engine import SamplingParams
from lmcache_kit.errors import InvalidRequestError, nearest

__all__ = ["CompletionBody", "DetokenizeBody", "StreamOptions", "TokenizeBody", "decode_body"]

MAX_STOP_STRINGS = 16
MAX_TOP_K = 2**31 - 1

# Parameters of the same call elsewhere that are not implemented, with the values that mean "as if it were not there".
_NEUTRAL: dict[str, tuple[Any, ...]] = {
    "n": (None, 1),
    "best_of": (None, 1),
    "logprobs": (None,),
    "prompt_logprobs": (None,),
    "suffix": (None, ""),
    "presence_penalty": (None, 0),
    "frequency_penalty": (None, 0),
    "repetition_penalty": (None, 1),
    "logit_bias": (None, {}),
    "min_tokens": (None, 0),
    "min_p": (None, 0),
    "use_beam_search": (None, False),
    "length_penalty": (None, 1),
    "stop_token_ids": (None, []),
    "include_stop_str_in_output": (None, False),
    "skip_special_tokens": (None, True),
    "add_special_tokens": (None, True),
    "truncate_prompt_tokens": (None,),
}
# They change nothing in the answer by their definition.
_WITHOUT_EFFECT = {"user", "request_id", "priority"}


class StreamOptions(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """``stream_options``; ``include_usage`` sends one more event with the usage before ``[DONE]``."""

    include_usage: bool = False


class CompletionBody(msgspec.Struct, frozen=True, kw_only=True):
    """``POST /v1/completions``. Ranges are checked by the methods."""

    prompt: str | list[int | str | list[int]]
    model: str | None = None
    max_tokens: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    seed: int | None = None
    stop: str | list[str] | None = None
    stream: bool = False
    stream_options: StreamOptions | None = None
    echo: bool = False
    ignore_eos: bool = False
    return_token_ids: bool = False

    def single_prompt(self) -> str | list[int]:
        """The prompt. Raises InvalidRequestError for a list of several."""
        prompt = self.prompt
        if isinstance(prompt, str):
            return prompt
        tokens = [item for item in prompt if isinstance(item, int)]
        if len(tokens) == len(prompt):
            return tokens
        if len(prompt) == 1 and not isinstance(prompt[0], int):
            return prompt[0]
        raise InvalidRequestError(
            f"prompt must be one text or one list of token ids, got a list of {len(prompt)}",
            hint="send one request per prompt",
        )

    def output_tokens(self) -> int:
        """``max_tokens``, 16 when it is not given. Raises InvalidRequestError below 1."""
        count = 16 if self.max_tokens is None else self.max_tokens
        if count < 1:
            raise InvalidRequestError(f"max_tokens must be at least 1, got {count}")
        return count

    def sampling(self) -> SamplingParams:
        """The sampling parameters. Raises InvalidRequestError for one out of its range."""
        temperature = 1.0 if self.temperature is None else self.temperature
        top_p = 1.0 if self.top_p is None else self.top_p
        top_k = 0 if self.top_k is None else max(self.top_k, 0)  # vLLM writes "all" as -1 or 0
        if not 0 <= temperature <= 100:
            raise InvalidRequestError(f"temperature must be between 0 and 100, got {temperature}")
        if not 0 < top_p <= 1:
            raise InvalidRequestError(f"top_p must be above 0 and at most 1, got {top_p}")
        if not -1 <= (self.top_k or 0) <= MAX_TOP_K:
            raise InvalidRequestError(f"top_k must be between 1 and {MAX_TOP_K}, or -1 or 0 for all, got {self.top_k}")
        if self.seed is not None and not -(2**63) <= self.seed < 2**63:
            raise InvalidRequestError("seed must fit 64 bits")
        return SamplingParams(temperature=temperature, top_p=top_p, top_k=top_k, seed=self.seed)

    def stop_strings(self) -> tuple[str, ...]:
        """``stop`` as a tuple. Raises InvalidRequestError for an empty string or too many."""
        stops = (self.stop,) if isinstance(self.stop, str) else tuple(self.stop or ())
        if any(not stop for stop in stops):
            raise InvalidRequestError("stop holds an empty string, which would end every text at once")
        if len(stops) > MAX_STOP_STRINGS:
            raise InvalidRequestError(f"stop holds {len(stops)} strings, at most {MAX_STOP_STRINGS} are allowed")
        return stops

    def include_usage(self) -> bool:
        """Whether a stream ends with its usage. Raises InvalidRequestError for stream options without a stream."""
        if self.stream_options is None:
            return False
        if not self.stream:
            raise InvalidRequestError("stream_options needs stream=true")
        return self.stream_options.include_usage


class TokenizeBody(msgspec.Struct, frozen=True, kw_only=True):
    """``POST /tokenize``."""

    prompt: str
    model: str | None = None
    add_special_tokens: bool = True
    return_token_strs: bool | None = False


class DetokenizeBody(msgspec.Struct, frozen=True, kw_only=True):
    """``POST /detokenize``."""

    tokens: list[int]
    model: str | None = None


T = TypeVar("T", CompletionBody, TokenizeBody, DetokenizeBody)
_OBJECT = msgspec.json.Decoder(dict[str, Any])


def decode_body(raw: bytes, kind: type[T]) -> T:
    """A request body from its JSON bytes. Raises InvalidRequestError that says where it is wrong."""
    try:
        values = _OBJECT.decode(raw or b"null")
    except msgspec.ValidationError:
        raise InvalidRequestError("the request body must be a JSON object") from None
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise InvalidRequestError(f"the request body is not JSON: {error}") from None
    known = _names(kind)
    for name in [name for name in values if name not in known]:
        if kind is CompletionBody and (name in _WITHOUT_EFFECT or _is_neutral(name, values[name])):
            continue
        if kind is CompletionBody and name in _NEUTRAL:
            shown = msgspec.json.encode(values[name])[:80].decode(errors="replace")
            raise InvalidRequestError(f"{name}={shown} is not supported", hint="leave it out")
        near = nearest(name, known)
        raise InvalidRequestError(
            f"unknown parameter {name!r}",
            hint=f"did you mean {near!r}?" if near else f"known: {', '.join(sorted(known))}",
        )
    try:
        return msgspec.convert(values, type=kind)
    except msgspec.ValidationError as error:
        raise InvalidRequestError(f"the request body is wrong: {error}") from None


@functools.cache
def _names(kind: type[msgspec.Struct]) -> frozenset[str]:
    # Cached because msgspec resolves the annotations anew at each call.
    return frozenset(field.encode_name for field in msgspec.structs.fields(kind))


def _is_neutral(name: str, value: Any) -> bool:
    # 1 == True and 0 == False in Python, but n=true is a mistake worth naming.
    return any(
        value == neutral and isinstance(value, bool) == isinstance(neutral, bool) for neutral in _NEUTRAL.get(name, ())
    )
