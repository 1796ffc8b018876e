"""Broken storage backends."""

from __future__ import annotations

import functools
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mutants.mutant import Mutant

from lmcache_kit.builtin.storage.disk import DiskBackend
from lmcache_kit.builtin.storage.memory import MemoryBackend
from lmcache_kit.builtin.storage.names import relative_path
from lmcache_kit.contracts.records import NoOptions, Options, StoragePlugin
from lmcache_kit.contracts.storage import Buffer, StorageBackend, StorageContext
from lmcache_kit.errors import UnavailableError

__all__ = ["MUTANTS", "SOUND"]

_TURN = 0.0005  # long enough for another thread to get a turn


class LosesAWrite(MemoryBackend):
    puts = 0

    def put(self, name: str, blob: Buffer) -> None:
        self.puts += 1
        if self.puts % 3:
            super().put(name, blob)


class StaleAfterReplace(MemoryBackend):
    def put(self, name: str, blob: Buffer) -> None:
        if name not in self._objects:
            super().put(name, blob)


class StaleReadCache(DiskBackend):
    """Remembers what it read, and is not told when it is replaced."""

    def __init__(self, root: Path) -> None:
        super().__init__(root)
        self._read: dict[str, Buffer] = {}

    def get(self, name: str) -> Buffer | None:
        if name in self._read:
            return self._read[name]
        found = super().get(name)
        if found is not None:
            self._read[name] = found
        return found

    def delete(self, name: str) -> bool:
        self._read.pop(name, None)
        return super().delete(name)


class KeepsTheBuffer(MemoryBackend):
    def put(self, name: str, blob: Buffer) -> None:
        self._objects[name] = blob  # type: ignore[assignment]

    def get(self, name: str) -> Buffer | None:
        found = self._objects.get(name)
        return None if found is None else bytes(found)


class GivesOutItsBuffer(MemoryBackend):
    def put(self, name: str, blob: Buffer) -> None:
        self._objects[name] = bytearray(blob)  # type: ignore[assignment]


class WritesInPlace(DiskBackend):
    """A reader, or a crash, sees half of an object."""

    def put(self, name: str, blob: Buffer) -> None:
        shard, file_name = relative_path(name)
        view = memoryview(blob).cast("B")
        (self._root / shard).mkdir(exist_ok=True)
        with open(self._root / shard / file_name, "wb", buffering=0) as file:
            file.write(view[: len(view) // 2])
            time.sleep(_TURN)
            file.write(view[len(view) // 2 :])


class ForgetsOnReopen(MemoryBackend):
    pass


class ClosingErases(DiskBackend):
    def close(self) -> None:
        if self._writer is not None:
            for name, _ in list(self.entries()):
                self.delete(name)
        super().close()


class ListsNothingOfEarlierRuns(DiskBackend):
    """Finds an object of an earlier run by name, but does not list it."""

    def __init__(self, root: Path) -> None:
        super().__init__(root)
        self._mine: set[str] = set()

    def put(self, name: str, blob: Buffer) -> None:
        super().put(name, blob)
        self._mine.add(name)

    def entries(self) -> Iterator[tuple[str, int]]:
        return ((name, size) for name, size in super().entries() if name in self._mine)


class DeleteLeavesTheBytes(DiskBackend):
    """Marks an object as deleted, to be removed some day."""

    def __init__(self, root: Path) -> None:
        super().__init__(root)
        self._gone: set[str] = set()

    def put(self, name: str, blob: Buffer) -> None:
        super().put(name, blob)
        self._gone.discard(name)

    def get(self, name: str) -> Buffer | None:
        return None if name in self._gone else super().get(name)

    def size(self, name: str) -> int | None:
        return None if name in self._gone else super().size(name)

    def entries(self) -> Iterator[tuple[str, int]]:
        return ((name, size) for name, size in super().entries() if name not in self._gone)

    def delete(self, name: str) -> bool:
        there = self.size(name) is not None
        self._gone.add(name)
        return there


class DeletesNothing(MemoryBackend):
    def delete(self, name: str) -> bool:
        return name in self._objects


class AlwaysDeleted(MemoryBackend):
    """Says that it deleted what was not there."""

    def delete(self, name: str) -> bool:
        super().delete(name)
        return True


class EntriesMissOne(MemoryBackend):
    def entries(self) -> Iterator[tuple[str, int]]:
        return iter(list(super().entries())[1:])


class EntriesRepeatOne(MemoryBackend):
    def entries(self) -> Iterator[tuple[str, int]]:
        rows = list(super().entries())
        return iter(rows + rows[:1])


class EntriesSayOldSizes(MemoryBackend):
    def __init__(self) -> None:
        super().__init__()
        self._sizes: dict[str, int] = {}

    def put(self, name: str, blob: Buffer) -> None:
        super().put(name, blob)
        self._sizes.setdefault(name, len(bytes(blob)))

    def delete(self, name: str) -> bool:
        self._sizes.pop(name, None)
        return super().delete(name)

    def entries(self) -> Iterator[tuple[str, int]]:
        return iter(list(self._sizes.items()))


class SizeIsRounded(MemoryBackend):
    """Tells blocks of 512 bytes, as a file system does."""

    def size(self, name: str) -> int | None:
        found = super().size(name)
        return None if found is None else -(-found // 512) * 512


class EmptyIsAbsent(MemoryBackend):
    def get(self, name: str) -> Buffer | None:
        return self._objects.get(name) or None


class AbsentIsEmpty(MemoryBackend):
    def get(self, name: str) -> Buffer | None:
        return self._objects.get(name, b"")


class CutsLargeObjects(MemoryBackend):
    """Its length field has 20 bits."""

    def put(self, name: str, blob: Buffer) -> None:
        super().put(name, bytes(blob)[: 2**20])


class MixesUpNames(MemoryBackend):
    """Makes dots and dashes underscores."""

    def _plain(self, name: str) -> str:
        return name.replace(".", "_").replace("-", "_")

    def put(self, name: str, blob: Buffer) -> None:
        super().put(self._plain(name), blob)

    def get(self, name: str) -> Buffer | None:
        return super().get(self._plain(name))

    def size(self, name: str) -> int | None:
        return super().size(self._plain(name))

    def delete(self, name: str) -> bool:
        return super().delete(self._plain(name))


class CutsLongNames(DiskBackend):
    """Names of more than 100 characters are cut, so that two of them may be one."""

    def _path(self, name: str) -> Path:
        return super()._path(name[:100])

    def put(self, name: str, blob: Buffer) -> None:
        super().put(name[:100], blob)


class Batches(MemoryBackend):
    """Sound."""

    def get_many(self, names: list[str]) -> list[Buffer | None]:
        return [self.get(name) for name in names]


class GetManyOutOfOrder(MemoryBackend):
    def get_many(self, names: list[str]) -> list[Buffer | None]:
        return [self.get(name) for name in sorted(names)]


class GetManyLeavesOutMisses(MemoryBackend):
    def get_many(self, names: list[str]) -> list[Buffer | None]:
        return [found for name in names if (found := self.get(name)) is not None]


class GetManyOncePerName(MemoryBackend):
    """Asks for each name once, and forgets that it was asked for twice."""

    def get_many(self, names: list[str]) -> list[Buffer | None]:
        return [self.get(name) for name in dict.fromkeys(names)]


class UnreachableIsAMiss(DiskBackend):
    def get(self, name: str) -> Buffer | None:
        try:
            return super().get(name)
        except UnavailableError:
            return None


class UnreachableTakesWrites(DiskBackend):
    def put(self, name: str, blob: Buffer) -> None:
        try:
            super().put(name, blob)
        except UnavailableError:
            return


class UnreachableIsAnOSError(DiskBackend):
    def get(self, name: str) -> Buffer | None:
        try:
            return self._path(name).read_bytes()
        except FileNotFoundError:
            return None


class NotThreadSafe(MemoryBackend):
    """Copies its table for every change, and the last copy wins."""

    def put(self, name: str, blob: Buffer) -> None:
        objects = dict(self._objects)
        time.sleep(_TURN)
        objects[name] = bytes(blob)
        self._objects = objects


class SecondOpenerSeesNothing(DiskBackend):
    """Says that it is shared, but knows only the objects that were there when it was opened and its own."""

    def __init__(self, root: Path) -> None:
        super().__init__(root)
        self._known = {name for name, _ in super().entries()}

    def put(self, name: str, blob: Buffer) -> None:
        super().put(name, blob)
        self._known.add(name)

    def get(self, name: str) -> Buffer | None:
        return super().get(name) if name in self._known else None


class HealthyWhenUnreachable(DiskBackend):
    def health(self) -> dict[str, Any]:
        return {"path": str(self._root)}


class DiskMutantOptions(Options, frozen=True):
    """``reachable=False``: a folder that leads nowhere in the place of the store."""

    reachable: bool = True


def _memory(made: type[MemoryBackend], options: Options, context: StorageContext) -> StorageBackend:
    return made()


def _disk(made: type[DiskBackend], options: Options, context: StorageContext) -> StorageBackend:
    assert isinstance(options, DiskMutantOptions)
    root = context.data_dir / context.location
    backend = made(root)
    if not options.reachable:
        shutil.rmtree(root)
        root.symlink_to(root)  # whoever follows it follows it for ever
    return backend


def _mutant(name: str, made: type[StorageBackend], wrong: str, *caught_by: str, declares: str = "") -> Mutant:
    on_disk = issubclass(made, DiskBackend)
    factory: Any = functools.partial(_disk if on_disk else _memory, made)
    record = StoragePlugin(
        name=name,
        summary=wrong,
        location="Mutant",
        options=DiskMutantOptions if on_disk else NoOptions,
        factory=factory,
        capabilities=frozenset({*declares.split(), *(["persistent"] if on_disk else [])}),
    )
    fixtures = {"unreachable": {"reachable": False}} if on_disk else {}
    return Mutant(record=record, wrong=wrong, caught_by=caught_by, fixtures=fixtures)


SOUND: tuple[Mutant, ...] = (
    _mutant("sound_memory", MemoryBackend, "nothing"),
    _mutant("sound_batches", Batches, "nothing"),
    _mutant("sound_disk", DiskBackend, "nothing", declares="shared"),
)

MUTANTS: tuple[Mutant, ...] = (
    _mutant(
        "loses_a_write",
        LosesAWrite,
        "every third put is lost",
        "test_what_was_put_comes_back",
        "test_a_dictionary_answers_the_same",
    ),
    _mutant(
        "stale_after_replace",
        StaleAfterReplace,
        "a second put of a name changes nothing",
        "test_a_put_replaces_the_object_whole",
    ),
    _mutant(
        "stale_read_cache",
        StaleReadCache,
        "what was read once is read again after it was replaced",
        "test_a_put_replaces_the_object_whole",
    ),
    _mutant(
        "keeps_the_buffer",
        KeepsTheBuffer,
        "a bytearray is kept without copying",
        "test_the_store_keeps_bytes_of_its_own",
    ),
    _mutant(
        "gives_out_its_buffer",
        GivesOutItsBuffer,
        "a reader that writes into what it got changes the object",
        "test_the_store_keeps_bytes_of_its_own",
    ),
    _mutant(
        "writes_in_place",
        WritesInPlace,
        "readers see half of a replacement",
        "test_a_reader_never_sees_half_an_object",
        "test_a_killed_writer_leaves_whole_objects",
    ),
    _mutant(
        "forgets_on_reopen",
        ForgetsOnReopen,
        "declared persistent, holds nothing after",
        "test_contents_survive_reopening",
        "test_a_dictionary_answers_the_same",
        declares="persistent",
    ),
    _mutant(
        "closing_erases", ClosingErases, "persistent contents do not survive close", "test_contents_survive_reopening"
    ),
    _mutant(
        "lists_nothing_of_earlier_runs",
        ListsNothingOfEarlierRuns,
        "entries finds only what this object wrote",
        "test_contents_survive_reopening",
    ),
    _mutant(
        "delete_leaves_the_bytes",
        DeleteLeavesTheBytes,
        "the file of a deleted object stays",
        "test_deleting_and_replacing_free_bytes",
    ),
    _mutant("deletes_nothing", DeletesNothing, "a deleted object is still there", "test_a_deleted_object_is_gone"),
    _mutant(
        "always_deleted", AlwaysDeleted, "says that it deleted what was not there", "test_nothing_is_under_a_new_name"
    ),
    _mutant(
        "entries_miss_one", EntriesMissOne, "entries leaves the first object out", "test_entries_lists_each_object_once"
    ),
    _mutant(
        "entries_repeat_one",
        EntriesRepeatOne,
        "entries gives the first object twice",
        "test_entries_lists_each_object_once",
    ),
    _mutant(
        "entries_say_old_sizes",
        EntriesSayOldSizes,
        "entries gives the size before a replacement",
        "test_a_put_replaces_the_object_whole",
    ),
    _mutant("size_is_rounded", SizeIsRounded, "size counts blocks of 512 bytes", "test_what_was_put_comes_back"),
    _mutant("empty_is_absent", EmptyIsAbsent, "an object of 0 bytes is a miss", "test_what_was_put_comes_back"),
    _mutant("absent_is_empty", AbsentIsEmpty, "a miss is an object of 0 bytes", "test_nothing_is_under_a_new_name"),
    _mutant("cuts_large_objects", CutsLargeObjects, "keeps the first MiB only", "test_what_was_put_comes_back"),
    _mutant("mixes_up_names", MixesUpNames, "a.b and a-b are one object", "test_any_legal_name_will_do"),
    _mutant(
        "cuts_long_names",
        CutsLongNames,
        "names that differ after 100 characters are one object",
        "test_any_legal_name_will_do",
    ),
    _mutant(
        "get_many_out_of_order",
        GetManyOutOfOrder,
        "get_many answers in the order of the names' letters",
        "test_many_reads_answer_in_order",
    ),
    _mutant(
        "get_many_leaves_out_misses",
        GetManyLeavesOutMisses,
        "get_many has no entry for a miss",
        "test_many_reads_answer_in_order",
    ),
    _mutant(
        "get_many_once_per_name",
        GetManyOncePerName,
        "get_many answers a repeated name once",
        "test_many_reads_answer_in_order",
    ),
    _mutant(
        "unreachable_is_a_miss",
        UnreachableIsAMiss,
        "a store that cannot be read answers None",
        "test_a_store_that_cannot_be_reached_says_so",
    ),
    _mutant(
        "unreachable_takes_writes",
        UnreachableTakesWrites,
        "a put that could not be done counts as done",
        "test_a_store_that_cannot_be_reached_says_so",
    ),
    _mutant(
        "unreachable_is_an_oserror",
        UnreachableIsAnOSError,
        "an unreadable store raises an OSError",
        "test_a_store_that_cannot_be_reached_says_so",
    ),
    _mutant(
        "not_thread_safe",
        NotThreadSafe,
        "puts of two threads at a time: one is lost",
        "test_threads_do_not_disturb_each_other",
    ),
    _mutant(
        "second_opener_sees_nothing",
        SecondOpenerSeesNothing,
        "declared shared, but is not",
        "test_two_users_see_one_store",
        declares="shared",
    ),
    _mutant(
        "healthy_when_unreachable",
        HealthyWhenUnreachable,
        "health does not look at the store",
        "test_a_store_that_cannot_be_reached_says_so",
    ),
)
