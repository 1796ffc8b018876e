"""Fits how fast codecs encode from compress and decompress jobs, and what it takes to send a chunk from moves."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from lmcache_kit.calibration.findings import Findings
from lmcache_kit.calibration.observations import JobSeen, Observations
from lmcache_kit.calibration.regression import fit
from lmcache_kit.instance.store.operations import RAW
from lmcache_kit.sim.costs import CodecCosts
from lmcache_kit.units import parse_bandwidth, parse_duration

__all__ = ["fit_codecs", "fit_transfers"]

_LEAST = 1e-12
"""Seconds for a byte of what takes no time that could be measured."""


@dataclass(frozen=True, slots=True)
class _Recoding:
    """What coding took in a job, for a chunk, and how many bytes of KV a chunk was.

    ``first``: the job may have compiled or loaded what the method needs.
    """

    seconds: float
    kv: float
    first: bool


def fit_codecs(seen: Observations, findings: Findings) -> None:
    """Find ``encode_gbps`` of every method that jobs used, after ``decode_gbps`` was found from loads, and
    ``recode_seconds``.

    A job decodes a chunk, encodes it anew and decodes that to verify it. Decompressing encodes to raw KV, which is
    known well enough, so what it takes besides is what every chunk of a job takes. The first job of each method in each
    run, which may compile or load what the method needs, is left out where there are others.
    """
    jobs = _by_method(seen, findings)
    measured = {figure.path for figure in findings.figures if figure.samples}
    raw = findings.codec(RAW)
    methods = sorted({method for _, method in jobs})
    known = [method for method in methods if ("codecs", method, "decode_gbps") in measured]
    besides = _besides([(each, findings.codec(method), raw) for method in known for each in jobs["decompress", method]])
    if besides is None:
        why = "no decompress job in a method that was loaded from, too"
        findings.kept("recode_seconds", value=findings.before.recode_seconds, why=why)
    else:
        findings.found("recode_seconds", value=besides, samples=sum(len(jobs["decompress", each]) for each in known))
    for method in methods:
        _method(method, jobs, raw, besides or findings.before.recode_seconds, method in known, findings)


def _by_method(seen: Observations, findings: Findings) -> dict[tuple[str, str], list[_Recoding]]:
    jobs: dict[tuple[str, str], list[_Recoding]] = defaultdict(list)
    for job in seen.jobs:
        recoding = _recoding(job, seen, findings)
        if recoding is not None and job.method is not None:
            jobs[job.kind, job.method].append(recoding)
    for (kind, method), found in jobs.items():
        later = [each for each in found if not each.first]
        if later:
            jobs[kind, method] = later
            findings.note(f"the first {kind} job with {method} is left out, since it may have warmed up")
    return jobs


def _besides(jobs: Sequence[tuple[_Recoding, CodecCosts, CodecCosts]]) -> float | None:
    """What every chunk of a decompress job takes besides decoding it, encoding it raw and decoding that."""
    if not jobs:
        return None
    rest = [
        each.seconds
        - own.chunk_seconds
        - each.kv * (1 / own.decode_gbps + 1 / raw.encode_gbps + 1 / raw.decode_gbps) / 1e9
        for each, own, raw in jobs
    ]
    return max(0.0, float(np.median(rest)))


def _method(
    method: str,
    jobs: Mapping[tuple[str, str], Sequence[_Recoding]],
    raw: CodecCosts,
    besides: float,
    known: bool,
    findings: Findings,
) -> None:
    """Find how fast one method encodes, and decodes where no load told."""
    path = ("codecs", method)
    compress, decompress = jobs.get(("compress", method), []), jobs.get(("decompress", method), [])
    usual = findings.codec(method)
    decode, each_chunk = 1 / usual.decode_gbps / 1e9, usual.chunk_seconds
    if not known and decompress:
        rest = _per_byte(decompress, besides + each_chunk) - (1 / raw.encode_gbps + 1 / raw.decode_gbps) / 1e9
        decode = max(rest, _LEAST)
        findings.found(*path, "decode_gbps", value=1 / decode / 1e9, samples=len(decompress))
    if not compress:
        findings.kept(*path, "encode_gbps", value=usual.encode_gbps, why="no compress job in this method")
        return
    # Encoded, and decoded to verify it.
    rest = _per_byte(compress, besides + 2 * each_chunk) - 1 / raw.decode_gbps / 1e9
    if not known and not decompress:
        decode = max(rest / 2, _LEAST)
        findings.found(*path, "decode_gbps", value=1 / decode / 1e9, samples=len(compress))
        findings.note(f"nothing was loaded in {method}: its jobs' time is shared evenly among its two directions")
    # What loads tell of decoding may be more than a whole job takes; encoding is not for nothing all the same.
    encode = max(rest - decode, rest / 10, _LEAST)
    findings.found(*path, "encode_gbps", value=1 / encode / 1e9, samples=len(compress))


def _per_byte(jobs: Sequence[_Recoding], besides: float) -> float:
    return float(np.median([(each.seconds - besides) / each.kv for each in jobs]))


def _shape(seen: Observations, one: str, other: str) -> tuple[float | None, float]:
    """Bandwidth in bytes a second and latency in seconds of the link from one instance to another."""
    for link in seen.scenario.links:
        if {one, other} == set(link.between):
            return _shaped(link.bandwidth, link.latency)
    transport = next(spec.transport for spec in seen.scenario.instances if spec.id == one)
    return _shaped(transport.bandwidth, transport.latency)


def _shaped(bandwidth: str | None, latency: str | float | None) -> tuple[float | None, float]:
    return None if bandwidth is None else parse_bandwidth(bandwidth), 0.0 if latency is None else parse_duration(
        latency
    )


def _recoding(job: JobSeen, seen: Observations, findings: Findings) -> _Recoding | None:
    """None for a job that rewrote nothing, or whose KV is not known."""
    if not job.kind.endswith("compress") or not job.rewritten or job.instance is None or job.location is None:
        return None
    tokens, done = job.job["tokens_done"], len(job.rewritten)
    of_token = seen.token_bytes(job.instance)
    if not tokens or not of_token:
        return None
    # Those that it found done already count as done, but took no time; stored bytes tell how much it was.
    share = min(1.0, sum(job.rewritten) / max(1, job.job["bytes_after"]))
    kv: float = tokens * of_token * share
    tier = findings.tier(job.location)
    moved = done * (tier.read_seconds + tier.write_seconds)
    moved += (job.job["bytes_before"] * share / tier.read_gbps + sum(job.rewritten) / tier.write_gbps) / 1e9
    coding: float = max(0.0, job.job["seconds"] - moved)
    return _Recoding(seconds=coding / done, kv=kv / done, first=job.first)


def fit_transfers(seen: Observations, findings: Findings) -> None:
    """Find what sending a chunk takes besides link and tiers, from moves between instances."""
    before = findings.before
    chunks: list[float] = []
    nbytes: list[float] = []
    rest: list[float] = []
    moves = {spec.name: spec.options for spec in seen.scenario.workloads if spec.kind == "move"}
    for job in seen.jobs:
        given = moves.get(job.workload)
        if given is None or given["from"]["instance"] == given["to"]["instance"] or not job.job["tokens_done"]:
            continue
        source, target = given["from"], given["to"]
        count = -(-job.job["tokens_done"] // seen.block(source["instance"]))
        size = job.job["bytes_after"]
        bandwidth, latency = _shape(seen, source["instance"], target["instance"])
        expected = count * 2 * latency + (size / bandwidth if bandwidth else 0.0)
        for place, sides in ((source, ("read",)), (target, ("write", "read"))):
            tier = findings.tier(place["location"])
            for side in sides:
                expected += count * getattr(tier, f"{side}_seconds") + size / getattr(tier, f"{side}_gbps") / 1e9
        chunks.append(count)
        nbytes.append(size)
        rest.append(max(0.0, job.job["seconds"] - expected))
    if not chunks:
        why = "no move to another instance"
        findings.kept("transfer_seconds", value=before.transfer_seconds, why=why)
        findings.kept("transfer_gbps", value=before.transfer_gbps, why=why)
        return
    answer = fit({"bytes": nbytes, "chunks": chunks}, rest) if len(rest) > 1 else {"bytes": rest[0] / nbytes[0]}
    per_byte = max(answer.get("bytes", 0.0), 1e-12)
    findings.found("transfer_gbps", value=1 / per_byte / 1e9, samples=len(rest))
    if "chunks" in answer:
        findings.found("transfer_seconds", value=answer["chunks"], samples=len(rest))
    else:
        why = "moves of chunks of several sizes are needed to tell it from transfer_gbps"
        findings.kept("transfer_seconds", value=before.transfer_seconds, why=why)
