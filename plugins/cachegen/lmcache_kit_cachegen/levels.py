"""What each level and each layer means to the kernels."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["LANE_STEPS", "LEVELS", "UNIFORM_SYMBOLS", "Level", "lmcache_levels"]

FINE, COARSE = 31, 15  # LMCache calls them 32 and 16 bins; its arithmetic never reaches the last bin
_FINE_KEY_LAYERS, _FINE_VALUE_LAYERS = 10, 2
_SMALL_MODEL = 10

LANE_STEPS = 512
"""Coder steps that a lane should have, of 2 bits or more each."""
UNIFORM_SYMBOLS = 127
"""Symbols of quantizer uniform."""


@dataclass(frozen=True, slots=True)
class Level:
    """A level of quantizer uniform.

    Args:
        ratio: a block's typical standard deviation over its step, as a bfloat16 bit pattern.
        refine_bits: how much finer the refined tokens are.
        refine_all: whether those are all tokens, or the first few of each chunk.
        lane_steps: coder steps that a lane should have. A lane costs about 24 bits beyond its symbols, which is to be
            little beside them.
    """

    ratio: int
    refine_bits: int
    refine_all: bool
    lane_steps: int = LANE_STEPS


LEVELS = {
    1: Level(0x4028, 4, True),
    2: Level(0x4028, 2, True),
    3: Level(0x4058, 2, False),
    4: Level(0x3FD2, 2, False),
    5: Level(0x3F68, 2, False),
    6: Level(0x3EF8, 2, False, lane_steps=2 * LANE_STEPS),
}


def lmcache_levels(num_layers: int, planes: int) -> tuple[int, ...]:
    """Symbols of each of the L * P blocks, layer-major, by LMCache's layer rule: 31 for K of layers 0-9 and V of layers
    0-1, else 15; 31 everywhere in models with fewer than 10 layers. The single plane of latent attention counts as
    K."""
    levels = [
        FINE if num_layers < _SMALL_MODEL or layer < (_FINE_VALUE_LAYERS if plane else _FINE_KEY_LAYERS) else COARSE
        for layer in range(num_layers)
        for plane in range(planes)
    ]
    return tuple(levels)
