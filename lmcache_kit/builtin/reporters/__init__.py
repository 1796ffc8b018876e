"""Reporters that come with the core."""

from __future__ import annotations

from lmcache_kit.contracts.records import Options, Plugin, ReporterPlugin
from lmcache_kit.contracts.reporter import Reporter

__all__ = ["RECORDS"]


def _table(options: Options) -> Reporter:
    from lmcache_kit.builtin.reporters.table import TableReporter

    return TableReporter()


def _json(options: Options) -> Reporter:
    from lmcache_kit.builtin.reporters.plain_json import JsonReporter

    return JsonReporter()


def _html(options: Options) -> Reporter:
    from lmcache_kit.builtin.reporters.html import HtmlReporter

    return HtmlReporter()


RECORDS: tuple[Plugin, ...] = (
    ReporterPlugin(name="table", summary="tables for a terminal", factory=_table),
    ReporterPlugin(name="json", summary="the report as one JSON object", factory=_json),
    ReporterPlugin(name="html", summary="a page of its own, report.html", factory=_html),
)
