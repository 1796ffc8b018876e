"""Routes and announced hosts."""

from __future__ import annotations

import pytest

from lmcache_kit.instance.worker.addresses import Address, host_of, is_loopback, parse_address, route_to


def test_the_route_to_this_machine_is_loopback() -> None:
    assert route_to(Address("127.0.0.1", 9001)) == "127.0.0.1"


@pytest.mark.parametrize("host", ["no.such.host.invalid", "a" * 64 + ".invalid", ""])
def test_without_a_route_it_is_loopback(host: str) -> None:
    assert is_loopback(route_to(Address(host, 9001)))


@pytest.mark.parametrize(
    ("host", "loopback"), [("127.0.0.1", True), ("127.9.9.9", True), ("::1", True), ("10.0.0.1", False), ("h", False)]
)
def test_loopback(host: str, loopback: bool) -> None:
    assert is_loopback(host) is loopback


def test_any_host_is_replaced_where_that_is_allowed() -> None:
    assert parse_address("key", "*:0", any_host="10.0.0.1", port_zero=True) == Address("10.0.0.1", 0)
    assert host_of("key", "::", any_host="*") == "*"
