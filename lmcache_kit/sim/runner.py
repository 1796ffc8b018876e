"""A scenario on the virtual clock: the workloads and cores of a wall run, on simulated instances."""

from __future__ import annotations

import contextlib
import gc
import random
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from lmcache_kit.contracts.workload import Workload, WorkloadContext, WorkloadResult
from lmcache_kit.errors import ConfigError, LMCacheKitError
from lmcache_kit.faults import FaultDriver
from lmcache_kit.live.folder import OutputFolder
from lmcache_kit.live.runner import write_reports
from lmcache_kit.plugins import PluginRegistry
from lmcache_kit.report.build import build_report, plugin_facts, result_entry
from lmcache_kit.scenario import Scenario, dump_scenario, evaluate, parse_expectations, validate
from lmcache_kit.scenario.validate import fault_plan, plugins_used
from lmcache_kit.sim.costs import load_costs
from lmcache_kit.sim.events import VirtualEventLog
from lmcache_kit.sim.fleet import SimFleet
from lmcache_kit.sim.loop import VirtualClock, VirtualLoop

__all__ = ["VirtualRun"]

Report = dict[str, Any]


class VirtualRun:
    """One run of a scenario in virtual time. The same scenario and seed give the same files, byte for byte.

    Args:
        scenario: what to run. Raises ConfigError when it does not fit the installed plugins, or has something that
            cannot be simulated.
        plugins: the installed plugins.
        output: the output directory.
        progress: shows one line to the user.
    """

    def __init__(
        self, scenario: Scenario, plugins: PluginRegistry, output: Path, *, progress: Callable[[str], None]
    ) -> None:
        if scenario.clock != "virtual":
            raise ConfigError(f"scenario {scenario.name!r} asks for the {scenario.clock} clock")
        self._workloads = validate(scenario, plugins)
        self._faults = fault_plan(scenario, plugins)
        self._expectations = parse_expectations(scenario.expect, [spec.name for spec in scenario.workloads])
        self._scenario = scenario
        self._plugins = plugins
        self._folder = OutputFolder(output)
        self._progress = progress
        self._costs = load_costs(scenario.costs, Path(scenario.base_dir or "."))
        self._loop = VirtualLoop()
        self._clock = VirtualClock(self._loop)
        self._results: dict[str, WorkloadResult] = {}
        self.report: Report | None = None
        """The report, once the run has ended, also when it failed."""

    def run(self) -> Report:
        """Run to the end and return the report, which is also in the output directory.

        A run that fails raises its LMCacheKitError after the report, with what was measured until then, was written.
        """
        failure: LMCacheKitError | None = None
        events = VirtualEventLog(self._folder.events if self._scenario.events else None, self._clock)
        fleet = SimFleet(
            self._scenario,
            self._plugins,
            self._costs,
            self._loop,
            on_event=events.cache if self._scenario.events else None,
            folder=self._folder,
        )
        # Only now: what cannot be simulated has been refused, and leaves no folder behind.
        self._folder.prepare()
        self._folder.scenario.write_text(dump_scenario(self._scenario), encoding="utf-8")
        try:
            with events, _few_collections():
                self._loop.run(self._on_fleet(fleet, events))
        except LMCacheKitError as error:
            failure = error
        finally:
            fleet.close()
            self._folder.drop_data()
        self.report = self._report(failure, fleet)
        write_reports(self.report, self._folder, self._scenario.reporters, self._plugins)
        if failure is not None:
            raise failure
        return self.report

    async def _on_fleet(self, fleet: SimFleet, events: VirtualEventLog) -> None:
        events.write("fleet_ready", seconds=0.0, instances=list(fleet.instances))
        driver = FaultDriver(self._faults, fleet, clock=self._clock, emit=events.write)
        if self._scenario.faults:
            fleet.simulated_controller.watch()
        try:
            await driver.start()
            notes: dict[str, Any] = {}
            for spec, workload in zip(self._scenario.workloads, self._workloads, strict=True):
                await driver.start(after=spec.name)
                await driver.run(self._one(spec.name, workload, fleet, notes, events))
        finally:
            for action in await driver.close():
                self._progress(f"the run ended before its {action.fault.kind} of {action.fault.name}")

    async def _one(
        self, name: str, workload: Workload, fleet: SimFleet, notes: dict[str, Any], events: VirtualEventLog
    ) -> None:
        context = WorkloadContext(
            name=name,
            controller=fleet.controller,  # type: ignore[arg-type]  # the same methods
            instances=fleet.instances,
            clock=self._clock,
            rng=random.Random(f"{self._scenario.seed}/{name}"),  # noqa: S311  (reproducible, not secret)
            base_dir=Path(self._scenario.base_dir or "."),
            earlier=self._results,
            notes=notes,
            emit=events.sink(name) if self._scenario.events else _nothing,
            progress=lambda line: self._progress(f"{name}: {line}"),
        )
        events.write("workload_started", workload=name)
        begin = self._clock.now()
        try:
            self._results[name] = await workload.run(context)
        except LMCacheKitError as error:
            error.message = f"workload {name}: {error.message}"
            error.args = (error.message,)
            raise
        except Exception as error:  # a workload is a plugin and may raise anything
            raise LMCacheKitError(f"workload {name}: {type(error).__name__}: {error}") from error
        events.write("workload_finished", workload=name, seconds=self._clock.now() - begin)

    def _report(self, failure: LMCacheKitError | None, fleet: SimFleet) -> Report:
        scenario = self._scenario
        values: Mapping[str, Mapping[str, Any]] = {name: result_entry(result) for name, result in self._results.items()}
        outcomes = [asdict(outcome) for outcome in evaluate(self._expectations, values)] if failure is None else []
        for outcome in outcomes:
            if outcome["got"] is None and outcome["problem"] in (None, "None is not a number"):
                outcome |= {"met": None, "problem": "not known under the virtual clock"}
        missed = any(outcome["met"] is False for outcome in outcomes)
        report = build_report(
            scenario=scenario.name,
            summary=scenario.summary,
            clock=scenario.clock,
            seed=scenario.seed,
            status="failed" if failure is not None else "missed" if missed else "passed",
            error=None if failure is None else failure.detail,
            started=0.0,
            seconds=self._clock.now(),
            boot_seconds=0.0,
            results=self._results.values(),
            expectations=outcomes,
            plugins=plugin_facts(plugins_used(scenario, self._workloads), self._plugins),
        )
        report["links"] = fleet.network.traffic()
        report["tiers"] = fleet.tier_traffic()
        return report


@contextlib.contextmanager
def _few_collections() -> Iterator[None]:
    """Caches are millions of small objects that stay: looking through them for cycles again and again takes longer than
    the simulation."""
    usual = gc.get_threshold()
    gc.collect()
    gc.freeze()
    gc.set_threshold(200_000, 20, 100)
    try:
        yield
    finally:
        gc.set_threshold(*usual)
        gc.unfreeze()


def _nothing(event: str, **facts: Any) -> None:
    """Takes the events of a run that wants none."""
