"""A scenario on the wall clock: boot, work, measure, compare with what is expected, report, tear down."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import msgspec

from lmcache_kit.clock import Clock, WallClock
from lmcache_kit.contracts.records import LauncherPlugin, ReporterPlugin
from lmcache_kit.contracts.workload import Workload, WorkloadContext, WorkloadResult
from lmcache_kit.errors import ConfigError, LMCacheKitError
from lmcache_kit.faults import FaultDriver
from lmcache_kit.live.cache_events import merge_cache_events
from lmcache_kit.live.events import EventLog
from lmcache_kit.live.faults import WallFaults, new_token, with_token
from lmcache_kit.live.fleet import Fleet
from lmcache_kit.live.fleet_plan import plan_fleet
from lmcache_kit.live.folder import OutputFolder
from lmcache_kit.live.supervision import Supervisor
from lmcache_kit.plugins import PluginRegistry
from lmcache_kit.report.build import build_report, plugin_facts, result_entry
from lmcache_kit.scenario import Scenario, dump_scenario, evaluate, fault_plan, parse_expectations, validate
from lmcache_kit.scenario.model import ReporterSpec
from lmcache_kit.scenario.validate import plugins_used, startup_timeout

__all__ = ["Run", "write_reports"]

Report = dict[str, Any]


class Run:
    """One run of a scenario.

    Args:
        scenario: what to run. Raises ConfigError when it does not fit the installed plugins, or asks for a clock that
            cannot be had: nothing ever runs on another clock than the one asked for.
        plugins: the installed plugins.
        output: the output directory.
        progress: shows one line to the user.
        clock: the wall clock.
    """

    def __init__(
        self,
        scenario: Scenario,
        plugins: PluginRegistry,
        output: Path,
        *,
        progress: Callable[[str], None],
        clock: Clock | None = None,
    ) -> None:
        if scenario.clock != "wall":
            raise ConfigError(
                f"this version cannot run scenario {scenario.name!r} on the {scenario.clock} clock",
                hint="run it on real processes with --clock wall",
            )
        self._workloads = validate(scenario, plugins)
        self._faults = fault_plan(scenario, plugins)
        self._expectations = parse_expectations(scenario.expect, [spec.name for spec in scenario.workloads])
        self._scenario = scenario
        self._plugins = plugins
        self._folder = OutputFolder(output)
        self._progress = progress
        self._clock = clock or WallClock()
        self._results: dict[str, WorkloadResult] = {}
        self._boot_seconds: float | None = None
        self.report: Report | None = None
        """The report, once the run has ended, also when it failed."""

    async def run(self) -> Report:
        """Run to the end and return the report, which is also in the output directory.

        A run that fails raises its LMCacheKitError after the report, with what was measured until then, was written.
        However it ends, also by cancellation, every process that it started has ended before.
        """
        self._folder.prepare()
        self._folder.scenario.write_text(dump_scenario(self._scenario), encoding="utf-8")
        started, begin = self._clock.unix(), self._clock.now()
        failure: BaseException | None = None
        events = EventLog(self._folder.events, self._clock)
        try:
            with events:
                await self._on_fleet(events)
        except (LMCacheKitError, asyncio.CancelledError) as error:
            failure = error
        finally:
            logs = {instance.id: self._folder.cache_events(instance.id) for instance in self._scenario.instances}
            merge_cache_events(self._folder.events, logs, start=events.start)
            self._folder.drop_data()
        self.report = self._report(started, self._clock.now() - begin, failure)
        write_reports(self.report, self._folder, self._scenario.reporters, self._plugins)
        if failure is not None:
            raise failure
        return self.report

    async def _on_fleet(self, events: EventLog) -> None:
        launcher_spec = self._scenario.launcher
        record = self._plugins.get(LauncherPlugin, launcher_spec.kind)
        supervisor = Supervisor(record.factory(self._plugins.options(record, launcher_spec.options)))
        try:
            plan = plan_fleet(self._scenario, self._plugins, self._folder)
            token = new_token()
            if self._faults:
                plan = with_token(plan, token)
            fleet = Fleet(plan, supervisor, self._progress)
            logs = {planned.instance_id: self._folder.cache_events(planned.instance_id) for planned in plan.instances}
            timeout = startup_timeout(self._scenario, self._plugins)
            target = WallFaults(plan, token, supervisor, fleet, logs, timeout=timeout)
            faults = FaultDriver(self._faults, target, clock=self._clock, emit=events.write)
            try:
                begin = self._clock.now()
                await fleet.boot(timeout=timeout)
                self._boot_seconds = self._clock.now() - begin
                events.write("fleet_ready", seconds=self._boot_seconds, instances=list(fleet.instances))
                await supervisor.run(faults.start(), during="the first faults")
                notes: dict[str, Any] = {}
                for spec, workload in zip(self._scenario.workloads, self._workloads, strict=True):
                    work = self._one(spec.name, workload, fleet, notes, events, faults)
                    await supervisor.run(faults.run(work), during=f"workload {spec.name}")
            finally:
                for action in await faults.close():
                    self._progress(f"the run ended before its {action.fault.kind} of {action.fault.name}")
                await target.close()
                await fleet.close()
        finally:
            # A second Ctrl-C must not leave processes behind.
            await asyncio.shield(supervisor.stop())

    async def _one(
        self,
        name: str,
        workload: Workload,
        fleet: Fleet,
        notes: dict[str, Any],
        events: EventLog,
        faults: FaultDriver,
    ) -> None:
        context = WorkloadContext(
            name=name,
            controller=fleet.controller,
            instances=fleet.instances,
            clock=self._clock,
            rng=random.Random(f"{self._scenario.seed}/{name}"),  # noqa: S311  (reproducible, not secret)
            base_dir=Path(self._scenario.base_dir or "."),
            earlier=self._results,
            notes=notes,
            emit=events.sink(name),
            progress=lambda line: self._progress(f"{name}: {line}"),
        )
        await faults.start(name)
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

    def _report(self, started: float, seconds: float, failure: BaseException | None) -> Report:
        scenario = self._scenario
        values: Mapping[str, Mapping[str, Any]] = {name: result_entry(result) for name, result in self._results.items()}
        outcomes = [asdict(outcome) for outcome in evaluate(self._expectations, values)] if failure is None else []
        missed = any(not outcome["met"] for outcome in outcomes)
        return build_report(
            scenario=scenario.name,
            summary=scenario.summary,
            clock=scenario.clock,
            seed=scenario.seed,
            status="failed" if failure is not None else "missed" if missed else "passed",
            error=None if failure is None else _reason(failure),
            started=started,
            seconds=seconds,
            boot_seconds=self._boot_seconds,
            results=self._results.values(),
            expectations=outcomes,
            plugins=plugin_facts(plugins_used(scenario, self._workloads), self._plugins),
        )


def write_reports(
    report: Report, folder: OutputFolder, reporters: Sequence[ReporterSpec], plugins: PluginRegistry
) -> None:
    """Write ``report.json``, and the file of each reporter that has one."""
    folder.report.write_bytes(msgspec.json.format(msgspec.json.encode(report), indent=2) + b"\n")
    for spec in reporters:
        record = plugins.get(ReporterPlugin, spec.kind)
        reporter = record.factory(plugins.options(record, spec.options))
        if reporter.file_name is not None:
            (folder.path / reporter.file_name).write_text(reporter.render(report), encoding="utf-8")


def _reason(failure: BaseException) -> str:
    return failure.detail if isinstance(failure, LMCacheKitError) else "interrupted"
