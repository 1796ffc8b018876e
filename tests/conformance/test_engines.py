"""Our engines keep the contract; plugins/transformers has its own."""

from __future__ import annotations

import pytest

from lmcache_kit.testing import EngineTests


class TestSynthetic(EngineTests):
    @pytest.fixture
    def plugin(self):
        return "synthetic"


class TestSyntheticOfAnotherShape(EngineTests):
    @pytest.fixture
    def plugin(self):
        return "synthetic"

    @pytest.fixture
    def options(self):
        return {"num_layers": 1, "num_kv_heads": 3, "head_dim": 5, "dtype": "float32", "max_model_len": 200, "seed": 7}

    @pytest.fixture
    def model(self):
        return "another"
