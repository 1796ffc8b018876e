"""docs/reference/scenario.md and report.md are what the code says."""

from __future__ import annotations

import re
from pathlib import Path

import msgspec
import pytest
import yaml

from lmcache_kit.builtin.workloads import RECORDS
from lmcache_kit.builtin.workloads.options import GenerateOptions
from lmcache_kit.plugins import PluginRegistry
from lmcache_kit.scenario import model, parse_scenario, validate
from lmcache_kit.scenario.overrides import split_override

DOCS = Path(__file__).parents[3] / "docs" / "reference"
PAGE = (DOCS / "scenario.md").read_text()
STRUCTS = [
    model.Scenario,
    model.ControllerSpec,
    model.InstanceSpec,
    model.TierSpec,
    model.EngineSpec,
    model.LinkSpec,
    model.TransportSpec,
    GenerateOptions,
    *(record.options for record in RECORDS),
]


@pytest.mark.parametrize("struct", STRUCTS, ids=lambda struct: struct.__name__)
def test_every_key_is_described(struct: type[msgspec.Struct]) -> None:
    for field in msgspec.structs.fields(struct):
        assert f"`{field.encode_name}`" in PAGE, field.encode_name


def test_every_workload_is_described() -> None:
    for record in RECORDS:
        assert f"`{record.name}`" in PAGE


def test_the_example_is_valid() -> None:
    (example,) = [text for text in re.findall(r"```yaml\n(.*?)```", PAGE, re.DOTALL) if "instances:" in text]
    scenario = parse_scenario(example)
    validate(scenario, PluginRegistry(allow=[]))
    assert [instance.id for instance in scenario.instances] == ["a", "cell-0", "cell-1"]


def test_snippets_are_yaml_and_overrides_are_paths() -> None:
    for text in re.findall(r"```yaml\n(.*?)```", PAGE, re.DOTALL):
        yaml.safe_load(text)
    overrides = re.findall(r"--set (?:'([^']+)'|([^\s`]+=[^\s`]+))", PAGE)
    assert len(overrides) >= 4
    for quoted, plain in overrides:
        split_override(quoted or plain)


def test_every_value_of_a_result_is_described() -> None:
    page = (DOCS / "report.md").read_text()
    source = Path(model.__file__).parents[1] / "builtin" / "workloads"
    for name in ("completions", "lookup", "jobs", "move", "measures"):
        text = (source / f"{name}.py").read_text()
        # Keyword arguments of measured() and keys of its answer are what a report shows.
        body = text.partition("measured(")[2]
        for key in re.findall(r"^        +(\w+)=(?!=)", body.partition("\n    )\n")[0], re.MULTILINE):
            if key not in ("latencies", "counts"):
                assert f"`{key}`" in page, key
