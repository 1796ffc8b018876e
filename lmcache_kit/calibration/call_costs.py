"""Fits what lies between client and server: completions, lookups and other calls to the controller."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from lmcache_kit.calibration.engine_costs import waited_inside
from lmcache_kit.calibration.findings import Findings
from lmcache_kit.calibration.observations import JobSeen, Observations
from lmcache_kit.calibration.regression import fit
from lmcache_kit.calibration.store_costs import tell

__all__ = ["fit_calls"]

_RANGE, _STEPS = (1e-4, 1.0), 400


def fit_calls(seen: Observations, findings: Findings) -> None:
    """Find ``request_seconds``, ``lookup_seconds`` and ``call_seconds``."""
    before = findings.before
    _requests(seen, findings)
    if seen.lookups:
        findings.found("lookup_seconds", value=float(np.median(seen.lookups)), samples=len(seen.lookups))
    else:
        findings.kept("lookup_seconds", value=before.lookup_seconds, why="no lookups")
    jobs = [job for job in seen.jobs if job.job["seconds"] > 0]
    if jobs:
        findings.found("call_seconds", value=_call_seconds(jobs), samples=len(jobs))
    else:
        findings.kept("call_seconds", value=before.call_seconds, why="no jobs")
    findings.kept("report_seconds", value=before.report_seconds, why="events do not tell when the controller knows")
    findings.kept("restart_seconds", value=before.restart_seconds, why="it is not fitted from runs")


def _requests(seen: Observations, findings: Findings) -> None:
    """Find what a completion takes between its client and the instance, and of what length of prompt it depends."""
    alone = [each for each in seen.requests if each.alone]
    features: dict[str, Sequence[float]] = {
        "request_seconds": [1.0] * len(alone),
        "request_token": [each.prompt for each in alone],
        "tokenize_token": [each.prompt * each.text for each in alone],
    }
    # Between the first token and its text's way to the client lies one more handoff than inside, and one behind making
    # tokens of a text.
    outside = [each.ttft - each.facts["ttft_seconds"] - waited_inside(each) / 2 * (1 + each.text) for each in alone]
    answer = fit(features, outside)
    why = "no request had its instance to itself" if not alone else "prompts of several lengths are needed"
    for name, count in (("request_seconds", len(alone)), ("request_token", len(alone))):
        tell(findings, (name,), answer.get(name), getattr(findings.before, name), count, why)
    for key in sorted({each.engine for each in seen.requests}):
        count = sum(each.text for each in alone if each.engine == key)
        found = answer.get("tokenize_token") if count else None
        tell(findings, ("engines", key, "tokenize_token"), found, 0.0, count, "no prompt was sent as a text")


def _call_seconds(jobs: Sequence[JobSeen]) -> float:
    """How long a call takes with which asking again and again for each job's end takes about as long as it did.

    That grows in steps, so all values are tried, from a tenth of a millisecond to a second.
    """
    tried: list[float] = [0.0, *np.geomspace(*_RANGE, _STEPS).tolist()]

    def missed(call: float) -> float:
        return sum(abs(_heard(float(job.job["seconds"]), call) - job.latency) for job in jobs)

    return min(tried, key=missed)


def _heard(seconds: float, call: float) -> float:
    """When a client of :meth:`~lmcache_kit.client.ControllerClient.wait_finished` hears of a job's end."""
    now, pause = call, 0.002
    while True:
        now += call
        if now - call >= seconds:
            return now
        now += pause
        pause = min(pause * 1.5, 0.25)
