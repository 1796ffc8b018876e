from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def build() -> Callable[[Path, Path], Path]:
    """Builds the wheel of a project into a folder."""

    def build_wheel(project: Path, target: Path) -> Path:
        command = [sys.executable, "-m", "hatchling", "build", "--target", "wheel", "--directory", str(target)]
        subprocess.run(command, cwd=project, check=True, capture_output=True, timeout=100)
        [wheel] = target.glob("*.whl")
        return wheel

    return build_wheel
