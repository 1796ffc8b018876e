"""The streams are pinned: a scenario's requests must be the same with every Python and every release."""

from __future__ import annotations

import random
import statistics

import pytest

from lmcache_kit.traffic.draws import Draws, Zipf, mix
from lmcache_kit.traffic.lengths import draw_length
from lmcache_kit.traffic.specs import Lognormal, Uniform


def draws(seed: int = 1) -> Draws:
    return Draws(random.Random(seed))


class OnlyRandom(random.Random):
    """Refuses every method whose sequence Python does not promise to keep."""

    def getrandbits(self, k: int) -> int:
        raise AssertionError("getrandbits")

    def __getattribute__(self, name: str) -> object:
        if name in {"gauss", "choice", "choices", "randrange", "shuffle", "sample", "expovariate", "gammavariate"}:
            raise AssertionError(name)
        return super().__getattribute__(name)


def test_pinned_values() -> None:
    own = Draws(OnlyRandom(7))
    assert [own.below(1000) for _ in range(3)] == [323, 150, 650]
    assert round(own.exponential(2.0), 9) == 0.150387586
    assert round(own.normal(), 9) == 0.584017828
    assert round(own.gamma(0.25), 9) == 0.69258845
    assert round(own.gamma(3.0), 9) == 1.855479422
    assert own.child().below(10**6) == 886665
    assert [draw_length(Lognormal(mean=500, cv=1.5), own) for _ in range(3)] == [301, 252, 69]
    assert [draw_length(Uniform(at_least=3, at_most=9), own) for _ in range(5)] == [9, 7, 5, 9, 3]
    assert mix(1, 2, 3) == 15320514149434358714


@pytest.mark.parametrize(("shape", "spread"), [(0.25, 0.1), (1.0, 0.1), (4.0, 0.2)])
def test_gamma_has_its_mean_and_variance(shape: float, spread: float) -> None:
    own = draws()
    values = [own.gamma(shape) for _ in range(20_000)]
    assert statistics.fmean(values) == pytest.approx(shape, rel=spread)
    assert statistics.variance(values) == pytest.approx(shape, rel=2 * spread)
    assert min(values) >= 0


def test_normal_and_exponential_have_theirs() -> None:
    own = draws()
    normal = [own.normal() for _ in range(20_000)]
    assert abs(statistics.fmean(normal)) < 0.03
    assert statistics.stdev(normal) == pytest.approx(1, rel=0.03)
    waits = [own.exponential(3.0) for _ in range(20_000)]
    assert statistics.fmean(waits) == pytest.approx(3, rel=0.03)
    assert statistics.stdev(waits) == pytest.approx(3, rel=0.05)


def test_lengths_keep_their_mean_and_limits() -> None:
    own = draws()
    free = [draw_length(Lognormal(mean=200, cv=0.5), own) for _ in range(20_000)]
    assert statistics.fmean(free) == pytest.approx(200, rel=0.02)
    assert statistics.stdev(free) == pytest.approx(100, rel=0.05)
    cut = [draw_length(Lognormal(mean=200, cv=3.0, at_least=50, at_most=300), own) for _ in range(1000)]
    assert (min(cut), max(cut)) == (50, 300)
    even = [draw_length(Uniform(at_least=2, at_most=4), own) for _ in range(300)]
    assert set(even) == {2, 3, 4}
    assert draw_length(7, own) == 7
    wild = [draw_length(Lognormal(mean=1, cv=100), own) for _ in range(1000)]
    assert min(wild) == 1


def test_zipf_weighs_by_rank() -> None:
    own, zipf = draws(), Zipf(4, 1.0)
    counts = [0] * 4
    for _ in range(25_000):
        counts[zipf.draw(own)] += 1
    assert [count / 12_000 for count in counts] == pytest.approx([1, 1 / 2, 1 / 3, 1 / 4], rel=0.1)
    even = [Zipf(3, 0.0).draw(own) for _ in range(3000)]
    assert [even.count(rank) / 1000 for rank in range(3)] == pytest.approx([1, 1, 1], rel=0.15)


def test_all_different_ranks_can_be_drawn_however_steep_they_are() -> None:
    own = draws()
    assert sorted(Zipf(50, 10.0).draw_different(50, own)) == list(range(50))
    assert sorted(Zipf(3, 0.0).draw_different(99, own)) == [0, 1, 2]
    assert sorted(Zipf(400, 10.0).draw_different(400, own)) == list(range(400))


def test_mix_tells_sequences_apart() -> None:
    names = {mix(*parts) for parts in [(), (0,), (0, 0), (1,), (0, 1), (1, 0), (2**64 - 1,), (2**63,)]}
    assert len(names) == 8
