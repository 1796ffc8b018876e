"""The disk backend: files, leftovers, and what goes wrong with disks."""

from __future__ import annotations

import errno
import os
import shutil
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from lmcache_kit.builtin.storage.disk import DiskBackend
from lmcache_kit.builtin.storage.records import RECORDS, DiskOptions
from lmcache_kit.contracts import StorageContext
from lmcache_kit.errors import CapacityError, InvalidRequestError, UnavailableError


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "deep" / "store"


@pytest.fixture
def backend(root: Path):
    backend = DiskBackend(root)
    yield backend
    backend.close()


def files(root: Path) -> list[str]:
    return sorted(str(path.relative_to(root)) for path in root.rglob("*") if path.is_file())


def test_contents_survive_reopening(root):
    first = DiskBackend(root)
    first.put("m.1", b"one")
    first.put("m.2", b"two")
    first.delete("m.2")
    first.close()
    second = DiskBackend(root)
    assert list(second.entries()) == [("m.1", 3)]
    assert second.get("m.1") == b"one"
    second.close()
    assert len(files(root)) == 1


@pytest.mark.parametrize("name", [".", "..", "...", "-", "_", "a" * 128, "tmp", "m.1.blob", ".lock"])
def test_every_legal_name_is_a_plain_file_inside(backend, root, name):
    backend.put(name, b"x")
    assert (backend.get(name), backend.size(name)) == (b"x", 1)
    assert list(backend.entries()) == [(name, 1)]
    assert len([path for path in files(root) if path.endswith(".blob")]) == 1
    assert backend.delete(name) is True
    assert list(backend.entries()) == []


@pytest.mark.parametrize("name", ["", "../a", "a/b", "/etc/passwd", "A", "a" * 129, "a\0b", "ä", "a\n"])
def test_other_names_are_refused_before_any_file_is_touched(backend, root, name):
    before = files(root)
    for call in (lambda: backend.put(name, b"x"), lambda: backend.get(name), lambda: backend.delete(name)):
        with pytest.raises(InvalidRequestError, match="cannot name"):
            call()
    assert files(root) == before


def test_files_of_others_are_neither_listed_nor_touched(root):
    DiskBackend(root).close()
    (root / "ab").mkdir()
    strangers = [root / "notes.txt", root / "ab" / "UPPER.blob", root / "ab" / "a.txt", root / "ab" / "misplaced.blob"]
    for stranger in strangers:
        stranger.write_bytes(b"?")
    (root / "zz-folder").mkdir()
    backend = DiskBackend(root)
    assert list(backend.entries()) == []
    backend.close()
    assert all(stranger.exists() for stranger in strangers)


def test_leftovers_of_a_dead_writer_are_removed_those_of_a_live_one_are_not(root):
    live = DiskBackend(root)
    (own_lock,) = (root / "tmp").glob("*.lock")
    being_written = own_lock.with_suffix(".7.part")
    being_written.write_bytes(b"half")
    for name in ("dead.lock", "dead.0.part", "dead.1.part", "strayed.0.part"):
        (root / "tmp" / name).write_bytes(b"")
    another = DiskBackend(root)
    assert being_written.exists()
    assert own_lock.exists()
    assert not list((root / "tmp").glob("dead*"))
    assert not list((root / "tmp").glob("strayed*"))
    another.close()
    live.put("m.1", b"still works")
    assert live.get("m.1") == b"still works"
    live.close()


def test_a_writer_in_another_process_is_left_alone_until_it_is_killed(root):
    code = (
        "import sys, pathlib; from lmcache_kit.builtin.storage.disk import DiskBackend;"
        "b = DiskBackend(pathlib.Path(sys.argv[1])); p = b._writer.next(); p.write_bytes(b'half');"
        "print(p, flush=True); sys.stdin.read()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code, str(root)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as writer:
        part = Path(writer.stdout.readline().strip())
        DiskBackend(root).close()
        assert part.exists()
        writer.kill()
        writer.wait()
    DiskBackend(root).close()
    assert files(root) == []


def test_fsync_reaches_the_file_and_its_folders(root, monkeypatch):
    synced = []
    real = os.fsync
    monkeypatch.setattr(os, "fsync", lambda fd: (synced.append(os.readlink(f"/proc/self/fd/{fd}")), real(fd)))
    careless = DiskBackend(root)
    careless.put("m.1", b"x")
    careless.close()
    assert synced == []
    careful = DiskBackend(root, fsync=True)
    careful.put("m.2", b"x")
    careful.put("m.2", b"y")
    careful.close()
    assert sum(path.endswith(".part") for path in synced) == 2
    assert str(root) in synced  # a shard folder was made
    assert sum(Path(path).parent == root for path in synced) == 2


def test_a_full_disk_is_a_capacity_error_and_leaves_nothing(backend, root, monkeypatch):
    backend.put("m.1", b"old")
    real, calls = os.write, []

    def write(fd: int, data: memoryview) -> int:
        calls.append(len(data))
        if len(calls) > 1:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return real(fd, data[:2])

    before = files(root)
    monkeypatch.setattr(os, "write", write)
    with pytest.raises(CapacityError, match="No space left") as caught:
        backend.put("m.1", b"newer")
    monkeypatch.undo()
    assert calls == [5, 3]  # a short write is carried on, not taken for a whole one
    assert str(root) in caught.value.message
    assert files(root) == before
    assert backend.get("m.1") == b"old"


def test_a_real_limit_on_file_sizes_is_a_capacity_error(root):
    code = """if True:
        import pathlib, resource, sys
        from lmcache_kit.builtin.storage.disk import DiskBackend
        from lmcache_kit.errors import CapacityError
        backend = DiskBackend(pathlib.Path(sys.argv[1]))
        resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))
        backend.put("m.1", bytes(4096))
        try:
            backend.put("m.1", b"x" * 5000)
        except CapacityError as error:
            print(error.detail)
        assert backend.get("m.1") == bytes(4096)
        backend.close()
    """
    done = subprocess.run([sys.executable, "-c", code, str(root)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "File too large" in done.stdout
    assert len(files(root)) == 1


@pytest.mark.parametrize("code", [errno.EACCES, errno.EROFS, errno.EIO, errno.EMFILE])
def test_other_errors_of_the_system_are_unavailable(backend, monkeypatch, code):
    def refuse(*args: object, **kwargs: object) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(os, "open", refuse)
    monkeypatch.setattr("builtins.open", refuse)
    for call in (lambda: backend.put("m.1", b"x"), lambda: backend.get("m.1")):
        with pytest.raises(UnavailableError, match=os.strerror(code)) as caught:
            call()
        assert caught.value.status == 503


@pytest.mark.skipif(os.geteuid() == 0, reason="permissions do not stop the superuser")
def test_a_folder_without_permission_is_unavailable(tmp_path):
    tmp_path.chmod(0o500)
    try:
        with pytest.raises(UnavailableError, match="Permission denied"):
            DiskBackend(tmp_path / "store")
    finally:
        tmp_path.chmod(0o700)


def test_a_file_in_place_of_the_folder_is_unavailable(tmp_path):
    (tmp_path / "store").write_text("a file")
    with pytest.raises(UnavailableError, match="store"):
        DiskBackend(tmp_path / "store")


def test_a_folder_that_was_taken_away(backend, root):
    backend.put("m.1", b"x")
    shutil.rmtree(root)
    assert backend.get("m.1") is None
    assert backend.size("m.1") is None
    assert backend.delete("m.1") is False
    for call in (lambda: backend.put("m.1", b"x"), lambda: list(backend.entries()), backend.health):
        with pytest.raises(UnavailableError):
            call()


def test_a_closed_backend_refuses_writes(root):
    backend = DiskBackend(root)
    backend.close()
    backend.close()
    with pytest.raises(UnavailableError, match="closed"):
        backend.put("m.1", b"x")


def test_readers_see_old_or_new_whole_while_it_is_replaced_and_deleted(backend):
    versions = [bytes([number]) * (100_000 + number) for number in range(4)]
    backend.put("m.1", versions[0])
    stop, wrong = threading.Event(), []

    def write(version: bytes) -> None:
        while not stop.is_set():
            backend.put("m.1", version)
            if version is versions[3]:
                backend.delete("m.1")

    threads = [threading.Thread(target=write, args=(version,)) for version in versions[1:]]
    for thread in threads:
        thread.start()
    for _ in range(300):
        got = backend.get("m.1")
        if got is not None and got not in versions:
            wrong.append(len(got))
        for _, size in backend.entries():
            if size not in {len(version) for version in versions}:
                wrong.append(size)
    stop.set()
    for thread in threads:
        thread.join()
    assert wrong == []


def test_health_shows_the_room_left(backend, root):
    facts = backend.health()
    assert facts["path"] == str(root)
    assert 0 < facts["free_bytes"] <= facts["total_bytes"]


@pytest.mark.parametrize(
    ("path", "want"), [(None, "data/LocalDiskBackend"), ("kv", "data/kv"), ("~/kv", "home/kv"), ("/ABS/kv", "abs/kv")]
)
def test_where_the_path_option_leads(tmp_path, monkeypatch, path, want):
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    if path is not None:
        path = path.replace("/ABS", str(tmp_path / "abs"))
    record = next(record for record in RECORDS if record.name == "disk")
    context = StorageContext(
        instance_id="i", location="LocalDiskBackend", capacity_bytes=None, data_dir=tmp_path / "data"
    )
    backend = record.factory(DiskOptions(path=path), context)
    backend.put("m.1", b"x")
    backend.close()
    assert [Path(name).parts[:2] for name in files(tmp_path)] == [Path(want).parts]


def test_leftovers_that_may_not_be_removed_do_not_stop_anything(root, monkeypatch):
    DiskBackend(root).close()
    (root / "tmp" / "dead.lock").touch()
    (root / "tmp" / "dead.0.part").touch()

    def refuse(*args: object, **kwargs: object) -> None:
        raise PermissionError(errno.EPERM, os.strerror(errno.EPERM))

    monkeypatch.setattr(Path, "unlink", refuse)
    backend = DiskBackend(root)
    backend.put("m.1", b"x")
    assert backend.get("m.1") == b"x"
    monkeypatch.undo()
    backend.close()
