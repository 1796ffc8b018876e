"""``lmcache-kit compare``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from lmcache_kit.cli.output import Format, FormatOption, print_json, print_table

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

__all__ = ["register"]

_PERCENTILES = ("p50", "p90", "p99")
_ROWS = 32


def register(app: typer.Typer) -> None:
    """Add the command to the application."""
    app.command()(compare)


def compare(
    a: Annotated[Path, typer.Argument(metavar="A", help="Output directory of a run, which the other is held against.")],
    b: Annotated[Path, typer.Argument(metavar="B", help="Output directory of another run.")],
    times: Annotated[bool, typer.Option("--times", help="How far B's times and hit rates are from A's, too.")] = False,
    bytes: Annotated[bool, typer.Option("--bytes", help="Sizes of chunks must agree, too.")] = False,  # noqa: A002
    per: Annotated[
        str, typer.Option("--per", metavar="instance|tier", help="Whose decisions must come in the same order.")
    ] = "instance",
    format: FormatOption = Format.TABLE,  # noqa: A002  (the option's name)
) -> None:
    """Say whether two runs took the same cache decisions; exit status 0 equal, 1 different, 2 not comparable."""
    from lmcache_kit.analysis import compare_runs
    from lmcache_kit.analysis.sequences import Per
    from lmcache_kit.errors import ConfigError, LMCacheKitError

    if per not in list(Per):
        raise ConfigError(f"--per {per!r} is not one of {', '.join(Per)}")
    try:
        facts = compare_runs(a, b, per=Per(per), with_bytes=bytes, with_times=times)
    except ConfigError:
        raise
    except LMCacheKitError as error:
        # 1 says that the runs differ; whatever keeps them from being compared is 2.
        raise ConfigError(error.message, hint=error.hint) from error
    if format is Format.JSON:
        print_json(facts)
    else:
        _show(facts)
    if not facts["equal"]:
        raise typer.Exit(1)


def _show(facts: Mapping[str, Any]) -> None:
    for warning in facts["warnings"]:
        typer.echo(f"warning: {warning}", err=True)
    typer.echo("equal" if facts["equal"] else "DIFFERENT")
    keys = ("scenario", "clock", "seed", "status", "path")
    print_table(["", *keys], [[name, *(facts[name.lower()][key] for key in keys)] for name in ("A", "B")])
    print_table(["event", "A", "B"], [[name, f"{n['a']:,}", f"{n['b']:,}"] for name, n in facts["counts"].items()])
    _show_sequences(facts["sequences"])
    _show_divergence(facts)
    _show_requests(facts["requests"])
    _show_report(facts["report"])
    if facts["times"] is not None:
        _show_times(facts["times"])


def _show_sequences(sequences: Sequence[Mapping[str, Any]]) -> None:
    """All of a small fleet; of a large one those that differ, and of those the first."""
    parted = [each for each in sequences if not each["equal"]]
    shown = sequences if len(sequences) <= _ROWS else parted[:_ROWS]
    if shown:
        rows = [
            [
                " ".join(filter(None, (each["instance"], each.get("location")))),
                f"{each['a']:,}",
                f"{each['b']:,}",
                "equal" if each["equal"] else f"differ from {each['first_difference']:,} on",
            ]
            for each in shown
        ]
        print_table(["decisions of", "A", "B", ""], rows)
    if len(shown) < len(sequences):
        typer.echo(f"sequences of decisions: {len(sequences):,}, of which {len(parted):,} differ")


def _show_divergence(facts: Mapping[str, Any]) -> None:
    if facts["renamed"] is not None:
        where = " ".join(facts["renamed"].values())
        typer.echo(f"{where} holds other chunks in B than in A, as told by the chunks of the others")
    found = facts["divergence"]
    if found is None:
        return
    where = " ".join(filter(None, (found["instance"], found.get("location"))))
    typer.echo(f"first difference: {where}, decision {found['index']:,}")
    rows = [["both", *_decision(each)] for each in found["before"]]
    for name in ("a", "b"):
        rows += [[name.upper(), *_decision(each)] for each in found[name]] or [[name.upper(), "(has ended)", *[""] * 6]]
    print_table(["run", "decision", "time", "event", "location", "chunk", "cause", "key"], rows)


def _decision(entry: Mapping[str, Any]) -> list[str]:
    return [
        f"{entry['index']:,}",
        f"{entry['time']:.6f}",
        entry["event"].removeprefix("cache_"),
        entry["location"] or "",
        f"#{entry['chunk']}",
        entry["cause"] or "",
        entry["key"] or "",
    ]


def _show_requests(requests: Mapping[str, Any]) -> None:
    only = f", {requests['only_a']:,} in A only, {requests['only_b']:,} in B only"
    alone = requests["only_a"] or requests["only_b"]
    typer.echo(
        f"requests: {requests['matched']:,} in both{only if alone else ''}, {requests['different']:,} of all differ"
    )
    first = requests["first_difference"]
    if first is not None:
        keys = ("instance", "prompt_tokens", "completion_tokens", "cached_tokens", "failed")
        typer.echo(f"first request that differs: {first['workload']} {first['position']}")
        rows = [
            [name.upper(), *(first[name][key] for key in keys)]
            if first[name] is not None
            else [name.upper(), "(none)", *[""] * 4]
            for name in ("a", "b")
        ]
        print_table(["run", *(key.replace("_", " ") for key in keys)], rows)


def _show_report(report: Mapping[str, Any]) -> None:
    if report["identical"]:
        typer.echo("report.json: the same, byte for byte")
        return
    first = report["first_difference"]
    over = f" ({report['passed_over']} passed over)" if report["passed_over"] else ""
    if not report["compared"]:
        typer.echo("report.json: not compared, as the seeds differ")
    elif first is None:
        same = "the same values, laid out differently" if report["identical"] is False else "no difference"
        typer.echo(f"report.json: {same}{over}")
    else:
        a, b = (repr(first[side]) if side in first else "nothing" for side in ("a", "b"))
        typer.echo(f"report.json: first difference at {first['path']}: A has {a}, B has {b}{over}")


def _show_times(times: Mapping[str, Any]) -> None:
    rows = []
    for each in times["results"]:
        ratios = [(each.get(key) or {}).get(name) for key in ("ttft_ratio", "latency_ratio") for name in _PERCENTILES]
        rate = each.get("hit_rate") or {}
        rates = (_number(rate.get(key), form) for key, form in (("a", ".4f"), ("b", ".4f"), ("points", "+.2f")))
        rows.append([each["name"], *(_number(ratio, ".3g") for ratio in ratios), *rates])
    heads = [f"{what} {name}" for what in ("TTFT", "latency") for name in _PERCENTILES]
    if rows:
        typer.echo("\nB's values over A's:")
        print_table(["result", *heads, "hit rate A", "hit rate B", "points"], rows)
    rows = [
        [each["workload"] or "all", what, *_errors(each[what]), _number(each["hit_rate"]["points"], "+.2f")]
        for each in times["requests"]
        for what in ("ttft", "latency")
        if each[what] is not None
    ]
    if not rows:
        return
    typer.echo("Requests in both, errors of B against A in percent:")
    own, of = (f"{name} of errors" for name in _PERCENTILES), (f"error of {name}" for name in _PERCENTILES)
    print_table(["workload", "time", "requests", "MAPE", *own, *of, "hit rate points"], rows)


def _errors(errors: Mapping[str, Any]) -> list[str]:
    own, of = errors["error_percentiles"] or {}, errors["percentile_error"]
    return [
        f"{errors['requests']:,}",
        _number(errors["mape"], ".2f"),
        *(_number(own.get(name), ".2f") for name in _PERCENTILES),
        *(_number(of[name], "+.2f") for name in _PERCENTILES),
    ]


def _number(value: float | None, form: str) -> str:
    return "" if value is None else format(value, form)
