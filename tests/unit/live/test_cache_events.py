from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from lmcache_kit.clock import ManualClock
from lmcache_kit.errors import ConfigError
from lmcache_kit.instance.core.events import CacheEvent
from lmcache_kit.instance.event_log import CacheEventLog
from lmcache_kit.kv.keys import ChunkKey
from lmcache_kit.live.cache_events import merge_cache_events
from lmcache_kit.live.events import EventLog

KEY = ChunkKey("model", -255)


def admit(time: float) -> CacheEvent:
    return CacheEvent(time, "admit", "LocalCPUBackend", KEY, 10, "store")


def read(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_a_line_is_there_when_the_call_returns(tmp_path: Path) -> None:
    path = tmp_path / "x.jsonl"
    path.write_text("from an earlier run\n")
    with CacheEventLog(path) as log:
        log(admit(3.5))
        assert read(path) == [
            {
                "time": 3.5,
                "event": "cache_admit",
                "location": "LocalCPUBackend",
                "key": "model.nff",
                "bytes": 10,
                "cause": "store",
            }
        ]
    log(admit(4.0))
    assert len(read(path)) == 1, "closed"


def test_a_file_that_cannot_be_opened_is_a_configuration_error(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"event_log: .*cannot be written"):
        CacheEventLog(tmp_path / "no" / "folder")


def test_a_full_disk_ends_the_log_and_not_the_cache(caplog: pytest.LogCaptureFixture) -> None:
    with CacheEventLog(Path("/dev/full")) as log:
        log(admit(1.0))
        log(admit(2.0))
    assert caplog.text.count("is given up") == 1


def test_events_are_merged_by_time_and_get_their_workload(tmp_path: Path) -> None:
    clock = ManualClock(100.0)
    run = tmp_path / "events.jsonl"
    with EventLog(run, clock) as events:
        clock.advance(1)
        events.write("workload_started", workload="serve")
        clock.advance(2)
        events.sink("serve")("request", tokens=3)
        clock.advance(1)
        events.write("workload_finished", workload="serve")
    for name, times in (("a", [100.5, 102.0]), ("b", [101.5, 104.5])):
        with CacheEventLog(tmp_path / name) as log:
            for time in times:
                log(admit(time))
    with (tmp_path / "b").open("ab") as torn:
        torn.write(b'{"time": 105.0, "eve')
    paths = {name: tmp_path / name for name in ("a", "b", "never_started")}
    merge_cache_events(run, paths, start=events.start)
    assert [(event["time"], event["event"], event["workload"], event.get("instance")) for event in read(run)] == [
        (0.5, "cache_admit", None, "a"),
        (1.0, "workload_started", "serve", None),
        (1.5, "cache_admit", "serve", "b"),
        (2.0, "cache_admit", "serve", "a"),
        (3.0, "request", "serve", None),
        (4.0, "workload_finished", "serve", None),
        (4.5, "cache_admit", None, "b"),
    ]
    assert not run.with_suffix(".merged").exists()
