"""Storage backends of this distribution keep the contract; on S3: tests/integration/fsspec."""

from __future__ import annotations

import pytest

from lmcache_kit.testing import StorageBackendTests


class TestSharedFolder(StorageBackendTests):
    @pytest.fixture
    def plugin(self):
        return "fsspec"

    @pytest.fixture
    def options(self, tmp_path):
        return {"url": f"file://{tmp_path}/store"}

    @pytest.fixture
    def unreachable(self, tmp_path):
        (tmp_path / "a file").write_bytes(b"")
        return {"url": f"file://{tmp_path}/a file/store"}


class TestPrivateFolder(TestSharedFolder):
    @pytest.fixture
    def plugin(self):
        return "fsspec_private"


class TestMemory(StorageBackendTests):
    @pytest.fixture
    def plugin(self):
        return "fsspec_memory"
