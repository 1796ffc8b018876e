"""Comparing two runs by their output directories; docs/reference/sweep-and-compare.md describes the result."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from lmcache_kit.analysis.divergence import Divergence, find_divergences, first_renamed
from lmcache_kit.analysis.events import Event, read_events
from lmcache_kit.analysis.requests import RequestMatcher
from lmcache_kit.analysis.sequences import Per, Sequence, Sequences
from lmcache_kit.analysis.trees import differences, first_difference
from lmcache_kit.errors import ConfigError
from lmcache_kit.report import read_report
from lmcache_kit.report.percentiles import PERCENTILES
from lmcache_kit.scenario import document

__all__ = ["compare_runs"]

Facts = dict[str, Any]
# What depends on the machine and the day; "seconds" itself and all that ends in it are times.
_HOST = frozenset({"started_unix", "host", "versions", "plugins", "clock", "ttft_ratio", "devices"})


@dataclass(frozen=True, slots=True)
class _Folder:
    path: Path
    report: Facts
    scenario: Any

    @property
    def events(self) -> Path:
        return self.path / "events.jsonl"

    @property
    def facts(self) -> Facts:
        return {
            "path": str(self.path),
            **{key: self.report.get(key) for key in ("scenario", "clock", "seed", "status")},
        }


def compare_runs(
    a: Path, b: Path, *, per: Per = Per.INSTANCE, with_bytes: bool = False, with_times: bool = False
) -> Facts:
    """Compare the cache decisions and requests of two runs; ``equal`` in the answer is the verdict.

    Args:
        a: output directory of the run that the other is held against.
        b: output directory of the other.
        per: what has a sequence of its own; between sequences the order does not count.
        with_bytes: whether sizes of chunks count.
        with_times: whether to measure how far the times of ``b`` are from those of ``a``.

    Raises:
        ConfigError: one is not the output of a run, is damaged, or neither holds anything to compare.
    """
    first, second = _folder(a), _folder(b)
    sequences = (Sequences(per=per, with_bytes=with_bytes), Sequences(per=per, with_bytes=with_bytes))
    matcher = RequestMatcher(with_times=with_times)
    _read(first.events, second.events, sequences, matcher)
    counts_a, counts_b = (each.counts for each in sequences)
    if not any(each.by_name for each in sequences) and not any(matcher.seen):
        raise ConfigError(
            f"{a} and {b} hold neither requests nor cache decisions", hint="compare runs that reached a workload"
        )
    found = find_divergences(*sequences, (first.events, second.events))
    renamed = first_renamed(*sequences) if not found else None
    scenario = [each for each in differences(first.scenario, second.scenario) if each["path"] != "clock"]
    # Where the scenario lies is another folder on another machine.
    same = all(each["path"] == "base_dir" for each in scenario)
    report = _report(first, second, same_scenario=same, with_bytes=with_bytes)
    requests = matcher.result()
    return {
        "equal": not found and renamed is None and not requests["different"] and report["identical"] is not False,
        "a": first.facts,
        "b": second.facts,
        "warnings": list(_warnings(first, second, scenario)),
        "scenario_differences": scenario,
        "counts": {name: {"a": counts_a[name], "b": counts_b[name]} for name in sorted({*counts_a, *counts_b})},
        "sequences": _sequences(sequences, found),
        "renamed": None if renamed is None else _name(*renamed),
        "divergence": _divergence(found[0]) if found else None,
        "requests": requests,
        "report": report,
        "times": {"results": _results(first.report, second.report), "requests": matcher.times()}
        if with_times
        else None,
    }


def _folder(path: Path) -> _Folder:
    if not path.is_dir():
        raise ConfigError(f"{path} is not a directory", hint="name the output directory of a run")
    folder = _Folder(path, read_report(path / "report.json"), document.read(path / "scenario.yaml"))
    if not folder.events.exists():
        raise ConfigError(f"{path} has no events.jsonl", hint="run it again with --set events=true")
    return folder


def _read(a: Path, b: Path, sequences: tuple[Sequences, Sequences], matcher: RequestMatcher) -> None:
    """Read both files at once, so that few requests wait for their partner."""
    streams: list[Iterator[Event] | None] = [read_events(a), read_events(b)]
    while any(stream is not None for stream in streams):
        side = 0 if streams[1] is None or (streams[0] is not None and matcher.seen[0] <= matcher.seen[1]) else 1
        stream = streams[side]
        assert stream is not None, "the other one has ended"
        taken = sequences[side]
        for event in stream:
            taken.add(event)
            if event.event == "request":
                matcher.add(side, event)
                break
        else:
            streams[side] = None
            taken.end()
    matcher.end()


def _warnings(a: _Folder, b: _Folder, scenario: list[Facts]) -> Iterator[str]:
    if scenario:
        paths = [each["path"] for each in scenario]
        more = f" and {len(paths) - 12} more" if len(paths) > 12 else ""
        yield f"the scenarios differ in {', '.join(paths[:12])}{more}"
    for name, folder in (("A", a), ("B", b)):
        if folder.report.get("status") == "failed":
            yield f"{name} failed: {folder.report.get('error')}"


def _sequences(sequences: tuple[Sequences, Sequences], found: list[Divergence]) -> list[Facts]:
    a, b = sequences
    parted = {each.name: each.index for each in found}
    return [
        {
            **_name(*name),
            "a": a.by_name.get(name, Sequence()).length,
            "b": b.by_name.get(name, Sequence()).length,
            "equal": name not in parted,
            "first_difference": parted.get(name),
        }
        for name in sorted({*a.by_name, *b.by_name})
    ]


def _name(instance: str, location: str) -> Facts:
    return {"instance": instance, **({"location": location} if location else {})}


def _divergence(found: Divergence) -> Facts:
    facts = asdict(found)
    return {**_name(*facts.pop("name")), "time": found.time, **facts}


def _report(a: _Folder, b: _Folder, *, same_scenario: bool, with_bytes: bool) -> Facts:
    """The first difference of the reports of equal seeds.

    ``identical`` says whether the files are the same byte for byte where they must be: virtual runs of one scenario
    with one seed. It is None elsewhere, where times, the facts of the machine and mostly bytes are passed over.
    """
    if a.report.get("seed") != b.report.get("seed"):
        return {"compared": False, "identical": None, "first_difference": None, "passed_over": None}
    strict = same_scenario and a.report["clock"] == b.report["clock"] == "virtual"
    if strict:
        identical = (a.path / "report.json").read_bytes() == (b.path / "report.json").read_bytes()
        first = first_difference(a.report, b.report)
        return {"compared": True, "identical": identical, "first_difference": first, "passed_over": None}
    return {
        "compared": True,
        "identical": None,
        "first_difference": first_difference(
            a.report, b.report, skip=lambda key: _is_time_or_host(key) or (not with_bytes and _is_size(key))
        ),
        "passed_over": "times and the machine" if with_bytes else "times, the machine and bytes",
    }


def _is_time_or_host(key: str) -> bool:
    return key in _HOST or key.endswith(("seconds", "per_second"))


def _is_size(key: str) -> bool:
    return key == "ratio" or "bytes" in key.split("_")


def _results(a: Facts, b: Facts) -> list[Facts]:
    """Results that both reports have: B's times over A's, and the token hit rates."""
    others = {result["name"]: result for result in b["results"]}
    entries = []
    for result in a["results"]:
        other = others.get(result["name"])
        if other is None:
            continue
        entry: Facts = {"name": result["name"]}
        for key in ("ttft_seconds", "latency_seconds"):
            mine, its = result.get(key), other.get(key)
            if mine and its:
                entry[key.replace("seconds", "ratio")] = {
                    name: its[name] / mine[name]
                    for name in (f"p{each}" for each in PERCENTILES)
                    if mine.get(name) and its.get(name) is not None
                }
        for key in ("token_hit_rate", "hit_rate"):
            mine, its = result.get(key), other.get(key)
            if isinstance(mine, int | float) and isinstance(its, int | float):
                entry["hit_rate"] = {"a": mine, "b": its, "points": 100 * (its - mine)}
                break
        entries.append(entry)
    return entries
