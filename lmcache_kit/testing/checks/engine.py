"""Engines: the same text and KV whether a prefix is computed or handed in."""

from __future__ import annotations

import numpy as np

from lmcache_kit.contracts.engine import Engine, SamplingParams
from lmcache_kit.contracts.records import EnginePlugin, Options
from lmcache_kit.errors import InvalidRequestError, LMCacheKitError
from lmcache_kit.kv.layout import KVTensor
from lmcache_kit.testing.checks.result import CheckResult, Checks, Skipped, require, run_check

__all__ = ["run"]

_BLOCK = 8
_OUTPUT = 6
_GREEDY = SamplingParams(temperature=0)


def run(record: EnginePlugin, options: Options) -> list[CheckResult]:
    made: list[Engine] = []
    model = record.default_model or "check"

    def make() -> str:
        try:
            made.append(record.factory(options, model))
        except LMCacheKitError as error:
            raise Skipped(f"it cannot be made here: {error.detail}") from None
        require(isinstance(made[0], Engine), "the factory did not make an Engine")
        return f"{made[0].info.layout}"

    first = run_check("made", make)
    if first.outcome != "passed":
        return [first]
    try:
        subject = _Subject(made[0], "deterministic" in record.capabilities)
        return [first, *(run_check(name, check) for name, check in subject.checks())]
    finally:
        made[0].close()


class _Subject:
    def __init__(self, engine: Engine, deterministic: bool) -> None:
        self._engine, self._deterministic = engine, deterministic
        vocabulary = engine.info.vocab_size
        self._tokens = [(number * 37 + 11) % vocabulary for number in range(3 * _BLOCK + 3)]

    def checks(self) -> Checks:
        yield "tokenizer", self.tokenizer
        yield "prefill and decode", self.generate
        yield "with a prefix handed in", self.prefix
        yield "bad requests", self.refusals

    def tokenizer(self) -> str:
        engine = self._engine
        tokens = engine.tokenize("a cache keeps what was computed")
        require(bool(tokens) and all(0 <= token < engine.info.vocab_size for token in tokens), f"it answers {tokens}")
        require("cache" in engine.detokenize(tokens), "detokenize does not give the text back")
        require(isinstance(engine.token_text(tokens[-1]), str), "token_text is not a text")
        return f"{len(tokens)} tokens"

    def complete(self, prefix: KVTensor | None) -> tuple[list[int], KVTensor]:
        """Output tokens, and the KV of the prompt and of the outputs before the last."""
        sequence = self._engine.start(self._tokens, prefix=prefix, prefill_block=_BLOCK, sampling=_GREEDY)
        try:
            output = [sequence.prefill()]
            output += [sequence.decode() for _ in range(_OUTPUT - 1)]
            kv = sequence.kv(0, len(self._tokens) + _OUTPUT - 1)
            part = sequence.kv(_BLOCK, 2 * _BLOCK)
            require(np.array_equal(_bits(part), _bits(kv.tokens(_BLOCK, 2 * _BLOCK))), "kv of a range differs")
            return output, kv
        finally:
            sequence.close()
            sequence.close()

    def generate(self) -> str:
        output, kv = self.complete(None)
        require(kv.layout == self._engine.info.layout, "the KV has another layout than info says")
        require(kv.num_tokens == len(self._tokens) + _OUTPUT - 1, f"KV of {kv.num_tokens} tokens")
        require(all(0 <= token < self._engine.info.vocab_size for token in output), f"it answers {output}")
        if self._deterministic:
            again, kv_again = self.complete(None)
            require(again == output, "declared deterministic, but the second answer differs")
            require(np.array_equal(_bits(kv), _bits(kv_again)), "declared deterministic, but the second KV differs")
        return f"{len(output)} tokens"

    def prefix(self) -> str:
        output, kv = self.complete(None)
        lengths = (_BLOCK, 2 * _BLOCK, len(self._tokens) - 1)
        for length in lengths:
            loaded, loaded_kv = self.complete(kv.tokens(0, length))
            require(
                np.array_equal(_bits(loaded_kv.tokens(0, length)), _bits(kv.tokens(0, length))),
                f"the {length} tokens handed in were computed again",
            )
            require(
                not self._deterministic or loaded == output,
                f"declared deterministic, but the text differs with {length} tokens handed in",
            )
        return f"{', '.join(map(str, lengths))} of {len(self._tokens)} tokens"

    def refusals(self) -> str:
        for tokens in ([self._engine.info.vocab_size], [-1], [0] * (self._engine.info.max_model_len + 1)):
            try:
                self._engine.start(tokens, prefix=None, prefill_block=_BLOCK, sampling=_GREEDY).close()
            except InvalidRequestError:
                continue
            raise AssertionError(f"a prompt of {len(tokens)} tokens, the first {tokens[0]}, is not refused")
        return ""


def _bits(kv: KVTensor) -> np.ndarray[tuple[int, ...], np.dtype[np.uint8]]:
    return np.frombuffer(kv.tobytes_view(), dtype=np.uint8)
