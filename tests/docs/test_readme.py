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
    for fact in ("12 lookups, 12 complete, 0 misses", "12 requests, 2 instances, 12 hits"):
        assert fact in README
        assert fact in quickstart


def test_the_compression_is_about_as_good_as_shown(quickstart: str) -> None:
    # cachegen is lossy: on another machine another text may change, and what zstd's ratio was would be a mistake.
    for table in (README, quickstart):
        [same] = re.findall(r"same text (\d+) of 12", table)
        assert 10 <= int(same) <= 12
        [ratio] = re.findall(r"^  compress .*?MiB .*?MiB\s+([\d.]+)", table, re.MULTILINE)
        assert 3.9 <= float(ratio) <= 4.4


def test_the_table_of_codecs_is_that_of_its_command(capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("lmcache_kit_cachegen", reason="one of the methods is of this plugin")
    [at] = [number for number, block in enumerate(BLOCKS) if block.startswith("lmcache-kit codec bench")]
    assert main([*BLOCKS[at].split()[1:], "--seconds", "0"]) == 0
    printed = capsys.readouterr().out.splitlines()
    shown = BLOCKS[at + 1].splitlines()
    assert [line for line in shown if "─" not in line and not line.startswith("  ")] == [
        line for line in printed if "─" not in line and not line.startswith("  ")
    ]

    def sizes(lines: list[str]) -> dict[str, list[float]]:
        """Bits, ratio and nmse of each method, which do not depend on the machine."""
        rows = [line.split() for line in lines if line.startswith("  ") and "─" not in line]
        return {row[0]: [float(cell) for cell in row[1:4]] for row in rows[1:]}

    assert sizes(shown) == {method: pytest.approx(row, rel=0.05) for method, row in sizes(printed).items()}


# Those two are run above.
@pytest.mark.parametrize(
    "command", [c for c in COMMANDS if not {"quickstart", "codec"} & {*c, Path(c[-1]).stem}], ids=" ".join
)
def test_a_command_works(
    command: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(command) == 0, capsys.readouterr().err
