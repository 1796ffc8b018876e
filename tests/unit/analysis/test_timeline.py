from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import pytest

from lmcache_kit.analysis.events import Event
from lmcache_kit.analysis.timeline import timeline, write_timeline_file
from lmcache_kit.errors import ConfigError


def entries(*lines: dict[str, Any]) -> list[dict[str, Any]]:
    return list(timeline(msgspec.convert({"time": 0.0, **line}, Event) for line in lines))


def slices(*lines: dict[str, Any]) -> dict[str, tuple[float, float]]:
    return {each["name"]: (each["ts"], each["dur"]) for each in entries(*lines) if each["ph"] == "X"}


def test_a_request_and_its_parts_in_microseconds() -> None:
    cache = {"queue_seconds": 0.1, "load_seconds": 0.2, "prefill_seconds": 0.3}
    line = {"event": "request", "time": 10.0, "workload": "w", "position": 3, "instance": "a"}
    found = slices(line | {"seconds": 2.0, "queue_seconds": 0.5, "ttft_seconds": 1.25, "cache": cache})
    assert found == {
        "w 3": (8.5e6, 1.5e6),
        "queue": (8.5e6, 1e5),
        "load": (8.6e6, 2e5),
        "prefill": (8.8e6, 3e5),
        "decode": (9.25e6, 7.5e5),
    }


def test_parts_that_claim_more_than_there_was_are_cut() -> None:
    cache = {"queue_seconds": 9.0, "load_seconds": 9.0, "prefill_seconds": 9.0}
    line = {"event": "request", "time": 10.0, "position": 0, "instance": "a", "seconds": 2.0, "ttft_seconds": 1.0}
    found = slices(line | {"cache": cache})
    assert found == {"request 0": (8e6, 2e6), "queue": (8e6, 1e6), "decode": (9e6, 1e6)}


def test_a_time_before_the_run_began_is_its_begin() -> None:
    assert slices({"event": "lookup", "time": 0.5, "seconds": 2.0, "instance": "a"}) == {"lookup": (0.0, 5e5)}


def test_processes_are_instances_and_threads_their_tiers() -> None:
    decision = {"event": "cache_admit", "instance": "a", "location": "cpu", "key": "x", "bytes": 5, "cause": "store"}
    found = entries(decision, decision | {"location": "disk"}, decision | {"instance": "b"})
    names = {(each["name"], each["args"]["name"]) for each in found if "name" in each.get("args", {})}
    assert names == {
        ("process_name", "run"),
        ("process_name", "a"),
        ("process_name", "b"),
        ("thread_name", "cpu"),
        ("thread_name", "disk"),
    }
    (first, *_) = [each for each in found if each["ph"] == "i"]
    assert (first["name"], first["s"], first["args"]["cause"]) == ("admit", "t", "store")


def test_faults_go_through_all_processes() -> None:
    (fault,) = [each for each in entries({"event": "fault", "what": "kill", "target": "a"}) if each["ph"] == "i"]
    assert (fault["name"], fault["s"], fault["args"]) == ("kill", "g", {"what": "kill", "target": "a"})


def test_a_request_that_had_no_answer_says_why() -> None:
    line = {"event": "request", "time": 1.0, "position": 0, "instance": None, "seconds": 1.0, "error": "gone"}
    (found,) = [each for each in entries(line) if each["ph"] == "X"]
    assert found["args"]["error"] == "gone"


def test_files_that_cannot_be_used(tmp_path: Path) -> None:
    events = tmp_path / "events.jsonl"
    with pytest.raises(ConfigError, match=r"events\.jsonl cannot be read"):
        write_timeline_file(events, tmp_path / "trace.json")
    events.write_text("")
    with pytest.raises(ConfigError, match="cannot be written"):
        write_timeline_file(events, tmp_path / "no" / "trace.json")
