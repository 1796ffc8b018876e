from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml

MakeRun = Callable[..., Path]


@pytest.fixture
def make_run(tmp_path: Path) -> MakeRun:
    """Makes the output directory of a run from its events; ``report`` and ``scenario`` change what is written."""

    def make(
        name: str,
        events: Sequence[dict[str, Any]],
        *,
        report: dict[str, Any] | None = None,
        scenario: dict[str, Any] | None = None,
    ) -> Path:
        folder = tmp_path / name
        folder.mkdir()
        facts = {"schema_version": 1, "scenario": "made", "clock": "wall", "seed": 1, "status": "passed", "results": []}
        (folder / "report.json").write_text(json.dumps(facts | (report or {})))
        (folder / "scenario.yaml").write_text(yaml.safe_dump({"name": "made", "clock": "wall"} | (scenario or {})))
        lines = ({"time": at / 10, "workload": "w", **event} for at, event in enumerate(events))
        (folder / "events.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
        return folder

    return make


def decision(event: str, key: str, *, instance: str = "a", location: str = "cpu", **more: Any) -> dict[str, Any]:
    return {"event": f"cache_{event}", "instance": instance, "location": location, "key": key, "cause": "", **more}


def request(position: int | None, **facts: Any) -> dict[str, Any]:
    known = {"instance": "a", "prompt_tokens": 100, "completion_tokens": 4, "cached_tokens": 60}
    return {"event": "request", "position": position, "ttft_seconds": 0.5, "seconds": 1.0, **known, **facts}


@pytest.fixture
def decide() -> Callable[..., dict[str, Any]]:
    """One line of a cache decision."""
    return decision


@pytest.fixture
def ask() -> Callable[..., dict[str, Any]]:
    """One line of a request."""
    return request
