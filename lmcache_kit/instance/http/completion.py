"""One completion: what was asked for, what is known of it, and its output as it grows."""

from __future__ import annotations

from dataclasses import dataclass, field

from lmcache_kit.contracts.engine import Engine, SamplingParams
from lmcache_kit.instance.http.text_stream import IncrementalText, StopMatcher

__all__ = ["Delta", "GenerationFacts", "GenerationRequest", "Output"]

# Tokens before the output that a tokenizer may need to write its first ones as they are written inside a text.
_TEXT_CONTEXT = 5


@dataclass(frozen=True, slots=True, kw_only=True)
class GenerationRequest:
    """A checked request; make it with :meth:`Generator.check`."""

    tokens: list[int]
    max_tokens: int
    sampling: SamplingParams
    stop: tuple[str, ...] = ()
    ignore_eos: bool = False


@dataclass(slots=True, kw_only=True)
class GenerationFacts:
    """What is known of one completion; filled while it runs. Times in seconds.

    ``start_seconds``, ``prefill_seconds``, ``copy_seconds`` and ``decode_seconds`` are what the engine's thread worked
    on it, without the waits between: handing it the loaded KV, the prompt up to the first token, taking the prompt's
    KV out, and all further tokens together. ``save_seconds`` is what saving took, while decoding went on.
    ``loaded_bytes`` and ``stored_bytes`` are as the tiers hold them, each copy counted; the ``..._kv_bytes`` beside
    them are the same tokens as the engine has them.
    """

    prompt_tokens: int
    completion_tokens: int = 0
    cached_tokens: int = 0
    cached_tokens_by_location: dict[str, int] = field(default_factory=dict)
    codecs: dict[str, int] = field(default_factory=dict)
    queue_seconds: float = 0.0
    load_seconds: float = 0.0
    start_seconds: float = 0.0
    prefill_seconds: float = 0.0
    copy_seconds: float = 0.0
    decode_seconds: float = 0.0
    save_seconds: float = 0.0
    ttft_seconds: float = 0.0
    stored_tokens: int = 0
    loaded_bytes: int = 0
    loaded_kv_bytes: int = 0
    stored_bytes: int = 0
    stored_kv_bytes: int = 0
    finish_reason: str | None = None
    stop_reason: str | None = None


@dataclass(frozen=True, slots=True)
class Delta:
    """A piece of output: text that may be shown and the tokens made since the last piece.

    ``facts.finish_reason`` is set on the last piece, and everything is saved when it is given out.
    """

    text: str
    tokens: list[int]
    facts: GenerationFacts


class Output:
    """The tokens of one completion so far, their text, and when to stop; fills the counts and reasons of ``facts``."""

    def __init__(self, engine: Engine, request: GenerationRequest, facts: GenerationFacts) -> None:
        self.tokens: list[int] = []
        self._taken = 0
        self._request = request
        self._facts = facts
        self._eos = frozenset() if request.ignore_eos else engine.info.eos_token_ids
        self._text = IncrementalText(engine.detokenize, request.tokens[-_TEXT_CONTEXT:])
        self._stops = StopMatcher(request.stop)

    def push(self, token: int) -> str:
        """Count one token in, decide whether it is the last one, and give the text that may be shown now."""
        facts = self._facts
        self.tokens.append(token)
        facts.completion_tokens += 1
        if token in self._eos:
            facts.finish_reason = "stop"
            return self._rest("")
        shown = self._stops.push(self._text.push(token))
        if self._stops.matched is None and facts.completion_tokens == self._request.max_tokens:
            facts.finish_reason = "length"
            shown = self._rest(shown)
        if self._stops.matched is not None:
            facts.finish_reason, facts.stop_reason = "stop", self._stops.matched
        return shown

    def take(self) -> list[int]:
        """The tokens made since the last call."""
        taken, self._taken = self.tokens[self._taken :], len(self.tokens)
        return taken

    def _rest(self, shown: str) -> str:
        shown += self._stops.push(self._text.flush())
        return shown + self._stops.flush()
