from __future__ import annotations

from typing import Any

import pytest

MINIMAL: dict[str, Any] = {
    "name": "small",
    "instances": [{"id": "a", "engine": {"kind": "synthetic"}}],
    "workloads": [{"name": "serve", "kind": "completions", "prompts": ["hello"]}],
}


@pytest.fixture
def data() -> dict[str, Any]:
    """A small valid scenario, to be changed by tests."""
    import copy

    return copy.deepcopy(MINIMAL)
