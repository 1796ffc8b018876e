"""From the output directories of wall runs to costs."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

import msgspec

from lmcache_kit.calibration.call_costs import fit_calls
from lmcache_kit.calibration.engine_costs import fit_engine
from lmcache_kit.calibration.findings import Findings
from lmcache_kit.calibration.job_costs import fit_codecs, fit_transfers
from lmcache_kit.calibration.observations import Observations, RequestSeen, engine_key, observe_all
from lmcache_kit.calibration.store_costs import fit_loads, fit_saves, fit_sizes
from lmcache_kit.contracts.records import StoragePlugin
from lmcache_kit.errors import ConfigError
from lmcache_kit.plugins import registry
from lmcache_kit.scenario.validate import location_of
from lmcache_kit.sim.costs import load_costs

__all__ = ["WARM_UP", "fit_costs"]

WARM_UP = 2


def fit_costs(directories: Sequence[Path], *, warm_up: int = WARM_UP, cores: float | None = None) -> Findings:
    """Fit all costs to a wall run, or to several of one scenario.

    Args:
        directories: their output directories, at least one.
        warm_up: how many of each instance's first requests of a run are left out.
        cores: of the machine, which a run does not tell of itself; see :mod:`lmcache_kit.calibration.cores`.

    Raises ConfigError when one is none, or they hold no request to learn from.
    """
    seen = observe_all(directories, warm_up=warm_up)
    if not seen.requests:
        raise ConfigError(
            f"{directories[0]} has no requests to learn from: {_few(seen)}",
            hint="a calibration needs some streamed completions on instances of this project",
        )
    findings = Findings(load_costs(seen.scenario.costs, Path(seen.scenario.base_dir or ".")), _usual(seen))
    engines: dict[str, list[RequestSeen]] = defaultdict(list)
    for request in seen.requests:
        engines[request.engine].append(request)
    for key in sorted(engines):
        fit_engine(key, engines[key], findings)
    fit_sizes(seen, findings)
    fit_loads(seen, findings, cores)
    fit_saves(seen, findings)
    fit_codecs(seen, findings)
    fit_transfers(seen, findings)
    fit_calls(seen, findings)
    if cores is not None:
        findings.found("cores", value=cores, samples=sum(not each.alone for each in seen.requests))
    else:
        why = "too few requests met others to tell, or none is told from enough"
        findings.kept("cores", value=findings.before.cores, why=why)
    _notes(seen, findings, set(engines))
    return findings


def _usual(seen: Observations) -> dict[str, str]:
    plugins = registry()
    tiers = [tier for spec in seen.scenario.instances for tier in spec.tiers]
    return {location_of(tier, plugins): plugins.get(StoragePlugin, tier.kind).location for tier in tiers}


def _notes(seen: Observations, findings: Findings, engines: set[str]) -> None:
    if seen.left_out:
        findings.note(f"{seen.left_out} first requests, which warm the instances up, are left out")
    if seen.silent:
        findings.note(
            f"{seen.silent} requests are left out: not streamed, or their instances do not say what they took"
        )
    options = defaultdict(set)
    for spec in seen.scenario.instances:
        if spec.engine is not None:
            options[engine_key(spec.engine.kind, spec.engine.model)].add(msgspec.json.encode(spec.engine.options))
    for key, found in options.items():
        if key in engines and len(found) > 1:
            findings.note(f"instances give {key} different options; its figures are one middle of them all")
        if key not in engines:
            findings.note(f"{key} answered nothing, and has no figures")


def _few(seen: Observations) -> str:
    if seen.left_out or seen.silent:
        return f"{seen.left_out} warmed up, {seen.silent} do not say what they took"
    return "there are none"
