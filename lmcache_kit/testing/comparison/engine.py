"""Speed of an engine."""

from __future__ import annotations

import statistics
from collections.abc import Mapping
from pathlib import Path

from lmcache_kit.codec_tools.timing import median_seconds, timed
from lmcache_kit.contracts.engine import EngineSequence, SamplingParams
from lmcache_kit.contracts.records import EnginePlugin, Options
from lmcache_kit.kv.layout import KVTensor

__all__ = ["measure"]

_PROMPT = 512
_OUTPUT = 16
_GREEDY = SamplingParams(temperature=0)


def measure(
    record: EnginePlugin, options: Options, *, seconds: float, sample: Path | None
) -> Mapping[str, float | int | str | None]:
    """One prompt of 512 tokens, in blocks of 256, from one thread, warm; a full hit hands in all but the last token."""
    engine = record.make(options, record.default_model or "check")
    try:
        info = engine.info
        length = min(_PROMPT, info.max_model_len - _OUTPUT - 1)
        tokens = [(number * 37 + 11) % info.vocab_size for number in range(length)]

        def first_token(prefix: KVTensor | None) -> EngineSequence:
            sequence = engine.start(tokens, prefix=prefix, prefill_block=256, sampling=_GREEDY)
            sequence.prefill()
            return sequence

        sequence = first_token(None)
        prefix = sequence.kv(0, length - 1)
        steps = [timed(sequence.decode)[0] for _ in range(_OUTPUT)]
        sequence.close()
        return {
            "KV bytes/token": info.layout.bytes_per_token,
            "prefill tokens/s": length / median_seconds(lambda: first_token(None).close(), seconds),
            "full hit ms": median_seconds(lambda: first_token(prefix).close(), seconds) * 1e3,
            "decode tokens/s": 1 / statistics.median(steps),
        }
    finally:
        engine.close()
