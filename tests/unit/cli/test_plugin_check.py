"""`plugins check` with options."""

from __future__ import annotations

import json

import pytest

from lmcache_kit.cli import main


def results(capsys: pytest.CaptureFixture[str]) -> dict[str, dict[str, str]]:
    return {result["check"]: result for result in json.loads(capsys.readouterr().out)}


def test_options_reach_the_plugin(capsys, tmp_path) -> None:
    arguments = ["plugins", "check", "disk", "--set", f"path={tmp_path / 'here'}", "--format", "json"]
    assert main(arguments) == 0
    found = results(capsys)
    assert str(tmp_path / "here") in found["health"]["detail"]


def test_several_options_with_types(capsys) -> None:
    arguments = ["plugins", "check", "synthetic", "--set", "num_layers=3", "--set", "head_dim=16", "--format", "json"]
    assert main(arguments) == 0
    made = results(capsys)["made"]["detail"]
    assert "num_layers=3" in made
    assert "head_dim=16" in made


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("levl=3", "did you mean 'level'?"),
        ("level=high", "options of compression plugin 'zstd'"),
        ("level", "--set 'level' is not KEY=VALUE"),
    ],
)
def test_wrong_options_are_wrong_usage(capsys, text: str, message: str) -> None:
    assert main(["plugins", "check", "zstd", "--set", text]) == 2
    shown = capsys.readouterr()
    assert shown.out == ""
    assert message in shown.err
