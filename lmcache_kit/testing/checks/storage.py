"""Storage backends: put, get, replace, delete, size, entries."""

from __future__ import annotations

import contextlib
import os
import secrets
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from lmcache_kit.contracts.records import Options, StoragePlugin
from lmcache_kit.contracts.storage import Buffer, StorageBackend, StorageContext, SupportsBatch, SupportsHealth
from lmcache_kit.errors import ConfigError, UnavailableError
from lmcache_kit.testing.checks.result import CheckResult, Checks, Skipped, require, run_check
from lmcache_kit.units import format_size

__all__ = ["run"]

_LARGE = 8 << 20


def run(record: StoragePlugin, options: Options) -> list[CheckResult]:
    with tempfile.TemporaryDirectory() as folder:
        context = StorageContext(
            instance_id="check", location=record.location, capacity_bytes=None, data_dir=Path(folder)
        )
        subject = _Subject(record, options, context)
        first = run_check("made and reached", subject.reach)
        if first.outcome != "passed":
            return [first]
        try:
            return [first, *(run_check(name, check) for name, check in subject.checks())]
        finally:
            subject.clean_up()


class _Subject:
    """The backend under test. All names carry a random part: the store may be a server that others use."""

    def __init__(self, record: StoragePlugin, options: Options, context: StorageContext) -> None:
        self._record, self._options, self._context = record, options, context
        self._prefix = f"check.{secrets.token_hex(6)}."
        self._names: set[str] = set()
        self.backend: StorageBackend

    def reach(self) -> str:
        try:
            self.backend = self._record.factory(self._options, self._context)
            require(isinstance(self.backend, StorageBackend), "the factory did not make a StorageBackend")
            try:
                self.backend.size(self._prefix)
            except BaseException:
                self.backend.close()
                raise
        except (UnavailableError, ConfigError) as error:
            raise Skipped(f"it cannot be used here: {error.detail}") from None
        return type(self.backend).__name__

    def name(self, end: str) -> str:
        name = self._prefix + end
        self._names.add(name)
        return name

    def clean_up(self) -> None:
        for name in self._names:
            with contextlib.suppress(Exception):  # third-party code; the checks have said what is wrong
                self.backend.delete(name)
        self.backend.close()

    def checks(self) -> Checks:
        yield "nothing under a new name", self.missing
        yield "put and get", self.put_and_get
        yield "replace", self.replace
        yield "keeps its own bytes", self.own_bytes
        yield "names", self.names
        yield "large objects", self.large
        yield "entries", self.entries
        yield "delete", self.delete
        yield "several threads", self.threads
        yield "persistent", self.persistent
        yield "shared", self.shared
        yield "batch reads", self.batch
        yield "health", self.health

    def missing(self) -> str:
        name = self.name("missing")
        require(self.backend.get(name) is None, "get of a missing object is not None")
        require(self.backend.size(name) is None, "size of a missing object is not None")
        require(self.backend.delete(name) is False, "delete of a missing object is not False")
        return ""

    def holds(self, name: str, blob: bytes) -> None:
        got = self.backend.get(name)
        require(got is not None and bytes(got) == blob, f"get answers other bytes than were put ({len(blob)} bytes)")
        require(self.backend.size(name) == len(blob), f"size answers {self.backend.size(name)}, not {len(blob)}")

    def put_and_get(self) -> str:
        raw = bytes(range(256)) * 2
        blobs: list[Buffer] = [raw, b"", b"\0", bytearray(raw), memoryview(raw)[1:-1], memoryview(bytearray(raw))]
        for number, blob in enumerate(blobs):
            self.backend.put(self.name(f"put.{number}"), blob)
        for number, blob in enumerate(blobs):
            self.holds(self.name(f"put.{number}"), bytes(blob))
        return "every byte value, empty, bytes, bytearray and memoryview"

    def replace(self) -> str:
        name = self.name("replace")
        for blob in (b"first", b"the second, longer", b"3"):
            self.backend.put(name, blob)
            self.holds(name, blob)
        return ""

    def own_bytes(self) -> str:
        name, blob = self.name("own"), bytearray(b"before")
        self.backend.put(name, blob)
        blob[:] = b"after!"
        self.holds(name, b"before")
        return ""

    def names(self) -> str:
        longest = self._prefix + "x" * (128 - len(self._prefix))
        self._names.add(longest)
        bare = [name for name in (".", "..") if self.backend.get(name) is None]
        self._names.update(bare)
        names = [longest, *bare, *(self.name(end) for end in ("a", "a.b", "a-b", "a_b", "tmp"))]
        for number, name in enumerate(names):
            self.backend.put(name, str(number).encode())
        for number, name in enumerate(names):
            self.holds(name, str(number).encode())
        return f"up to {len(longest)} characters"

    def large(self) -> str:
        name, blob = self.name("large"), os.urandom(1 << 20) * (_LARGE >> 20)
        self.backend.put(name, blob)
        self.holds(name, blob)
        return format_size(len(blob))

    def entries(self) -> str:
        want = {self.name(f"entry.{number}"): number for number in range(40)}
        for name, size in want.items():
            self.backend.put(name, b"x" * size)
        found = [(name, size) for name, size in self.backend.entries() if name in want]
        require(len(found) == len(want), f"entries lists {len(found)} of {len(want)} objects")
        require(dict(found) == want, "entries lists wrong sizes")
        return ""

    def delete(self) -> str:
        name = self.name("delete")
        self.backend.put(name, b"x")
        require(self.backend.delete(name) is True, "delete of an object is not True")
        require(self.backend.get(name) is None and self.backend.size(name) is None, "a deleted object is still there")
        require(all(found != name for found, _ in self.backend.entries()), "entries lists a deleted object")
        return ""

    def threads(self) -> str:
        if "inline" in self._record.capabilities:
            raise Skipped("declared inline: called from one thread")

        def work(number: int) -> None:
            for step in range(20):
                blob = bytes((number, step)) * 500
                name = self._prefix + f"thread.{number}"
                self.backend.put(name, blob)
                self.holds(name, blob)

        for number in range(4):
            self.name(f"thread.{number}")
        with ThreadPoolExecutor(4) as pool:
            list(pool.map(work, range(4)))
        return "4 threads"

    def persistent(self) -> str:
        if "persistent" not in self._record.capabilities:
            raise Skipped("not declared")
        name = self.name("persistent")
        self.backend.put(name, b"still here")
        self.backend.close()
        self.backend = self._record.factory(self._options, self._context)
        self.holds(name, b"still here")
        require(any(found == name for found, _ in self.backend.entries()), "entries does not find it after reopening")
        return "found again after reopening"

    def shared(self) -> str:
        if "shared" not in self._record.capabilities:
            raise Skipped("not declared")
        name, other = self.name("shared"), self._record.factory(self._options, self._context)
        try:
            self.backend.put(name, b"ours")
            got = other.get(name)
            require(got is not None and bytes(got) == b"ours", "a second user of the store does not see the object")
            other.delete(name)
            require(self.backend.get(name) is None, "an object that a second user deleted is still there")
        finally:
            other.close()
        return ""

    def batch(self) -> str:
        if not isinstance(self.backend, SupportsBatch):
            raise Skipped("not offered")
        names = [self.name("batch.0"), self.name("batch.none"), self.name("batch.1")]
        self.backend.put(names[0], b"0")
        self.backend.put(names[2], b"1")
        got = [None if blob is None else bytes(blob) for blob in self.backend.get_many(names)]
        require(got == [b"0", None, b"1"], f"get_many answers {got}")
        return ""

    def health(self) -> str:
        if not isinstance(self.backend, SupportsHealth):
            raise Skipped("not offered")
        return ", ".join(f"{key}: {value}" for key, value in self.backend.health().items())
