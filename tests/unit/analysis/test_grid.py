from __future__ import annotations

import math

import pytest

from lmcache_kit.analysis.grid import Axis, cells, override, parse_axes, parse_axis, shown_value
from lmcache_kit.errors import ConfigError
from lmcache_kit.scenario.overrides import split_override


@pytest.mark.parametrize(
    ("text", "values"),
    [
        ("a.b=1,2", (1, 2)),
        ("a.b=64MiB", ("64MiB",)),
        ("a.b= 1 , true ,null, x", (1, True, None, "x")),
        ("a.b=[1, '2,3']", (1, "2,3")),
        ("a.b=[[1, 2], [3]]", ([1, 2], [3])),
        ("a.b=[{kind: memory, capacity: 1}, {kind: disk}]", ({"kind": "memory", "capacity": 1}, {"kind": "disk"})),
        ("a.b='',x", ("", "x")),
        ("a.b=x=1,y=2", ("x=1", "y=2")),
        ("a.b=1,1.0,true,'1'", (1, 1.0, True, "1")),
    ],
)
def test_values_of_an_axis(text: str, values: tuple[object, ...]) -> None:
    axis = parse_axis(text)
    assert axis == Axis("a.b", values)
    assert [type(value) for value in axis.values] == [type(value) for value in values]


@pytest.mark.parametrize(
    "text", ["a.b", "a.b=", "=1", "a.b=1,,2", "a.b=1,", "a.b=1,2,1", "a.b=[]", "a.b=[1, 1]", "a.b=[1", "a.b=: :"]
)
def test_what_is_no_axis(text: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_axis(text)
    assert "--vary" in caught.value.message


def test_a_path_stands_once() -> None:
    with pytest.raises(ConfigError, match="names a twice"):
        parse_axes(["a=1", "b=2", "a=3"])


def test_the_last_axis_changes_fastest() -> None:
    found = cells(parse_axes(["a=1,2", "b=x,y"]))
    assert found == [{"a": 1, "b": "x"}, {"a": 1, "b": "y"}, {"a": 2, "b": "x"}, {"a": 2, "b": "y"}]
    assert cells([]) == [{}]


@pytest.mark.parametrize(
    "value",
    [
        1,
        1.5,
        1e-7,
        1e30,
        -0.0,
        True,
        None,
        "x",
        "1",
        "true",
        "",
        "a,b",
        "64MiB",
        "é\n'\"",
        ["a", 1],
        {"k": [None]},
        math.inf,
    ],
)
def test_an_override_gives_the_value_back(value: object) -> None:
    path, again = split_override(override("seed", value))
    assert path == "seed"
    assert again == value
    assert type(again) is type(value)


def test_an_expectation_can_be_varied() -> None:
    assert split_override(override("expect.w.hit_rate", ">= 0.5")) == ("expect.w.hit_rate", ">= 0.5")


def test_texts_are_shown_as_they_are() -> None:
    assert [shown_value(value) for value in ("a,b", True, None, [1, "x"])] == ["a,b", "true", "null", '[1,"x"]']
