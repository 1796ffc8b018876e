"""KV of a text, as an engine computes it."""

from __future__ import annotations

from lmcache_kit.contracts.engine import Engine, SamplingParams
from lmcache_kit.errors import ConfigError
from lmcache_kit.kv.layout import KVTensor

__all__ = ["PREFILL_BLOCK", "sample_kv"]

PREFILL_BLOCK = 256


def sample_kv(engine: Engine, text: str, num_tokens: int | None = None) -> KVTensor:
    """KV of the first ``num_tokens`` tokens of ``text``, or of all of them.

    Raises ConfigError when the text has fewer tokens, or the engine's context is too short for them.
    """
    tokens = engine.tokenize(text)
    wanted = len(tokens) if num_tokens is None else num_tokens
    if not 0 < wanted <= len(tokens):
        raise ConfigError(f"the text has {len(tokens)} tokens, {wanted} are asked for", hint="give a longer text")
    limit = engine.info.max_model_len - 1
    if wanted > limit:
        raise ConfigError(f"{engine.info.model} takes {limit} tokens, {wanted} are asked for", hint="take fewer")
    sequence = engine.start(
        tokens[:wanted], prefix=None, prefill_block=PREFILL_BLOCK, sampling=SamplingParams(temperature=0)
    )
    try:
        sequence.prefill()
        return sequence.kv(0, wanted)
    finally:
        sequence.close()
