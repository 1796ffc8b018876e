"""What things cost in virtual time: engines, codecs, tiers, the controller and requests.

Costs come from a file that `lmcache-kit calibrate` wrote or a person did, or stand in the scenario. Sizes are bytes of
KV as the engine has it unless they are said to be stored bytes; speeds are GB/s, 10^9 bytes a second.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, TypeVar

import msgspec
from msgspec import Meta

from lmcache_kit.errors import ConfigError, UnknownNameError
from lmcache_kit.sim.profiles import DEFAULT_CODECS, DEFAULT_TIERS, PROFILES

__all__ = ["CodecCosts", "Costs", "EngineCosts", "TierCosts", "load_costs", "prefill_passes"]

TURN_BYTES = 2**20
"""Of KV, which are worth a thread's turn of their own (``lmcache_kit.instance.store.execution.Batches``)."""

T = TypeVar("T")
Seconds = Annotated[float, Meta(ge=0, le=1e9)]
Speed = Annotated[float, Meta(gt=0)]


class _Strict(msgspec.Struct, kw_only=True, frozen=True, forbid_unknown_fields=True):
    pass


class EngineCosts(_Strict, kw_only=True, frozen=True):
    """Seconds of an engine's steps.

    A prefill of ``n`` tokens behind ``c`` that are there, in ``p`` passes, takes ``prefill_base + p * prefill_pass +
    n * prefill_token + n * (c + n / 2) * prefill_attention``. A decoding step of ``b`` sequences with ``t`` tokens of
    context together takes ``decode_base + b * decode_sequence + t * decode_context``.

    Args:
        prefill_base: the last prompt token, which is computed alone.
        prefill_pass: each pass over a block of tokens, as long as a chunk.
        handoff: from the end of one step until a request's next step can begin, and until its client hears of it;
            the engine may do other things meanwhile. Without ``batched`` only.
        batched: all sequences decode in one step, as on an accelerator with continuous batching; otherwise each step is
            one sequence's, in turn with everything else, as in this project's own engines.
        copy_token: taking the KV of a computed token out of the engine.
        start_token: handing the KV of a loaded token to the engine.
        tokenize_token: making a token out of a prompt that is a text.
    """

    prefill_base: Seconds = 0.0
    prefill_pass: Seconds = 0.0
    prefill_token: Seconds = 0.0
    prefill_attention: Seconds = 0.0
    decode_base: Seconds = 0.0
    decode_sequence: Seconds = 0.0
    decode_context: Seconds = 0.0
    copy_token: Seconds = 0.0
    start_token: Seconds = 0.0
    tokenize_token: Seconds = 0.0
    handoff: Seconds = 0.0
    batched: bool = False

    def start(self, cached: int) -> float:
        """Seconds of handing over the KV of ``cached`` tokens."""
        return cached * self.start_token

    def prefill(self, new: int, cached: int, block: int) -> float:
        """Seconds until the first token, computed in blocks of ``block`` tokens."""
        attention = new * (cached + new / 2) * self.prefill_attention
        return (
            self.prefill_base
            + prefill_passes(new, cached, block) * self.prefill_pass
            + new * self.prefill_token
            + attention
        )

    def copy(self, tokens: int) -> float:
        """Seconds of taking the KV of ``tokens`` out."""
        return tokens * self.copy_token

    def step(self, sequences: int, context: float) -> float:
        """Seconds of one decoding step."""
        return self.decode_base + sequences * self.decode_sequence + context * self.decode_context


def prefill_passes(new: int, cached: int, block: int) -> int:
    """Passes over a prompt's ``new`` tokens behind ``cached`` ones, but for the last one: blocks begin at token 0."""
    before_last = cached + new - 1
    return -(-before_last // block) - cached // block if new > 1 else 0


class CodecCosts(_Strict, kw_only=True, frozen=True):
    """One compression method: how small it makes KV, and how fast it is, in one thread.

    Args:
        ratio: bytes of KV to bytes of payload.
        encode_gbps, decode_gbps: of KV.
        chunk_seconds: what every chunk takes besides, each way.
    """

    ratio: Speed = 1.0
    encode_gbps: Speed = 10.0
    decode_gbps: Speed = 10.0
    chunk_seconds: Seconds = 0.0


class TierCosts(_Strict, kw_only=True, frozen=True):
    """One tier of one instance: objects are read one after another, and so are written.

    Args:
        read_gbps, write_gbps: of stored bytes.
        read_seconds, write_seconds: what every object takes besides.
    """

    read_gbps: Speed = 10.0
    write_gbps: Speed = 10.0
    read_seconds: Seconds = 0.0
    write_seconds: Seconds = 0.0


class Costs(_Strict, kw_only=True, frozen=True):
    """All costs of a fleet.

    Args:
        engines: by ``kind`` or ``kind/model``; ``profile: NAME`` instead of figures names an accelerator.
        codecs: by method.
        tiers: by location.
        request_seconds: of a completion, between client and instance, both ways.
        request_token: of each token of its prompt, which has to be sent, read and checked.
        lookup_seconds: of a lookup at the controller, both ways.
        call_seconds: of another call to the controller, the worker's answer included.
        report_seconds: until the controller knows what an instance has told it.
        save_seconds: of a save that has anything to store, besides encoding and writing.
        load_seconds: of a load besides reading and decoding.
        recode_seconds: of every chunk that a compress or decompress job rewrites, besides reading, coding and writing.
        transfer_seconds: of every chunk that goes to another instance, besides the link and the tiers.
        transfer_gbps: of stored bytes that go there, besides: checks, and the copies that a transport makes.
        restart_seconds: until what a fault killed and restarts serves again.
        threads: that an instance codes and copies with.
        cores: of the one machine whose processor does all this work, of engines, codecs and clients; those of the
            machine's that other programs leave. None gives each its own.
    """

    engines: dict[str, dict[str, Any]] = {}
    codecs: dict[str, CodecCosts] = {}
    tiers: dict[str, TierCosts] = {}
    request_seconds: Seconds = 0.0
    request_token: Seconds = 0.0
    lookup_seconds: Seconds = 0.0
    call_seconds: Seconds = 0.0
    report_seconds: Seconds = 0.01
    save_seconds: Seconds = 0.0
    load_seconds: Seconds = 0.0
    recode_seconds: Seconds = 0.0
    transfer_seconds: Seconds = 0.0
    transfer_gbps: Speed = 1.0
    restart_seconds: Seconds = 2.0
    threads: Annotated[int, Meta(ge=1)] = 2
    cores: Annotated[float, Meta(gt=0)] | None = None

    def decoding_turns(self, chunks: int, nbytes: int) -> int:
        """Threads that decode a prefix of so many chunks, which are so many bytes of KV: small ones go together."""
        return min(self.threads, chunks, max(1, nbytes // TURN_BYTES))

    def engine(self, kind: str, model: str, declared: dict[str, Any] | None) -> EngineCosts:
        """Those of one engine: named here, or what the engine says of itself. Raises ConfigError for neither."""
        found = self.engines.get(f"{kind}/{model}", self.engines.get(kind, declared))
        if found is None:
            raise ConfigError(
                f"engine {kind!r} does not say what its steps cost, which the virtual clock needs",
                hint=f"lmcache-kit calibrate measures it; or costs: {{engines: {{{kind}: {{profile: "
                f"{next(iter(PROFILES))}}}}}}}",
            )
        figures = dict(found)
        profile = figures.pop("profile", None)
        if profile is not None:
            if not isinstance(profile, str) or profile not in PROFILES:
                raise UnknownNameError("accelerator profile", str(profile), PROFILES)
            figures = {**PROFILES[profile], **figures}
        return _convert(figures, EngineCosts, f"costs.engines.{kind}")

    def codec(self, method: str) -> CodecCosts:
        """Those of a method. Raises ConfigError when nobody gave any."""
        if method in self.codecs:
            return self.codecs[method]
        if method not in DEFAULT_CODECS:
            raise _missing("compression method", method, "codecs", "{ratio: 4, encode_gbps: 0.5, decode_gbps: 0.5}")
        return _convert(DEFAULT_CODECS[method], CodecCosts, f"costs.codecs.{method}")

    def tier(self, location: str, usual: str) -> TierCosts:
        """Those of a location, or else of the one that its storage plugin calls ``usual``.

        Raises ConfigError when nobody gave any.
        """
        for name in (location, usual):
            if name in self.tiers:
                return self.tiers[name]
        if usual not in DEFAULT_TIERS:
            raise _missing("tier", location, "tiers", "{read_gbps: 1, write_gbps: 1, read_seconds: 0.0005}")
        return _convert(DEFAULT_TIERS[usual], TierCosts, f"costs.tiers.{usual}")


def load_costs(given: str | dict[str, Any] | None, base_dir: Path) -> Costs:
    """The costs that a scenario names: a file (JSON or YAML, relative to ``base_dir``), a mapping, or none.

    Raises ConfigError for what cannot be read or is not understood.
    """
    if given is None:
        return Costs()
    if isinstance(given, str):
        path = base_dir / given
        try:
            text = path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(f"costs: {path} cannot be read: {error}") from None
        given = _parsed(text, path)
        if isinstance(given, dict) and "costs" in given:
            given = given["costs"]
    costs = _convert(given, Costs, "costs")
    for kind in costs.engines:
        costs.engine(kind, "", None)
    return costs


def _parsed(text: str, path: Path) -> Any:
    """JSON first: YAML takes a number like 4e-07 for a text."""
    try:
        return msgspec.json.decode(text)
    except msgspec.DecodeError:
        import yaml

        try:
            return yaml.safe_load(text) or {}
        except yaml.YAMLError as error:
            raise ConfigError(f"costs: {path} is no YAML: {error}") from None


def _convert(given: Any, wanted: type[T], path: str) -> T:
    try:
        return msgspec.convert(given, wanted)
    except msgspec.ValidationError as error:
        raise ConfigError(f"{path}: {error}") from None


def _missing(what: str, name: str, key: str, example: str) -> ConfigError:
    return ConfigError(
        f"nothing says what {what} {name!r} costs, which the virtual clock needs",
        hint=f"lmcache-kit calibrate measures it; or costs: {{{key}: {{{name}: {example}}}}}",
    )
