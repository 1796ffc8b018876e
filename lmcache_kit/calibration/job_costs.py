"""Fits how fast codecs encode from compress and decompress jobs, and what it takes to send a chunk from moves."""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path

import numpy as np

from lmcache_kit.calibration.findings import Findings
from lmcache_kit.calibration.observations import JobSeen, Observations
from lmcache_kit.calibration.regression import fit
from lmcache_kit.calibration.store_costs import codec_before, tier_before
from lmcache_kit.instance.store.operations import RAW
from lmcache_kit.sim.costs import Costs, load_costs
from lmcache_kit.units import parse_bandwidth, parse_duration

__all__ = ["fit_codecs", "fit_transfers"]

_NO_JOB = "no compress job in this method"


def fit_codecs(seen: Observations, findings: Findings) -> None:
    """Find ``encode_gbps`` of every method that jobs used, after ``decode_gbps`` was found from loads.

    A job decodes a chunk, encodes it anew and decodes that to verify it. The first job of each method, which may
    compile or load what the method needs, is left out where there are others.
    """
    now = load_costs(findings.costs(), Path())
    jobs: dict[tuple[str, str], list[float]] = defaultdict(list)
    for job in seen.jobs:
        rate = _seconds_per_byte(job, seen, now)
        if rate is not None and job.method is not None:
            jobs[job.kind, job.method].append(rate)
    for (kind, method), rates in jobs.items():
        if len(rates) > 1:
            jobs[kind, method] = rates[1:]
            findings.note(f"the first {kind} job with {method} is left out, since it may have warmed up")
    measured = {figure.path for figure in findings.figures if figure.samples}
    for method in sorted({method for _, method in jobs}):
        compress, decompress = jobs.get(("compress", method), []), jobs.get(("decompress", method), [])
        known = ("codecs", method, "decode_gbps") in measured
        raw, own = codec_before(now, RAW), codec_before(now, method)
        decode = 1 / own.decode_gbps / 1e9
        if not known and decompress:
            # Decoded, encoded raw, and the raw chunk decoded.
            rest = float(np.median(decompress)) - (1 / raw.encode_gbps + 1 / raw.decode_gbps) / 1e9
            decode = max(rest, 1e-12)
            findings.found("codecs", method, "decode_gbps", value=1 / decode / 1e9, samples=len(decompress))
            known = True
        elif decompress:
            rest = float(np.median(decompress)) - decode - 1 / raw.decode_gbps / 1e9
            if rest > 0:
                findings.found("codecs", RAW, "encode_gbps", value=1 / rest / 1e9, samples=len(decompress))
        if compress:
            rest = float(np.median(compress)) - 1 / raw.decode_gbps / 1e9
            if not known:
                decode = max(rest / 2, 1e-12)
                findings.found("codecs", method, "decode_gbps", value=1 / decode / 1e9, samples=len(compress))
                findings.note(
                    f"nothing was loaded in {method}: its jobs' time is shared evenly among its two directions"
                )
            encode = max(rest - decode, 1e-12)
            findings.found("codecs", method, "encode_gbps", value=1 / encode / 1e9, samples=len(compress))
        else:
            findings.kept("codecs", method, "encode_gbps", value=own.encode_gbps, why=_NO_JOB)


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


def _seconds_per_byte(job: JobSeen, seen: Observations, costs: Costs) -> float | None:
    """Of coding, for a byte of KV; None for a job that rewrote nothing, or whose KV is not known."""
    if not job.kind.endswith("compress") or not job.rewritten or job.instance is None or job.location is None:
        return None
    tokens, done = job.job["tokens_done"], len(job.rewritten)
    of_token = seen.token_bytes(job.instance)
    if not tokens or not of_token:
        return None
    # Those that it found done already count as done, but took no time; stored bytes tell how much it was.
    share = min(1.0, sum(job.rewritten) / max(1, job.job["bytes_after"]))
    kv: float = tokens * of_token * share
    tier = tier_before(costs, job.location)
    moved = done * (tier.read_seconds + tier.write_seconds)
    moved += (job.job["bytes_before"] * share / tier.read_gbps + sum(job.rewritten) / tier.write_gbps) / 1e9
    coding: float = max(0.0, job.job["seconds"] - moved)
    return coding / kv


def fit_transfers(seen: Observations, findings: Findings) -> None:
    """Find what sending a chunk takes besides link and tiers, from moves between instances."""
    before = findings.before
    chunks: list[float] = []
    nbytes: list[float] = []
    rest: list[float] = []
    moves = {spec.name: spec.options for spec in seen.scenario.workloads if spec.kind == "move"}
    now = load_costs(findings.costs(), Path())
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
            tier = tier_before(now, place["location"])
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
