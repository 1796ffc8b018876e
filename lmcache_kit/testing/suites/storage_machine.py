"""A storage backend against a dictionary, under any sequence of calls."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from lmcache_kit.contracts.storage import Buffer, StorageBackend
from lmcache_kit.testing.suites.storage_store import Names, Store, holds

__all__ = ["storage_machine"]

_ENDS = st.sampled_from([".", "..", "a", "b", "tmp", "a.tmp", "m.1", "m.n1", "-", "_", "x" * 100])
_BLOBS = st.binary(max_size=300) | st.builds(
    lambda byte, size: bytes([byte]) * size, st.integers(0, 255), st.just(9000)
)
_WRAPPERS: list[Callable[[bytes], Buffer]] = [
    bytes,
    bytearray,
    memoryview,
    lambda raw: memoryview(bytearray(raw)),
    lambda raw: memoryview(b"!" + raw + b"!")[1:-1],
]


def storage_machine(store: Store, names: Names, capabilities: frozenset[str]) -> type[RuleBasedStateMachine]:
    """A machine over one store; each of its examples uses names of its own and starts with nothing under them."""
    held: dict[str, StorageBackend] = {"backend": store.open()}

    class StorageMachine(RuleBasedStateMachine):
        def __init__(self) -> None:
            super().__init__()
            self.names = Names()
            self.model: dict[str, bytes] = {}
            self.other = store.open() if "shared" in capabilities else None

        @property
        def backend(self) -> StorageBackend:
            return held["backend"]

        def name(self, end: str) -> str:
            return names.bare(self.names(end))

        @rule(end=_ENDS, blob=_BLOBS, wrap=st.sampled_from(_WRAPPERS))
        def put(self, end: str, blob: bytes, wrap: Callable[[bytes], Buffer]) -> None:
            buffer = wrap(blob)
            self.backend.put(self.name(end), buffer)
            self.model[self.name(end)] = blob
            if isinstance(buffer, bytearray):
                buffer[:] = bytes(len(buffer))  # the caller's buffer is the caller's again

        @rule(end=_ENDS)
        def get(self, end: str) -> None:
            name = self.name(end)
            if name in self.model:
                holds(self.backend, name, self.model[name])
            else:
                assert self.backend.get(name) is None, f"get answers something for {name!r}, which holds nothing"
                assert self.backend.size(name) is None, f"size answers something for {name!r}, which holds nothing"

        @rule(end=_ENDS)
        def delete(self, end: str) -> None:
            name = self.name(end)
            was_there = self.model.pop(name, None) is not None
            assert self.backend.delete(name) is was_there, f"delete of {name!r} must answer {was_there}"

        @precondition(lambda self: "persistent" in capabilities)
        @rule(close=st.booleans())
        def reopen(self, close: bool) -> None:
            if close:
                self.backend.close()
            held["backend"] = store.open()

        @precondition(lambda self: "shared" in capabilities)
        @rule()
        def change_places(self) -> None:
            assert self.other is not None
            held["backend"], self.other = self.other, self.backend

        @invariant()
        def entries_are_those_of_the_dictionary(self) -> None:
            found = sorted((name, size) for name, size in self.backend.entries() if name in self.names.used)
            want = sorted((name, len(blob)) for name, blob in self.model.items())
            assert found == want, f"entries answers {found}, the store holds {want}"

        def teardown(self) -> None:
            for name in self.model:
                self.backend.delete(name)

    made: Any = StorageMachine
    return made  # type: ignore[no-any-return]
