"""Figures of ``plugins check`` for transports, engines, eviction and placement policies."""

from __future__ import annotations

import numpy as np
import pytest

from lmcache_kit.builtin.eviction.lru import LRU
from lmcache_kit.contracts import Engine, EnginePlugin, TransportPlugin
from lmcache_kit.errors import UnavailableError
from lmcache_kit.plugins import registry
from lmcache_kit.testing.comparison import compare
from lmcache_kit.testing.comparison.eviction import hit_rate, requests


def figures(name: str, **options) -> dict[str, dict[str, float | int | str | None]]:
    (entry,) = registry().find(name)
    comparison = compare(entry.record, registry().options(entry.record, options), seconds=0.02)
    assert [row.problem for row in comparison.rows] == [None] * len(comparison.rows)
    assert comparison.rows[0].plugin == name
    assert {tuple(row.figures) for row in comparison.rows} == {tuple(comparison.columns())}
    return {row.plugin: row.figures for row in comparison.rows}


def test_hit_rates_of_requests_whose_answer_is_known():
    # Each of 100 objects is missed once, and all of them fit.
    assert hit_rate(LRU(), [str(number % 100) for number in range(1000)]) == 0.9
    # A loop one longer than the tier is the worst that can happen to lru.
    assert hit_rate(LRU(), [str(number % 201) for number in range(2000)]) == 0
    assert hit_rate(LRU(), [str(number % 200) for number in range(2000)]) == 0.9


def test_made_up_requests_are_the_same_every_time_and_tell_policies_apart():
    first, second = (requests(np.random.default_rng(7)) for _ in range(2))
    assert first == second
    rows = figures("arc")
    assert rows["arc"]["hits, popular and scans"] > 1.2 * rows["lru"]["hits, popular and scans"]
    assert rows["lru"]["hits, loop"] == 0
    assert rows["mru"]["hits, loop"] > 0.5
    assert all(row["us/request"] > 0 for row in rows.values())


def test_decisions_of_placement_policies():
    rows = figures("demote")
    assert {name: list(row.values()) for name, row in rows.items()} == {
        "demote": ["fast", "nowhere", "moved to fast", "moved to middle"],
        "broadcast": ["fast, middle, slow", "nowhere", "copied to fast", "dropped"],
        "write_back": ["fast", "middle", "copied to fast", "moved to middle"],
    }


def test_speed_of_transports():
    rows = figures("inproc")
    assert set(rows) == {"inproc", "shm", "zmq"}
    assert all(value > 0 for row in rows.values() for value in row.values())


def test_speed_of_an_engine_whose_speed_is_known():
    row = figures("synthetic", prefill_seconds_per_token=1e-4, decode_seconds=0.005, num_layers=1, head_dim=8)
    assert row["synthetic"]["KV bytes/token"] == 2 * 2 * 8 * 2
    # Sleeping takes as long as is asked for, or longer.
    assert 0 < row["synthetic"]["prefill tokens/s"] <= 1.05e4
    assert 0 < row["synthetic"]["decode tokens/s"] <= 210


def test_an_engine_with_a_short_context_is_measured():
    assert figures("synthetic", max_model_len=40)["synthetic"]["prefill tokens/s"] > 0


def test_a_plugin_that_cannot_be_used_has_a_reason_beside_the_figures_of_others():
    class Server:
        async def listen(self, address, handler):
            raise UnavailableError("the kitchen is closed")

    record = TransportPlugin(name="server", summary="x", scheme="server", factory=lambda options: Server())
    rows = compare(record, record.options(), seconds=0.02).rows
    assert [(row.plugin, row.builtin, row.problem) for row in rows] == [
        ("server", False, "the kitchen is closed"),
        ("inproc", True, None),
        ("shm", True, None),
        ("zmq", True, None),
    ]


def test_an_engine_is_closed_when_measuring_it_fails():
    closed = []

    class Broken(Engine):
        info = tokenize = detokenize = token_text = start = property(lambda self: 1 / 0)

        def close(self):
            closed.append(True)

    record = EnginePlugin(name="broken", summary="x", factory=lambda options, model: Broken())
    rows = compare(record, record.options(), seconds=0.02).rows
    assert rows[0].problem == "ZeroDivisionError: division by zero"
    assert closed == [True]


@pytest.mark.parametrize("name", ["zmq", "lru", "broadcast", "synthetic"])
def test_a_built_in_plugin_is_not_compared_with_itself(name):
    (entry,) = registry().find(name)
    rows = compare(entry.record, registry().options(entry.record, {}), seconds=0.02).rows
    assert [row.plugin for row in rows].count(name) == 1
    assert all(row.builtin for row in rows)
