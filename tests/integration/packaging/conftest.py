from __future__ import annotations

import re
import subprocess
import sys
import sysconfig
from collections.abc import Callable
from pathlib import Path

import pytest

# Of no use to an author: ours, what finds them in this environment, and pytest plugins that our own tests want.
_NOT_SHARED = re.compile(
    r"lmcache.kit.*|_?_editable_.*|.*\.(pth|virtualenv)|__pycache__|(pip|setuptools)(-.*)?|_distutils_hack"
    r"|(pytest_?asyncio|xdist|pytest_xdist|pytest_timeout|pytest_cov|schemathesis)(-.*|\.py)?",
    re.IGNORECASE,
)


@pytest.fixture(scope="session")
def build() -> Callable[[Path, Path], Path]:
    """Builds the wheel of a project into a folder."""

    def build_wheel(project: Path, target: Path) -> Path:
        command = [sys.executable, "-m", "hatchling", "build", "--target", "wheel", "--directory", str(target)]
        subprocess.run(command, cwd=project, check=True, capture_output=True, timeout=100)
        [wheel] = target.glob("*.whl")
        return wheel

    return build_wheel


@pytest.fixture(scope="session")
def third_party(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with every package that is installed here and is not ours; on a path, they count as installed there."""
    shared = tmp_path_factory.mktemp("third-party")
    for place in {sysconfig.get_path("purelib"), sysconfig.get_path("platlib")}:
        for each in Path(place).iterdir():
            if _NOT_SHARED.fullmatch(each.name) is None and not (shared / each.name).exists():
                (shared / each.name).symlink_to(each)
    return shared
