"""Random draws that are the same with every Python version.

Of :class:`random.Random` only the seeding with an integer and ``random()`` are used, whose sequence Python promises to
keep; everything else is made from it here. Times are rounded to nanoseconds and lengths to tokens, so that the last bit
of a logarithm, in which two C libraries may differ, does not show.
"""

from __future__ import annotations

import math
import random
from bisect import bisect_right
from collections.abc import Container
from itertools import accumulate, pairwise

__all__ = ["Draws", "Zipf", "mix"]

_MASK = 2**64 - 1


class Draws:
    """Draws from one seeded generator.

    Args:
        rng: the generator; only its ``random()`` is called.
    """

    __slots__ = ("_random", "_spare", "generator")

    def __init__(self, rng: random.Random) -> None:
        self.generator = rng
        self._random = rng.random
        self._spare: float | None = None

    def child(self) -> Draws:
        """Draws of their own, so that how many are made here changes nothing there."""
        return Draws(random.Random(self.below(2**53)))  # noqa: S311  (reproducible, not secret)

    def uniform(self) -> float:
        """At least 0 and below 1."""
        return self._random()

    def below(self, count: int) -> int:
        """One of 0 to ``count`` - 1; ``count`` is at most 2**53."""
        return int(self._random() * count)

    def exponential(self, mean: float) -> float:
        """At least 0."""
        return -math.log(1.0 - self._random()) * mean

    def normal(self) -> float:
        """Of mean 0 and deviation 1, by Marsaglia's polar method."""
        if self._spare is not None:
            spare, self._spare = self._spare, None
            return spare
        while True:
            x, y = 2.0 * self._random() - 1.0, 2.0 * self._random() - 1.0
            square = x * x + y * y
            if 0.0 < square < 1.0:
                factor = math.sqrt(-2.0 * math.log(square) / square)
                self._spare = y * factor
                return x * factor

    def gamma(self, shape: float) -> float:
        """Of mean and variance ``shape`` (above 0), by the method of Marsaglia and Tsang (2000)."""
        if shape < 1.0:
            return self.gamma(shape + 1.0) * math.pow(1.0 - self._random(), 1.0 / shape)
        d = shape - 1.0 / 3.0
        c = 1.0 / math.sqrt(9.0 * d)
        while True:
            x = self.normal()
            v = (1.0 + c * x) ** 3
            if v > 0.0 and math.log(1.0 - self._random()) < 0.5 * x * x + d - d * v + d * math.log(v):
                return d * v


class Zipf:
    """Ranks 0 to ``count`` - 1, rank ``k`` with a weight of ``(k + 1) ** -exponent``; exponent 0 makes them equal."""

    def __init__(self, count: int, exponent: float) -> None:
        self._cumulated = list(accumulate((rank + 1.0) ** -exponent for rank in range(count)))

    def draw(self, draws: Draws) -> int:
        """One rank."""
        cumulated = self._cumulated
        return min(bisect_right(cumulated, draws.uniform() * cumulated[-1]), len(cumulated) - 1)

    def draw_different(self, wanted: int, draws: Draws) -> list[int]:
        """``wanted`` different ranks in the order in which they were drawn, at most all."""
        chosen: dict[int, None] = {}
        tries = 0
        while len(chosen) < min(wanted, len(self._cumulated)):
            tries += 1
            # Drawing again until it is a new one is quick while many are left, and may take for ever at the end.
            chosen[self.draw(draws) if tries <= 4 * wanted else self._of_the_rest(chosen, draws)] = None
        return list(chosen)

    def _of_the_rest(self, chosen: Container[int], draws: Draws) -> int:
        weights = [
            (rank, weight - before)
            for rank, (before, weight) in enumerate(pairwise([0.0, *self._cumulated]))
            if rank not in chosen
        ]
        left = draws.uniform() * math.fsum(weight for _, weight in weights)
        for rank, weight in weights:
            left -= weight
            if left < 0.0:
                return rank
        return weights[0][0]


def mix(*parts: int) -> int:
    """A 64-bit name of a sequence of integers (splitmix64, part by part)."""
    value = 0
    for part in parts:
        value = (value ^ part & _MASK) * 0x9E3779B97F4A7C15 & _MASK
        value = (value ^ value >> 30) * 0xBF58476D1CE4E5B9 & _MASK
        value = (value ^ value >> 27) * 0x94D049BB133111EB & _MASK
        value ^= value >> 31
        value = value + 0x632BE59BD9B4E019 & _MASK
    return value
