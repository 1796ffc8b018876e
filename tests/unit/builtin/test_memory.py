"""The memory backend copies when it must, and only then."""

from __future__ import annotations

import threading

from lmcache_kit.builtin.storage.memory import MemoryBackend


def test_bytes_go_in_and_come_out_without_a_copy():
    backend, blob = MemoryBackend(), bytes(1000)
    backend.put("a", blob)
    assert backend.get("a") is blob


def test_other_buffers_are_copied():
    backend = MemoryBackend()
    for name, buffer in (("array", bytearray(b"abc")), ("view", memoryview(bytearray(b"abc")))):
        backend.put(name, buffer)
        buffer[0] = 0
        assert backend.get(name) == b"abc"
    backend.put("strided", memoryview(b"abcdef")[::2])
    assert (backend.get("strided"), backend.size("strided")) == (b"ace", 3)


def test_a_reader_keeps_what_it_got():
    backend = MemoryBackend()
    backend.put("a", b"old")
    got = backend.get("a")
    backend.put("a", b"new")
    assert backend.delete("a")
    assert got == b"old"


def test_an_empty_object_is_an_object():
    backend = MemoryBackend()
    backend.put("a", b"")
    assert (backend.get("a"), backend.size("a"), list(backend.entries())) == (b"", 0, [("a", 0)])
    assert backend.delete("a") is True
    assert backend.delete("a") is False


def test_entries_are_a_snapshot():
    backend = MemoryBackend()
    for number in range(50):
        backend.put(f"m.{number}", b"x")
    stop = threading.Event()

    def churn() -> None:
        number = 0
        while not stop.is_set():
            backend.put(f"c.{number % 100}", b"y")
            backend.delete(f"c.{(number + 50) % 100}")
            number += 1

    thread = threading.Thread(target=churn)
    thread.start()
    try:
        for _ in range(200):
            entries = list(backend.entries())
            assert sum(name.startswith("m.") for name, _ in entries) == 50
    finally:
        stop.set()
        thread.join()
