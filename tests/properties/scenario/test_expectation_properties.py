from __future__ import annotations

import contextlib
import operator
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from lmcache_kit.errors import ConfigError
from lmcache_kit.scenario import evaluate, parse_expectations

ORACLE = {
    "==": operator.eq,
    "!=": operator.ne,
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
}
numbers = st.integers(-(10**12), 10**12) | st.floats(allow_nan=False, allow_infinity=False, width=32)


@settings(deadline=None)
@given(numbers, st.sampled_from(sorted(ORACLE)), numbers, st.text(" ", max_size=2))
def test_numbers_compare_as_in_python(got: Any, op: str, wanted: Any, space: str) -> None:
    expectations = parse_expectations({"r.value": f"{space}{op}{space}{wanted!r}{space}"}, ["r"])
    (outcome,) = evaluate(expectations, {"r": {"value": got}})
    assert outcome.met is ORACLE[op](got, wanted)


@settings(deadline=None)
@given(st.text(max_size=30), st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=30))
def test_parsing_never_raises_anything_but_config_errors(path: str, wanted: Any) -> None:
    with contextlib.suppress(ConfigError):
        expectations = parse_expectations({path: wanted}, ["r", "serve"])
        evaluate(expectations, {"r": {}, "serve": {"x": wanted}})


values = st.recursive(
    st.none() | st.booleans() | numbers | st.text(max_size=3),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["a", "b", "0", "1"]), inner, max_size=3)
    ),
    max_leaves=8,
)


@settings(deadline=None)
@given(st.lists(st.sampled_from(["a", "b", "0", "1", "-1"]), min_size=1, max_size=4), values)
def test_a_path_finds_the_value_or_misses(keys: list[str], value: Any) -> None:
    here, there = {"a": value, "b": value}, True
    for key in keys:
        if isinstance(here, dict) and key in here:
            here = here[key]
        elif isinstance(here, list) and key.isdigit() and int(key) < len(here):
            here = here[int(key)]
        else:
            there = False
            break
    (outcome,) = evaluate(parse_expectations({f"r.{'.'.join(keys)}": 1}, ["r"]), {"r": {"a": value, "b": value}})
    assert (outcome.problem is None) is there
    if there:
        assert outcome.met is (here == 1 and not isinstance(here, bool))
