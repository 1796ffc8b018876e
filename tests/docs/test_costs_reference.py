"""The page of costs has every key of the code, with its default, and every profile."""

from __future__ import annotations

import re
from pathlib import Path

import msgspec
import pytest

from lmcache_kit.sim.costs import CodecCosts, Costs, EngineCosts, TierCosts
from lmcache_kit.sim.profiles import DEFAULT_CODECS, DEFAULT_TIERS, PROFILES

PAGE = (Path(__file__).parents[2] / "docs" / "reference" / "costs.md").read_text()
ROWS = {
    name: row
    for row in PAGE.splitlines()
    if row.startswith("| `")
    for name in re.findall(r"`([^`]+)`", row.split(" | ")[0])
}


def number(value: float) -> str:
    return f"{value:.10f}".rstrip("0").rstrip(".")


@pytest.mark.parametrize("kind", [Costs, EngineCosts, CodecCosts, TierCosts], ids=lambda kind: kind.__name__)
def test_every_key_has_a_row(kind):
    assert [field.name for field in msgspec.structs.fields(kind) if field.name not in ROWS] == []


@pytest.mark.parametrize("kind", [Costs, CodecCosts, TierCosts], ids=lambda kind: kind.__name__)
def test_the_defaults_are_those_of_the_code(kind):
    for field in msgspec.structs.fields(kind):
        if isinstance(field.default, int | float):
            assert ROWS[field.name].split(" | ")[1] == number(field.default)


def test_the_figures_that_come_with_the_code():
    for method, facts in DEFAULT_CODECS.items():
        figures = [facts[key] for key in ("ratio", "encode_gbps", "decode_gbps")]
        assert ROWS[method] == f"| `{method}` | {' | '.join(map(number, figures))} |"
    for location, facts in DEFAULT_TIERS.items():
        figures = [facts[key] for key in ("read_gbps", "write_gbps", "read_seconds", "write_seconds")]
        assert ROWS[location] == f"| `{location}` | {' | '.join(map(number, figures))} |"
    assert set(PROFILES) <= set(ROWS)
