"""An engine without a model: KV is a hash of the tokens, text is a hash of the KV.

It is an oracle for everything that stores, moves or encodes KV. The KV of a token follows from the tokens up to it,
and the next token follows from every bit of the KV of all tokens so far, those that were handed in included. So a
chunk that is wrong, stale, damaged or lossily encoded changes the text, and nothing else does: not the length of the
prefix handed in, not the block size, not the machine.
"""

from __future__ import annotations

import hashlib
import secrets
import time
from collections.abc import Mapping, Sequence
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt

from lmcache_kit.builtin.engines.options import SyntheticOptions
from lmcache_kit.contracts.engine import Engine, EngineInfo, EngineSequence, SamplingParams
from lmcache_kit.errors import InvalidRequestError
from lmcache_kit.kv.layout import KVLayout, KVTensor

__all__ = ["BOS", "EOS", "SyntheticEngine"]

BOS, EOS = 256, 257
VOCAB_SIZE = 258

# Output tokens are printable, so that a text shows every token; 64 of them, so that one token tells 6 bits.
_ALPHABET = b"abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789 ."
_GOLDEN = 0x9E3779B97F4A7C15
_MASK = 2**64 - 1
_TOKENS_AT_ONCE = 1024

Words = npt.NDArray[np.uint64]


def _mix(words: Words) -> Words:
    """The finaliser of splitmix64 (Steele, Lea, Flood 2014), element by element, in place."""
    words ^= words >> np.uint64(30)
    words *= np.uint64(0xBF58476D1CE4E5B9)
    words ^= words >> np.uint64(27)
    words *= np.uint64(0x94D049BB133111EB)
    words ^= words >> np.uint64(31)
    return words


def _stream(seed: int, count: int) -> Words:
    """``count`` words of the splitmix64 stream of ``seed``."""
    steps = np.arange(1, count + 1, dtype=np.uint64)
    return _mix(steps * np.uint64(_GOLDEN) + np.uint64(seed & _MASK))


class SyntheticEngine(Engine):
    """Bytes as tokens; see the module's description.

    Args:
        options: shape and pace.
        model: the name to serve.
    """

    def __init__(self, options: SyntheticOptions, model: str) -> None:
        self.options = options
        layout = KVLayout(options.num_layers, options.num_kv_heads, options.head_dim, options.dtype)
        identity = msgspec.json.encode([1, options.seed, layout])
        self._info = EngineInfo(
            model=model,
            fingerprint=f"synthetic-{hashlib.sha256(identity).hexdigest()[:16]}",
            layout=layout,
            max_model_len=options.max_model_len,
            eos_token_ids=frozenset({EOS}),
            vocab_size=VOCAB_SIZE,
        )
        # One odd factor for each stored word of a token, so that the checksum sees every bit and every place.
        self._factors = _stream(1, layout.bytes_per_token // layout.np_dtype.itemsize) | np.uint64(1)

    @property
    def info(self) -> EngineInfo:
        return self._info

    def tokenize(self, text: str, *, add_special_tokens: bool = True) -> list[int]:
        tokens = list(text.encode())
        return [BOS, *tokens] if add_special_tokens else tokens

    def detokenize(self, tokens: Sequence[int], *, skip_special_tokens: bool = True) -> str:
        if skip_special_tokens:
            return bytes(token for token in tokens if token < BOS).decode(errors="replace")
        return b"".join(_token_bytes(token) for token in tokens).decode(errors="replace")

    def token_text(self, token: int) -> str:
        return _token_bytes(token).decode("latin-1")

    def start(
        self, tokens: Sequence[int], *, prefix: KVTensor | None, prefill_block: int, sampling: SamplingParams
    ) -> EngineSequence:
        info = self._info
        if not tokens:
            raise InvalidRequestError("a prompt needs at least one token")
        if len(tokens) >= info.max_model_len:
            raise InvalidRequestError(
                f"a prompt of {len(tokens)} tokens leaves no room in a context of {info.max_model_len}"
            )
        if not all(0 <= token < VOCAB_SIZE for token in tokens):
            raise InvalidRequestError(f"token ids must be between 0 and {VOCAB_SIZE - 1}")
        if prefix is not None and (prefix.layout != info.layout or prefix.num_tokens >= len(tokens)):
            raise InvalidRequestError("the prefix handed in is longer than the prompt or of another layout")
        return _Sequence(self, list(tokens), prefix, sampling)

    def step_costs(self) -> Mapping[str, Any]:
        """The pauses that its options ask for; what its arithmetic takes besides depends on the machine."""
        return {"prefill_token": self.options.prefill_seconds_per_token, "decode_base": self.options.decode_seconds}

    def make_kv(self, states: Words) -> KVTensor:
        """KV ``[L, 2, T, H, D]`` of tokens from the T states of their prefixes: values in [-1, 1), evenly spread."""
        layout = self._info.layout
        kv = KVTensor.empty(layout, len(states))
        per_token = self._factors.size
        # One random word makes four values of 16 bits; small pieces keep the intermediate arrays in the cache.
        steps = np.arange(1, -(-per_token // 4) + 1, dtype=np.uint64) * np.uint64(_GOLDEN)
        for begin in range(0, len(states), _TOKENS_AT_ONCE):
            part = states[begin : begin + _TOKENS_AT_ONCE]
            words = _mix(part[:, None] + steps[None, :])
            values = words.astype("<u8", copy=False).view("<i2")[:, :per_token].astype(np.float32)
            values *= np.float32(2**-15)
            shaped = values.reshape(len(part), layout.num_layers, 2, layout.num_kv_heads, layout.head_dim)
            kv.data[:, :, begin : begin + len(part)] = shaped.transpose(1, 2, 0, 3, 4)
        return kv

    def checksums(self, kv: KVTensor) -> Words:
        """One word per token that depends on every bit of the token's KV."""
        layout = self._info.layout
        bits = kv.data.view(np.uint32 if layout.np_dtype.itemsize == 4 else np.uint16)
        factors = self._factors.reshape(layout.num_layers * 2, -1)
        sums = np.zeros(kv.num_tokens, dtype=np.uint64)
        for index, plane in enumerate(bits.reshape(layout.num_layers * 2, kv.num_tokens, -1)):
            sums += plane.astype(np.uint64) @ factors[index]
        return sums


def _token_bytes(token: int) -> bytes:
    return bytes([token]) if token < BOS else {BOS: b"<s>", EOS: b"</s>"}[token]


class _Sequence(EngineSequence):
    def __init__(
        self, engine: SyntheticEngine, tokens: list[int], prefix: KVTensor | None, sampling: SamplingParams
    ) -> None:
        if prefix is not None and prefix.num_tokens == 0:
            prefix = None
        self._engine = engine
        self._tokens = tokens
        self._parts: list[KVTensor] = [] if prefix is None else [prefix]
        self._computed = 0 if prefix is None else prefix.num_tokens
        self._state = 0  # of the tokens whose KV exists
        self._summary = 0  # of the KV that exists
        greedy = sampling.temperature == 0 or sampling.top_k == 1
        self._choice = 0 if greedy else (secrets.randbits(64) if sampling.seed is None else sampling.seed) * 2 + 1
        if prefix is not None:
            self._states(0, prefix.num_tokens)
            self._absorb(prefix, 0)

    def prefill(self) -> int:
        missing = len(self._tokens) - self._computed
        self._compute()
        _pause(missing * self._engine.options.prefill_seconds_per_token)
        return self._next()

    def decode(self) -> int:
        self._compute()
        _pause(self._engine.options.decode_seconds)
        return self._next()

    def kv(self, start: int, stop: int) -> KVTensor:
        if not 0 <= start <= stop <= self._computed:
            raise InvalidRequestError(f"KV of tokens {start} to {stop} was asked for, {self._computed} are computed")
        if len(self._parts) > 1:
            self._parts = [KVTensor.concat(self._parts)]
        if not self._parts:
            return KVTensor.empty(self._engine.info.layout, 0)
        # A copy, also where the slice would be contiguous already: the caller may change it.
        return KVTensor(self._engine.info.layout, self._parts[0].data[:, :, start:stop].copy())

    def close(self) -> None:
        self._parts = []
        self._computed = 0

    def _compute(self) -> None:
        begin = self._computed
        if begin == len(self._tokens):
            return
        kv = self._engine.make_kv(self._states(begin, len(self._tokens)))
        self._parts.append(kv)
        self._computed += kv.num_tokens
        self._absorb(kv, begin)

    def _states(self, begin: int, end: int) -> Words:
        """The states of the prefixes that end at tokens ``begin`` to ``end``; sums, so that numpy can make them."""
        tokens = np.array(self._tokens[begin:end], dtype=np.uint64)
        places = np.arange(begin + 1, end + 1, dtype=np.uint64) * np.uint64(_GOLDEN)
        terms = _mix(_mix(tokens + np.uint64(self._engine.options.seed << 9 & _MASK)) + places)
        states: Words = np.cumsum(terms, dtype=np.uint64) + np.uint64(self._state)
        self._state = int(states[-1])
        return states

    def _absorb(self, kv: KVTensor, begin: int) -> None:
        places = np.arange(begin + 1, begin + kv.num_tokens + 1, dtype=np.uint64) * np.uint64(_GOLDEN)
        self._summary = (self._summary + int(_mix(self._engine.checksums(kv) + places).sum(dtype=np.uint64))) & _MASK

    def _next(self) -> int:
        word = np.array([self._summary ^ (self._choice * _GOLDEN & _MASK)], dtype=np.uint64)
        token = _ALPHABET[int(_mix(word)[0]) % len(_ALPHABET)]
        self._tokens.append(token)
        return token


def _pause(seconds: float) -> Any:
    if seconds > 0:
        time.sleep(seconds)
