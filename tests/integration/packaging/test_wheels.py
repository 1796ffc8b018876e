"""Every distribution builds a wheel, and the core's wheel works without the repository around it."""

from __future__ import annotations

import os
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[3]
PROJECTS = [ROOT, ROOT / "kernels", *sorted(path.parent for path in (ROOT / "plugins").glob("*/pyproject.toml"))]


def run(target: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """lmcache-kit from the unpacked wheel, which stands before the repository's own on the path."""
    return subprocess.run(
        [sys.executable, "-m", "lmcache_kit", *arguments],
        cwd=target.parent,
        env={**os.environ, "PYTHONPATH": str(target), "LMCACHE_KIT_PLUGINS": ""},
        capture_output=True,
        text=True,
        timeout=100,
    )


@pytest.mark.parametrize("project", PROJECTS, ids=lambda project: project.name)
def test_a_wheel_holds_its_package_its_type_marker_and_nothing_else(build: Any, project: Path, tmp_path: Path) -> None:
    with zipfile.ZipFile(build(project, tmp_path)) as wheel:
        names = wheel.namelist()
        metadata = next(name for name in names if name.endswith(".dist-info/METADATA"))
        text = wheel.read(metadata).decode()
    settings = tomllib.loads((project / "pyproject.toml").read_text())
    [package] = settings["tool"]["hatch"]["build"]["targets"]["wheel"]["packages"]
    assert f"{package}/__init__.py" in names
    assert f"{package}/py.typed" in names
    assert {name.split("/")[0] for name in names} == {package, metadata.split("/")[0]}
    tests = [name for name in names if {"tests", "conftest.py"} & set(Path(name).parts)]
    tests += [name for name in names if Path(name).stem.startswith("test_") or Path(name).stem.endswith("_test")]
    assert not tests
    assert "License-Expression: Apache-2.0" in text
    assert "Requires-Python: >=3.11" in text


def test_the_cores_wheel_holds_the_scenarios_and_runs_one(build: Any, tmp_path: Path) -> None:
    target = tmp_path / "site"
    with zipfile.ZipFile(build(ROOT, tmp_path)) as wheel:
        wheel.extractall(target)
    shipped = {path.name for path in (ROOT / "scenarios").glob("*.yaml")}
    assert {path.name for path in (target / "lmcache_kit" / "_scenarios").glob("*.yaml")} == shipped
    where = subprocess.run(
        [sys.executable, "-c", "import lmcache_kit; print(lmcache_kit.__file__)"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(target)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert where.stdout.startswith(str(target)), "the test must not see the repository's own package"
    done = run(target, "run", "synthetic", "--output-dir", str(tmp_path / "out"))
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
    assert "read_back" in done.stdout
