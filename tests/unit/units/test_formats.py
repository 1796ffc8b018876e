from __future__ import annotations

import pytest

from lmcache_kit.units import format_count, format_duration


@pytest.mark.parametrize(
    ("count", "things", "text"),
    [
        (0, "jobs", "0 jobs"),
        (1, "jobs", "1 job"),
        (2, "misses", "2 misses"),
        (1, "misses", "1 miss"),
        (1, "prefixes", "1 prefix"),
        (1, "instances", "1 instance"),
        (1, "verified", "1 verified"),
        (12345, "requests", "12,345 requests"),
    ],
)
def test_counts(count: int, things: str, text: str) -> None:
    assert format_count(count, things) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.0, "0 s"),
        (1.5, "1.5 s"),
        (0.0451, "45.1 ms"),
        (2e-6, "2 µs"),
        (5e-10, "0.5 ns"),
        (123.456, "123 s"),
        (-0.25, "-250 ms"),
    ],
)
def test_durations(seconds: float, text: str) -> None:
    assert format_duration(seconds) == text
