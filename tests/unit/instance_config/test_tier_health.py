"""Health of tiers: what backends say reaches the outside, and one that hangs is neither waited for nor asked twice."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import Any

import pytest

from lmcache_kit.builtin.eviction.lru import LRU
from lmcache_kit.builtin.storage.memory import MemoryBackend
from lmcache_kit.errors import UnavailableError
from lmcache_kit.instance.core.tiers import Tier
from lmcache_kit.instance.tier_health import TierHealth


class Telling(MemoryBackend):
    def __init__(self, answer: Any) -> None:
        super().__init__()
        self.answer = answer
        self.asked = 0

    def health(self) -> dict[str, Any]:
        self.asked += 1
        if isinstance(self.answer, Exception):
            raise self.answer
        return self.answer() if callable(self.answer) else self.answer


def tier(location: str, backend: MemoryBackend) -> Tier:
    return Tier(
        location=location,
        backend=backend,
        capacity_bytes=None,
        policy=LRU(),
        inline=True,
        persistent=False,
        shared=False,
    )


def stats(*locations: str, **changes: Any) -> dict[str, dict[str, Any]]:
    return {location: {"available": True, "last_error": None, **changes} for location in locations}


async def test_backends_speak_for_themselves(caplog: pytest.LogCaptureFixture) -> None:
    down = Telling(UnavailableError("nobody home", hint="ring twice"))
    tiers = [tier("good", Telling({"free_bytes": 7})), tier("down", down), tier("odd", Telling(KeyError("x")))]
    health = TierHealth(tiers)
    expected = {
        "good": {"available": True, "free_bytes": 7},
        "down": {"available": False, "error": "nobody home (ring twice)"},
        "odd": {"available": False, "error": "KeyError: 'x'"},
    }
    for _ in range(3):
        assert await health.facts(stats("good", "down", "odd")) == expected
    assert [record.message for record in caplog.records if "down" in record.message] == [
        "down is not healthy: nobody home (ring twice)"
    ], "it is told once"
    down.answer = {}
    assert (await health.facts(stats("good", "down", "odd")))["down"] == {"available": True}
    assert caplog.records[-1].message == "down is back"


async def test_the_store_speaks_for_those_who_cannot() -> None:
    health = TierHealth([tier("mute", MemoryBackend())])
    assert await health.facts(stats("mute")) == {"mute": {"available": True}}
    failed = stats("mute", available=False, last_error="disk on fire")
    assert await health.facts(failed) == {"mute": {"available": False, "error": "disk on fire"}}


@pytest.fixture
def gate() -> Iterator[threading.Event]:
    event = threading.Event()
    yield event
    event.set()


async def test_a_backend_that_hangs_is_not_waited_for_nor_asked_again(gate: threading.Event) -> None:
    hanging = Telling(lambda: {"waited": gate.wait(60)})
    health = TierHealth([tier("slow", hanging), tier("good", Telling({}))], seconds=0.05)
    for _ in range(3):
        assert await health.facts(stats("slow", "good")) == {
            "slow": {"available": False, "error": "no answer within 0.05 s"},
            "good": {"available": True},
        }
    assert hanging.asked == 1
    gate.set()
    await health._asked["slow"]
    assert (await health.facts(stats("slow", "good")))["slow"] == {"available": True, "waited": True}
