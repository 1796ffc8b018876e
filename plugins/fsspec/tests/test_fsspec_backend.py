"""What the backend does beside its contract: whole replacements, nobody's leftovers, one clear error."""

from __future__ import annotations

import errno
import subprocess
import sys
import time
from pathlib import Path

import fsspec
import pytest
from lmcache_kit_fsspec.backend import FsspecBackend
from lmcache_kit_fsspec.credentials import Credentials
from lmcache_kit_fsspec.place import Place

from lmcache_kit.clock import ManualClock
from lmcache_kit.errors import CapacityError, UnavailableError


def brittle(*, pause: float = 0.0, timeout: float | None = None, clock: ManualClock | None = None) -> FsspecBackend:
    place = Place.of("brittle://bucket/pre", replace="put")
    return FsspecBackend(place, Credentials({}, {}), timeout=timeout, pause=pause, clock=clock or ManualClock())


# --- a folder ---------------------------------------------------------------------------------------------------------


def test_an_object_is_one_file_that_other_programs_can_read(make, tmp_path: Path):
    backend = make(url=f"file://{tmp_path}/store")
    backend.put("a.1", b"bytes")
    assert (tmp_path / "store" / "a.1.blob").read_bytes() == b"bytes"


def test_what_others_put_into_the_folder_stays_invisible(make, tmp_path: Path):
    backend = make(url=f"file://{tmp_path}")
    backend.put("a", b"1")
    for name in ("UPPER.blob", "b", "c.blob.part", ".blob", "x" * 129 + ".blob"):
        (tmp_path / name).write_bytes(b"theirs")
    (tmp_path / "folder.blob").mkdir()
    assert list(backend.entries()) == [("a", 1)]
    assert backend.size("folder") is None


def test_a_failing_rename_leaves_the_old_object_and_no_temporary_file(make, tmp_path: Path, monkeypatch):
    backend = make(url=f"file://{tmp_path}", pause=0)
    backend.put("a", b"old")

    def fail(*_: object, **__: object) -> None:
        raise OSError(errno.EIO, "it broke")

    monkeypatch.setattr(fsspec.get_filesystem_class("file"), "mv", fail)
    with pytest.raises(UnavailableError, match=r"cannot write a to file://.*: it broke"):
        backend.put("a", b"new")
    assert backend.get("a") == b"old"
    assert [path.suffix for path in (tmp_path / "tmp").iterdir()] == [".lock"]


def test_a_full_disk_is_a_capacity_error_and_no_reason_to_rest(make, tmp_path: Path, monkeypatch):
    backend = make(url=f"file://{tmp_path}", pause=1000)
    backend.put("a", b"old")

    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(fsspec.get_filesystem_class("file"), "pipe_file", full)
    with pytest.raises(CapacityError, match="No space left"):
        backend.put("a", b"new")
    assert backend.get("a") == b"old"


def test_what_a_killed_writer_left_is_removed_by_the_next(make, tmp_path: Path):
    code = (
        "import os, sys; from lmcache_kit_fsspec.temporary import TemporaryFiles\n"
        "path = TemporaryFiles(sys.argv[1], local=True).next()\n"
        "open(path, 'wb').write(b'half'); os.kill(os.getpid(), 9)"
    )
    living = make(url=f"file://{tmp_path}")  # makes the folder, and must not lose its own files
    living.put("a", b"1")
    subprocess.run([sys.executable, "-c", code, str(tmp_path / "tmp")], check=False)
    assert sorted(path.suffix for path in (tmp_path / "tmp").iterdir()) == [".lock", ".lock", ".part"]
    make(url=f"file://{tmp_path}")
    assert sorted(path.suffix for path in (tmp_path / "tmp").iterdir()) == [".lock", ".lock"]
    living.put("a", b"2")
    assert living.get("a") == b"2"


def test_a_folder_that_cannot_be_made_is_told_at_once(make, tmp_path: Path):
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(UnavailableError, match="cannot open file://"):
        make(url=f"file://{tmp_path}/file/below")


def test_a_closed_store_says_so(make, tmp_path: Path):
    backend = make(url=f"file://{tmp_path}")
    backend.close()
    backend.close()
    with pytest.raises(UnavailableError, match="was closed"):
        backend.get("a")


# --- who sees what ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["fsspec_private", "fsspec_memory"])
def test_private_stores_with_the_same_options_do_not_see_each_other(make, tmp_path: Path, name):
    options = {"url": f"file://{tmp_path}"} if name == "fsspec_private" else {"url": f"memory://{tmp_path.name}"}
    one, two = make(name, instance_id="../one", **options), make(name, instance_id="two", **options)
    one.put("a", b"1")
    assert (two.get("a"), list(two.entries())) == (None, [])
    again = make(name, instance_id="../one", **options)
    assert list(again.entries()) == [("a", 1)]
    assert not list(tmp_path.parent.glob("one*"))


def test_memory_is_fsspec_s_own_memory(make):
    backend = make("fsspec_memory", url="memory://seen", instance_id="i")
    backend.put("a", b"1")
    files = fsspec.filesystem("memory").find("/seen")
    assert files == ["/seen/i/RemoteBackend/a.blob"]
    backend.delete("a")
    assert backend.health()["url"] == "memory://seen/i/RemoteBackend"


def test_what_another_writes_is_seen_although_lists_are_cached(store):
    one, two = brittle(), brittle()
    one.put("a", b"1")
    assert dict(one.entries()) == {"a": 1}
    two.put("b", b"22")
    two.put("a", b"333")
    assert dict(one.entries()) == {"a": 3, "b": 2}
    two.delete("a")
    two.delete("b")
    assert dict(one.entries()) == {}


def test_delete_tells_the_truth_where_the_store_does_not(store):
    backend = brittle()
    assert backend.delete("a") is False
    backend.put("a", b"1")
    assert (backend.delete("a"), backend.delete("a")) == (True, False)


def test_many_reads_are_one_exchange_and_each_object_is_read_once(store):
    backend = brittle(timeout=2.0)
    backend.put("a", b"1")
    backend.put("b", b"")
    store.calls.clear()
    assert backend.get_many(["b", "no", "a", "b", "a"]) == [b"", None, b"1", b"", b"1"]
    assert sorted(store.calls) == ["get"] * 3


# --- a store that is away ---------------------------------------------------------------------------------------------

CALLS = [
    lambda backend: backend.put("a", b"1"),
    lambda backend: backend.get("a"),
    lambda backend: backend.get_many(["a", "b"]),
    lambda backend: backend.delete("a"),
    lambda backend: backend.size("a"),
    lambda backend: list(backend.entries()),
    lambda backend: backend.health(),
]


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize(
    "failure", [ConnectionError("gone\nfor good"), PermissionError(13, "no"), RuntimeError(), KeyError("odd")]
)
def test_whatever_the_file_system_raises_is_one_line(store, call, failure):
    backend = brittle()
    store.failure = failure
    with pytest.raises(UnavailableError, match=r"cannot .* brittle://bucket/pre: \S") as caught:
        call(backend)
    assert "\n" not in caught.value.detail
    store.failure = None
    backend.put("a", b"2")
    assert backend.get("a") == b"2"


def test_a_store_that_does_not_answer_costs_the_timeout(store):
    backend = brittle(timeout=0.05)
    store.delay = 60.0
    began = time.monotonic()
    for call in CALLS:
        with pytest.raises(UnavailableError, match=r"no answer within 0\.05 s"):
            call(backend)
    assert time.monotonic() - began < 60.0


def test_after_a_failure_nothing_is_asked_until_the_pause_is_over(store):
    clock = ManualClock()
    backend = brittle(pause=5.0, clock=clock)
    store.failure = ConnectionError("gone")
    with pytest.raises(UnavailableError):
        backend.get("a")
    store.failure = None
    store.calls.clear()
    clock.advance(4.0)
    for call in CALLS[:-1]:
        with pytest.raises(UnavailableError, match="gone") as caught:
            call(backend)
        assert caught.value.hint == "the store is tried again in 1.0 s"
    assert store.calls == []
    clock.advance(1.0)
    assert backend.get("a") is None


def test_health_asks_while_the_store_rests_and_ends_the_rest(store):
    backend = brittle(pause=5.0)
    store.failure = ConnectionError("gone")
    with pytest.raises(UnavailableError):
        backend.get("a")
    with pytest.raises(UnavailableError, match="cannot reach"):
        backend.health()
    store.failure = None
    assert backend.health() == {"protocol": "brittle", "url": "brittle://bucket/pre", "replace": "put"}
    assert backend.get("a") is None


def test_a_missing_bucket_is_not_an_empty_store(store):
    backend = FsspecBackend(Place.of("brittle://nobucket/pre", replace="put"), Credentials({}, {}))
    with pytest.raises(UnavailableError, match="nobucket"):
        list(backend.entries())
    with pytest.raises(UnavailableError, match="cannot reach"):
        backend.health()
    assert list(brittle().entries()) == []  # this bucket is there


def test_errors_do_not_show_credentials(store, monkeypatch):
    monkeypatch.setenv("MY_SECRET", "hunter2")
    place = Place.of("brittle://bucket/pre", replace="put")
    backend = FsspecBackend(place, Credentials({}, {"secret": "MY_SECRET"}))
    store.failure = ConnectionError("signed with hunter2 at http://me:pw@proxy/")
    with pytest.raises(UnavailableError) as caught:
        backend.get("a")
    assert caught.value.message.endswith("signed with *** at http://***@proxy/")


def test_it_may_be_opened_while_the_store_is_away(store, monkeypatch):
    def refuse(self: object, **_: object) -> None:
        raise ConnectionError("no route")

    with monkeypatch.context() as patch:
        patch.setattr(store, "__init__", refuse)
        backend = brittle()
        with pytest.raises(UnavailableError, match="no route"):
            backend.get("a")
    backend.put("a", b"1")
    assert backend.get("a") == b"1"


def test_the_home_folder_may_be_meant(make, tmp_path: Path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    backend = make(url="file://~/store")
    backend.put("a", b"1")
    assert (tmp_path / "store" / "a.blob").read_bytes() == b"1"
