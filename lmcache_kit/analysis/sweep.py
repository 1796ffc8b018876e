"""A sweep: one run per cell of a grid, and a table of what came out."""

from __future__ import annotations

import asyncio
import csv
import io
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec

from lmcache_kit.analysis.cell_run import run_cell
from lmcache_kit.analysis.grid import Axis, cells, override, shown_value
from lmcache_kit.analysis.metrics import check_metric, default_metrics, metric
from lmcache_kit.errors import ConfigError
from lmcache_kit.scenario import load_scenario

__all__ = ["SCHEMA_VERSION", "Sweep", "as_csv"]

SCHEMA_VERSION = 1
_MARK = ".lmcache-kit-sweep"
_OURS = ("cells", "sweep.json", "sweep.csv")

Row = dict[str, Any]


class Sweep:
    """Every combination of the axes' values, each a run of its own under ``output/cells``.

    Args:
        scenario: the scenario's file.
        axes: what is varied.
        overrides: ``PATH=VALUE`` changes that all cells share; an axis wins over them.
        metrics: ``RESULT.PATH`` of the values to keep; a sensible few when empty.
        output: folder of the results.
        jobs: how many virtual runs go on at once; runs on the wall clock go one at a time, as they would disturb each
            other's times.
        progress: shows one line to the user.

    Raises:
        ConfigError: no cell can be run, or the folder holds something else.
    """

    def __init__(
        self,
        scenario: Path,
        axes: Sequence[Axis],
        *,
        output: Path,
        overrides: Sequence[str] = (),
        metrics: Sequence[str] = (),
        jobs: int = 1,
        progress: Callable[[str], None],
    ) -> None:
        self._scenario = scenario
        self._axes = axes
        self._shared = list(overrides)
        self._metrics = list(dict.fromkeys(metrics))
        self._output = output.resolve()
        self._jobs = jobs
        self._progress = progress
        self._reports: dict[int, dict[str, Any]] = {}
        self._rows: list[Row] = []
        self._clocks: list[str | None] = []
        self._check()

    async def run(self) -> dict[str, Any]:
        """Run every cell; the answer is also in ``sweep.json`` and ``sweep.csv``, even when it is cancelled."""
        _prepare(self._output)
        limit = asyncio.Semaphore(self._jobs)
        try:
            async with asyncio.TaskGroup() as group:
                for index in self._on("virtual"):
                    group.create_task(self._limited(index, limit))
            for index in self._on("wall"):
                await self._cell(index)
        finally:
            result = self._result()
            self._write(result)
        return result

    def _check(self) -> None:
        """Load every cell's scenario, so that a typing error is told now and not after hours."""
        first: ConfigError | None = None
        for index, values in enumerate(cells(self._axes)):
            row: Row = {"cell": index, "values": values, "status": "not run", "error": None, "metrics": {}}
            clock = None
            try:
                loaded = load_scenario(self._scenario, self._overrides(values))
                for path in self._metrics:
                    check_metric(path, [workload.name for workload in loaded.workloads])
                clock = loaded.clock
            except ConfigError as error:
                first = first or error
                row |= {"status": "failed", "error": error.detail}
            self._rows.append(row)
            self._clocks.append(clock)
        if first is not None and not any(self._clocks):
            raise first

    def _overrides(self, values: Mapping[str, Any]) -> list[str]:
        return [*self._shared, *(override(path, value) for path, value in values.items())]

    def _on(self, clock: str) -> list[int]:
        return [index for index, each in enumerate(self._clocks) if each == clock]

    async def _limited(self, index: int, limit: asyncio.Semaphore) -> None:
        async with limit:
            await self._cell(index)

    async def _cell(self, index: int) -> None:
        row = self._rows[index]
        folder = self._output / "cells" / _folder(index)
        report, error = await run_cell(
            self._scenario, self._overrides(row["values"]), folder, folder.with_suffix(".log")
        )
        status = "failed" if report is None else report["status"]
        if error is not None and status == "passed":
            status = "failed"
        row |= {"status": status, "error": error}
        if report is not None:
            self._reports[index] = report
        done = sum(each["status"] != "not run" for each in self._rows)
        varied = ", ".join(f"{path}={shown_value(value)}" for path, value in row["values"].items())
        self._progress(f"{done} of {len(self._rows)}: {varied or 'the scenario'}: {error or status}")

    def _result(self) -> dict[str, Any]:
        in_order = [self._reports[index] for index in sorted(self._reports)]
        metrics = self._metrics or default_metrics(in_order)
        for index, report in self._reports.items():
            self._rows[index]["metrics"] = {path: metric(report, path) for path in metrics}
        return {
            "schema_version": SCHEMA_VERSION,
            "scenario": self._scenario.stem,
            "set": self._shared,
            "vary": {axis.path: list(axis.values) for axis in self._axes},
            "metrics": metrics,
            "cells": [
                {**row, "output": f"cells/{_folder(row['cell'])}" if row["cell"] in self._reports else None}
                for row in self._rows
            ],
        }

    def _write(self, result: Mapping[str, Any]) -> None:
        text = msgspec.json.format(msgspec.json.encode(result), indent=2) + b"\n"
        (self._output / "sweep.json").write_bytes(text)
        (self._output / "sweep.csv").write_text(as_csv(result), encoding="utf-8")


def as_csv(result: Mapping[str, Any]) -> str:
    """One line per cell: its number, the varied values, status, metrics and error; empty where there is nothing."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["cell", *result["vary"], "status", *result["metrics"], "error"])
    for row in result["cells"]:
        values = [*row["values"].values(), row["status"], *(row["metrics"].get(path) for path in result["metrics"])]
        shown = ["" if value is None else shown_value(value) for value in values]
        writer.writerow([row["cell"], *shown, row["error"] or ""])
    return text.getvalue()


def _folder(index: int) -> str:
    return f"{index:04d}"


def _prepare(output: Path) -> None:
    """Make the folder and empty it of an earlier sweep. Raises ConfigError when it holds something else."""
    try:
        output.mkdir(parents=True, exist_ok=True)
        held = {entry.name for entry in output.iterdir()}
        if held and _MARK not in held:
            raise ConfigError(
                f"{output} holds something else than a sweep's output", hint="name an empty or new --output-dir"
            )
        (output / _MARK).write_text("Made by `lmcache-kit sweep`, which replaces the files of an earlier sweep here.\n")
        for name in _OURS:
            entry = output / name
            if entry.is_dir() and not entry.is_symlink():
                shutil.rmtree(entry)
            else:
                entry.unlink(missing_ok=True)
        (output / "cells").mkdir()
    except OSError as error:
        raise ConfigError(
            f"{output} cannot be the output directory: {error.strerror}",
            hint="name a folder that can be written with --output-dir",
        ) from None
