"""What wall runs tell of their costs: requests, jobs and lookups, read from their output directories."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec

from lmcache_kit.errors import ConfigError
from lmcache_kit.scenario import Scenario, load_scenario

__all__ = ["ENOUGH", "JobSeen", "Observations", "RequestSeen", "engine_key", "observe", "observe_all", "undisturbed"]

ENOUGH = 20
"""Requests to learn from."""

_JOBS = frozenset({"compress", "decompress", "move", "copy"})


@dataclass(frozen=True, slots=True, kw_only=True)
class RequestSeen:
    """One answered request. Times in seconds, as its client and its instance (``facts``) measured them.

    Args:
        engine: key of its engine's costs.
        block: tokens of a chunk of its instance.
        begin, end: since the run began, as its client saw it.
        ttft, seconds: from sending it, without waiting to be sent.
        text: its prompt was sent as a text.
        alone: no other request was at any instance meanwhile, and so at work on the same machine.
        facts: what the instance says, with ``ttft_seconds``, ``prefill_seconds``, ``codecs`` and so on.
    """

    instance: str
    workload: str
    engine: str
    block: int
    begin: float
    end: float
    prompt: int
    cached: int
    output: int
    ttft: float
    seconds: float
    text: bool
    alone: bool
    facts: Mapping[str, Any]

    @property
    def new(self) -> int:
        """Tokens that had to be computed."""
        return self.prompt - self.cached


@dataclass(frozen=True, slots=True, kw_only=True)
class JobSeen:
    """One finished job.

    Args:
        kind: ``compress``, ``decompress``, ``move`` or ``copy``.
        latency: from asking for it to hearing of its end.
        job: what the instance says of it.
        first: no job of its kind and method came before it in its run, so that it may have warmed something up.
        rewritten: stored bytes of each chunk that it wrote anew.
    """

    kind: str
    workload: str
    instance: str | None
    method: str | None
    location: str | None
    latency: float
    job: Mapping[str, Any]
    first: bool
    rewritten: tuple[int, ...] = ()


@dataclass(slots=True)
class Observations:
    """One wall run, or several of one scenario. ``left_out`` counts the first requests of each instance, which warm it
    up."""

    scenario: Scenario
    requests: list[RequestSeen] = field(default_factory=list)
    jobs: list[JobSeen] = field(default_factory=list)
    lookups: list[float] = field(default_factory=list)
    store_locations: dict[str, set[str]] = field(default_factory=lambda: defaultdict(set))
    """By instance, where new chunks were stored."""
    key: str = ""
    """The name of some chunk: names are part of what is stored, and equally long."""
    left_out: int = 0
    silent: int = 0
    """Requests whose instance does not say what they took."""

    def add(self, other: Observations) -> None:
        """Take in another run of the scenario. Raises ConfigError when it is of another one."""
        if (other.scenario.instances, other.scenario.links) != (self.scenario.instances, self.scenario.links):
            raise ConfigError(
                f"runs of {self.scenario.name} and {other.scenario.name} are not runs of one fleet",
                hint="costs are fitted to runs of one scenario",
            )
        self.requests += other.requests
        self.jobs += other.jobs
        self.lookups += other.lookups
        for instance, locations in other.store_locations.items():
            self.store_locations[instance] |= locations
        self.key = self.key or other.key
        self.left_out += other.left_out
        self.silent += other.silent

    def token_bytes(self, instance: str) -> float:
        """KV of one token of an instance's model, as requests that loaded or stored some tell; 0 when none did."""
        own = [each for each in self.requests if each.instance == instance]
        for each in own:
            if each.cached:
                loaded: float = each.facts["loaded_kv_bytes"]
                return loaded / each.cached
        for each in own:
            if each.facts["stored_tokens"]:
                stored: float = each.facts["stored_kv_bytes"]
                tokens: int = each.facts["stored_tokens"]
                return stored / tokens / self.copies(instance)
        return 0.0

    def copies(self, instance: str) -> int:
        """In how many tiers an instance stores a new chunk."""
        return max(1, len(self.store_locations.get(instance, ())))

    def block(self, instance: str) -> int:
        """Tokens of a chunk."""
        return next(spec.chunk_size for spec in self.scenario.instances if spec.id == instance)


def observe_all(directories: Sequence[Path], *, warm_up: int) -> Observations:
    """Read the output directories of wall runs of one scenario, at least one; see :func:`observe`."""
    seen = observe(directories[0], warm_up=warm_up)
    for directory in directories[1:]:
        seen.add(observe(directory, warm_up=warm_up))
    return seen


def observe(directory: Path, *, warm_up: int) -> Observations:
    """Read the output directory of a wall run; of each instance the first ``warm_up`` requests are left out.

    Raises ConfigError for a directory without the output of one, or without events.
    """
    scenario = load_scenario(directory / "scenario.yaml")
    if scenario.clock != "wall":
        raise ConfigError(
            f"{directory} is the output of a run on the {scenario.clock} clock",
            hint="costs are measured on the wall clock",
        )
    seen = Observations(scenario)
    engines = {spec.id: engine_key(spec.engine.kind, spec.engine.model) for spec in scenario.instances if spec.engine}
    blocks = {spec.id: spec.chunk_size for spec in scenario.instances}
    options = {spec.name: dict(spec.options) for spec in scenario.workloads}
    texts = {spec.name for spec in scenario.workloads if spec.kind == "completions"}
    lines = list(_lines(directory / "events.jsonl"))
    rewrites = _rewrites(lines)
    requests = [line for line in lines if line["event"] == "request" and line.get("error") is None]
    spans = _spans(requests)
    count: dict[str, int] = defaultdict(int)
    known: set[tuple[str, str | None]] = set()
    for line in requests:
        facts = line.get("cache") or {}
        if "prefill_seconds" not in facts or line.get("ttft_seconds") is None:
            seen.silent += 1
            continue
        name = line["instance"]
        count[name] += 1
        if count[name] <= warm_up:
            seen.left_out += 1
            continue
        waited = line.get("queue_seconds") or 0.0
        seconds = line["seconds"] - waited
        seen.requests.append(
            RequestSeen(
                instance=name,
                workload=line["workload"],
                engine=engines[name],
                block=blocks[name],
                begin=line["time"] - seconds,
                end=line["time"],
                prompt=line["prompt_tokens"],
                cached=line["cached_tokens"],
                output=line["completion_tokens"],
                ttft=line["ttft_seconds"] - waited,
                seconds=seconds,
                text=line["workload"] in texts,
                alone=_alone(spans, line["time"] - seconds, line["time"]),
                facts=facts,
            )
        )
    for line in lines:
        kind = line["event"]
        if kind == "lookup":
            seen.lookups.append(line["seconds"])
        elif kind == "request" and "promised_tokens" in line and "max_in_flight" not in options[line["workload"]]:
            seen.lookups.append(line["queue_seconds"])  # looked up on its way, and waited for nothing else
        elif kind in _JOBS and "job" in line:
            given = options.get(line["workload"], {})
            job, location = line["job"], given.get("location", "LocalCPUBackend")
            begin = line["time"] - line["seconds"]
            written = rewrites.get((line.get("instance", ""), location), ([], []))
            first, last = bisect_left(written[0], begin), bisect_left(written[0], line["time"])
            seen.jobs.append(
                JobSeen(
                    kind=kind,
                    workload=line["workload"],
                    instance=line.get("instance"),
                    method=given.get("method"),
                    location=location,
                    latency=line["seconds"],
                    job=job,
                    first=(kind, given.get("method")) not in known,
                    rewritten=tuple(written[1][first:last]) if kind.endswith("compress") else (),
                )
            )
            known.add((kind, given.get("method")))
        elif kind == "cache_admit":
            seen.key = line["key"]
            if line.get("cause") == "store":
                seen.store_locations[line["instance"]].add(line["location"])
    return seen


def undisturbed(requests: Sequence[RequestSeen]) -> list[RequestSeen]:
    """Those that had the machine to themselves, or all where these are too few to learn from."""
    alone = [each for each in requests if each.alone]
    return alone if len(alone) >= ENOUGH else list(requests)


def engine_key(kind: str, model: str) -> str:
    """Under which ``Costs.engines`` knows an engine."""
    return f"{kind}/{model}" if model else kind


def _lines(path: Path) -> Iterator[dict[str, Any]]:
    decoder = msgspec.json.Decoder(dict[str, Any])
    try:
        with path.open("rb") as file:
            for number, line in enumerate(file, start=1):
                try:
                    yield decoder.decode(line)
                except msgspec.DecodeError as error:
                    raise ConfigError(f"{path}, line {number}, is not an event: {error}") from None
    except OSError as error:
        raise ConfigError(
            f"{path} cannot be read: {error.strerror}", hint="name the output directory of a run with events"
        ) from None


def _spans(requests: Sequence[Mapping[str, Any]]) -> tuple[list[float], list[float]]:
    """The begins of all requests, sorted, and their ends, sorted."""
    begins = [line["time"] - line["seconds"] + (line.get("queue_seconds") or 0.0) for line in requests]
    return sorted(begins), sorted(line["time"] for line in requests)


def _alone(spans: tuple[list[float], list[float]], begin: float, end: float) -> bool:
    """Whether those that had begun before this one's end, less those that had ended by its begin, are itself alone."""
    return bisect_left(spans[0], end) - bisect_right(spans[1], begin) == 1


def _rewrites(lines: Sequence[Mapping[str, Any]]) -> dict[tuple[str, str], tuple[list[float], list[int]]]:
    found: dict[tuple[str, str], tuple[list[float], list[int]]] = {}
    for line in lines:
        if line["event"] == "cache_rewrite":
            times, sizes = found.setdefault((line["instance"], line["location"]), ([], []))
            times.append(line["time"])
            sizes.append(line["bytes"])
    return found
