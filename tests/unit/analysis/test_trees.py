from __future__ import annotations

from typing import Any

import pytest

from lmcache_kit.analysis.trees import differences, first_difference


@pytest.mark.parametrize(
    ("a", "b", "found"),
    [
        ({"x": 1}, {"x": 1}, []),
        ({"x": 1}, {"x": 1.0}, ["x"]),
        ({"x": 1}, {"x": True}, ["x"]),
        ({"x": None}, {}, ["x"]),
        ({}, {"x": None}, ["x"]),
        ({"x": [1, 2]}, {"x": [1]}, ["x.1"]),
        ({"x": {"y": 1}}, {"x": [1]}, ["x"]),
        ({"x": {}}, {"x": []}, ["x"]),
        ({"b": 1, "a": 1}, {"a": 2, "b": 2, "c": 3}, ["b", "a", "c"]),
        ([{"id": "r", "n": 1}], [{"id": "r", "n": 2}], ["r.n"]),
        ([{"id": "r"}], [{"id": "s"}], ["0.id"]),
        ([{"name": 3}], [{"name": 3, "k": 1}], ["0.k"]),
        (1, 2, [""]),
    ],
)
def test_where_trees_differ(a: Any, b: Any, found: list[str]) -> None:
    assert [each["path"] for each in differences(a, b)] == found
    assert [each["path"] for each in differences(b, a)] == sorted(
        found, key=lambda path: (path not in ("a", "b"), path)
    )


def test_a_side_without_a_value_has_no_key() -> None:
    assert first_difference({"x": None}, {}) == {"path": "x", "a": None}
    assert first_difference({}, {"x": None}) == {"path": "x", "b": None}


def test_keys_are_skipped_with_all_below() -> None:
    a, b = {"x": {"t": {"deep": 1}}, "t": 1, "y": 1}, {"x": {"t": {"deep": 2}}, "y": 1}
    assert first_difference(a, b, skip=lambda key: key == "t") is None
