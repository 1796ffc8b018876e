"""Fits what lies between client and server: completions, lookups and other calls to the controller."""

from __future__ import annotations

import numpy as np

from lmcache_kit.calibration.engine_costs import waited_inside
from lmcache_kit.calibration.findings import Findings
from lmcache_kit.calibration.observations import JobSeen, Observations

__all__ = ["fit_calls"]

_ROUNDS = 40
_LONGEST = 1.0


def fit_calls(seen: Observations, findings: Findings) -> None:
    """Find ``request_seconds``, ``lookup_seconds`` and ``call_seconds``."""
    before = findings.before
    # One more handoff than inside lies between the first token and its text's way to the client.
    outside = [each.ttft - each.facts["ttft_seconds"] - waited_inside(each) / 2 for each in seen.requests if each.alone]
    if outside:
        findings.found("request_seconds", value=max(0.0, float(np.median(outside))), samples=len(outside))
    else:
        why = "no request had its instance to itself"
        findings.kept("request_seconds", value=before.request_seconds, why=why)
    if seen.lookups:
        findings.found("lookup_seconds", value=float(np.median(seen.lookups)), samples=len(seen.lookups))
    else:
        findings.kept("lookup_seconds", value=before.lookup_seconds, why="no lookups")
    jobs = [job for job in seen.jobs if job.job["seconds"] > 0]
    if jobs:
        calls = float(np.median([_call_seconds(job) for job in jobs]))
        findings.found("call_seconds", value=calls, samples=len(jobs))
    else:
        findings.kept("call_seconds", value=before.call_seconds, why="no jobs")
    findings.kept("report_seconds", value=before.report_seconds, why="events do not tell when the controller knows")
    findings.kept("restart_seconds", value=before.restart_seconds, why="it is not fitted from runs")


def _call_seconds(job: JobSeen) -> float:
    """How long a call takes with which asking again and again for the job's end takes as long as it did."""
    low, high = 0.0, _LONGEST
    for _ in range(_ROUNDS):
        middle = (low + high) / 2
        if _heard(float(job.job["seconds"]), middle) < job.latency:
            low = middle
        else:
            high = middle
    return (low + high) / 2


def _heard(seconds: float, call: float) -> float:
    """When a client of :meth:`~lmcache_kit.client.ControllerClient.wait_finished` hears of a job's end."""
    now, pause = call, 0.002
    while True:
        now += call
        if now - call >= seconds:
            return now
        now += pause
        pause = min(pause * 1.5, 0.25)
