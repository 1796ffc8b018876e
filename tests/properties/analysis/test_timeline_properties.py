"""The rules of Chrome's trace event format, checked on time lines of made-up runs."""

from __future__ import annotations

import io
import itertools
import json
from collections import defaultdict
from typing import Any

import msgspec
from hypothesis import given, settings
from hypothesis import strategies as st

from lmcache_kit.analysis.events import Event
from lmcache_kit.analysis.timeline import timeline, write_timeline
from lmcache_kit.analysis.tracks import Tracks

seconds = st.floats(0.0, 5.0, allow_nan=False)
optional = st.none() | seconds
instances = st.sampled_from(["a", "b", None])
requests = st.fixed_dictionaries(
    {"event": st.just("request"), "instance": instances, "seconds": optional},
    optional={
        "workload": st.sampled_from(["w", "v"]),
        "position": st.integers(0, 9),
        "ttft_seconds": optional,
        "queue_seconds": optional,
        "error": st.just("gone"),
        "cache": st.fixed_dictionaries(
            {}, optional={f"{part}_seconds": optional for part in ("queue", "load", "prefill")}
        ),
    },
)
decisions = st.fixed_dictionaries(
    {
        "event": st.sampled_from([f"cache_{each}" for each in ("hit", "miss", "admit", "evict", "rewrite", "pin")]),
        "instance": st.sampled_from(["a", "b"]),
        "location": st.sampled_from(["cpu", "disk", ""]),
        "key": st.sampled_from("xyz"),
        "bytes": st.integers(0, 99),
    }
)
others = st.fixed_dictionaries(
    {"event": st.sampled_from(["workload_started", "workload_finished", "lookup", "fault", "anything"])},
    optional={"seconds": optional, "workload": st.just("w"), "instance": instances, "what": st.just("kill")},
)


@st.composite
def runs(draw: st.DrawFn) -> list[Event]:
    lines = draw(st.lists(requests | decisions | others, max_size=40))
    times = sorted(draw(st.lists(st.floats(0.0, 10.0), min_size=len(lines), max_size=len(lines))))
    return [msgspec.convert({"time": time, **line}, Event) for time, line in zip(times, lines, strict=True)]


def nanoseconds(microseconds: float) -> int:
    return round(microseconds * 1000)


@settings(max_examples=200, deadline=None)
@given(events=runs())
def test_the_time_line_keeps_the_format_s_rules(events: list[Event]) -> None:
    file = io.BytesIO()
    count = write_timeline(events, file)
    document = json.loads(file.getvalue())
    assert document["displayTimeUnit"] == "ms"
    entries: list[dict[str, Any]] = document["traceEvents"]
    assert len(entries) == count
    processes: dict[int, str] = {}
    threads: dict[tuple[int, int], str] = {}
    slices: dict[tuple[int, int], list[tuple[int, int]]] = defaultdict(list)
    for entry in entries:
        assert {"ph", "name", "pid", "ts"} <= entry.keys()
        assert entry["ts"] >= 0
        assert isinstance(entry["pid"], int)
        if entry["ph"] == "M":
            if entry["name"] == "process_name":
                processes[entry["pid"]] = entry["args"]["name"]
            elif entry["name"] == "thread_name":
                threads[entry["pid"], entry["tid"]] = entry["args"]["name"]
            continue
        assert entry["pid"] in processes, "named before it is used"
        if entry["ph"] == "C":
            assert entry["args"]["bytes"] >= 0
            continue
        assert (entry["pid"], entry["tid"]) in threads, "named before it is used"
        if entry["ph"] == "i":
            assert entry["s"] in ("t", "g")
        else:
            assert entry["ph"] == "X"
            start = nanoseconds(entry["ts"])
            slices[entry["pid"], entry["tid"]].append((start, start + nanoseconds(entry["dur"])))
    assert len(set(processes.values())) == len(processes)
    assert len(set(threads)) == len({tid for _, tid in threads}), "thread ids are not shared between processes"
    for spans in slices.values():
        # Of one thread: apart, or one within the other, and then the outer one first.
        open_until: list[int] = []
        for start, end in sorted(spans, key=lambda span: (span[0], -span[1])):
            while open_until and open_until[-1] <= start:
                open_until.pop()
            assert end >= start
            assert not open_until or end <= open_until[-1]
            open_until.append(end)
    assert sum(entry.get("cat") == "cache" for entry in entries) == sum(event.is_decision for event in events)


@settings(max_examples=100, deadline=None)
@given(events=runs())
def test_bytes_of_a_tier_are_those_of_its_chunks(events: list[Event]) -> None:
    held: dict[tuple[str, str], dict[str, int]] = defaultdict(dict)
    shown: dict[tuple[int, str], int] = {}
    for entry in timeline(events):
        if entry["ph"] == "C":
            shown[entry["pid"], entry["name"]] = entry["args"]["bytes"]
    for event in events:
        if event.event in ("cache_admit", "cache_rewrite") and event.location:
            held[str(event.instance), event.location][str(event.key)] = event.bytes or 0
        elif event.event == "cache_evict":
            held[str(event.instance), str(event.location)].pop(str(event.key), None)
    sums = [sum(chunks.values()) for chunks in held.values() if chunks]
    assert sorted(value for value in shown.values() if value) == sorted(each for each in sums if each)


@settings(max_examples=200, deadline=None)
@given(spans=st.lists(st.tuples(st.integers(0, 50), st.integers(0, 20)), max_size=40))
def test_lanes_hold_no_two_at_once_and_are_as_few_as_can_be(spans: list[tuple[int, int]]) -> None:
    tracks = Tracks()
    ordered = sorted(((start, start + length) for start, length in spans), key=lambda span: span[1])
    lanes: dict[int, list[tuple[int, int]]] = defaultdict(list)
    for start, end in ordered:
        lanes[tracks.lane(1, "requests", start, end)].append((start, end))
    for taken in lanes.values():
        assert all(first[1] <= second[0] for first, second in itertools.pairwise(taken))
    # As many at once as the busiest moment has, counting one that takes no time as being there.
    starts = {start for start, _ in ordered}
    busiest = max((sum(start <= at < end for start, end in ordered) for at in starts), default=0)
    if all(end > start for start, end in ordered):
        assert len(lanes) == busiest
