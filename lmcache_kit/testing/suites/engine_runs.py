"""Prompts worked on to the end, and KV compared."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from hypothesis import strategies as st

from lmcache_kit.contracts.engine import Engine, SamplingParams
from lmcache_kit.kv.layout import KVTensor
from lmcache_kit.testing.strategies import token_lists

__all__ = ["GREEDY", "OUTPUT", "Completed", "bits", "check_near", "complete", "prompts"]

GREEDY = SamplingParams(temperature=0)
OUTPUT = 5
"""Output tokens of a run, where nothing else is said."""

_LONGEST = 70
# Sums of a model depend on how they are split, in the last bits of its element type; what is wrong is off by far more.
_NEAR = 0.05


@dataclass(frozen=True, slots=True)
class Completed:
    """Output tokens, and the KV of the prompt and of all output tokens but the last."""

    output: list[int]
    kv: KVTensor


def complete(
    engine: Engine,
    tokens: Sequence[int],
    *,
    prefix: KVTensor | None = None,
    block: int = 16,
    count: int = OUTPUT,
    sampling: SamplingParams = GREEDY,
) -> Completed:
    """Prefill and ``count - 1`` decoding steps."""
    sequence = engine.start(tokens, prefix=prefix, prefill_block=block, sampling=sampling)
    try:
        output = [sequence.prefill(), *(sequence.decode() for _ in range(count - 1))]
        return Completed(output, sequence.kv(0, len(tokens) + count - 1))
    finally:
        sequence.close()


def prompts(engine: Engine, *, min_size: int = 1) -> st.SearchStrategy[list[int]]:
    """Prompts that leave room for the output."""
    longest = min(_LONGEST, engine.info.max_model_len - OUTPUT - 1)
    assert longest >= min_size, f"a context of {engine.info.max_model_len} tokens is too short to be tested"
    return token_lists(vocab_size=engine.info.vocab_size, min_size=min_size, max_size=longest)


def bits(kv: KVTensor) -> bytes:
    """Every bit of it."""
    return bytes(kv.tobytes_view())


def check_near(got: KVTensor, want: KVTensor, what: str) -> None:
    """Equal but for rounding: the relative RMS error of each layer's KV is at most 5 %."""
    assert got.data.shape == want.data.shape, f"{what} has the shape {got.data.shape}, not {want.data.shape}"
    if got.num_tokens == 0:
        return
    first, second = got.data.astype(np.float64), want.data.astype(np.float64)
    assert np.isfinite(first).all() == np.isfinite(second).all(), f"{what} is not finite"
    error = np.sqrt(np.square(first - second).mean(axis=(1, 2, 3, 4)))
    size = np.sqrt(np.square(second).mean(axis=(1, 2, 3, 4)))
    worst = int(np.argmax(error - _NEAR * size))
    assert error[worst] <= _NEAR * size[worst], (
        f"{what} differs in layer {worst}: RMS error {error[worst]:.3g} of values of {size[worst]:.3g}"
    )
