"""The scenario compress_cachegen, with an engine that boots in a moment: each instance gets options of its own."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from lmcache_kit.cli import main

pytest.importorskip("lmcache_kit_cachegen", reason="the scenario compresses with this plugin")

SMALLER = {
    "instance_defaults.engine": "{kind: synthetic, options: {num_layers: 4, num_kv_heads: 2, head_dim: 64}}",
    "workloads.serve_fine.generate.groups": "1",
    "workloads.serve_fine.generate.passage_words": "60",
    # The text of this engine follows from every bit, so any lossy method changes it.
    "expect": '{serve_middle.text_equal: true, read_coarse.hit_rate: ">= 0.99"}',
}


def test_levels_reach_their_instances(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    settings = [argument for path, value in SMALLER.items() for argument in ("--set", f"{path}={value}")]
    status = main(["run", "compress_cachegen", "--output-dir", str(tmp_path / "out"), *settings])
    assert status == 0, capsys.readouterr().err
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    results = {result["name"]: result for result in report["results"]}
    ratios = [results[f"compress_{which}"]["ratio"] for which in ("fine", "middle", "coarse", "lmcache")]
    assert ratios[0] < ratios[1] < ratios[2]
    assert len(set(ratios)) == 4
    assert set(results["read_fine"]["chunks_read_by_codec"]) == {"cachegen"}
