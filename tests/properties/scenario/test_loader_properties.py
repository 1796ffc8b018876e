"""Whatever stands in a scenario file, loading it answers with a scenario or a ConfigError, and nothing else."""

from __future__ import annotations

import contextlib
import copy
from typing import Any

import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from lmcache_kit.errors import ConfigError
from lmcache_kit.plugins import PluginRegistry
from lmcache_kit.scenario import (
    Scenario,
    dump_scenario,
    load_scenario,
    parse_scenario,
    scenario_to_data,
    shipped_scenarios,
    validate,
)
from lmcache_kit.scenario.loader import scenario_from_data
from lmcache_kit.scenario.overrides import split_override

BUILT_IN = PluginRegistry(allow=[])
SHIPPED = yaml.safe_load(shipped_scenarios()["tiers"].read_text())

scalars = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=8)
    | st.sampled_from(["memory", "synthetic", "a", "64MiB", "1Gbps", "5ms", "completions", "serve", "> 1", "lru"])
)
keys = st.sampled_from(
    [
        "name",
        "kind",
        "instances",
        "id",
        "tiers",
        "options",
        "workloads",
        "engine",
        "expect",
        "links",
        "between",
        "count",
    ]
) | st.text(max_size=6)
values = st.recursive(
    scalars,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(keys, inner, max_size=5),
    max_leaves=15,
)


def attempt(load: Any) -> Scenario | None:
    with contextlib.suppress(ConfigError):
        scenario = load()
        assert isinstance(scenario, Scenario)
        with contextlib.suppress(ConfigError):
            validate(scenario, BUILT_IN)
        return scenario
    return None


@settings(deadline=None)
@given(st.text(max_size=200) | st.binary(max_size=200).map(lambda raw: raw.decode("latin-1")))
def test_any_text(text: str) -> None:
    attempt(lambda: parse_scenario(text))


@settings(deadline=None)
@given(st.text(alphabet="[]{}:,-&*!|>'\"% \n#?ab01.~", max_size=60))
def test_any_punctuation(text: str) -> None:
    attempt(lambda: parse_scenario(text))


@settings(deadline=None)
@given(values)
def test_any_document(value: Any) -> None:
    attempt(lambda: parse_scenario(yaml.safe_dump(value, allow_unicode=True)))


@st.composite
def changed(draw: st.DrawFn) -> Any:
    """The shipped scenario with some of its places overwritten, removed or renamed."""
    data = copy.deepcopy(SHIPPED)
    for _ in range(draw(st.integers(1, 3))):
        here: Any = data
        while isinstance(here, dict | list) and here:
            key = draw(st.sampled_from(sorted(here) if isinstance(here, dict) else range(len(here))))
            below = here[key]
            if isinstance(below, dict | list) and below and draw(st.integers(0, 3)):
                here = below
                continue
            action = draw(st.sampled_from(["value", "remove", "rename"]))
            if action == "value":
                here[key] = draw(values)
            elif action == "remove" or isinstance(here, list):
                del here[key]
            else:
                here[draw(keys)] = here.pop(key)
            break
    return data


@settings(max_examples=300, deadline=None)
@given(changed())
def test_a_damaged_scenario(data: Any) -> None:
    scenario = attempt(lambda: scenario_from_data(data))
    if scenario is not None:
        again = parse_scenario(dump_scenario(scenario))
        assert dump_scenario(again) == dump_scenario(scenario)


@settings(deadline=None)
@given(
    st.lists(st.text(max_size=30) | st.builds("{}={}".format, st.text(max_size=20), st.text(max_size=8)), max_size=3)
)
def test_any_override(overrides: list[str]) -> None:
    attempt(lambda: scenario_from_data(copy.deepcopy(SHIPPED), overrides))


PATHS = st.sampled_from(
    [
        ("seed", st.integers(0, 2**32 - 1)),
        ("startup_timeout", st.floats(0.1, 1e6)),
        ("instances.0.chunk_size", st.integers(1, 10**9)),
        ("instances.1.save_unfull_chunk", st.booleans()),
        ("instances.0.tiers.1.capacity", st.integers(0, 10**15)),
        ("instances.0.engine.options.free", values.filter(lambda value: value is not None)),
        ("instances.1.config.any", values.filter(lambda value: value is not None)),
        ("workloads.2.anything", values.filter(lambda value: value is not None)),
        ("summary", st.text(max_size=20)),
    ]
)


@settings(deadline=None)
@given(PATHS.flatmap(lambda pair: st.tuples(st.just(pair[0]), pair[1])))
def test_what_is_set_is_what_is_there(pair: tuple[str, Any]) -> None:
    path, value = pair
    text = yaml.safe_dump(value, default_flow_style=True, allow_unicode=False, width=10**9).removesuffix("\n...\n")
    expected = split_override(f"x={text}")[1]
    here: Any = scenario_to_data(scenario_from_data(copy.deepcopy(SHIPPED), [f"{path}={text}"]))
    for key in path.split("."):
        here = here[int(key)] if isinstance(here, list) else here[key]
    assert yaml.safe_dump(here) == yaml.safe_dump(expected)


def test_the_shipped_scenario_is_untouched_by_all_this() -> None:
    assert attempt(lambda: load_scenario(shipped_scenarios()["tiers"])) is not None
