"""What happens to objects: put, get, replace, delete, by one caller and by several at a time."""

from __future__ import annotations

import os
import threading
import tracemalloc
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest
from hypothesis.stateful import run_state_machine_as_test

from lmcache_kit.contracts.records import StoragePlugin
from lmcache_kit.contracts.storage import Buffer, StorageBackend
from lmcache_kit.testing.suites.base import examples, made
from lmcache_kit.testing.suites.storage_base import StorageTestsBase
from lmcache_kit.testing.suites.storage_machine import storage_machine
from lmcache_kit.testing.suites.storage_store import Names, Store, holds

__all__ = ["ObjectTests"]

_MIB = 1 << 20
_SIZES = (0, 1, 511, 4095, 4096, 4097, 65_536, _MIB + 1, 8 * _MIB)
_EVERY_BYTE = bytes(range(256))


class ObjectTests(StorageTestsBase):
    """Objects, by one caller and by several; a part of :class:`StorageBackendTests`."""

    # -- one caller ------------------------------------------------------------------------------------------------

    def test_nothing_is_under_a_new_name(self, subject: StorageBackend, names: Names) -> None:
        name = names("missing")
        assert subject.get(name) is None
        assert subject.size(name) is None
        assert subject.delete(name) is False

    def test_what_was_put_comes_back(
        self, subject: StorageBackend, names: Names, record_property: Callable[[str, object], None]
    ) -> None:
        raw = _EVERY_BYTE * 2
        kinds: list[Buffer] = [raw, bytearray(raw), memoryview(raw)[1:-1], memoryview(bytearray(raw))]
        for number, blob in enumerate(kinds):
            subject.put(names(f"kind.{number}"), blob)
        for number, blob in enumerate(kinds):
            holds(subject, names(f"kind.{number}"), blob)
        for size in _SIZES:
            blob = (_EVERY_BYTE * (size // 256 + 1))[:size]
            subject.put(names(f"size.{size}"), memoryview(blob))
            holds(subject, names(f"size.{size}"), blob)
        record_property("detail", "0 bytes to 8 MiB")

    def test_a_put_replaces_the_object_whole(self, subject: StorageBackend, names: Names) -> None:
        name = names("replaced")
        for blob in (b"first", b"the second, which is longer", b"3", b"", bytes(100_000), b"last"):
            subject.put(name, blob)
            holds(subject, name, blob)
            found = [size for each, size in subject.entries() if each == name]
            assert found == [len(blob)], f"entries answers {found} for one object of {len(blob)} bytes"

    def test_the_store_keeps_bytes_of_its_own(self, subject: StorageBackend, names: Names) -> None:
        for wrap in (bytearray, lambda raw: memoryview(bytearray(raw))):
            name, blob = names("own"), wrap(b"before")
            subject.put(name, blob)
            blob[:] = b"after!"
            got = subject.get(name)
            assert got is not None
            assert bytes(got) == b"before", "the store changes with the buffer that was put"
            if isinstance(got, bytearray) or (isinstance(got, memoryview) and not got.readonly):
                got[:] = b"theirs"
                holds(subject, name, b"before")

    def test_what_was_read_stays_when_the_object_goes(self, subject: StorageBackend, names: Names) -> None:
        name = names("read")
        subject.put(name, b"a" * 5000)
        got = subject.get(name)
        subject.put(name, b"b" * 5000)
        again = subject.get(name)
        subject.delete(name)
        subject.put(names("another"), b"c" * 5000)
        assert got is not None
        assert again is not None
        assert bytes(got) == b"a" * 5000, "what a reader holds changed when the object was replaced"
        assert bytes(again) == b"b" * 5000, "what a reader holds changed when the object was deleted"

    def test_any_legal_name_will_do(
        self, subject: StorageBackend, names: Names, record_property: Callable[[str, object], None]
    ) -> None:
        longest = names("x" * (128 - len(names.prefix)))
        almost = names.bare(longest[:-1] + "y")
        # Names without the random part only where nobody has them.
        bare = [names.bare(name) for name in (".", "..", "0", "-", "...") if subject.get(name) is None]
        ends = ("a", "a.b", "a-b", "a_b", "tmp", "a.tmp", "a.blob", ".", "..", "0123456789abcdefghijklmnopqrstuvwxyz")
        every = [longest, almost, *bare, *(names(end) for end in ends)]
        for number, name in enumerate(every):
            subject.put(name, str(number).encode())
        for number, name in enumerate(every):
            holds(subject, name, str(number).encode())
        found = sorted(name for name, _ in subject.entries() if name in set(every))
        assert found == sorted(every), "entries answers other names than were put"
        record_property("detail", f"up to {len(longest)} characters")

    def test_a_dictionary_answers_the_same(self, record: StoragePlugin, store: Store, names: Names) -> None:
        made(lambda: store.open().size(names("reached")))
        machine = storage_machine(store, names, record.capabilities)
        run_state_machine_as_test(machine, settings=examples(25, stateful_step_count=25))

    def test_entries_lists_each_object_once(self, record: StoragePlugin, subject: StorageBackend, names: Names) -> None:
        want = {names(f"entry.{number}"): number * 3 for number in range(300)}
        for name, size in want.items():
            subject.put(name, b"x" * size)
        for name in list(want)[::3]:
            subject.delete(name)
            del want[name]
        found = list(subject.entries())
        if "shared" in record.capabilities:
            found = [(name, size) for name, size in found if name in names.used]
        assert len(found) == len(dict(found)), "entries lists an object twice"
        assert dict(found) == want, "entries does not list exactly the objects with their sizes"

    def test_entries_bears_changes_while_it_is_read(self, subject: StorageBackend, names: Names) -> None:
        stay = {names(f"stay.{number}") for number in range(60)}
        go = [names(f"go.{number}") for number in range(60)]
        for name in (*stay, *go):
            subject.put(name, b"x")
        found = []
        for number, (name, _) in enumerate(subject.entries()):
            found.append(name)
            if number < len(go):
                subject.delete(go[number])
                subject.put(names(f"new.{number}"), b"xy")
        seen = sorted(name for name in found if name in stay)
        assert seen == sorted(stay), "entries misses or repeats an object that nobody touched meanwhile"

    def test_a_deleted_object_is_gone(self, subject: StorageBackend, names: Names) -> None:
        name = names("deleted")
        subject.put(name, b"x")
        assert subject.delete(name) is True
        assert subject.get(name) is None
        assert subject.size(name) is None
        assert all(found != name for found, _ in subject.entries()), "entries lists a deleted object"
        assert subject.delete(name) is False
        subject.put(name, b"again")
        holds(subject, name, b"again")

    def test_deleting_and_replacing_free_bytes(self, subject: StorageBackend, store: Store, names: Names) -> None:
        name, blob = names("freed"), bytearray(4 * _MIB)
        subject.put(names("warm"), b"x")  # what a first write makes once and keeps
        tracemalloc.start()
        try:
            memory, disk = tracemalloc.get_traced_memory()[0], store.bytes_on_disk()
            for _ in range(4):
                subject.put(name, blob)
            held = tracemalloc.get_traced_memory()[0] - memory, store.bytes_on_disk() - disk
            subject.delete(name)
            left = tracemalloc.get_traced_memory()[0] - memory, store.bytes_on_disk() - disk
        finally:
            tracemalloc.stop()
        for where, bytes_held, bytes_left in zip(("memory", "files"), held, left, strict=True):
            assert bytes_held < len(blob) + _MIB, f"{bytes_held} bytes of {where} for one object of {len(blob)} bytes"
            assert bytes_left < _MIB, f"{bytes_left} bytes of {where} are left of a deleted object"

    def test_closing_releases_files(self, store: Store, names: Names) -> None:
        if not os.path.isdir("/proc/self/fd"):
            pytest.skip("open files cannot be counted on this system: there is no /proc/self/fd")
        name, before = names("file"), 0
        for number in range(12):
            backend = made(lambda: store.make(store.data_dir))
            made(lambda each=backend: each.put(name, b"x"))  # type: ignore[misc]
            backend.get(name)
            list(backend.entries())
            backend.delete(name)
            backend.close()
            if number == 1:  # what the first ones open for good is theirs
                before = len(os.listdir("/proc/self/fd"))
        after = len(os.listdir("/proc/self/fd"))
        assert after < before + 10, f"{after - before} more files are open after 10 backends were closed"

    # -- several callers -------------------------------------------------------------------------------------------

    @pytest.mark.usefixtures("from_threads")
    def test_threads_do_not_disturb_each_other(self, subject: StorageBackend, names: Names) -> None:
        common = [names(f"common.{number}") for number in range(4)]
        turn = threading.Barrier(4)

        def steps(number: int) -> None:
            name = names(f"own.{number}")
            for step in range(25):
                blob = bytes((number, step)) * 500
                turn.wait()  # all write at the same moment, every time
                subject.put(names(f"kept.{number}.{step}"), blob)
                subject.put(name, blob)
                subject.put(common[step % 4], blob)
                holds(subject, name, blob)
                if step % 5 == 4:
                    assert subject.delete(name) is True, "another thread's call answered this one's delete"
                    assert subject.get(name) is None
                list(subject.entries())

        def work(number: int) -> None:
            try:
                steps(number)
            except threading.BrokenBarrierError:
                pass  # another thread has something to say
            except BaseException:
                turn.abort()
                raise

        with ThreadPoolExecutor(4) as pool:
            list(pool.map(work, range(4)))
        for name in common:
            got = subject.get(name)
            assert got is not None
            assert bytes(got) == bytes(got)[:2] * 500, "two writers of one name left a mixture"
        kept = [names(f"kept.{number}.{step}") for number in range(4) for step in range(25)]
        lost = [name for name in kept if subject.size(name) != 1000]
        assert not lost, f"{len(lost)} of {len(kept)} objects that four threads put at the same time are lost"

    @pytest.mark.usefixtures("from_threads")
    def test_a_reader_never_sees_half_an_object(
        self, record: StoragePlugin, subject: StorageBackend, store: Store, names: Names
    ) -> None:
        name, done = names("torn"), threading.Event()
        sizes = {65_536: b"a", 70_000: b"b"}
        subject.put(name, b"a" * 65_536)
        readers = [subject, store.open() if {"persistent", "shared"} & record.capabilities else subject]
        wrong: list[str] = []

        def read(reader: StorageBackend) -> None:
            while not done.is_set() and not wrong:
                got = reader.get(name)
                whole = got is not None and bytes(got) == sizes.get(len(got), b"") * len(got)
                if not whole:
                    wrong.append("no object" if got is None else f"a mixture of {len(got)} bytes")
                size = reader.size(name)
                if size not in sizes:
                    wrong.append(f"a size of {size} bytes")

        with ThreadPoolExecutor(len(readers)) as pool:
            reading = [pool.submit(read, reader) for reader in readers]
            try:
                for number in range(80):
                    size = (65_536, 70_000)[number % 2]
                    subject.put(name, sizes[size] * size)
            finally:
                done.set()
            for each in reading:
                each.result()
        assert not wrong, f"while an object was replaced, a reader saw {wrong[0]}"
