"""The valkey plugin against a real server."""

from __future__ import annotations

import os
import threading
from pathlib import Path

import pytest

pytest.importorskip("lmcache_kit_valkey", reason="the valkey plugin is not installed")

import valkey
from lmcache_kit_valkey.backend import ValkeyBackend

from lmcache_kit.contracts import StorageContext, StoragePlugin, SupportsBatch, SupportsHealth
from lmcache_kit.errors import CapacityError, UnavailableError
from lmcache_kit.plugins import registry
from lmcache_kit.testing.checking import check_plugin

ALL_BYTES = bytes(range(256)) * 3


@pytest.fixture
def backend(valkey_server):
    backend = ValkeyBackend(valkey_server.url, prefix="test:")
    yield backend
    backend.close()


def test_the_contract(backend):
    assert backend.get("a") is None
    assert backend.size("a") is None
    assert backend.delete("a") is False
    backend.put("a", ALL_BYTES)
    assert backend.get("a") == ALL_BYTES
    assert backend.size("a") == len(ALL_BYTES)
    backend.put("a", b"new")
    assert (backend.get("a"), backend.size("a")) == (b"new", 3)
    assert backend.delete("a") is True
    assert backend.get("a") is None


@pytest.mark.parametrize("wrap", [bytes, bytearray, memoryview, lambda raw: memoryview(bytearray(raw))[1:-1]])
def test_every_kind_of_buffer(backend, wrap):
    blob = wrap(ALL_BYTES)
    backend.put("m.1", blob)
    assert backend.get("m.1") == bytes(blob)


def test_an_empty_object_is_not_a_missing_one(backend):
    backend.put("empty", b"")
    assert backend.get("empty") == b""
    assert backend.size("empty") == 0
    assert list(backend.entries()) == [("empty", 0)]


def test_blobs_larger_than_any_socket_buffer(backend):
    blob = os.urandom(1 << 20) * 24
    backend.put("large", blob)
    assert backend.get("large") == blob
    assert backend.size("large") == len(blob)


def test_get_many_answers_in_order_and_none_for_missing(backend):
    backend.put("a", b"1")
    backend.put("c", b"3")
    assert backend.get_many(["c", "b", "a", "c"]) == [b"3", None, b"1", b"3"]
    assert backend.get_many([]) == []
    assert isinstance(backend, SupportsBatch)


def test_entries_sees_its_own_prefix_only(valkey_server):
    # The prefix is full of what a SCAN pattern would take for wildcards.
    ours = ValkeyBackend(valkey_server.url, prefix="k[a-z]*?\\^:")
    wide = ValkeyBackend(valkey_server.url, prefix="ka1x:")
    client = valkey.Valkey.from_url(valkey_server.url)
    try:
        for number in range(2500):
            ours.put(f"m.{number:x}", b"x" * (number % 7))
        wide.put("m.ff", b"other store")
        client.set("k[a-z]*?\\^:NOT A NAME", "x")
        client.rpush("k[a-z]*?\\^:list", "x")
        found = list(ours.entries())
        assert len(found) == len(set(found)) == 2500
        assert dict(found) == {f"m.{number:x}": number % 7 for number in range(2500)}
        assert list(wide.entries()) == [("m.ff", 11)]
    finally:
        client.close()
        ours.close()
        wide.close()


def test_it_works_over_a_unix_socket(valkey_server):
    backend = ValkeyBackend(f"unix://{valkey_server.socket_path}")
    backend.put("a", ALL_BYTES)
    assert backend.get("a") == ALL_BYTES
    assert backend.health()["address"] == str(valkey_server.socket_path)
    backend.close()


def test_health_tells_what_answers(backend, valkey_server):
    facts = backend.health()
    assert isinstance(backend, SupportsHealth)
    assert facts["address"] == f"127.0.0.1:{valkey_server.port}"
    assert facts["server"] in {"valkey", "redis"}
    assert facts["version"][0].isdigit()
    assert facts["used_bytes"] > 0


def test_a_killed_server_is_an_error_and_a_restarted_one_is_used_again(backend, valkey_server):
    backend.put("a", b"1")
    valkey_server.kill()
    calls = [
        lambda: backend.put("a", b"2"),
        lambda: backend.get("a"),
        lambda: backend.get_many(["a"]),
        lambda: backend.delete("a"),
        lambda: backend.size("a"),
        lambda: list(backend.entries()),
        backend.health,
    ]
    for call in calls:
        with pytest.raises(UnavailableError, match=f"127.0.0.1:{valkey_server.port}"):
            call()
    valkey_server.start()
    assert backend.get("a") is None  # this server keeps nothing on disk
    backend.put("a", b"3")
    assert backend.get("a") == b"3"


def test_a_restart_between_two_calls_is_not_noticed(make_server):
    server = make_server("--appendonly", "yes", "--appendfsync", "always")
    backend = ValkeyBackend(server.url)
    backend.put("a", ALL_BYTES)
    for _ in range(3):
        server.kill()
        server.start()
        assert backend.get("a") == ALL_BYTES  # with append-only persistence the contents survive kill -9 too
        assert dict(backend.entries()) == {"a": len(ALL_BYTES)}
    backend.close()


def test_many_threads_survive_a_restart(make_server):
    server = make_server()
    backend = ValkeyBackend(server.url)
    backend.put("a", b"x")
    barrier, unexpected = threading.Barrier(9), []

    def work(number: int) -> None:
        barrier.wait()
        for step in range(150):
            name = f"t{number}.{step % 5}"
            try:
                backend.put(name, name.encode() * 100)
                if backend.get(name) not in (name.encode() * 100, None):
                    unexpected.append(f"wrong answer for {name}")
            except UnavailableError:
                pass
            except BaseException as error:
                unexpected.append(repr(error))

    threads = [threading.Thread(target=work, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    barrier.wait()
    server.kill()
    server.start()
    for thread in threads:
        thread.join()
    assert unexpected == []
    backend.put("after", b"ok")
    assert backend.get("after") == b"ok"
    backend.close()


def test_a_server_that_hangs_costs_the_timeout_and_its_late_answer_is_not_mistaken_for_another(valkey_server):
    backend = ValkeyBackend(valkey_server.url, timeout=0.3, connect_timeout=0.3)
    backend.put("a", b"A")
    backend.put("b", b"B")
    valkey_server.freeze()
    with pytest.raises(UnavailableError, match=r"[Tt]imeout"):
        backend.get("a")
    valkey_server.thaw()
    patient = ValkeyBackend(valkey_server.url)
    for _ in range(20):
        assert patient.get("b") == b"B"
    assert backend.get("b") == b"B"
    patient.close()
    backend.close()


def test_a_full_server_is_a_capacity_error(make_server):
    server = make_server("--maxmemory", "3mb", "--maxmemory-policy", "noeviction")
    backend = ValkeyBackend(server.url)

    def fill() -> None:
        for number in range(40):
            backend.put(f"m.{number}", bytes(200_000))

    with pytest.raises(CapacityError, match="out of memory"):
        fill()
    assert backend.get("m.0") == bytes(200_000)
    backend.close()


def test_a_refused_password_is_reported_without_the_password(make_server):
    server = make_server("--requirepass", "correct-horse")
    wrong = ValkeyBackend(f"valkey://:battery-staple@127.0.0.1:{server.port}/0")
    with pytest.raises(UnavailableError) as caught:
        wrong.get("a")
    assert "battery-staple" not in caught.value.detail
    wrong.close()
    right = ValkeyBackend(f"redis://:correct-horse@127.0.0.1:{server.port}/0")
    right.put("a", b"1")
    assert right.get("a") == b"1"
    right.close()


def test_two_instances_share_one_store(valkey_server):
    one, two = ValkeyBackend(valkey_server.url), ValkeyBackend(valkey_server.url)
    one.put("a", b"1")
    assert two.get("a") == b"1"
    assert two.delete("a") is True
    assert one.get("a") is None
    one.close()
    two.close()


def test_a_reader_never_sees_half_a_replacement(valkey_server):
    writer, reader = ValkeyBackend(valkey_server.url), ValkeyBackend(valkey_server.url)
    old, new = b"o" * 300_000, b"n" * 400_000
    writer.put("a", old)
    stop = threading.Event()

    def replace() -> None:
        while not stop.is_set():
            writer.put("a", new)
            writer.put("a", old)

    thread = threading.Thread(target=replace)
    thread.start()
    try:
        for _ in range(100):
            assert reader.get("a") in (old, new)
    finally:
        stop.set()
        thread.join()
    writer.close()
    reader.close()


def test_it_is_found_by_its_entry_point(valkey_server, tmp_path: Path):
    record = registry().get(StoragePlugin, "valkey")
    assert record.location == "RemoteBackend"
    assert record.capabilities == {"persistent", "shared"}
    context = StorageContext(instance_id="i", location="RemoteBackend", capacity_bytes=None, data_dir=tmp_path)
    backend = record.factory(registry().options(record, {"url": valkey_server.url}), context)
    backend.put("a", b"1")
    assert backend.get("a") == b"1"
    backend.close()


def test_it_passes_the_checks_of_its_kind(valkey_server):
    record = registry().get(StoragePlugin, "valkey")
    client = valkey.Valkey.from_url(valkey_server.url)
    client.set("lmcache_kit:m.1", "theirs")
    report = check_plugin(record, options={"url": valkey_server.url})
    assert not report.failed, report
    assert report.abilities == ["SupportsBatch", "SupportsHealth"]
    assert report.comparison is not None
    assert report.comparison.rows[0].figures
    assert client.keys() == [b"lmcache_kit:m.1"]  # nothing is left on the server
    client.close()
