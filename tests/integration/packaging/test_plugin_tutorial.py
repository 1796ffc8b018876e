"""docs/tutorial/write-a-plugin.md, followed word for word: an empty folder, an empty environment, no checkout of ours.

Nothing is downloaded: pip finds our own wheels in a folder and takes what others made from a path that is shared.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.timeout(900)  # two environments are made and filled

ROOT = Path(__file__).parents[3]
TUTORIAL = ROOT / "docs" / "tutorial" / "write-a-plugin.md"
ECHO = ROOT / "plugins" / "echo"
BLOCK = re.compile(r"^```bash\n(.*?)^```$", re.MULTILINE | re.DOTALL)
FILE = re.compile(r"^cat > (\S+) <<'EOF'\n(.*?)^EOF$", re.MULTILINE | re.DOTALL)


def blocks() -> list[str]:
    return BLOCK.findall(TUTORIAL.read_text())


def test_its_files_are_those_of_the_plugin_that_is_tested() -> None:
    written = dict(FILE.findall("\n".join(blocks())))
    assert set(written) == {
        "pyproject.toml",
        "lmcache_kit_echo/__init__.py",
        "lmcache_kit_echo/plugin.py",
        "lmcache_kit_echo/method.py",
        "tests/test_conformance.py",
        "scenario.yaml",
    }
    for name, text in written.items():
        assert text == (ECHO / name).read_text(), f"{name} of the tutorial is not that of plugins/echo"


def test_its_links_lead_somewhere() -> None:
    for link in re.findall(r"\]\(([^)#:]+)\)", TUTORIAL.read_text()):
        assert (TUTORIAL.parent / link).exists(), link


@pytest.fixture(scope="module")
def session(build: Any, third_party: Path, tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """What each block prints."""
    folder = tmp_path_factory.mktemp("tutorial")
    wheels = folder / "wheels"
    wheels.mkdir()
    shutil.copy(build(ROOT, folder / "built"), wheels)
    inherited = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("LMCACHE_", "PYTHON", "PIP_")) and name != "VIRTUAL_ENV"
    }
    environment = {
        **inherited,
        # `python3` is the one that runs this test, not one of the system.
        "PATH": f"{folder / 'bin'}{os.pathsep}{inherited['PATH']}",
        "PYTHONPATH": str(third_party),
        "PIP_NO_INDEX": "1",
        "PIP_FIND_LINKS": str(wheels),
        "PIP_NO_BUILD_ISOLATION": "0",  # pip's way to say: without
        "PIP_DISABLE_PIP_VERSION_CHECK": "1",
    }
    (folder / "bin").mkdir()
    (folder / "bin" / "python3").symlink_to(Path(sys.executable).resolve())
    # pip would have put this one into the environment, had pytest not been there already.
    (folder / "bin" / "pytest").write_text('#!/bin/sh\nexec python -m pytest "$@"\n')
    (folder / "bin" / "pytest").chmod(0o755)
    (folder / "work").mkdir()
    marker = "----- end of block -----"
    script = "\n".join(f"{text}\necho '{marker}'" for text in blocks())
    done = subprocess.run(
        ["bash", "-e", "-c", script],
        cwd=folder / "work",
        env=environment,
        capture_output=True,
        text=True,
        timeout=840,
    )
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
    return done.stdout.split(marker)


def printed(session: list[str], command: str) -> str:
    """What the block with a command printed."""
    [number] = [number for number, text in enumerate(blocks()) if command in text]
    return session[number]


def test_every_block_runs(session: list[str]) -> None:
    assert len(session) == len(blocks()) + 1


def test_the_suite_passes_and_then_notices_what_was_broken(session: list[str]) -> None:
    assert re.search(r"\d+ passed, \d+ skipped", printed(session, "\npytest\n"))
    check = printed(session, "plugins check echo\n")
    assert ", 0 failed" in check
    assert "zstd" in check, "it is compared with the built-in methods"
    broken = printed(session, "--quick")
    assert "every bit comes back" in broken
    assert ", 0 failed" not in broken


def test_the_fleet_measures_it_and_a_stranger_finds_it(session: list[str]) -> None:
    fleet = printed(session, "scenario validate")
    assert fleet.count("passed in") == 2
    assert "with_echo" in fleet
    assert "echo" in printed(session, "../fresh/bin/pip")
