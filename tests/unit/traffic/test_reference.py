"""docs/reference/traffic.md names every option with its default, and every value of a result."""

from __future__ import annotations

import re
import typing
from pathlib import Path
from typing import Any

import msgspec
import pytest
import yaml

from lmcache_kit.builtin.workloads.traffic_options import TraceOptions, TrafficOptions
from lmcache_kit.traffic import specs

PAGE = (Path(__file__).parents[3] / "docs" / "reference" / "traffic.md").read_text()
MADE = [
    each
    for union in (specs.Arrivals, specs.Contents, specs.Length)
    for each in typing.get_args(union)
    if isinstance(each, type) and issubclass(each, msgspec.Struct)
]


def section(title: str) -> str:
    return re.split(r"\n#+ ", PAGE.partition(f" {title}\n")[2], maxsplit=1)[0]


def row(text: str, name: str) -> str:
    (found,) = [line for line in text.splitlines() if line.startswith(f"| `{name}` |")]
    return found


def shown(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    return f"{value:g}" if isinstance(value, float) else str(value)


@pytest.mark.parametrize(("title", "struct"), [("Options", TrafficOptions), ("`trace`", TraceOptions)])
def test_options_and_their_defaults(title: str, struct: type[msgspec.Struct]) -> None:
    text = section(title)
    fields = msgspec.structs.fields(struct)
    assert re.findall(r"^\| `(\w+)`", text, re.MULTILINE) == [field.encode_name for field in fields]
    for field in fields:
        default = row(text, field.encode_name).split("|")[2].strip().strip("`")
        if field.required:
            assert default == "required"
        elif field.default not in (None, msgspec.NODEFAULT):
            assert default == shown(field.default), field.encode_name


@pytest.mark.parametrize("struct", MADE, ids=lambda struct: struct.__name__)
def test_options_of_made_up_traffic(struct: type[msgspec.Struct]) -> None:
    line = row(PAGE, str(struct.__struct_config__.tag))
    for field in msgspec.structs.fields(struct):
        if field.encode_name in ("output_tokens", "block_size"):
            assert f"`{field.encode_name}` ({field.default})" in section("`contents`")
        elif field.required:
            assert f"`{field.encode_name}`" in line
        else:
            default = "none" if field.default is None else shown(field.default)
            assert re.search(rf"`{field.encode_name}` \(`?{re.escape(default)}`?\)", line), field.encode_name


def test_every_value_of_a_result(fleet: Any) -> None:
    contents = {"kind": "independent", "output_tokens": 2}
    values = fleet.run(
        contents=contents, requests=3, arrivals={"kind": "poisson", "rate": 1}, routing="prefix_aware", windows=1
    )
    text = section("Results")
    shared = {"tokens", "bytes_before", "bytes_after", "ratio", "seconds"}
    rows = re.findall(r"^\| (`.*?) \|", text, re.MULTILINE)
    named = {name for cell in rows for name in re.findall(r"`(\w+)`", cell)}
    assert named == set(values) - shared
    inner = [values["counts"], values["throughput"], values["staleness"], values["by_instance"]["a"]]
    for part in [*inner, values["windows"][0], *fleet.events]:
        for key in part.keys() - {"event"}:
            assert f"`{key}`" in text, key


def test_the_example_is_valid(fleet: Any) -> None:
    (example,) = re.findall(r"```yaml\n(.*?)```", PAGE, re.DOTALL)
    for workload in yaml.safe_load(example)["workloads"]:
        assert workload.pop("name")
        assert workload.pop("kind") == "traffic"
        fleet.workload(**workload)
