"""Hit rates of an eviction policy on made-up requests, and what its bookkeeping takes."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np

from lmcache_kit.codec_tools.timing import median_seconds
from lmcache_kit.contracts.eviction import EvictionPolicy
from lmcache_kit.contracts.records import EvictionPlugin, Options

__all__ = ["hit_rate", "measure", "requests"]

_NBYTES = 4096
_CAPACITY = 200
_SEED = 7


def requests(rng: np.random.Generator) -> Mapping[str, Sequence[str]]:
    """Names of objects as they are asked for: popular ones, popular ones between scans, a loop of 1.5 capacities."""
    names = [f"object-{number:032x}" for number in range(2000)]
    popularity = 1 / np.arange(1, 2001) ** 0.9
    popular = rng.choice(2000, size=8000, p=popularity / popularity.sum())
    scanned: list[str] = []
    for round_number, part in enumerate(np.split(popular, 40)):
        scanned += [names[index] for index in part]
        scanned += [f"scan-{round_number}-{index:032x}" for index in range(150)]
    loop = names[: _CAPACITY * 3 // 2]
    return {"popular": [names[index] for index in popular], "popular and scans": scanned, "loop": loop * 20}


def hit_rate(policy: EvictionPolicy, wanted: Iterable[str]) -> float:
    """Share of requests that a tier of 200 objects of one size answers; it evicts before it admits."""
    held: set[str] = set()
    hits = count = 0
    for count, name in enumerate(wanted, 1):  # noqa: B007  (the number of requests)
        if name in held:
            hits += 1
            policy.touch(name)
            continue
        while len(held) >= _CAPACITY:
            victim = next(iter(policy.victims()))
            policy.remove(victim, evicted=True)
            held.discard(victim)
        policy.admit(name, _NBYTES)
        held.add(name)
    return hits / count


def measure(
    record: EvictionPlugin, options: Options, *, seconds: float, sample: Path | None
) -> Mapping[str, float | int | str | None]:
    """Hit rates, and microseconds per request with the eviction and admission that it may need."""
    made_up = requests(np.random.default_rng(_SEED))
    figures: dict[str, float | int | str | None] = {
        f"hits, {name}": hit_rate(record.factory(options, _CAPACITY * _NBYTES), wanted)
        for name, wanted in made_up.items()
    }
    wanted = made_up["popular and scans"]
    taken = median_seconds(lambda: hit_rate(record.factory(options, _CAPACITY * _NBYTES), wanted), seconds)
    return {**figures, "us/request": taken / len(wanted) * 1e6}
