"""KV that is made up, for measuring where there is none of a model at hand."""

from __future__ import annotations

import numpy as np

from lmcache_kit.kv.layout import KVLayout, KVTensor

__all__ = ["random_kv"]


def random_kv(layout: KVLayout, num_tokens: int, seed: int) -> KVTensor:
    """Normal values whose spread and mean differ from channel to channel and whose size differs from token to token.

    With z standing for independent normal numbers of mean 0 and variance 1, the value of token t in channel c of a
    layer and plane is ``(z * exp(z_c / 2) + z_c' / 2) * exp(z_t / 4)``, rounded to the layout's dtype. Nothing links
    one token to the next or one head to another, as it does in a model's KV, so methods that use such links gain
    nothing here. The same arguments give the same KV.
    """
    shape = layers, planes, tokens, heads, dim = layout.shape(num_tokens)
    rng = np.random.default_rng(seed)
    data = rng.standard_normal(shape, dtype=np.float32)
    data *= np.exp(rng.standard_normal((layers, planes, 1, heads, dim), dtype=np.float32) / 2)
    data += rng.standard_normal((layers, planes, 1, heads, dim), dtype=np.float32) / 2
    data *= np.exp(rng.standard_normal((layers, planes, tokens, 1, 1), dtype=np.float32) / 4)
    return KVTensor(layout, data.astype(layout.np_dtype))
