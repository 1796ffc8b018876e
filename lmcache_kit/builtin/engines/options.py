"""Options of the built-in engines; cheap to import, since every listing of plugins needs them."""

from __future__ import annotations

from typing import Annotated

from msgspec import Meta

from lmcache_kit.contracts.records import Options
from lmcache_kit.kv.layout import MAX_DIM, DType

__all__ = ["SyntheticOptions"]

Dimension = Annotated[int, Meta(ge=1, le=MAX_DIM)]
Seconds = Annotated[float, Meta(ge=0)]


class SyntheticOptions(Options, frozen=True):
    """Shape and pace of the synthetic engine.

    Args:
        num_layers, num_kv_heads, head_dim, dtype: the KV layout.
        max_model_len: most tokens of prompt and output together.
        seed: another seed is another model: other KV, other text, other fingerprint.
        prefill_seconds_per_token: how long each computed prompt token takes.
        decode_seconds: how long each output token after the first takes.
    """

    num_layers: Dimension = 4
    num_kv_heads: Dimension = 2
    head_dim: Dimension = 32
    dtype: DType = "bfloat16"
    max_model_len: Annotated[int, Meta(ge=2)] = 32768
    seed: Annotated[int, Meta(ge=0, le=2**63 - 1)] = 0
    prefill_seconds_per_token: Seconds = 0.0
    decode_seconds: Seconds = 0.0
