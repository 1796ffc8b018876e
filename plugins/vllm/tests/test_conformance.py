"""The engine keeps the contract of servers; nothing is started, so vLLM need not be there."""

from __future__ import annotations

from pathlib import Path

import pytest

from lmcache_kit.testing import EngineTests


class TestVllm(EngineTests):
    @pytest.fixture
    def plugin(self):
        return "vllm"

    @pytest.fixture
    def model(self):
        return "some/model"

    @pytest.fixture
    def options(self, tmp_path: Path):
        command = tmp_path / "vllm"
        command.write_text("#!/bin/sh\n")
        command.chmod(0o755)
        return {"executable": str(command), "dtype": "bfloat16", "prefix_caching": False}
