"""Fits what loads and saves take: tiers by location, codecs by method, and what comes on top."""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from lmcache_kit.calibration.engine_costs import sizes
from lmcache_kit.calibration.findings import Findings
from lmcache_kit.calibration.observations import Observations, RequestSeen, undisturbed
from lmcache_kit.calibration.regression import fit
from lmcache_kit.instance.store.operations import RAW
from lmcache_kit.kv.blob import blob_size
from lmcache_kit.sim.costs import Costs

__all__ = ["fit_loads", "fit_saves", "fit_sizes", "tell"]

_FEW = 5
_FASTEST = 1000.0
"""GB/s of what takes no time that could be measured."""


@dataclass(frozen=True, slots=True)
class _Load:
    """What one load read: chunks and stored bytes by location, chunks by codec, and KV bytes."""

    chunks: Mapping[str, float]
    nbytes: Mapping[str, float]
    codecs: Mapping[str, int]
    block: int
    kv: float
    turns: float

    def kv_of(self, codec: str) -> float:
        return self.kv * self.codecs.get(codec, 0) / max(1, sum(self.codecs.values()))


def _together(turns: int, cores: float | None) -> float:
    """How many times as fast as one thread so many are."""
    return turns if cores is None else max(1.0, min(turns, cores))


def _slowest_first(loads: Sequence[_Load], findings: Findings) -> list[str]:
    found = {location for load in loads for location in load.nbytes}
    return sorted(found, key=lambda name: (findings.tier(name).read_gbps, name))


def _load_of(each: RequestSeen, costs: Costs, cores: float | None) -> _Load:
    facts = each.facts
    tokens: Mapping[str, int] = facts["cached_tokens_by_location"]
    count = sum(facts["codecs"].values())
    cached = max(1, each.cached)
    return _Load(
        chunks={location: count * held / cached for location, held in tokens.items()},
        nbytes={location: facts["loaded_bytes"] * held / cached for location, held in tokens.items()},
        codecs=facts["codecs"],
        block=each.block,
        kv=facts["loaded_kv_bytes"],
        turns=_together(costs.decoding_turns(max(1, count), facts["loaded_kv_bytes"]), cores),
    )


def fit_sizes(seen: Observations, findings: Findings) -> None:
    """Find how much smaller each codec makes KV, from what was stored or loaded in it alone, and what jobs made."""
    kv: dict[str, float] = defaultdict(float)
    payload: dict[str, float] = defaultdict(float)
    samples: Counter[str] = Counter()

    def add(codec: str, raw: float, held: float, chunks: float) -> None:
        kv[codec] += raw
        payload[codec] += held - chunks * blob_size(codec, seen.key, 0)
        samples[codec] += 1

    methods = _stored_methods(seen)
    for each in seen.requests:
        facts = each.facts
        if len(facts["codecs"]) == 1 and facts["loaded_bytes"]:
            (codec,) = facts["codecs"]
            # All but the last token of a prompt that is known: the last chunk is loaded whole.
            whole = each.prompt if each.cached % each.block and each.new == 1 else each.cached
            add(codec, facts["loaded_kv_bytes"] / each.cached * whole, facts["loaded_bytes"], facts["codecs"][codec])
        if len(methods[each.instance]) == 1 and facts["stored_bytes"]:
            (codec,) = methods[each.instance]
            chunks = seen.copies(each.instance) * math.ceil(facts["stored_tokens"] / each.block)
            add(codec, facts["stored_kv_bytes"], facts["stored_bytes"], chunks)
    for job in seen.jobs:
        if job.kind == "compress" and job.method and job.instance and job.job["bytes_after"]:
            tokens = job.job["tokens_done"]
            block = seen.block(job.instance)
            raw = tokens * seen.token_bytes(job.instance)
            if raw:
                add(job.method, raw, job.job["bytes_after"], math.ceil(tokens / block))
    for codec in sorted(kv):
        findings.found("codecs", codec, "ratio", value=kv[codec] / payload[codec], samples=samples[codec])


def fit_loads(seen: Observations, findings: Findings, cores: float | None) -> None:
    """Find ``load_seconds``, and of every codec and location that was loaded from what reading and decoding takes, on a
    machine of so many cores."""
    before = findings.before
    requests = undisturbed(seen.requests)
    loads = [_load_of(each, before, cores) for each in requests]
    codecs = sorted({codec for load in loads for codec in load.codecs})
    locations = _slowest_first(loads, findings)
    usual = {location: findings.tier(location) for location in locations}
    features: dict[str, list[float]] = {"load_seconds": [1.0] * len(loads)}
    # In this order: where chunks of one codec come from one tier alone, what a byte takes is the codec's, and a slow
    # tier's bytes are told from a fast one's by what they take longer.
    for codec in codecs:
        features[f"decode {codec}"] = [load.kv_of(codec) / load.turns for load in loads]
    for location in locations:
        if sum(location in load.nbytes for load in loads) >= _FEW:
            features[f"bytes {location}"] = [load.nbytes.get(location, 0.0) for load in loads]
            features[f"chunks {location}"] = [load.chunks.get(location, 0.0) for load in loads]
    for codec in codecs:
        # Chunks of one size do not tell what each takes from what its bytes take. Raw ones take nothing more than any.
        if codec != RAW and len({load.block for load in loads if codec in load.codecs}) > 1:
            features[f"each {codec}"] = [load.codecs.get(codec, 0) / load.turns for load in loads]
    weights = [1 / size for size in sizes(requests)]
    taken = [each.facts["load_seconds"] for each in requests]
    answer = fit(features, taken, weights)
    # What the run does not tell stays as it was, so the rest is fitted to what it leaves.
    known = [
        sum(
            (0.0 if f"chunks {location}" in answer else load.chunks.get(location, 0.0) * usual[location].read_seconds)
            + (
                0.0
                if f"bytes {location}" in answer
                else load.nbytes.get(location, 0.0) / usual[location].read_gbps / 1e9
            )
            for location in locations
        )
        for load in loads
    ]
    answer = fit(
        {name: values for name, values in features.items() if name in answer},
        [max(0.0, total - part) for total, part in zip(taken, known, strict=True)],
        weights,
    )
    tell(findings, ("load_seconds",), answer.get("load_seconds"), before.load_seconds, len(loads), "no requests")
    for codec in codecs:
        count = sum(codec in load.codecs for load in loads)
        tell(
            findings,
            ("codecs", codec, "decode_gbps"),
            _gbps(answer.get(f"decode {codec}")),
            findings.codec(codec).decode_gbps,
            count,
            "too few loads, or all of one size",
        )
        if codec != RAW:
            why = "loads of chunks of several sizes are needed to tell it from decode_gbps"
            usually = findings.codec(codec).chunk_seconds
            tell(findings, ("codecs", codec, "chunk_seconds"), answer.get(f"each {codec}"), usually, count, why)
    for location in locations:
        count = sum(location in load.nbytes for load in loads)
        why = f"at least {_FEW} loads from it, of several sizes and beside such from other tiers, are needed"
        path, tier = ("tiers", location), usual[location]
        tell(findings, (*path, "read_gbps"), _gbps(answer.get(f"bytes {location}")), tier.read_gbps, count, why)
        tell(findings, (*path, "read_seconds"), answer.get(f"chunks {location}"), tier.read_seconds, count, why)


def _stored_methods(seen: Observations) -> dict[str, set[str]]:
    """The methods that new chunks are stored in, by instance."""
    found: dict[str, set[str]] = {}
    for spec in seen.scenario.instances:
        extra = (spec.config.get("extra_config") or {}).get("lmcache_kit") or {}
        usual = str(extra.get("store_method", "naive"))
        found[spec.id] = {tier.method or usual for tier in spec.tiers}
    return found


def fit_saves(seen: Observations, findings: Findings) -> None:
    """Find ``save_seconds``, and what writing takes in the slowest tier that new chunks are stored in."""
    before = findings.before
    saves = undisturbed([each for each in seen.requests if each.facts["stored_tokens"] > 0])
    slowest = {name: _slowest(findings, held) for name, held in seen.store_locations.items()}
    locations = sorted(set(slowest.values()))
    features: dict[str, list[float]] = {"save_seconds": [1.0] * len(saves)}
    for location in locations:
        own = [slowest.get(each.instance) == location for each in saves]
        copies = [seen.copies(each.instance) for each in saves]
        features[f"bytes {location}"] = [
            each.facts["stored_bytes"] / many if mine else 0.0
            for each, mine, many in zip(saves, own, copies, strict=True)
        ]
        features[f"chunks {location}"] = [
            math.ceil(each.facts["stored_tokens"] / each.block) if mine else 0.0
            for each, mine in zip(saves, own, strict=True)
        ]
    answer = fit(features, [each.facts["save_seconds"] for each in saves])
    count = len(saves)
    tell(findings, ("save_seconds",), answer.get("save_seconds"), before.save_seconds, count, "nothing was stored")
    why = "saves of several sizes are needed"
    for location in locations:
        tier = findings.tier(location)
        per_byte = answer.get(f"bytes {location}")
        tell(findings, ("tiers", location, "write_gbps"), _gbps(per_byte), tier.write_gbps, count, why)
        per_chunk = answer.get(f"chunks {location}")
        tell(findings, ("tiers", location, "write_seconds"), per_chunk, tier.write_seconds, count, why)
    others = sorted({name for held in seen.store_locations.values() for name in held} - set(locations))
    for location in others:
        tier = findings.tier(location)
        why = f"it is written together with a slower one ({', '.join(locations)})"
        findings.kept("tiers", location, "write_gbps", value=tier.write_gbps, why=why)
        findings.kept("tiers", location, "write_seconds", value=tier.write_seconds, why=why)


def _slowest(findings: Findings, locations: set[str]) -> str:
    return max(sorted(locations), key=lambda location: findings.tier(location).write_seconds)


def _gbps(seconds_per_byte: float | None) -> float | None:
    return None if seconds_per_byte is None else min(_FASTEST, 1 / max(seconds_per_byte * 1e9, 1e-30))


def tell(findings: Findings, path: Sequence[str], value: float | None, before: float, samples: int, why: str) -> None:
    """A figure that was found, or stays."""
    if value is None:
        findings.kept(*path, value=before, why=why)
    else:
        findings.found(*path, value=value, samples=samples)
