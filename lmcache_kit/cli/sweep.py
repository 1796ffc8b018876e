"""``lmcache-kit sweep``."""

from __future__ import annotations

import enum
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from lmcache_kit.cli.output import print_json, print_table, shown_fact

__all__ = ["register"]


class SweepFormat(enum.StrEnum):
    """``--format``."""

    TABLE = "table"
    JSON = "json"
    CSV = "csv"


def register(app: typer.Typer) -> None:
    """Add the command to the application."""
    app.command()(sweep)


def sweep(
    scenario: Annotated[str, typer.Argument(help="A YAML file, or the name of a shipped scenario.")],
    vary: Annotated[
        list[str],
        typer.Option("--vary", metavar="PATH=V1,V2,...", help="Values of one path; all combinations of several."),
    ],
    overrides: Annotated[
        list[str] | None, typer.Option("--set", metavar="PATH=VALUE", help="Change one value in every cell.")
    ] = None,
    clock: Annotated[
        Literal["wall", "virtual"] | None, typer.Option("--clock", help="Overrides the scenario's clock.")
    ] = None,
    seed: Annotated[int | None, typer.Option("--seed", help="Overrides the scenario's seed.")] = None,
    jobs: Annotated[
        int | None,
        typer.Option("--jobs", min=1, help="Virtual runs at a time; one per processor when left out.", metavar="N"),
    ] = None,
    metrics: Annotated[
        list[str] | None,
        typer.Option("--metric", metavar="RESULT.PATH", help="A value to show; hit rates and times when left out."),
    ] = None,
    output_dir: Annotated[
        Path | None, typer.Option("--output-dir", help="Where results go; out/NAME-sweep when left out.")
    ] = None,
    format: Annotated[  # noqa: A002  (the option's name)
        SweepFormat, typer.Option("--format", help="table for people, json or csv for programs.")
    ] = SweepFormat.TABLE,
) -> None:
    """Run a scenario for every combination of values; exit status 1 when a cell failed or missed an expectation."""
    from lmcache_kit.analysis.grid import parse_axes
    from lmcache_kit.analysis.sweep import Sweep, as_csv
    from lmcache_kit.cli.signals import until_signalled
    from lmcache_kit.scenario import find_scenario

    changes = list(overrides or ())
    changes += [f"clock={clock}"] if clock is not None else []
    changes += [f"seed={seed}"] if seed is not None else []
    path = find_scenario(scenario)
    start = time.monotonic()

    def progress(line: str) -> None:
        typer.echo(f"[{time.monotonic() - start:6.1f} s] {line}", err=True)

    output = output_dir or Path("out") / f"{path.stem}-sweep"
    work = Sweep(
        path,
        parse_axes(vary),
        output=output,
        overrides=changes,
        metrics=metrics or (),
        jobs=jobs or _processors(),
        progress=progress,
    )
    result = until_signalled(work.run(), stopping="the runs")
    for wanted in metrics or ():
        if all(row["metrics"].get(wanted) is None for row in result["cells"]):
            typer.echo(f"warning: no cell has {wanted}", err=True)
    if format is SweepFormat.JSON:
        print_json(result)
    elif format is SweepFormat.CSV:
        typer.echo(as_csv(result), nl=False)
    else:
        _show(result, all_columns=bool(metrics))
    progress(f"results in {output}")
    if any(row["status"] != "passed" for row in result["cells"]):
        raise typer.Exit(1)


def _processors() -> int:
    import os

    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _show(result: Mapping[str, Any], *, all_columns: bool) -> None:
    """A table for each result that a metric is of: all in one would be too wide to read."""
    from lmcache_kit.analysis.grid import shown_value

    rows = result["cells"]
    same = {} if all_columns else _constants(result)
    if len(same) == len(result["metrics"]):
        same = {}
    metrics = [path for path in result["metrics"] if path not in same]
    names = list(dict.fromkeys(path.partition(".")[0] for path in metrics))
    for name in names or [None]:
        own = [path for path in metrics if path.partition(".")[0] == name]
        if name is not None and len(names) > 1:
            typer.echo(name)
        print_table(
            ["", *_short(result["vary"]), "status", *(path.partition(".")[2] for path in own)],
            [
                [row["cell"], *map(shown_value, row["values"].values()), row["status"]]
                + [_shown(path, row["metrics"].get(path)) for path in own]
                for row in rows
            ],
        )
    if same:
        typer.echo(f"in every cell: {', '.join(f'{path} {_shown(path, value)}' for path, value in same.items())}")
    for row in rows:
        if row["error"]:
            typer.echo(f"cell {row['cell']}: {row['error']}")


def _short(paths: Iterable[str]) -> list[str]:
    """Of each path the fewest last parts that tell it from the others, beginning with a name."""
    split = [path.split(".") for path in paths]

    def enough(parts: list[str], length: int) -> bool:
        others = [other[-length:] for other in split if other is not parts]
        return not parts[-length].isdecimal() and parts[-length:] not in others

    lengths = [next((n for n in range(1, len(parts)) if enough(parts, n)), len(parts)) for parts in split]
    return [".".join(parts[-length:]) for parts, length in zip(split, lengths, strict=True)]


def _constants(result: Mapping[str, Any]) -> dict[str, Any]:
    """Metrics that every cell has the same value of: they say nothing about what is varied."""
    found = [row["metrics"] for row in result["cells"] if row["metrics"]]
    if len(found) < 2:
        return {}
    return {path: found[0][path] for path in result["metrics"] if all(each[path] == found[0][path] for each in found)}


def _shown(path: str, value: Any) -> str:
    if value is None:
        return ""
    # The last key says what it is, or, of percentiles, the one before it.
    key = next((part for part in reversed(path.split(".")) if part.endswith("seconds")), path)
    return f"{value:.4f}" if isinstance(value, float) and "rate" in path else shown_fact(key, value)
