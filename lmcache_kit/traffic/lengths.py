"""How long made-up things are."""

from __future__ import annotations

import math

from lmcache_kit.traffic.draws import Draws
from lmcache_kit.traffic.specs import Length, Lognormal, Uniform

__all__ = ["draw_length"]


def draw_length(spec: Length, draws: Draws) -> int:
    """A number of tokens, turns or documents, at least 1."""
    if isinstance(spec, Uniform):
        return spec.at_least + draws.below(spec.at_most - spec.at_least + 1)
    if isinstance(spec, Lognormal):
        variance = math.log1p(spec.cv * spec.cv)
        value = spec.mean * math.exp(draws.normal() * math.sqrt(variance) - variance / 2)
        drawn = max(round(min(value, 2.0**53)), spec.at_least)
        return drawn if spec.at_most is None else min(drawn, spec.at_most)
    return spec
