from __future__ import annotations

from typing import Any

import pytest


@pytest.fixture
def report() -> dict[str, Any]:
    """A report with results of several shapes; some texts try to break out of their cell."""
    latency = {"mean": 0.02, "min": 0.01, "p50": 0.015, "p90": 0.03, "p99": 0.04, "max": 0.05}
    return {
        "schema_version": 1,
        "scenario": "made_up",
        "summary": "<script>alert(1)</script> & more",
        "clock": "wall",
        "seed": 3,
        "status": "missed",
        "error": None,
        "started_unix": 1_700_000_000.5,
        "seconds": 12.25,
        "boot_seconds": 3.0,
        "versions": {"lmcache-kit": "0.1", "python": "3.11"},
        "plugins": [{"kind": "engine", "name": "synthetic", "distribution": "lmcache-kit", "version": "0.1"}],
        "host": {"system": "Linux", "cpus": 2, "memory_bytes": 2**33},
        "results": [
            {
                "name": "serve",
                "kind": "completions",
                "counts": {"requests": 4, "hits": 1},
                "tokens": 12345,
                "bytes_before": 3 * 2**20,
                "bytes_after": 2**20,
                "ratio": 3.0,
                "seconds": 1.5,
                "latency_seconds": latency,
                "ttft_seconds": latency,
                "ttft_cold_seconds": {"p50": 0.5},
                "text_equal_count": 3,
                "notes": ["[red]not markup[/red]", "<b>not bold</b>"],
            },
            {
                "name": "look",
                "kind": "lookup",
                "counts": {},
                "tokens": 0,
                "bytes_before": None,
                "bytes_after": None,
                "ratio": None,
                "seconds": 0.0,
                "latency_seconds": None,
            },
        ],
        "expectations": [
            {"path": "serve.ratio", "wanted": ">= 4", "got": 3.0, "met": False, "problem": None},
            {"path": "look.gone", "wanted": True, "got": None, "met": False, "problem": "look has no 'gone' [x]"},
        ],
    }
