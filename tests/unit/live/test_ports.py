from __future__ import annotations

import contextlib
import socket

import pytest

from lmcache_kit.errors import ConflictError
from lmcache_kit.live.ports import PortPicker

HOST = "127.0.0.1"


@pytest.fixture
def taken() -> contextlib.AbstractContextManager[int]:
    @contextlib.contextmanager
    def hold():  # type: ignore[no-untyped-def]
        with socket.socket() as server:
            server.bind((HOST, 0))
            server.listen()
            yield server.getsockname()[1]

    return hold()


def test_free_ports_differ_and_can_be_bound() -> None:
    picker = PortPicker()
    ports = [picker.pick(0, host=HOST, setting="x") for _ in range(20)]
    assert len(set(ports)) == 20
    with socket.socket() as server:
        server.bind((HOST, ports[0]))


def test_a_span_is_consecutive_and_all_free() -> None:
    picker = PortPicker()
    first = picker.pick(0, host=HOST, setting="x", span=3)
    for port in range(first, first + 3):
        with socket.socket() as server:
            server.bind((HOST, port))
        with pytest.raises(ConflictError, match="used twice"):
            picker.pick(port, host=HOST, setting="y")


def test_a_taken_port_is_refused_with_its_setting(taken: contextlib.AbstractContextManager[int]) -> None:
    with taken as port:
        with pytest.raises(ConflictError, match=rf"port {port} on {HOST} is in use") as caught:
            PortPicker().pick(port, host=HOST, setting="controller.port")
        assert caught.value.hint == "change controller.port, or choose a free port with --set controller.port=0"


def test_a_taken_port_inside_a_span_is_refused(taken: contextlib.AbstractContextManager[int]) -> None:
    with taken as port, pytest.raises(ConflictError, match=rf"port {port} .*\(it takes {port - 1} to {port + 1}\)"):
        PortPicker().pick(port - 1, host=HOST, setting="controller.monitor_port", span=3)


def test_ports_past_the_last_do_not_exist() -> None:
    with pytest.raises(ConflictError, match="port 65536"):
        PortPicker().pick(65535, host=HOST, setting="x", span=2)
