"""``lmcache-kit calibrate``."""

from __future__ import annotations

import logging
import time
from pathlib import Path
from typing import Annotated, Any

import typer

from lmcache_kit.cli.output import Format, FormatOption, print_json, print_table

__all__ = ["register"]


def register(app: typer.Typer) -> None:
    """Add the command to the application."""
    app.command()(calibrate)


def calibrate(
    scenario: Annotated[
        str | None, typer.Argument(help="A YAML file, or the name of a shipped scenario; runs on the wall clock.")
    ] = None,
    overrides: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="PATH=VALUE", help="Change one value, e.g. instances.0.chunk_size=64."),
    ] = None,
    sources: Annotated[
        list[Path] | None,
        typer.Option("--from", metavar="DIR", help="Take this output directory of a wall run instead; or several."),
    ] = None,
    runs: Annotated[int, typer.Option("--runs", min=1, help="How many wall runs to make and to fit to.")] = 1,
    output: Annotated[
        Path | None, typer.Option("--output", metavar="FILE", help="The costs; costs.json in --output-dir if left out.")
    ] = None,
    output_dir: Annotated[
        Path | None, typer.Option("--output-dir", help="Where both runs go; out/NAME-calibration when left out.")
    ] = None,
    warm_up: Annotated[
        int, typer.Option("--warm-up", min=0, help="How many first requests of each instance are left out.")
    ] = 2,
    format: FormatOption = Format.TABLE,  # noqa: A002  (the option's name)
) -> None:
    """Fit the costs of virtual time to a wall run, and say how far a virtual run is off with them.

    On a machine that is faster at one time than at another, several runs tell more than one.
    """
    from lmcache_kit.calibration import calibrate as fit_all
    from lmcache_kit.calibration import costs_document, figures, judge, judged
    from lmcache_kit.errors import ConfigError
    from lmcache_kit.plugins import registry

    if (scenario is None) == (not sources):
        raise ConfigError(
            "calibrate needs a scenario or --from, and not both", hint="e.g. lmcache-kit calibrate quickstart"
        )
    if sources and (overrides or runs > 1):
        option = "--set" if overrides else "--runs"
        raise ConfigError(f"{option} changes nothing about a run that has been", hint=f"leave --from or {option} out")
    start = time.monotonic()

    def progress(line: str) -> None:
        typer.echo(f"[{time.monotonic() - start:6.1f} s] {line}", err=True)

    if sources:
        walls, folder = sources, output_dir or Path("out") / f"{sources[0].resolve().name}-calibration"
    else:
        assert scenario is not None
        walls, folder = _run(scenario, overrides or [], runs, output_dir, progress)
    logging.getLogger("lmcache_kit").setLevel(logging.WARNING)  # of processes that do not exist
    progress("fitting costs")
    findings = fit_all(walls, registry(), warm_up=warm_up)
    target = output or folder / "costs.json"
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_bytes(costs_document(findings, walls[0]))
    progress(f"costs in {target}; playing the scenario with them")
    virtual = folder / "virtual"
    error = judged(walls[0], findings.costs(), registry(), virtual, progress=lambda line: None)
    errors = [error, *({**judge(wall, virtual), "failure": error["failure"]} for wall in walls[1:])]
    facts = {
        "costs": str(target),
        "figures": figures(findings),
        "notes": findings.notes,
        "wall": [str(wall) for wall in walls],
        "virtual": str(virtual),
        "errors": errors,
    }
    if format is Format.JSON:
        print_json(facts)
    else:
        _show(facts)


def _run(
    scenario: str, overrides: list[str], runs: int, output_dir: Path | None, progress: Any
) -> tuple[list[Path], Path]:
    """Where the wall runs are, after they were run, and the folder of everything."""
    from lmcache_kit.cli.signals import until_signalled
    from lmcache_kit.live import Run
    from lmcache_kit.plugins import registry
    from lmcache_kit.scenario import find_scenario, load_scenario

    loaded = load_scenario(find_scenario(scenario), [*overrides, "clock=wall", "events=true"])
    folder = output_dir or Path("out") / f"{loaded.name}-calibration"
    walls = [folder / "wall", *(folder / f"wall-{number}" for number in range(2, runs + 1))]
    for wall in walls:
        until_signalled(Run(loaded, registry(), wall, progress=progress).run(), stopping="the fleet")
    return walls, folder


def _show(facts: dict[str, Any]) -> None:
    rows = [
        [each["name"], _value(each["value"]), each["samples"] or "", each["kept_because"] or ""]
        for each in facts["figures"]
    ]
    print_table(["cost", "value", "samples", "kept as it was, because"], rows)
    for note in facts["notes"]:
        typer.echo(f"note: {note}")
    for wall, error in zip(facts["wall"], facts["errors"], strict=True):
        if len(facts["wall"]) > 1:
            typer.echo(f"\nagainst {wall}:")
        show_error(error)


def _value(value: float | bool | None) -> str:
    return (
        {True: "yes", False: "no", None: "none"}[value] if value is None or isinstance(value, bool) else f"{value:.6g}"
    )


def show_error(error: dict[str, Any]) -> None:
    """Tables of what a virtual run was wrong by."""
    if error["failure"] is not None:
        typer.echo(f"the virtual run failed: {error['failure']}")
    same = "the same" if error["decisions_equal"] else "not the same"
    typer.echo(f"\ncache decisions: {same}; requests matched: {error['requests_matched']:,}")
    rows = []
    for each in error["requests"]:
        for what in ("ttft", "latency"):
            found = each[what]
            if found is not None:
                percents = [_number(found[key], form) for key, form in _ERRORS]
                hits = _number(each["hit_rate_points"], "+.2f")
                rows.append([each["workload"] or "all", what, f"{each['requests']:,}", *percents, hits])
    print_table(
        ["workload", "time", "requests", "MAPE %", "p50 %", "p90 %", "p99 %", "hit rate points"], rows, spare="requests"
    )
    for what, title in (("workloads", "seconds of"), ("jobs", "jobs' seconds in")):
        if error[what]:
            rows = [
                [
                    each["workload"],
                    f"{each['wall_seconds']:.3f}",
                    _number(each["virtual_seconds"], ".3f"),
                    _number(each["error"], "+.1f"),
                ]
                for each in error[what]
            ]
            print_table([title, "wall", "virtual", "error %"], rows)


_ERRORS = (("mape", ".1f"), ("p50", "+.1f"), ("p90", "+.1f"), ("p99", "+.1f"))


def _number(value: float | None, form: str) -> str:
    return "" if value is None else format(value, form)
