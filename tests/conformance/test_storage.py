"""Our storage backends keep the contract."""

from __future__ import annotations

import pytest

from lmcache_kit.testing import StorageBackendTests


class TestMemory(StorageBackendTests):
    @pytest.fixture
    def plugin(self):
        return "memory"


class TestDisk(StorageBackendTests):
    @pytest.fixture
    def plugin(self):
        return "disk"
