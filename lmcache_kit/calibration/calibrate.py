"""Wall runs, costs fitted to them, and the same scenario played with them in virtual time."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import msgspec

from lmcache_kit.calibration.cores import find_cores
from lmcache_kit.calibration.findings import Figure, Findings
from lmcache_kit.calibration.fitting import WARM_UP, fit_costs
from lmcache_kit.calibration.judging import judge
from lmcache_kit.errors import LMCacheKitError
from lmcache_kit.plugins import PluginRegistry
from lmcache_kit.scenario import Scenario, load_scenario
from lmcache_kit.sim.runner import VirtualRun

__all__ = ["calibrate", "costs_document", "figures", "judged", "play"]

Progress = Callable[[str], None]


def play(
    scenario: Scenario, costs: dict[str, Any], plugins: PluginRegistry, output: Path, *, progress: Progress
) -> dict[str, Any]:
    """Play a scenario on the virtual clock with these costs; the report. Raises ConfigError for what cannot be."""
    virtual = msgspec.structs.replace(scenario, clock="virtual", costs=costs)
    return VirtualRun(virtual, plugins, output, progress=progress).run()


def calibrate(walls: Sequence[Path], plugins: PluginRegistry, *, warm_up: int = WARM_UP) -> Findings:
    """Fit all costs to a wall run, or several of one scenario, the number of the machine's cores included. Raises
    ConfigError."""
    scenario = load_scenario(walls[0] / "scenario.yaml")

    def fit(cores: float | None) -> Findings:
        return fit_costs(walls, warm_up=warm_up, cores=cores)

    def played(findings: Findings, folder: Path) -> None:
        play(scenario, findings.costs(), plugins, folder, progress=lambda line: None)

    return fit(find_cores(walls, fit, played))


def judged(
    wall: Path, costs: dict[str, Any], plugins: PluginRegistry, output: Path, *, progress: Progress
) -> dict[str, Any]:
    """Play the scenario of a wall run in virtual time with these costs, and say what it is wrong by.

    An expectation that is missed, or a workload that fails, in virtual time says something about the costs; it is part
    of the answer and no error.
    """
    failure: str | None = None
    try:
        play(load_scenario(wall / "scenario.yaml"), costs, plugins, output, progress=progress)
    except LMCacheKitError as error:
        if not (output / "report.json").exists():
            raise
        failure = error.message
    return {**judge(wall, output), "failure": failure}


def costs_document(findings: Findings, wall: Path) -> bytes:
    """The file of costs (JSON): ``costs``, and beside them where they come from."""
    scenario = load_scenario(wall / "scenario.yaml")
    document = {
        "about": {"scenario": scenario.name, "seed": scenario.seed, "notes": findings.notes},
        "costs": findings.costs(),
    }
    return msgspec.json.format(msgspec.json.encode(document), indent=2) + b"\n"


def figures(findings: Findings) -> list[dict[str, Any]]:
    """All figures as JSON values: name, value, samples, and for one that was kept why."""
    return [_shown(figure) for figure in findings.figures]


def _shown(figure: Figure) -> dict[str, Any]:
    return {"name": figure.name, "value": figure.value, "samples": figure.samples, "kept_because": figure.why}
