"""The workload `reuse` and the scenario that sweeps its capacity."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from lmcache_kit.cli import main
from lmcache_kit.errors import LMCacheKitError

ROOT = Path(__file__).parents[3]
DATA = ROOT / "scenarios" / "data" / "traces"
REAL = Path(os.environ.get("LMCACHE_KIT_TRACE", "../shared/traces/conversation_trace.jsonl"))


async def test_results_are_what_a_replay_finds(fleet: Any) -> None:
    values = await fleet.run("reuse", "reuse", path=str(DATA / "conversations.jsonl"), capacity=100)
    assert values["counts"] == {"requests": 144, "blocks": 1_555}
    assert (values["distinct_blocks"], values["resident_blocks"]) == (519, 100)
    assert 0 < values["block_hit_rate"] < values["infinite"]["block_hit_rate"]
    assert values["lmcache_token_hit_rate"] <= values["token_hit_rate"]
    assert values["first_admission"]["requests"] == 144
    assert fleet.events == []


async def test_without_a_capacity_nothing_leaves(fleet: Any) -> None:
    values = await fleet.run("reuse", "reuse", path=str(DATA / "lookups"), reader="lmcache_lookup")
    assert values["evictions"] == 0
    assert values["block_hit_rate"] == values["infinite"]["block_hit_rate"]
    assert values["first_admission"]["retries"] == 4


async def test_options_reach_the_reader_and_the_policy_counts(fleet: Any, tmp_path: Path) -> None:
    rates = {}
    for policy in ("lru", "fifo"):
        values = await fleet.run(
            f"reuse_{policy}",
            "reuse",
            path=str(DATA / "agents"),
            reader="kv_cache_tester",
            reader_options={"start_gap_seconds": 30.0},
            capacity=20,
            policy=policy,
            limit=20,
        )
        assert values["counts"]["requests"] == 20
        rates[policy] = values["block_hit_rate"]
    assert rates["lru"] != rates["fifo"]


async def test_without_prefixes_there_is_no_rate(fleet: Any) -> None:
    values = await fleet.run("reuse", "reuse", path=str(DATA / "azure.csv"), reader="azure", capacity=5)
    assert values["block_hit_rate"] is None
    assert values["tokens"] > 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"path": "gone.jsonl"}, "gone.jsonl cannot be read"),
        ({"path": "x", "reader": "moncake"}, "unknown trace plugin 'moncake'"),
        ({"path": "x", "policy": "lruu"}, "unknown eviction plugin 'lruu'"),
        ({"path": "x", "capacity": 0}, "capacity"),
        ({"path": "x", "policy_options": {"size": 3}}, "no option 'size'"),
        ({"path": "x", "reader_options": {"size": 3}}, "no option 'size'"),
    ],
)
async def test_what_is_wrong_is_named(fleet: Any, options: dict[str, Any], message: str) -> None:
    with pytest.raises(LMCacheKitError, match=message):
        await fleet.run("reuse", "reuse", **options)


def test_the_scenario_runs_on_the_virtual_clock(tmp_path: Path) -> None:
    scenario = str(ROOT / "scenarios" / "capacity_sweep.yaml")
    for name in ("a", "b"):
        assert main(["run", scenario, "--output-dir", str(tmp_path / name)]) == 0
    reports = [json.loads((tmp_path / name / "report.json").read_text()) for name in ("a", "b")]
    assert reports[0]["clock"] == "virtual"
    assert reports[0]["results"] == reports[1]["results"]


@pytest.mark.skipif(not REAL.exists(), reason="the Mooncake conversation trace is not on this machine")
def test_a_sweep_gives_the_reference_table(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["sweep", str(ROOT / "scenarios" / "capacity_sweep.yaml"), "--jobs", "1", "--format", "json"]
    words += ["--set", f"workloads.reuse.path={REAL.resolve()}", "--output-dir", str(tmp_path / "out")]
    words += ["--vary", "workloads.reuse.capacity=30000,null"]
    assert main(words) == 0
    cells = json.loads(capsys.readouterr().out)["cells"]
    rates = [round(cell["metrics"]["reuse.block_hit_rate"], 4) for cell in cells]
    assert rates == [0.3257, 0.3664]
