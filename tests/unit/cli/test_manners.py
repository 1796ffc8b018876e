"""Exit statuses, and what goes to which stream."""

from __future__ import annotations

import json
import sys

import pytest

from lmcache_kit import __version__
from lmcache_kit.cli import main


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"lmcache-kit {__version__}\n"


@pytest.mark.parametrize(
    "arguments", [["no-such-command"], ["plugins", "list", "--no-such-option"], ["plugins", "show"]]
)
def test_wrong_usage_exits_with_2(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(arguments) == 2
    shown = capsys.readouterr()
    assert shown.out == ""
    assert shown.err


def test_json_is_the_only_thing_on_stdout(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plugins", "list", "--format", "json"]) == 0
    answer = json.loads(capsys.readouterr().out)
    assert {"storage", "compression", "transport", "engine"} <= {plugin["kind"] for plugin in answer["plugins"]}


def test_an_unknown_plugin_is_an_error_with_a_hint(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plugins", "show", "zsdt"]) == 2
    shown = capsys.readouterr()
    assert shown.out == ""
    assert "error: unknown plugin 'zsdt'" in shown.err
    assert "did you mean 'zstd'" in shown.err
    assert "Traceback" not in shown.err


@pytest.mark.parametrize(
    "arguments",
    [
        ["plugins", "check", "zsdt"],
        ["plugins", "list", "--kind", "storag"],
        ["trace", "info", "x", "--reader", "mooncak"],
        ["serve", "m", "--engine", "synthetik"],
    ],
)
def test_names_that_nobody_knows_are_wrong_usage(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(arguments) == 2
    shown = capsys.readouterr()
    assert shown.out == ""
    assert "unknown" in shown.err
    assert "hint: " in shown.err


def test_a_fault_of_ours_is_one_line_and_with_debug_a_traceback(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken() -> None:
        raise RuntimeError("first line\nsecond line")

    monkeypatch.setattr("lmcache_kit.cli.plugins.registry", broken)
    assert main(["plugins", "list"]) == 1
    shown = capsys.readouterr()
    assert shown.out == ""
    assert shown.err.startswith("error: unexpected RuntimeError: first line\nhint: ")
    assert main(["--debug", "plugins", "list"]) == 1
    assert "Traceback" in capsys.readouterr().err


def test_ctrl_c_while_modules_are_loaded_is_no_traceback(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    class Interrupting:
        def find_spec(self, name: str, *_: object) -> None:
            if name == "lmcache_kit.cli.app":
                raise KeyboardInterrupt

    monkeypatch.delitem(sys.modules, "lmcache_kit.cli.app", raising=False)
    monkeypatch.setattr(sys, "meta_path", [Interrupting(), *sys.meta_path])
    assert main(["--help"]) == 130
    assert capsys.readouterr() == ("", "")


def test_show_lists_options_with_their_defaults(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plugins", "show", "zstd", "--format", "json"]) == 0
    [facts] = json.loads(capsys.readouterr().out)
    assert facts["options"]["level"]["type"] == "integer"
    assert "lossless" in facts["capabilities"]


@pytest.mark.parametrize(
    "arguments",
    [
        ["lookup", "--tokens", "1,2", "--url", "http://127.0.0.1:9"],
        ["status", "--url", "http://127.0.0.1:9"],
        ["health", "--instance-id", "a", "--url", "http://127.0.0.1:9"],
    ],
)
def test_an_unreachable_controller_is_named(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(arguments) == 1
    assert "the controller at http://127.0.0.1:9 cannot be reached" in capsys.readouterr().err


@pytest.mark.parametrize(
    "arguments",
    [
        ["lookup", "--tokens", "1,x"],
        ["lookup", "--tokens", ""],
        ["lookup", "--tokens", "1,-2"],
        ["lookup", "--tokens", "9" * 20],
        ["lookup", "--tokens", "9" * 5000],
        ["lookup", "--tokens", f"@{sys.executable}"],
        ["lookup", "--tokens", "1", "--url", "http://localhost:99999"],
        ["lookup", "--tokens", "1", "--url", "http://[::1"],
        ["lookup", "--tokens", "1", "--url", "ftp://localhost"],
        ["lookup", "--tokens", "1", "--url", ""],
        ["lookup", "--tokens", "1", "--timeout", "nan"],
        ["lookup", "--tokens", "1", "--timeout", "0"],
        ["lookup", "--tokens", "@/no/such/file"],
        ["lookup", "--tokens", "1", "--prompt", "x"],
        ["lookup"],
        ["move", "--from", "a", "--to", "b/LocalCPUBackend"],
        ["-p", "no_such_module_anywhere", "plugins", "list"],
    ],
)
def test_wrong_values_exit_with_2(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(arguments) == 2
    shown = capsys.readouterr()
    assert shown.out == ""
    assert shown.err.startswith("error: ")


def test_an_unreachable_instance_names_its_own_flag(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["lookup", "--prompt", "x", "--instance-url", "http://127.0.0.1:9"]) == 1
    shown = capsys.readouterr().err
    assert "the instance at http://127.0.0.1:9 cannot be reached" in shown
    assert "hint: is it running? see --instance-url" in shown
