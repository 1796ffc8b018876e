from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest


@pytest.fixture
def write(tmp_path: Path) -> Callable[..., Path]:
    """Writes rows, given as mappings or as raw lines, into a trace file."""

    def write(*rows: Any) -> Path:
        path = tmp_path / "made_up.jsonl"
        path.write_bytes(
            b"\n".join(row if isinstance(row, bytes) else msgspec.json.encode(row) for row in rows) + b"\n"
        )
        return path

    return write
