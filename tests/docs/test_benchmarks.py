"""The page of benchmarks shows what its raw results say."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

PAGES = Path(__file__).parents[2] / "docs" / "benchmarks"
FILES = sorted(PAGES.glob("*.json"))


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_recorded_results_are_whole_runs(path):
    document = json.loads(path.read_text())
    assert document["schema_version"] == 1
    assert document["quick"] is False
    assert document["load_average"]["before"]
    assert all(facts["count"] >= 5 for result in document["results"] for facts in result["metrics"].values())
    assert path.name in (PAGES / "README.md").read_text()


@pytest.mark.parametrize("path", [path for path in FILES if path.stem.startswith("controller")], ids=lambda p: p.stem)
def test_the_tables_of_the_controllers_show_the_medians(path):
    page = (PAGES / "README.md").read_text()
    results = json.loads(path.read_text())["results"]
    assert {result["side"] for result in results} == {"ours", "peer"}
    rates = {"lookup": "requests_per_second", "admit": "admits_per_second"}
    rows: dict[tuple[str, int], list[float]] = {}
    for result in sorted(results, key=lambda result: result["side"]):
        rate = result["metrics"][rates[result["name"]]]["median"]
        rows.setdefault((result["name"], result["size"]), []).append(rate)
    for ours, peer in rows.values():
        assert f"| {ours:,.0f} /s | {peer:,.0f} /s | {ours / peer:.2f} |" in page


def test_the_tables_of_codecs_show_the_medians():
    page = (PAGES / "README.md").read_text()
    for result in json.loads((PAGES / "codecs.json").read_text())["results"]:
        speed = result["raw_bytes"] / 1e6 / result["metrics"]["decode_seconds"]["median"]
        shown = f"{speed:,.0f}" if speed >= 100 else f"{speed:.3g}"
        (row,) = [line for line in page.splitlines() if line.startswith(f"| {result['shape']} | {result['name']} |")]
        assert row.endswith(f"| {shown} |")
