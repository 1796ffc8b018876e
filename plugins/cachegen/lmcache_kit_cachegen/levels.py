"""LMCache's layer rule: how many quantization levels each (layer, plane) gets."""

from __future__ import annotations

from typing import Any

import numpy as np

__all__ = ["lmcache_levels"]

FINE, COARSE = 31, 15  # LMCache calls them 32 and 16 bins; its arithmetic never reaches the last bin
_FINE_KEY_LAYERS, _FINE_VALUE_LAYERS = 10, 2
_SMALL_MODEL = 10


def lmcache_levels(num_layers: int, planes: int) -> np.ndarray[Any, np.dtype[np.int32]]:
    """int32 ``[L * P]``, layer-major: 31 for K of layers 0-9 and V of layers 0-1, else 15; 31 everywhere in models
    with fewer than 10 layers. The single plane of latent attention counts as K."""
    levels = np.full((num_layers, planes), COARSE, dtype=np.int32)
    levels[:_FINE_KEY_LAYERS, 0] = FINE
    if planes > 1:
        levels[:_FINE_VALUE_LAYERS, 1] = FINE
    if num_layers < _SMALL_MODEL:
        levels[:] = FINE
    return levels.reshape(-1)
