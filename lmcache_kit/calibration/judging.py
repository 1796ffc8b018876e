"""What a virtual run with fitted costs is wrong by, held against the wall run of the same scenario."""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path
from typing import Any

import msgspec

from lmcache_kit.analysis import compare_runs
from lmcache_kit.analysis.events import Event, read_events
from lmcache_kit.analysis.requests import place_of
from lmcache_kit.report import read_report

__all__ = ["judge", "request_pairs"]

Facts = dict[str, Any]


def judge(wall: Path, virtual: Path) -> Facts:
    """The errors of a virtual run against a wall run, from their output directories.

    ``requests``: per workload with requests, and over all with ``workload`` None: ``hit_rate_points``; of the time to
    first token and of the whole latency ``mape`` and the error of p50, p90 and p99, in percent. ``workloads``: seconds
    of each in both. ``jobs``: seconds of the jobs of each workload that has some, together, in both.
    ``decisions_equal``: whether both took the same cache decisions in the same order. Raises ConfigError.
    """
    compared = compare_runs(wall, virtual, with_times=True)
    times = compared["times"]["requests"]
    if len(times) == 1:
        times = [*times, {**times[0], "workload": None}]
    return {
        "decisions_equal": compared["divergence"] is None and compared["renamed"] is None,
        "requests_matched": compared["requests"]["matched"],
        "requests_only_one": compared["requests"]["only_a"] + compared["requests"]["only_b"],
        "requests": [_of(each) for each in times],
        "workloads": _pairs(_seconds(wall), _seconds(virtual)),
        "jobs": _pairs(_job_seconds(wall), _job_seconds(virtual)),
    }


def request_pairs(wall: Path, virtual: Path) -> list[Facts]:
    """The requests that both runs answered: tokens, and seconds to the first token and to the end in both."""
    others = {(line.workload, place_of(line)): line for line in _requests(virtual)}
    found = []
    for mine in _requests(wall):
        its = others.get((mine.workload, place_of(mine)))
        if its is not None and mine.ttft_seconds and its.ttft_seconds:
            found.append(
                {
                    "workload": mine.workload,
                    "position": mine.position,
                    "prompt_tokens": mine.prompt_tokens,
                    "cached_tokens": [mine.cached_tokens, its.cached_tokens],
                    "ttft_seconds": [mine.ttft_seconds, its.ttft_seconds],
                    "seconds": [mine.seconds, its.seconds],
                }
            )
    return found


def _requests(directory: Path) -> list[Event]:
    return [event for event in read_events(directory / "events.jsonl") if event.event == "request"]


def _of(each: Facts) -> Facts:
    return {
        "workload": each["workload"],
        "requests": each["requests"],
        "hit_rate": each["hit_rate"]["a"],
        "hit_rate_points": each["hit_rate"]["points"],
        **{name: _errors(each[key]) for name, key in (("ttft", "ttft"), ("latency", "latency"))},
    }


def _errors(found: Facts | None) -> Facts | None:
    if found is None:
        return None
    return {"mape": found["mape"], **{key: found["percentile_error"][key] for key in ("p50", "p90", "p99")}}


def _pairs(wall: dict[str, float], virtual: dict[str, float]) -> list[Facts]:
    return [
        {
            "workload": name,
            "wall_seconds": seconds,
            "virtual_seconds": virtual.get(name),
            "error": 100 * (virtual[name] - seconds) / seconds if seconds and name in virtual else None,
        }
        for name, seconds in wall.items()
    ]


def _seconds(directory: Path) -> dict[str, float]:
    return {
        result["name"]: result["seconds"]
        for result in read_report(directory / "report.json")["results"]
        if result.get("seconds") is not None
    }


def _job_seconds(directory: Path) -> dict[str, float]:
    found: dict[str, float] = defaultdict(float)
    decoder = msgspec.json.Decoder(_JobLine)
    with (directory / "events.jsonl").open("rb") as lines:
        for line in lines:
            event = decoder.decode(line)
            if event.job is not None and event.workload is not None:
                found[event.workload] += event.job.seconds
    return dict(found)


class _Job(msgspec.Struct, frozen=True):
    seconds: float = 0.0


class _JobLine(msgspec.Struct, frozen=True):
    event: str
    workload: str | None = None
    job: _Job | None = None
