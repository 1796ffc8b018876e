"""The report as one HTML page: tables, charts, no script, nothing loaded from elsewhere."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from datetime import UTC, datetime
from html import escape
from typing import Any, ClassVar

from lmcache_kit.builtin.reporters.cells import (
    COLUMNS,
    FACTS,
    NUMERIC,
    cells,
    detail,
    duration,
    expectation_cells,
    facts,
    flat,
    notes,
    used,
)
from lmcache_kit.builtin.reporters.chart import bars
from lmcache_kit.builtin.reporters.over_time import windows_charts
from lmcache_kit.builtin.reporters.parts import Part, parts_of
from lmcache_kit.builtin.reporters.style import STYLE
from lmcache_kit.contracts.reporter import Reporter
from lmcache_kit.units import format_size

__all__ = ["HtmlReporter"]

_LONG = 24
"""Rows from which on a table is folded."""


class HtmlReporter(Reporter):
    """A page that can be mailed or opened from a folder."""

    file_name: ClassVar[str | None] = "report.html"

    def render(self, report: Mapping[str, Any]) -> str:
        results: Sequence[Mapping[str, Any]] = report["results"]
        body = [
            _head(report),
            _section(
                "Results", _table(COLUMNS, map(cells, results)) + _notes(results) + _table(FACTS, map(facts, results))
            )
            if results
            else "",
            _charts(results),
            _over_time(results),
            _parts(report, results),
            _expectations(report.get("expectations") or []),
            _details(results),
            _section("Plugins", _table(("kind", "name", "distribution", "version"), _plugin_rows(report))),
            _section("Host and versions", _table(("", ""), host)) if (host := _host_rows(report)) else "",
        ]
        title = escape(f"{report['scenario']}: {report.get('status', '')}")
        return (
            f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>{title}</title>'
            '<meta name="viewport" content="width=device-width, initial-scale=1">'
            f"<style>{STYLE}</style></head>\n<body>{''.join(body)}</body></html>\n"
        )


def _head(report: Mapping[str, Any]) -> str:
    status = str(report.get("status", ""))
    started = report.get("started_unix")
    when = f", started {datetime.fromtimestamp(started, UTC):%Y-%m-%d %H:%M:%S} UTC" if started is not None else ""
    took, boot = report.get("seconds"), report.get("boot_seconds")
    facts = f"{report.get('clock')} clock, seed {report.get('seed')}"
    facts += f", {duration(took)}" if took is not None else ""
    facts += f" of which {duration(boot)} to boot" if boot else ""
    facts += when
    error = f"<pre>{escape(str(report['error']))}</pre>" if report.get("error") else ""
    return (
        f"<h1>{escape(str(report['scenario']))}</h1><p>{escape(str(report.get('summary') or ''))}</p>"
        f'<p><span class="status {escape(status)}">{escape(status)}</span> <span class="dim">{escape(facts)}</span></p>'
        f"{error}"
    )


def _section(title: str, content: str) -> str:
    return f"<h2>{escape(title)}</h2>{content}\n"


def _table(columns: Sequence[str], rows: Iterable[Sequence[str]], *, numeric: Collection[str] = NUMERIC) -> str:
    lines = list(rows)
    kept = used(columns, lines)
    flush = {index: ' class="n"' if columns[index] in numeric else "" for index in kept}
    head = "".join(f"<th{flush[index]}>{escape(columns[index])}</th>" for index in kept)
    body = "".join(
        "<tr>" + "".join(f"<td{flush[index]}>{escape(line[index])}</td>" for index in kept) + "</tr>" for line in lines
    )
    head = f"<thead><tr>{head}</tr></thead>" if any(columns) else ""
    return f'<div class="scroll"><table>{head}<tbody>{body}</tbody></table></div>'


def _notes(results: Sequence[Mapping[str, Any]]) -> str:
    return "".join(f'<p class="dim note">{escape(note)}</p>' for note in notes(results))


def _over_time(results: Sequence[Mapping[str, Any]]) -> str:
    charts = [chart for result in results for chart in windows_charts(result)]
    return _section("Over time", f'<div class="charts">{"".join(charts)}</div>') if charts else ""


def _parts(report: Mapping[str, Any], results: Sequence[Mapping[str, Any]]) -> str:
    """What the report says of each instance, tier and link, in a table each."""
    found = [(_words(part).capitalize(), part) for part in parts_of(report)]
    found += [(f"{result['name']}: {_words(part)}", part) for result in results for part in parts_of(result)]
    return "".join(_section(title, _part(part)) for title, part in found)


def _words(part: Part) -> str:
    return part.key.replace("_", " ")


def _part(part: Part) -> str:
    table = _table(part.columns, part.rows, numeric=part.numeric)
    if len(part.rows) < _LONG:
        return table
    return f"<details><summary>{len(part.rows):,} rows</summary>{table}</details>"


def _charts(results: Sequence[Mapping[str, Any]]) -> str:
    sizes = [
        (
            str(result["name"]),
            [("KV before", float(result["bytes_before"])), ("KV after", float(result["bytes_after"]))],
        )
        for result in results
        if result.get("bytes_before") is not None and result.get("bytes_after") is not None
    ]
    times = [
        (
            str(result["name"]),
            [
                (name, float(values[key]))
                for name, key in (("p50", "p50"), ("p99", "p99"))
                if values.get(key) is not None
            ],
        )
        for result in results
        if (values := result.get("ttft_seconds") or result.get("latency_seconds"))
    ]
    charts = []
    if sizes:
        charts.append(bars("KV bytes before and after", sizes, format_size))
    if times:
        charts.append(bars("Latency of one request (time to first token where there is one)", times, duration))
    return _section("At a glance", f'<div class="charts">{"".join(charts)}</div>') if charts else ""


def _expectations(outcomes: Sequence[Mapping[str, Any]]) -> str:
    if not outcomes:
        return ""
    rows = "".join(
        "<tr>"
        + "".join(f"<td>{escape(cell)}</td>" for cell in line[:-1])
        + f'<td class="status {line[-1]}">{line[-1]}</td></tr>'
        for line in map(expectation_cells, outcomes)
    )
    head = "<thead><tr><th>value</th><th>wanted</th><th>got</th><th></th></tr></thead>"
    return _section("Expectations", f'<div class="scroll"><table>{head}<tbody>{rows}</tbody></table></div>')


def _details(results: Sequence[Mapping[str, Any]]) -> str:
    parts = [
        f"<details><summary>{escape(str(result['name']))} "
        f'<span class="dim">{escape(str(result.get("kind", "")))}</span></summary>'
        f"{_table(('', ''), flat(result, {'windows', *(part.key for part in parts_of(result))}))}</details>"
        for result in results
    ]
    return _section("Details", "".join(parts)) if parts else ""


def _plugin_rows(report: Mapping[str, Any]) -> list[list[str]]:
    keys = ("kind", "name", "distribution", "version")
    return [[str(plugin.get(key, "")) for key in keys] for plugin in report.get("plugins") or []]


def _host_rows(report: Mapping[str, Any]) -> list[tuple[str, str]]:
    # The report of a virtual run has neither.
    host = dict(report.get("host") or {})
    memory = host.pop("memory_bytes", None)
    rows = [(key.replace("_", " "), detail(value)) for key, value in host.items()]
    if memory is not None:
        rows.append(("memory", format_size(memory)))
    return rows + [(name, str(version)) for name, version in (report.get("versions") or {}).items()]
