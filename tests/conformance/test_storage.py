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

    @pytest.fixture
    def unreachable(self, tmp_path):
        (tmp_path / "taken").write_bytes(b"a file where the folder should be")
        return {"path": str(tmp_path / "taken")}


class TestDiskForcedToTheDevice(TestDisk):
    @pytest.fixture
    def options(self):
        return {"fsync": True}
