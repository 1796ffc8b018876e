"""The same scenario on both clocks takes the same decisions, event for event."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
SCENARIOS = [
    *sorted((ROOT / "tests/equivalence").glob("*.yaml")),
    ROOT / "scenarios/synthetic.yaml",
    ROOT / "scenarios/tiers.yaml",
]


def lmcache_kit(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "lmcache_kit", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=110)


@pytest.mark.parametrize("scenario", SCENARIOS, ids=lambda path: path.stem)
def test_both_clocks_decide_alike(scenario, tmp_path):
    for clock in ("wall", "virtual"):
        # Expectations of times may be missed under made-up costs; the run itself must work.
        done = lmcache_kit("run", scenario, "--clock", clock, "--output-dir", tmp_path / clock)
        assert (tmp_path / clock / "events.jsonl").exists(), done.stderr
        assert "error:" not in done.stderr, done.stderr
    compared = lmcache_kit("compare", tmp_path / "wall", tmp_path / "virtual")
    assert compared.returncode == 0, compared.stdout + compared.stderr
    assert compared.stdout.startswith("equal")
