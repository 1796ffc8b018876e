"""Our eviction policies keep the contract; their orders are tested in tests/properties/builtin."""

from __future__ import annotations

import pytest

from lmcache_kit.testing import EvictionPolicyTests


class TestLRU(EvictionPolicyTests):
    @pytest.fixture
    def plugin(self):
        return "lru"


class TestMRU(EvictionPolicyTests):
    @pytest.fixture
    def plugin(self):
        return "mru"


class TestFIFO(EvictionPolicyTests):
    @pytest.fixture
    def plugin(self):
        return "fifo"


class TestLFU(EvictionPolicyTests):
    @pytest.fixture
    def plugin(self):
        return "lfu"


class TestARC(EvictionPolicyTests):
    @pytest.fixture
    def plugin(self):
        return "arc"
