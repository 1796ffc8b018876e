"""Our transports keep the contract, with their usual options and at the ends of their ranges."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path

import pytest

from lmcache_kit.builtin.transports.segments import SegmentFolder
from lmcache_kit.testing import TransportTests


class TestInproc(TransportTests):
    @pytest.fixture
    def plugin(self):
        return "inproc"


class TestZmq(TransportTests):
    @pytest.fixture
    def plugin(self):
        return "zmq"


class TestShm(TransportTests):
    @pytest.fixture
    def plugin(self):
        return "shm"

    @pytest.fixture
    def folder(self):
        base = "/dev/shm" if Path("/dev/shm").is_dir() else None
        folder = Path(tempfile.mkdtemp(prefix="lmcache-kit-test-", dir=base))
        yield folder
        SegmentFolder(folder).close()  # the next use of the folder clears up after processes that were killed
        left = sorted(entry.name for entry in folder.iterdir())
        shutil.rmtree(folder)
        assert left == []

    @pytest.fixture
    def options(self, folder):
        return {"directory": str(folder)}


class TestShmWithEverythingInSharedMemory(TestShm):
    @pytest.fixture
    def options(self, folder):
        return {"directory": str(folder), "threshold_bytes": 0}
