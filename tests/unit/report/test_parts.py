from __future__ import annotations

from typing import Any

import pytest

from lmcache_kit.builtin.reporters.parts import parts_of


def test_a_list_of_objects_is_a_table() -> None:
    rows = [{"from": "a", "to": "b", "bytes": 2048, "busy_seconds": 0.5}, {"from": "b", "to": "a", "bytes": 0}]
    (part,) = parts_of({"links": rows, "seed": 3, "host": {"cpus": 2}, "plugins": rows, "windows": rows})
    assert part.key == "links"
    assert part.columns == ("from", "to", "bytes", "busy")
    assert part.rows == (("a", "b", "2 KiB", "500 ms"), ("b", "a", "0 B", "-"))
    assert part.numeric == {"bytes", "busy"}


def test_objects_by_name_are_a_table_with_the_name_first() -> None:
    values: dict[str, Any] = {
        "by_instance": {
            "a": {"requests": 5, "ttft_seconds": {"p50": 1.0, "p99": 2.0, "max": 9.0}},
            "b": {"requests": 6},
        },
        "queue_seconds": {"a": {"p50": 0.25}},
    }
    first, second = parts_of(values)
    assert first.columns == ("", "requests", "ttft p50", "ttft p99")
    assert first.rows == (("a", "5", "1 s", "2 s"), ("b", "6", "-", "-"))
    assert second.rows == (("a", "250 ms"),)


@pytest.mark.parametrize("value", [None, 5, [], {}, [1], {"p50": 1.0}, [{"a": 1}, 2], {"a": {"b": 1}, "c": 2}])
def test_other_values_are_no_tables(value: Any) -> None:
    assert list(parts_of({"x": value})) == []
