"""When made-up requests arrive."""

from __future__ import annotations

from collections.abc import Iterator

from lmcache_kit.traffic.draws import Draws
from lmcache_kit.traffic.specs import Arrivals, Bursts, Closed, Gamma, Poisson

__all__ = ["arrival_times"]

_NANOSECONDS = 1_000_000_000


def arrival_times(spec: Arrivals, draws: Draws) -> Iterator[float]:
    """Seconds, never falling, from 0 on, without end. Those of a closed loop are all 0: answers set their times."""
    if isinstance(spec, Closed):
        while True:
            yield 0.0
    now = 0
    while True:
        if isinstance(spec, Bursts):
            for number in range(spec.size):
                yield (now + round(spec.within * _NANOSECONDS) * number // spec.size) / _NANOSECONDS
        else:
            yield now / _NANOSECONDS
        # Summed up as whole nanoseconds: sums of floats would carry the last bit of each along.
        now += round(_gap(spec, draws) * _NANOSECONDS)


def _gap(spec: Poisson | Gamma | Bursts, draws: Draws) -> float:
    if isinstance(spec, Bursts):
        return spec.every
    if isinstance(spec, Poisson):
        return draws.exponential(1.0 / spec.rate)
    if spec.cv < 1e-9:
        return 1.0 / spec.rate
    variance = spec.cv * spec.cv
    return draws.gamma(1.0 / variance) * variance / spec.rate
