from __future__ import annotations

import json
import re
from html.parser import HTMLParser
from typing import Any

import pytest

from lmcache_kit.builtin.reporters.chart import bars
from lmcache_kit.builtin.reporters.table import TableReporter
from lmcache_kit.contracts.records import ReporterPlugin
from lmcache_kit.plugins import PluginRegistry

BUILT_IN = PluginRegistry(allow=[])


def render(name: str, report: dict[str, Any]) -> str:
    record = BUILT_IN.get(ReporterPlugin, name)
    return record.factory(BUILT_IN.options(record)).render(report)


@pytest.mark.parametrize("name", ["table", "json", "html"])
def test_rendering_is_a_pure_function(name: str, report: dict[str, Any]) -> None:
    before = json.dumps(report)
    assert render(name, report) == render(name, report)
    assert json.dumps(report) == before


def test_json_is_the_report(report: dict[str, Any]) -> None:
    assert json.loads(render("json", report)) == report


def test_the_table_shows_numbers_in_units_that_read_well(report: dict[str, Any]) -> None:
    text = render("table", report)
    for shown in (
        "12,345",
        "3 MiB",
        "1 MiB",
        "15 ms",
        "1.5 s",
        "500 ms",
        "same text 3 of 4",
        "MISSED",
        "missed in 12.2",
    ):
        assert shown in text, shown
    assert "[x]" in text, "square brackets are no markup"
    assert max(map(len, text.splitlines())) <= 140


def test_a_column_without_values_is_left_out(report: dict[str, Any]) -> None:
    assert "TTFT cold" in render("table", report)
    assert "TTFT cached" not in render("table", report)


def test_notes_explain_the_columns_that_are_there(report: dict[str, Any]) -> None:
    explained = {"KV before,": True, "ratio:": True, "TTFT cold,": True, "TTFT p50,": False, "TPOT:": False}
    for name in ("table", "html"):
        assert {note: note in render(name, report) for note in explained} == explained
    report["results"] = report["results"][1:]
    for name in ("table", "html"):
        text = render(name, report)
        assert "time: from the first request" in text
        assert not [note for note in (*explained, "latency:") if note in text]


def test_a_failed_run_without_results(report: dict[str, Any]) -> None:
    report |= {"results": [], "expectations": [], "status": "failed", "error": "instance a was ended [SIGKILL]"}
    for name in ("table", "html"):
        assert "instance a was ended [SIGKILL]" in render(name, report)


class Page(HTMLParser):
    """Collects what could load something or run."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.loads: list[str] = []
        self.open: list[str] = []
        self.text = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        if tag not in ("meta", "rect", "br", "line"):
            self.open.append(tag)
        self.loads += [value or "" for name, value in attrs if name in ("src", "href", "onload", "style", "onclick")]

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if tag not in ("rect", "line"):
            assert self.open.pop() == tag
        elif self.open and self.open[-1] == tag:
            self.open.pop()

    def handle_data(self, data: str) -> None:
        self.text += data


def test_the_page_is_self_contained_and_well_formed(report: dict[str, Any]) -> None:
    html = render("html", report)
    page = Page()
    page.feed(html)
    assert page.open == []
    assert page.loads == []
    assert not {"script", "link", "img", "iframe", "b"} & set(page.tags)
    assert "url(" not in html
    assert "<script>alert(1)</script>" in page.text, "shown as text"
    assert page.tags.count("svg") == 2


def test_bars_grow_with_their_values_and_letters_do_not_shrink_with_the_page() -> None:
    svg = bars("t", [("x", [("before", 10.0), ("after", 5.0)]), ("y", [("before", 0.0)])], str)
    widths = [float(width) for width in re.findall(r'width="([\d.]+)%" height="14"', svg)]
    assert widths == [78.0, 39.0, 0.2]
    assert "viewBox" not in svg, "a viewBox scales letters too"
    assert '<text x="78.00%" dx="6"' in svg, "the value stands at the end of its bar"


@pytest.mark.parametrize("width", [60, 80, 100, 118, 140, 200])
def test_a_terminal_of_any_width_shows_every_number_whole(report: dict[str, Any], width: int) -> None:
    text = TableReporter(width=width).render(report)
    assert max(map(len, text.splitlines())) <= width
    for shown in ("12,345", "3 MiB", "1 MiB", "15 ms", "30 ms", "1.5 s", "500 ms", "MISSED"):
        assert re.search(rf"(?<![\w.]){re.escape(shown)}(?!\w)", text), shown
    assert text.count("latency p50") == 1
    assert "others: what the tiers concerned held. ratio: before to after" in " ".join(text.split())


def test_what_a_value_was_compared_with_is_shown(report: dict[str, Any]) -> None:
    report["expectations"] = [
        {"path": "a.ttft_seconds.p50", "wanted": "< b.ttft_seconds.p50", "got": 0.5, "met": True, "against": 0.75},
        {"path": "a.tokens", "wanted": "== b.tokens", "got": 5, "met": False, "problem": None, "against": 6000},
    ]
    text = " ".join(render("table", report).split())
    assert "< b.ttft_seconds.p50 (0.75 s) 0.5 s met" in text
    assert "== b.tokens (6,000) 5 MISSED" in text


def test_counts_and_truth_values_read_as_words(report: dict[str, Any]) -> None:
    report["results"][1] |= {"counts": {"lookups": 1, "misses": 1, "complete": 0}, "all_found": False}
    report["results"][0] |= {"verified": True, "ttft_ratio": 0.25, "compared_to": "look"}
    text = " ".join(render("table", report).split())
    assert "1 lookup, 1 miss, 0 complete" in text
    assert "not all found" in text
    assert "verified, median TTFT 0.25 times that of look" in text


def test_a_run_that_never_booted_has_a_page(report: dict[str, Any]) -> None:
    report |= {"results": [], "expectations": [], "boot_seconds": None, "seconds": 0.25}
    assert "250 ms" in render("html", report)


@pytest.fixture
def traffic(report: dict[str, Any]) -> dict[str, Any]:
    """The report of a virtual run of traffic."""
    for key in ("host", "versions", "started_unix"):
        del report[key]
    played = {
        "name": "Play",
        "kind": "traffic",
        "counts": {"requests": 12, "failed": 1},
        "tokens": 1000,
        "hit_rate": 0.34567,
        "block_hit_rate": 0.25,
        "seconds": 3600.4,
        "ttft_seconds": {"p50": 0.25, "p90": 0.5, "p99": 1.75},
        "tpot_seconds": {"p50": 0.0125, "p99": 0.5},
        "latency_seconds": {"p50": 2.25, "p90": 3.0, "p99": 4.0},
        "by_instance": {f"<r-{index}>": {"requests": index} for index in range(30)},
        "windows": [{"start_seconds": 60.0 * at, "hit_rate": at / 4, "ttft_p50_seconds": 0.1} for at in range(4)],
    }
    links = [{"from": "a", "to": "b", "bytes": 3 * 2**30, "busy_seconds": 1.5}]
    return report | {"clock": "virtual", "seconds": 3605.0, "results": [played], "expectations": [], "links": links}


def test_the_table_of_traffic_shows_what_users_get(traffic: dict[str, Any]) -> None:
    text = render("table", traffic)
    for shown in ("0.3457", "250 ms", "1.75 s", "12.5 ms", "3,600 s", "12 requests, 1 failed", "block hit rate 0.25"):
        assert shown in text, shown
    assert text.count("0.3457") == 1
    assert "TTFT cold" not in text


def test_the_page_of_traffic_shows_it_over_time_and_part_by_part(traffic: dict[str, Any]) -> None:
    html = render("html", traffic)
    page = Page()
    page.feed(html)
    for shown in ("Over time", "Play: hit rates", "Play: ttft p50", "Links", "3 GiB", "Play: by instance", "30 rows"):
        assert shown in page.text, shown
    assert "<r-3>" in page.text
    assert "Host and versions" not in page.text
    assert page.loads == []
    assert "nan" not in html.replace("nano", "").lower()


def test_the_page_of_equal_reports_is_equal(traffic: dict[str, Any]) -> None:
    again = json.loads(json.dumps(traffic))
    assert render("html", traffic) == render("html", again)
