"""``lmcache-kit run`` and ``lmcache-kit report``."""

from __future__ import annotations

import logging
import time
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from lmcache_kit.cli.output import Format, FormatOption
from lmcache_kit.cli.signals import until_signalled
from lmcache_kit.errors import LMCacheKitError

__all__ = ["register"]


def register(app: typer.Typer) -> None:
    """Add the commands to the application."""
    app.command()(run)
    app.command()(report)


def run(
    scenario: Annotated[str, typer.Argument(help="A YAML file, or the name of a shipped scenario.")],
    clock: Annotated[
        Literal["wall", "virtual"] | None, typer.Option("--clock", help="Overrides the scenario's clock.")
    ] = None,
    overrides: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="PATH=VALUE", help="Change one value, e.g. instances.0.chunk_size=64."),
    ] = None,
    seed: Annotated[int | None, typer.Option("--seed", help="Overrides the scenario's seed.")] = None,
    output_dir: Annotated[
        Path | None, typer.Option("--output-dir", help="Where the report goes; out/NAME when left out.")
    ] = None,
    format: FormatOption = Format.TABLE,  # noqa: A002  (the option's name)
) -> None:
    """Run a scenario and report; exit status 1 when it fails or misses an expectation."""
    from lmcache_kit.live import Run
    from lmcache_kit.plugins import registry
    from lmcache_kit.report import write_machine_facts
    from lmcache_kit.scenario import find_scenario, load_scenario
    from lmcache_kit.sim.runner import VirtualRun

    changes = list(overrides or ())
    changes += [f"clock={clock}"] if clock is not None else []
    changes += [f"seed={seed}"] if seed is not None else []
    loaded = load_scenario(find_scenario(scenario), changes)
    output = output_dir or Path("out") / loaded.name
    start = time.monotonic()

    def progress(line: str) -> None:
        typer.echo(f"[{time.monotonic() - start:6.1f} s] {line}", err=True)

    work: Run | VirtualRun | None = None
    try:
        if loaded.clock == "virtual":
            logging.getLogger("lmcache_kit").setLevel(logging.WARNING)  # of processes that do not exist
            work = VirtualRun(loaded, registry(), output, progress=progress)
            started = time.time()
            try:
                finished = work.run()
            finally:
                if work.report is not None:
                    write_machine_facts(output, started=started, seconds=time.monotonic() - start)
        else:
            work = Run(loaded, registry(), output, progress=progress)
            finished = until_signalled(work.run(), stopping="the fleet")
    except LMCacheKitError:
        # What was measured before it failed is a result too.
        if work is not None and work.report is not None:
            _show(work.report, format)
        raise
    _show(finished, format)
    progress(f"report in {output}")
    missed = [outcome for outcome in finished["expectations"] if outcome["met"] is False]
    for outcome in missed:
        got = outcome["problem"] or f"got {outcome['got']!r}"
        typer.echo(f"missed: {outcome['path']}: wanted {outcome['wanted']!r}, {got}", err=True)
    if missed:
        raise typer.Exit(1)


def report(
    directory: Annotated[Path, typer.Argument(metavar="DIR", help="Output directory of a run.")],
    perfetto: Annotated[
        Path | None, typer.Option("--perfetto", metavar="FILE", help="Write a time line for ui.perfetto.dev, too.")
    ] = None,
    format: FormatOption = Format.TABLE,  # noqa: A002
) -> None:
    """Show a run's report again, and make its report.html anew."""
    from lmcache_kit.live import OutputFolder, write_reports
    from lmcache_kit.plugins import registry
    from lmcache_kit.report import read_report
    from lmcache_kit.scenario.model import ReporterSpec

    folder = OutputFolder(directory)
    found = read_report(folder.report)
    write_reports(found, folder, [ReporterSpec(kind="html")], registry())
    if perfetto is not None:
        from lmcache_kit.analysis.timeline import write_timeline_file

        write_timeline_file(folder.events, perfetto)
    _show(found, format)


def _show(finished: dict[str, Any], format: Format) -> None:  # noqa: A002
    from lmcache_kit.contracts.records import ReporterPlugin
    from lmcache_kit.plugins import registry

    # The reporters that show a report on the terminal are called like the formats.
    record = registry().get(ReporterPlugin, format.value)
    typer.echo(record.factory(registry().options(record)).render(finished), nl=False)
