"""What needs no server: options, addresses and a server that is not there."""

from __future__ import annotations

import socket
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from lmcache_kit_valkey import ValkeyOptions, lmcache_kit_storage_backends
from lmcache_kit_valkey.backend import ValkeyBackend

from lmcache_kit.contracts import StorageContext
from lmcache_kit.errors import ConfigError, UnavailableError
from lmcache_kit.plugins import PluginRegistry


@pytest.fixture
def record():
    (record,) = lmcache_kit_storage_backends()
    return record


def test_nothing_is_connected_before_the_first_call(record, tmp_path: Path):
    context = StorageContext(instance_id="i", location="RemoteBackend", capacity_bytes=None, data_dir=tmp_path)
    backend = record.factory(ValkeyOptions(url="valkey://127.0.0.1:1"), context)
    backend.close()


def test_nobody_listening_is_unavailable():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # bound, not listening: connections are refused
        backend = ValkeyBackend(f"valkey://127.0.0.1:{taken.getsockname()[1]}")
        with pytest.raises(UnavailableError, match="cannot be used") as caught:
            backend.get("a")
        backend.close()
    assert caught.value.status == 503
    assert "url" in caught.value.hint


def test_a_listener_that_never_answers_is_unavailable():
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        backend = ValkeyBackend(f"redis://127.0.0.1:{silent.getsockname()[1]}", timeout=0.2, connect_timeout=0.2)
        with pytest.raises(UnavailableError, match=r"[Tt]imeout"):
            backend.put("a", b"1")
        backend.close()


def test_a_listener_that_speaks_something_else_is_unavailable():
    with socket.socket() as odd:
        odd.bind(("127.0.0.1", 0))
        odd.listen()

        def answer() -> None:
            for _ in range(2):
                connection, _ = odd.accept()
                with connection:
                    connection.recv(1024)
                    connection.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")

        thread = threading.Thread(target=answer, daemon=True)
        thread.start()
        backend = ValkeyBackend(f"redis://127.0.0.1:{odd.getsockname()[1]}", timeout=2, connect_timeout=2)
        with pytest.raises(UnavailableError):
            backend.get("a")
        backend.close()
        thread.join(timeout=5)


@pytest.mark.parametrize(
    "url", ["127.0.0.1:6379", "http://127.0.0.1", "valkey://127.0.0.1:port", "", "redis://h/?db=x"]
)
def test_an_unusable_url_is_refused_at_once(url):
    with pytest.raises(ConfigError):
        ValkeyBackend(url).close()


def test_a_url_that_asks_for_text_is_refused():
    with pytest.raises(ConfigError, match="blobs are bytes"):
        ValkeyBackend("redis://127.0.0.1/0?decode_responses=true")


def test_passwords_stay_out_of_messages():
    backend = ValkeyBackend("redis://user:secret@127.0.0.1:1/0")
    with pytest.raises(UnavailableError) as caught:
        backend.get("a")
    assert "secret" not in caught.value.detail
    backend.close()


@pytest.mark.parametrize("values", [{"timeout": 0}, {"connect_timeout": -1}, {"url": 5}, {"prefixx": "a"}])
def test_options_are_checked(record, values):
    with pytest.raises(ConfigError):
        PluginRegistry.options(record, values)


def test_listing_plugins_does_not_import_the_client():
    code = "import sys, lmcache_kit.plugins as p; p.registry(); print('valkey' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "False"
