"""Engines: tokens to tokens, giving out and taking in KV on the way.

An engine is called from one worker thread at a time. For text to be the same whether a prefix was computed or
loaded, an engine should compute the same prefix the same way in both cases: prefill in the blocks of
``prefill_block`` tokens that it is told to use, and the last prompt token on its own.

An engine may also be a server of its own, such as vLLM, that keeps its KV through lmcache-kit by itself. Its record has
a ``server`` in place of a ``factory``: it says with what command line a :class:`ServerSpec` is served, and
``lmcache-kit serve`` becomes that command. Such a server answers ``/health``, ``/v1/models``, ``/v1/completions``,
``/tokenize``, ``/detokenize`` and ``/metrics`` as vLLM does, joins the controller that the configuration names under
the configuration's instance id, and ends on SIGTERM. It runs on the wall clock only.

Capabilities:
    ``deterministic``: greedy output depends only on the tokens and the KV handed in, bit for bit.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from lmcache_kit.kv.layout import KVLayout, KVTensor

__all__ = [
    "DeclaresCosts",
    "Engine",
    "EngineInfo",
    "EngineSequence",
    "SamplingParams",
    "ServerCommand",
    "ServerSpec",
]


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineInfo:
    """What an engine serves.

    Args:
        model: the model's name.
        fingerprint: identifies weights and layout; chunks are only exchanged between equal fingerprints. Lower-case
            letters, digits, - and _, at most 64.
        layout: shape of its KV cache.
        max_model_len: most tokens of prompt and output together.
        eos_token_ids: tokens that end a completion.
        vocab_size: token ids are 0 to ``vocab_size - 1``.
    """

    model: str
    fingerprint: str
    layout: KVLayout
    max_model_len: int
    eos_token_ids: frozenset[int]
    vocab_size: int


@dataclass(frozen=True, slots=True, kw_only=True)
class SamplingParams:
    """How the next token is chosen; names and meaning as in the OpenAI API. ``temperature=0`` is greedy."""

    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    seed: int | None = None


class EngineSequence(ABC):
    """One prompt being worked on."""

    @abstractmethod
    def prefill(self) -> int:
        """Compute the prompt's remaining tokens and return the first output token."""

    @abstractmethod
    def decode(self) -> int:
        """The next output token, given all before it."""

    @abstractmethod
    def kv(self, start: int, stop: int) -> KVTensor:
        """A copy of the KV of tokens ``start`` to ``stop`` (exclusive), counted from the prompt's first token.

        Available once computed: the whole prompt after :meth:`prefill`, each output token after the next one. Raises
        InvalidRequestError for tokens that are not computed yet.
        """

    @abstractmethod
    def close(self) -> None:
        """Free the sequence's memory; idempotent."""


class Engine(ABC):
    """A model and its tokenizer."""

    @property
    @abstractmethod
    def info(self) -> EngineInfo: ...

    @abstractmethod
    def tokenize(self, text: str, *, add_special_tokens: bool = True) -> list[int]:
        """Token ids of ``text``."""

    @abstractmethod
    def detokenize(self, tokens: Sequence[int], *, skip_special_tokens: bool = True) -> str:
        """Text of ``tokens``."""

    @abstractmethod
    def token_text(self, token: int) -> str:
        """The vocabulary entry of one token, for ``token_strs`` and logprobs."""

    @abstractmethod
    def start(
        self, tokens: Sequence[int], *, prefix: KVTensor | None, prefill_block: int, sampling: SamplingParams
    ) -> EngineSequence:
        """Begin a prompt of at least one token.

        ``prefix`` is the KV of its first tokens, fewer than ``len(tokens)``; the engine must not compute those again.
        ``prefill_block`` is how many tokens to compute in one forward pass, counted from the prompt's first token.
        Raises InvalidRequestError for tokens outside the vocabulary or a prompt that is too long.
        """

    def close(self) -> None:  # noqa: B027  (optional to override, not abstract)
        """Free the model."""


@runtime_checkable
class DeclaresCosts(Protocol):
    """An engine that knows what its steps cost, so that it can be simulated without calibration."""

    def step_costs(self) -> Mapping[str, Any]:
        """Figures in seconds under the names of docs/reference/simulator.md (``prefill_token``, ``decode_base``...)."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerSpec:
    """What an engine that is a server of its own has to serve.

    Args:
        model: name or path of the model.
        host: address to listen on.
        port: port to listen on.
        config: LMCache's YAML file of the instance, already found to be valid; None: its settings are in the
            environment, or the defaults.
        served_models: names that requests use for the model, at least one; the first is the one in answers.
        max_num_seqs: most requests worked on at the same time.
        args: further arguments of the server's own, as the user wrote them.
    """

    model: str
    host: str
    port: int
    config: Path | None
    served_models: tuple[str, ...]
    max_num_seqs: int
    args: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerCommand:
    """How a server is started.

    Args:
        argv: the program, looked for on PATH unless it is a path, and its arguments.
        env: variables set on top of the environment.
    """

    argv: tuple[str, ...]
    env: Mapping[str, str] = field(default_factory=dict)
