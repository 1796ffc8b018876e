"""Spellings of peer URLs."""

import socket

import pytest

from lmcache_kit.errors import InvalidRequestError
from lmcache_kit.instance.peer import PeerClient, normal_peer_url, same_peer


@pytest.mark.parametrize(
    ("written", "normal"),
    [
        ("localhost:8200", "tcp://localhost:8200"),
        (" 10.0.0.1:8200 ", "tcp://10.0.0.1:8200"),
        ("[::1]:8200", "tcp://[::1]:8200"),
        ("tcp://host:1", "tcp://host:1"),
        ("shm://name", "shm://name"),
        ("inproc://name", "inproc://name"),
        ("*:0", "tcp://*:0"),
    ],
)
def test_host_and_port_alone_mean_tcp(written, normal):
    assert normal_peer_url(written) == normal
    assert normal_peer_url(normal) == normal


@pytest.mark.parametrize(
    "wrong",
    ["", "localhost", "localhost:", ":80", "tcp://localhost", "tcp://", "a b:80", "://x", "::1:80", "TCP://h:1"],
)
def test_what_is_no_url_is_refused_with_an_example(wrong):
    with pytest.raises(InvalidRequestError, match="not a peer URL") as caught:
        normal_peer_url(wrong)
    assert "localhost:8200" in caught.value.hint


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ("localhost:8200", "tcp://127.0.0.1:8200"),
        ("localhost:8200", "LOCALHOST:8200"),
        ("[::1]:8200", "localhost:08200"),
        ("0.0.0.0:8200", "localhost:8200"),
        ("tcp://*:8200", "127.0.0.1:8200"),
        (f"{socket.gethostname()}:8200", "localhost:8200"),
        ("10.0.0.1:8200", "tcp://10.0.0.1:8200"),
        ("shm://a", "shm://a"),
    ],
)
def test_spellings_of_one_instance(first, second):
    assert same_peer(first, second)
    assert same_peer(second, first)
    assert PeerClient(first).is_self(second)


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ("localhost:8200", "localhost:8201"),
        ("10.0.0.1:8200", "10.0.0.2:8200"),
        ("0.0.0.0:8200", "10.0.0.2:8200"),
        ("shm://a", "shm://b"),
        ("shm://a", "inproc://a"),
        ("shm://localhost:8200", "localhost:8200"),
    ],
)
def test_different_instances(first, second):
    assert not same_peer(first, second)
    assert not PeerClient(first).is_self(second)


def test_without_a_url_of_its_own_nobody_is_oneself():
    assert not PeerClient().is_self("localhost:8200")
