"""What some storage backends can do, and what all say when they cannot do anything."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from itertools import count
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lmcache_kit.contracts.records import StoragePlugin
from lmcache_kit.contracts.storage import StorageBackend, SupportsBatch, SupportsHealth
from lmcache_kit.errors import UnavailableError
from lmcache_kit.plugins import PluginRegistry
from lmcache_kit.testing.suites.base import examples, refusal
from lmcache_kit.testing.suites.storage_base import StorageTestsBase
from lmcache_kit.testing.suites.storage_crash import CAN_FORK, kill_while
from lmcache_kit.testing.suites.storage_store import Names, Store, holds

__all__ = ["DeclaredAndFailingTests"]


class DeclaredAndFailingTests(StorageTestsBase):
    """Capabilities, optional protocols, and stores that are away; a part of :class:`StorageBackendTests`."""

    # -- what some can do ------------------------------------------------------------------------------------------

    @pytest.mark.capability("persistent")
    def test_contents_survive_reopening(self, subject: StorageBackend, store: Store, names: Names) -> None:
        want = {names(f"kept.{number}"): bytes([number]) * number * 100 for number in range(20)}
        for name, blob in want.items():
            subject.put(name, blob)
        subject.delete(names("kept.3"))
        del want[names("kept.3")]
        subject.close()
        again = store.open()
        for name, blob in want.items():
            holds(again, name, blob)
        found = {name: size for name, size in again.entries() if name in names.used}
        assert found == {name: len(blob) for name, blob in want.items()}, "entries differs after reopening"

    @pytest.mark.capability("persistent")
    @pytest.mark.skipif(not CAN_FORK, reason="this system cannot fork a process to be killed")
    def test_a_killed_writer_leaves_whole_objects(self, subject: StorageBackend, store: Store, names: Names) -> None:
        ends = [names(f"killed.{number}") for number in range(3)]

        def write(report: Callable[[bytes], None]) -> None:
            backend = store.make(store.data_dir)
            for number in count():
                backend.put(ends[number % 3], number.to_bytes(4, "big") * (50_000 + number % 7))
                report(b"%d" % number)

        for rounds in range(4):
            reports = kill_while(write, reports=3 + rounds, seconds=0.003 * rounds)
            reopened = store.open()
            acknowledged = len(reports)
            sizes = {name: size for name, size in reopened.entries() if name in names.used}
            for place, name in enumerate(ends):
                got = bytes(reopened.get(name) or b"")
                number = int.from_bytes(got[:4], "big")
                whole = number.to_bytes(4, "big") * (50_000 + number % 7)
                assert got == whole, f"a killed writer left {len(got)} bytes that nobody put"
                assert number % 3 == place, "the object of another name"
                assert number >= acknowledged - 3, "a write that was done before the kill is lost"
                assert sizes.get(name) == len(got), f"entries answers {sizes.get(name)} for {len(got)} bytes"
            subject.put(names("after"), b"goes on")
            holds(subject, names("after"), b"goes on")

    @pytest.mark.capability("shared")
    def test_two_users_see_one_store(self, subject: StorageBackend, store: Store, names: Names) -> None:
        name, other = names("shared"), store.open()
        subject.put(name, b"ours")
        holds(other, name, b"ours")
        other.put(name, b"theirs now")
        holds(subject, name, b"theirs now")
        assert (name, 10) in list(subject.entries()), "entries does not list what another user stored"
        assert other.delete(name) is True
        assert subject.get(name) is None, "an object that another user deleted is still there"
        assert subject.size(name) is None
        assert subject.delete(name) is False
        other.close()
        subject.put(name, b"alone")
        holds(subject, name, b"alone")

    @pytest.mark.ability.with_args(SupportsBatch)
    def test_many_reads_answer_in_order(self, subject: Any, names: Names) -> None:
        held = {names(f"many.{number}"): bytes([number]) * number for number in range(6)}
        for name, blob in held.items():
            subject.put(name, blob)
        asked = st.lists(st.sampled_from([*held, names("none.1"), names("none.2")]), max_size=12)

        @examples(40)
        @given(asked)
        def check(wanted: list[str]) -> None:
            before = list(wanted)
            got = [None if blob is None else bytes(blob) for blob in subject.get_many(wanted)]
            assert got == [held.get(name) for name in before], f"get_many of {len(before)} names answers others"
            assert wanted == before, "get_many changed the list of names"

        check()

    @pytest.mark.ability.with_args(SupportsHealth)
    def test_health_tells_facts(self, subject: Any, record_property: Callable[[str, object], None]) -> None:
        facts = subject.health()
        assert isinstance(facts, dict)
        json.dumps(facts)  # it is shown as JSON
        assert all(isinstance(key, str) for key in facts)
        record_property("detail", ", ".join(f"{key}: {value}" for key, value in facts.items()))

    # -- when it does not work -------------------------------------------------------------------------------------

    def test_a_store_without_its_folder_says_so(self, store: Store, names: Names, tmp_path: Path) -> None:
        """Backends that need no folder work all the same; the others refuse, and none pretends."""
        (tmp_path / "file").write_bytes(b"not a folder")
        name = names("nowhere")
        try:
            backend = store.make(tmp_path / "file" / "data")
        except UnavailableError:
            return
        try:
            backend.put(name, b"x")
            holds(backend, name, b"x")
            backend.delete(name)
        except UnavailableError:
            pass
        finally:
            backend.close()

    def test_a_store_that_cannot_be_reached_says_so(
        self, record: StoragePlugin, unreachable: Mapping[str, Any], tmp_path: Path
    ) -> None:
        options = PluginRegistry.options(record, unreachable)
        elsewhere = tmp_path / "elsewhere"
        elsewhere.mkdir()
        store = Store(lambda context: record.factory(options, context), record.location, elsewhere)
        try:
            backend = store.make(store.data_dir)
        except UnavailableError:
            return
        calls: dict[str, Callable[[], object]] = {
            "put": lambda: backend.put("check.unreachable", b"x"),
            "get": lambda: backend.get("check.unreachable"),
            "size": lambda: backend.size("check.unreachable"),
            "delete": lambda: backend.delete("check.unreachable"),
            "entries": lambda: list(backend.entries()),
        }
        if isinstance(backend, SupportsBatch):
            many = backend
            calls["get_many"] = lambda: many.get_many(["check.unreachable"])
        if isinstance(backend, SupportsHealth):
            calls["health"] = backend.health
        try:
            for call in calls.values():
                refusal(call, UnavailableError)
        finally:
            backend.close()
