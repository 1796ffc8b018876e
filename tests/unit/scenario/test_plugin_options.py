"""Options of anybody's plugins: where they stand in a scenario, the loader, the checks and the schema agree on them."""

from __future__ import annotations

import copy
import sys
import types
from importlib import metadata
from typing import Annotated, Any

import jsonschema
import pytest
from msgspec import Meta

from lmcache_kit.contracts import PLUGIN_KINDS, Options
from lmcache_kit.contracts.workload import Workload
from lmcache_kit.errors import ConfigError
from lmcache_kit.hookspecs import hookimpl
from lmcache_kit.plugins import _HOOK_OF_KIND, PluginRegistry
from lmcache_kit.scenario import dump_scenario, parse_scenario, scenario_schema, validate
from lmcache_kit.scenario.loader import scenario_from_data


class FancyOptions(Options, frozen=True):
    depth: Annotated[int, Meta(ge=1, le=9)] = 1
    label: str | None = None


class Idle(Workload):
    async def run(self, context: Any) -> Any:
        raise AssertionError("nothing is run here")


def hook_with(record: Any) -> Any:
    def hook() -> list[Any]:
        return [record]

    return hookimpl(hook)


def foreign_plugins() -> PluginRegistry:
    """A registry with one foreign plugin ``fancy`` of every kind, beside the built-in ones."""
    module: Any = types.ModuleType("foreign")
    more = {"storage": {"location": "FancyBackend"}, "transport": {"scheme": "fancy"}}
    for kind, record in PLUGIN_KINDS.items():
        made = record(
            name="fancy", summary="a foreign one", options=FancyOptions, factory=lambda *_: Idle(), **more.get(kind, {})
        )
        setattr(module, _HOOK_OF_KIND[kind], hook_with(made))
    sys.modules[module.__name__] = module
    try:
        return PluginRegistry(entry_points=[metadata.EntryPoint("foreign", "foreign", "lmcache_kit")])
    finally:
        del sys.modules[module.__name__]


PLUGINS = foreign_plugins()
SCENARIO: dict[str, Any] = {
    "name": "options",
    "launcher": {"kind": "fancy", "options": {"depth": 2}},
    "reporters": [{"kind": "fancy", "options": {"depth": 2}}, "html"],
    "instances": [
        {
            "id": "a",
            "engine": {"kind": "fancy", "options": {"depth": 2}},
            "placement": {"kind": "fancy", "options": {"depth": 2}},
            "transport": {"kind": "fancy", "options": {"depth": 2}},
            "methods": {"fancy": {"depth": 2}},
            "tiers": [
                {"kind": "fancy", "options": {"depth": 2}, "eviction": "fancy", "eviction_options": {"depth": 2}}
            ],
        }
    ],
    "workloads": [
        {"name": "first", "kind": "fancy", "depth": 2},
        {
            "name": "second",
            "kind": "traffic",
            "trace": {"path": "somewhere", "reader": "fancy", "options": {"depth": 2}},
        },
    ],
}
PLACES: dict[str, tuple[Any, ...]] = {
    "launcher": ("launcher", "options"),
    "reporter": ("reporters", 0, "options"),
    "engine": ("instances", 0, "engine", "options"),
    "placement": ("instances", 0, "placement", "options"),
    "transport": ("instances", 0, "transport", "options"),
    "compression": ("instances", 0, "methods", "fancy"),
    "storage": ("instances", 0, "tiers", 0, "options"),
    "eviction": ("instances", 0, "tiers", 0, "eviction_options"),
    "workload": ("workloads", 0),
    "trace": ("workloads", 1, "trace", "options"),
}


def with_options(kind: str, change: dict[str, Any]) -> dict[str, Any]:
    data: Any = copy.deepcopy(SCENARIO)
    place = data
    for step in PLACES[kind]:
        place = place[step]
    place.update(change)
    return data  # type: ignore[no-any-return]


@pytest.fixture(scope="module")
def validator() -> Any:
    schema = scenario_schema(PLUGINS)
    made = jsonschema.validators.validator_for(schema)
    made.check_schema(schema)
    return made(schema)


def accepted(data: dict[str, Any]) -> bool:
    try:
        validate(scenario_from_data(copy.deepcopy(data)), PLUGINS)
    except ConfigError:
        return False
    return True


def test_every_kind_has_a_place() -> None:
    assert set(PLACES) == set(PLUGIN_KINDS)


@pytest.mark.parametrize("kind", PLACES)
@pytest.mark.parametrize("change", [{}, {"depth": 9}, {"label": "x"}], ids=str)
def test_right_options_pass_the_checks_and_the_schema(kind: str, change: dict[str, Any], validator: Any) -> None:
    data = with_options(kind, change)
    assert [error.message for error in validator.iter_errors(data)] == []
    assert accepted(data)


@pytest.mark.parametrize("kind", PLACES)
@pytest.mark.parametrize("change", [{"depth": 10}, {"depth": "deep"}, {"dpeth": 1}, {"label": 3}], ids=str)
def test_wrong_options_pass_neither(kind: str, change: dict[str, Any], validator: Any) -> None:
    data = with_options(kind, change)
    assert not validator.is_valid(data)
    assert not accepted(data)


@pytest.mark.parametrize("kind", PLACES)
def test_an_error_names_the_place_and_the_nearest_option(kind: str) -> None:
    with pytest.raises(ConfigError) as caught:
        validate(scenario_from_data(with_options(kind, {"dpeth": 1})), PLUGINS)
    head = {"instances": "instances.a", "workloads": "workloads."}.get(PLACES[kind][0], PLACES[kind][0])
    assert caught.value.message.startswith(head)
    assert f"{kind} plugin 'fancy' has no option 'dpeth'" in caught.value.message
    assert caught.value.hint == "did you mean 'depth'?"


def test_an_unknown_plugin_passes_neither(validator: Any) -> None:
    for kind, (*place, _) in PLACES.items():
        data: Any = copy.deepcopy(SCENARIO)
        below = data
        for step in place:
            below = below[step]
        if kind == "compression":
            below["methods"] = {"fancier": {}}
        elif kind == "workload":
            below[0] = {"name": "first", "kind": "fancier"}
        else:
            below[{"eviction": "eviction", "trace": "reader"}.get(kind, "kind")] = "fancier"
        assert not validator.is_valid(data), kind
        assert not accepted(data), kind


def test_the_resolved_scenario_keeps_them(validator: Any) -> None:
    scenario = scenario_from_data(copy.deepcopy(SCENARIO))
    again = parse_scenario(dump_scenario(scenario))
    assert again == scenario
    assert again.instances[0].methods == {"fancy": {"depth": 2}}
    assert [(reporter.kind, reporter.options) for reporter in again.reporters] == [
        ("fancy", {"depth": 2}),
        ("html", {}),
    ]


def test_an_override_changes_them() -> None:
    changes = [
        "instances.a.methods.fancy.depth=3",
        "instances.a.tiers.0.eviction_options.depth=4",
        "reporters.0.options.depth=5",
        "workloads.second.trace.options.depth=6",
    ]
    scenario = scenario_from_data(copy.deepcopy(SCENARIO), changes)
    validate(scenario, PLUGINS)
    assert scenario.instances[0].methods["fancy"] == {"depth": 3}
    assert scenario.instances[0].tiers[0].eviction_options == {"depth": 4}
    assert scenario.reporters[0].options == {"depth": 5}


def test_eviction_options_without_a_policy_are_those_of_the_default(validator: Any) -> None:
    data: Any = copy.deepcopy(SCENARIO)
    del data["instances"][0]["tiers"][0]["eviction"]
    assert not validator.is_valid(data), "lru has no option depth"
    assert not accepted(data)
