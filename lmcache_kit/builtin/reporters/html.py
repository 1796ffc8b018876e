"""The report as one HTML page: tables, two charts, no script, nothing loaded from elsewhere."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from html import escape
from typing import Any, ClassVar

from lmcache_kit.builtin.reporters.cells import (
    COLUMNS,
    FACTS,
    NOTES,
    NUMERIC,
    cells,
    detail,
    expectation_cells,
    facts,
    flat,
    used,
)
from lmcache_kit.builtin.reporters.chart import bars
from lmcache_kit.contracts.reporter import Reporter
from lmcache_kit.units import format_duration, format_size

__all__ = ["HtmlReporter"]

_STYLE = """
:root { color-scheme: light dark; --ink: #1c2330; --dim: #5d6778; --line: #d8dde6; --page: #fff; --soft: #f5f7fa;
  --s0: #2f6fde; --s1: #f0912b; --s2: #7a5bc7; --good: #1a7f47; --bad: #c0322b; }
@media (prefers-color-scheme: dark) { :root { --ink: #e4e8ef; --dim: #98a3b5; --line: #343c4a; --page: #14181f;
  --soft: #1c222c; --s0: #6b9df2; --s1: #f5ad5c; --s2: #a68fe0; --good: #4cc07f; --bad: #f0736c; } }
body { font: 15px/1.5 system-ui, sans-serif; color: var(--ink); background: var(--page); margin: 2rem auto;
  max-width: 76rem; padding: 0 1.25rem; }
h1 { font-size: 1.5rem; margin: 0; } h2 { font-size: 1.1rem; margin: 2.2rem 0 .6rem; }
p { margin: .4rem 0; } .dim { color: var(--dim); }
.status { font-weight: 600; } .passed, .met { color: var(--good); } .failed, .missed, .MISSED { color: var(--bad); }
.scroll { overflow-x: auto; } .note + .scroll { margin-top: 1.4rem; } .note { font-size: .85rem; }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; font-size: .9rem; }
th, td { text-align: left; padding: .35rem .7rem; border-bottom: 1px solid var(--line); vertical-align: top; }
th { color: var(--dim); font-weight: 600; white-space: nowrap; } td.n { text-align: right; white-space: nowrap; }
th.n { text-align: right; } th:first-child, td:first-child { position: sticky; left: 0; background: var(--page); }
tbody tr:hover { background: var(--soft); }
figure { margin: 0; } figcaption { color: var(--dim); margin-bottom: .3rem; }
.charts { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(26rem, 100%), 1fr)); gap: 2rem; }
.chart { display: block; overflow: visible; } .chart text { fill: var(--ink); font-size: 12px; }
.chart .value { fill: var(--dim); }
.s0 { fill: var(--s0); } .s1 { fill: var(--s1); } .s2 { fill: var(--s2); }
details { border-bottom: 1px solid var(--line); padding: .35rem 0; } summary { cursor: pointer; }
@media (max-width: 40rem) { body { margin: 1rem auto; padding: 0 .8rem; } th, td { padding: .35rem .45rem; } }
details table { margin: .4rem 0 .8rem; width: auto; } pre { white-space: pre-wrap; color: var(--bad); }
"""


class HtmlReporter(Reporter):
    """A page that can be mailed or opened from a folder."""

    file_name: ClassVar[str | None] = "report.html"

    def render(self, report: Mapping[str, Any]) -> str:
        results: Sequence[Mapping[str, Any]] = report["results"]
        body = [
            _head(report),
            _section("Results", _table(COLUMNS, map(cells, results)) + _notes() + _table(FACTS, map(facts, results)))
            if results
            else "",
            _charts(results),
            _expectations(report.get("expectations") or []),
            _details(results),
            _section("Plugins", _table(("kind", "name", "distribution", "version"), _plugin_rows(report))),
            _section("Host and versions", _table(("", ""), _host_rows(report))),
        ]
        title = escape(f"{report['scenario']}: {report.get('status', '')}")
        return (
            f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>{title}</title>'
            '<meta name="viewport" content="width=device-width, initial-scale=1">'
            f"<style>{_STYLE}</style></head>\n<body>{''.join(body)}</body></html>\n"
        )


def _head(report: Mapping[str, Any]) -> str:
    status = str(report.get("status", ""))
    started = report.get("started_unix")
    when = f", started {datetime.fromtimestamp(started, UTC):%Y-%m-%d %H:%M:%S} UTC" if started is not None else ""
    took, boot = report.get("seconds"), report.get("boot_seconds")
    facts = f"{report.get('clock')} clock, seed {report.get('seed')}"
    facts += f", {format_duration(took)}" if took is not None else ""
    facts += f" of which {format_duration(boot)} to boot" if boot is not None else ""
    facts += when
    error = f"<pre>{escape(str(report['error']))}</pre>" if report.get("error") else ""
    return (
        f"<h1>{escape(str(report['scenario']))}</h1><p>{escape(str(report.get('summary') or ''))}</p>"
        f'<p><span class="status {escape(status)}">{escape(status)}</span> <span class="dim">{escape(facts)}</span></p>'
        f"{error}"
    )


def _section(title: str, content: str) -> str:
    return f"<h2>{escape(title)}</h2>{content}\n"


def _table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = list(rows)
    kept = used(columns, lines)
    head = "".join(f"<th{_class(columns[index])}>{escape(columns[index])}</th>" for index in kept)
    body = "".join(
        "<tr>" + "".join(f"<td{_class(columns[index])}>{escape(line[index])}</td>" for index in kept) + "</tr>"
        for line in lines
    )
    head = f"<thead><tr>{head}</tr></thead>" if any(columns) else ""
    return f'<div class="scroll"><table>{head}<tbody>{body}</tbody></table></div>'


def _notes() -> str:
    return "".join(f'<p class="dim note">{escape(note)}</p>' for note in NOTES)


def _class(column: str) -> str:
    return ' class="n"' if column in NUMERIC else ""


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
        charts.append(bars("Latency of one request (time to first token where there is one)", times, format_duration))
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
        f"{_table(('', ''), flat(result))}</details>"
        for result in results
    ]
    return _section("Details", "".join(parts)) if parts else ""


def _plugin_rows(report: Mapping[str, Any]) -> list[list[str]]:
    keys = ("kind", "name", "distribution", "version")
    return [[str(plugin.get(key, "")) for key in keys] for plugin in report.get("plugins") or []]


def _host_rows(report: Mapping[str, Any]) -> list[tuple[str, str]]:
    host = dict(report.get("host") or {})
    memory = host.pop("memory_bytes", None)
    rows = [(key.replace("_", " "), detail(value)) for key, value in host.items()]
    if memory is not None:
        rows.append(("memory", format_size(memory)))
    return rows + [(name, str(version)) for name, version in (report.get("versions") or {}).items()]
