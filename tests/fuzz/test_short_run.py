"""A short search of all targets; ``make fuzz`` is the long one."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

RUN = Path(__file__).parent / "run.py"
SECONDS = 12


def fuzz(output: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(RUN), "--output-dir", str(output), *arguments], capture_output=True, text=True, timeout=110
    )


def test_a_short_search_finds_nothing(tmp_path: Path) -> None:
    pytest.importorskip("atheris", reason="the search is made by atheris, which has wheels for x86-64 Linux alone")
    pytest.importorskip("lmcache_kit_cachegen", reason="one of the targets is this plugin's decoder")
    done = fuzz(tmp_path, "mixed", "--seconds", str(SECONDS))
    crashes = {path.name: path.read_bytes() for path in tmp_path.glob("crash-*")}
    assert (done.returncode, crashes) == (0, {}), done.stderr[-8000:]
    # It searched: there were more inputs than those it began with.
    [units] = [int(line.split()[-1]) for line in done.stderr.splitlines() if "number_of_executed_units" in line]
    assert units > 2 * len(list((tmp_path / "seeds" / "mixed").iterdir()))


def test_an_unknown_target_is_refused_by_name(tmp_path: Path) -> None:
    pytest.importorskip("lmcache_kit_cachegen", reason="one of the targets is this plugin's decoder")
    done = fuzz(tmp_path, "nothing", "--seconds", "1")
    assert done.returncode == 2
    assert "unknown target 'nothing'" in done.stderr


def test_make_fuzz_runs_it() -> None:
    root = RUN.parents[2]
    command = ["make", "--dry-run", "fuzz", "SECONDS=7", "FUZZ_ARGS=blob --keep"]
    said = subprocess.run(command, cwd=root, capture_output=True, text=True, timeout=60, check=True).stdout
    assert "tests/fuzz/run.py --seconds 7 --output-dir out/fuzz blob --keep" in said
