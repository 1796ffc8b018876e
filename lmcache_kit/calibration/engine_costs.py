"""Fits an engine's steps from what its thread worked on each request."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from lmcache_kit.calibration.findings import Findings
from lmcache_kit.calibration.observations import RequestSeen, undisturbed
from lmcache_kit.calibration.regression import fit
from lmcache_kit.errors import ConfigError
from lmcache_kit.sim.costs import EngineCosts, prefill_passes

__all__ = ["fit_engine", "sizes", "waited_inside"]

_PREFILL = ("prefill_base", "prefill_token", "prefill_attention", "prefill_pass")
_DECODE = ("decode_base", "decode_context")


def fit_engine(key: str, seen: Sequence[RequestSeen], findings: Findings) -> None:
    """Find the costs of the engine ``key`` in its requests, which are not none."""
    kind, _, model = key.partition("/")
    try:
        before = findings.before.engine(kind, model, {})
    except ConfigError:
        before = EngineCosts()
    found: dict[str, tuple[float, int]] = {}
    seen = undisturbed(seen)
    # Each error counts as a share of the request's time to first token, which is what a user sees of it.
    weights = [1 / size for size in sizes(seen)]
    handed = _start(seen, weights, found)
    _prefill(seen, weights, handed, found)
    _copy(seen, found)
    _decode(seen, found)
    _handoff(seen, found)
    for name, why in (
        *((name, "requests differ too little in length to tell it from the others") for name in _PREFILL),
        ("start_token", "no request had cached tokens"),
        ("copy_token", "no request had tokens to store"),
        *(
            (name, "requests with several tokens of output, behind prompts of several lengths, are needed")
            for name in _DECODE
        ),
        ("handoff", "no request had its instance to itself"),
    ):
        if name in found:
            value, samples = found[name]
            findings.found("engines", key, name, value=value, samples=samples)
        else:
            findings.kept("engines", key, name, value=getattr(before, name), why=why)
    # Figures that were written for an accelerator which decodes in batches are about another engine than this one.
    findings.found("engines", key, "batched", value=False, samples=len(seen))


def sizes(seen: Sequence[RequestSeen]) -> list[float]:
    """About how long each request takes to its first token, by its length and not by what it happened to take.

    Errors are weighed by it. Were they weighed by what was measured, requests that were disturbed would count for less,
    and all costs come out too low.
    """
    rough = fit(
        {"always": [1.0] * len(seen), "new": [each.new for each in seen], "all": [each.prompt for each in seen]},
        [each.ttft for each in seen],
    )
    least = min(each.ttft for each in seen)
    always, new, every = (rough.get(name, 0.0) for name in ("always", "new", "all"))
    return [max(least, always + new * each.new + every * each.prompt) for each in seen]


def _start(seen: Sequence[RequestSeen], weights: Sequence[float], found: dict[str, tuple[float, int]]) -> float:
    """Handing over loaded KV; what that takes without any is the answer, and counts as part of the prefill."""
    answer = fit(
        {"always": [1.0] * len(seen), "start_token": [each.cached for each in seen]},
        [each.facts["start_seconds"] for each in seen],
        weights,
    )
    if "start_token" in answer:
        found["start_token"] = answer["start_token"], sum(each.cached > 0 for each in seen)
    return answer.get("always", 0.0)


def _prefill(
    seen: Sequence[RequestSeen], weights: Sequence[float], handed: float, found: dict[str, tuple[float, int]]
) -> None:
    features: dict[str, Sequence[float]] = {
        "prefill_base": [1.0] * len(seen),
        "prefill_token": [each.new for each in seen],
        "prefill_attention": [each.new * (each.cached + each.new / 2) for each in seen],
        "prefill_pass": [prefill_passes(each.new, each.cached, each.block) for each in seen],
    }
    answer = fit(features, [each.facts["prefill_seconds"] + handed for each in seen], weights)
    found.update((name, (value, len(seen))) for name, value in answer.items())


def _copy(seen: Sequence[RequestSeen], found: dict[str, tuple[float, int]]) -> None:
    tokens = [each.prompt - (each.cached - each.cached % each.block) for each in seen]
    answer = fit({"copy_token": tokens}, [each.facts["copy_seconds"] for each in seen])
    found.update((name, (value, len(seen))) for name, value in answer.items())


def _decode(seen: Sequence[RequestSeen], found: dict[str, tuple[float, int]]) -> None:
    longer = [each for each in seen if each.output > 1]
    steps = [each.output - 1 for each in longer]
    features = {
        "decode_base": [1.0] * len(longer),
        "decode_context": [each.prompt + (count - 1) / 2 for each, count in zip(longer, steps, strict=True)],
    }
    taken = [each.facts["decode_seconds"] / count for each, count in zip(longer, steps, strict=True)]
    answer = fit(features, taken, steps)
    found.update((name, (value, len(longer))) for name, value in answer.items())


def _handoff(seen: Sequence[RequestSeen], found: dict[str, tuple[float, int]]) -> None:
    """Two lie between a request's arrival at an idle engine and its first token: after its start and its prefill."""
    waits = [waited_inside(each) / 2 for each in seen if each.alone]
    if waits:
        found["handoff"] = max(0.0, float(np.median(waits))), len(waits)


def waited_inside(each: RequestSeen) -> float:
    """Seconds of the instance's time to first token in which neither the store nor the engine worked on the request."""
    facts = each.facts
    worked = sum(float(facts[f"{step}_seconds"]) for step in ("queue", "load", "start", "prefill"))
    return float(facts["ttft_seconds"]) - worked
