"""The storage backends against a dict, with reopening."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from lmcache_kit.builtin.storage.disk import DiskBackend
from lmcache_kit.builtin.storage.memory import MemoryBackend
from lmcache_kit.contracts import StorageBackend

names = st.sampled_from([".", "..", "a", "tmp", "m.1", "m.n1", "x" * 128])
blobs = st.binary(max_size=300)
wrappers = st.sampled_from([bytes, bytearray, memoryview, lambda raw: memoryview(bytearray(raw))])


class StorageMachine(RuleBasedStateMachine):
    """A backend against a dictionary; ``make`` gives the backend over a folder."""

    make: Callable[[Path], StorageBackend]

    def __init__(self) -> None:
        super().__init__()
        self.folder = tempfile.TemporaryDirectory()
        self.backend = type(self).make(Path(self.folder.name) / "store")
        self.model: dict[str, bytes] = {}

    @rule(name=names, blob=blobs, wrap=wrappers)
    def put(self, name, blob, wrap):
        buffer = wrap(blob)
        self.backend.put(name, buffer)
        if isinstance(buffer, bytearray):
            buffer[:] = bytes(len(buffer))
        self.model[name] = blob

    @rule(name=names)
    def get(self, name):
        assert self.backend.get(name) == self.model.get(name)

    @rule(name=names)
    def size(self, name):
        blob = self.model.get(name)
        assert self.backend.size(name) == (None if blob is None else len(blob))

    @rule(name=names)
    def delete(self, name):
        assert self.backend.delete(name) is (self.model.pop(name, None) is not None)

    @invariant()
    def entries(self):
        assert sorted(self.backend.entries()) == sorted((name, len(blob)) for name, blob in self.model.items())

    def teardown(self):
        self.backend.close()
        self.folder.cleanup()


class MemoryMachine(StorageMachine):
    make = staticmethod(lambda folder: MemoryBackend())


class DiskMachine(StorageMachine):
    make = staticmethod(DiskBackend)

    @rule()
    def reopen(self):
        self.backend.close()
        self.backend = type(self).make(Path(self.folder.name) / "store")


TestMemory = MemoryMachine.TestCase
TestMemory.settings = settings(max_examples=40, stateful_step_count=30, deadline=None)
TestDisk = DiskMachine.TestCase
TestDisk.settings = settings(max_examples=40, stateful_step_count=30, deadline=None)
