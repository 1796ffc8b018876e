"""What `plugins show` tells of a plugin, whatever its kind."""

from __future__ import annotations

import json

import pytest

from lmcache_kit.cli import main


def shown(capsys: pytest.CaptureFixture[str], name: str) -> dict[str, object]:
    assert main(["plugins", "show", name, "--format", "json"]) == 0
    facts: dict[str, object] = json.loads(capsys.readouterr().out)[0]
    return facts


@pytest.mark.parametrize(
    ("name", "fact", "value"),
    [
        ("memory", "location", "LocalCPUBackend"),
        ("zmq", "scheme", "tcp"),
        ("completions", "clocks", ["virtual", "wall"]),
        ("disk", "capabilities", ["persistent"]),
    ],
)
def test_facts_of_every_kind_and_of_its_own_kind(capsys, name: str, fact: str, value: object) -> None:
    facts = shown(capsys, name)
    assert facts[fact] == value
    assert {"kind", "name", "summary", "source", "distribution", "api_version", "options"} <= set(facts)
    assert "factory" not in facts


def test_what_a_record_leaves_open_is_not_shown(capsys) -> None:
    assert "default_model" not in shown(capsys, "synthetic")


def test_the_table_has_the_facts_too(capsys) -> None:
    assert main(["plugins", "show", "memory"]) == 0
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert ["location", "LocalCPUBackend"] in lines
