"""The README's commands work, and its table is one that the quickstart prints."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from lmcache_kit.cli import main

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()
BLOCKS = re.findall(r"^```\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)
COMMANDS = [
    line.split("#")[0].split()[1:] for block in BLOCKS for line in block.splitlines() if line.startswith("lmcache-kit ")
]


def test_it_opens_with_the_two_commands() -> None:
    assert BLOCKS[0].split("\n") == ["make demo", "make test", ""]


@pytest.fixture(scope="module")
def quickstart(tmp_path_factory: pytest.TempPathFactory) -> str:
    """What `make demo` prints, run once for the tests of this module."""
    pytest.importorskip("lmcache_kit_transformers", reason="the quickstart computes real KV with this plugin")
    folder = tmp_path_factory.mktemp("quickstart")
    done = subprocess.run(
        [sys.executable, "-m", "lmcache_kit", "run", str(ROOT / "scenarios/quickstart.yaml"), "--output-dir", folder],
        capture_output=True,
        text=True,
        timeout=115,
    )
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
    return done.stdout


def shape(table: str) -> list[list[str]]:
    """The words of a table's lines, figures left out."""
    return [re.findall(r"[A-Za-z_]{3,}", line) for line in table.splitlines() if line.strip()]


def test_the_table_is_the_quickstarts(quickstart: str) -> None:
    shown = shape(BLOCKS[1])
    assert [words for words in shape(quickstart) if words in shown][: len(shown)] == shown


def test_what_does_not_depend_on_the_machine_is_as_shown(quickstart: str) -> None:
    for fact in ("12 lookups, 12 complete, 0 misses", "same text 12 of 12", "12 requests, 2 instances, 12 hits"):
        assert fact in README
        assert fact in quickstart


@pytest.mark.parametrize("command", [c for c in COMMANDS if "quickstart" not in " ".join(c)], ids=" ".join)
def test_a_command_works(
    command: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(command) == 0, capsys.readouterr().err
