from __future__ import annotations

import re
from typing import Any

import pytest

from lmcache_kit.builtin.reporters.lines import COLOURS, lines
from lmcache_kit.builtin.reporters.over_time import windows_charts


def titles(windows: Any) -> list[str]:
    charts = windows_charts({"name": "play", "windows": windows})
    return [match[1] for chart in charts if (match := re.search("<figcaption>(.*?)</figcaption>", chart))]


def windows(count: int = 3, **values: Any) -> list[dict[str, Any]]:
    return [{"start_seconds": float(at), **values} for at in range(count)]


def test_values_of_one_meaning_share_a_chart() -> None:
    assert titles(
        windows(
            arrivals=5,
            hit_rate=0.5,
            block_hit_rate=0.4,
            ttft_p50_seconds=0.1,
            ttft_p99_seconds=0.2,
            prompt_tokens=5,
            cached_tokens=2,
            bytes_read=5,
            tokens_by_location={"cpu": 1, "disk": 2},
        )
    ) == [
        "play: arrivals",
        "play: hit rates",
        "play: ttft",
        "play: tokens",
        "play: bytes read",
        "play: tokens by location",
    ]


def test_a_value_by_itself_is_named_in_the_title() -> None:
    assert titles(windows(ttft_p50_seconds=0.1)) == ["play: ttft p50"]
    assert titles(windows(hit_rate=0.1)) == ["play: hit rates"]


@pytest.mark.parametrize(
    "odd",
    [
        None,
        [],
        5,
        "windows",
        {"a": 1},
        [1, 2],
        [{"hit_rate": 1.0}, {"hit_rate": 1.0}],
        windows(1, hit_rate=0.5),
        windows(hit_rate=None),
        windows(failed=0),
        windows(note="x", flag=True, list=[1]),
        windows(by_location={}),
        [{"start_seconds": True, "hit_rate": 1.0}] * 3,
    ],
)
def test_windows_of_another_form_are_no_charts(odd: Any) -> None:
    assert titles(odd) == []


def test_start_has_an_older_name() -> None:
    assert titles([{"start": 0, "hit_rate": 0.5}, {"start": 1, "hit_rate": 0.5}]) == ["play: hit rates"]


def test_a_part_that_comes_later_has_a_gap_before() -> None:
    (chart,) = windows_charts(
        {
            "name": "play",
            "windows": [
                {"start_seconds": 0, "hits": None},
                {"start_seconds": 1, "hits": {"cpu": 1}},
                {"start_seconds": 2, "hits": {"cpu": 2}},
            ],
        }
    )
    assert re.findall('<path d="(.*?)"', chart) == ["M500.0 75.0h0L1000.0 0.0"]


def test_lines_break_where_nothing_is_and_dots_stay_visible() -> None:
    svg = lines("t", [("x", [(0.0, 1.0), (1.0, None), (2.0, 4.0), (3.0, 2.0)])], str)
    assert re.findall('<path d="(.*?)"', svg) == ["M0.0 112.5h0M666.7 0.0h0L1000.0 75.0"]
    assert ">4.0<" in svg
    assert ">3 s<" in svg


def test_more_series_than_colours_are_counted() -> None:
    many = {f"r-{index}": index + 1 for index in range(COLOURS + 3)}
    (title,) = titles(windows(load=many))
    assert title == f"play: load (the first {COLOURS} of {COLOURS + 3})"
    assert "r-8" not in windows_charts({"name": "play", "windows": windows(load=many)})[0]


def test_names_cannot_break_out() -> None:
    svg = lines("<b>", [("<i>", [(0.0, 1.0)]), ("&", [(0.0, 1.0)])], str)
    assert not {"<b>", "<i>"} & set(re.findall("<[a-z]+>", svg))
    assert "&lt;i&gt;" in svg


@pytest.mark.parametrize("points", [[], [(5.0, None)], [(5.0, 0.0)], [(5.0, 1.0), (5.0, 2.0)]])
def test_charts_of_next_to_nothing(points: list[tuple[float, float | None]]) -> None:
    assert "nan" not in lines("t", [("x", points)], str).lower()
