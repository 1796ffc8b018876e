"""What an instance does with faults: the endpoint, the environment, full tiers, links to peers."""

from __future__ import annotations

import asyncio
import os
from typing import Any

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from starlette.responses import PlainTextResponse

from lmcache_kit.builtin.transports.inproc import InprocTransport
from lmcache_kit.clock import ManualClock
from lmcache_kit.contracts.records import EvictionPlugin, PlacementPlugin
from lmcache_kit.errors import (
    CapacityError,
    ConfigError,
    InvalidRequestError,
    LMCacheKitError,
    UnavailableError,
    UnknownNameError,
)
from lmcache_kit.instance.core.cache import CacheCore
from lmcache_kit.instance.core.tiers import TierState
from lmcache_kit.instance.faults import (
    FAULTS_VARIABLE,
    TOKEN_VARIABLE,
    InstanceFaults,
    LinkFault,
    decode_faults,
    from_environment,
)
from lmcache_kit.instance.http.fault_endpoint import FaultEndpoint
from lmcache_kit.instance.peer.client import Adjustment, PeerClient
from lmcache_kit.kv.keys import ChunkKey
from lmcache_kit.plugins import PluginRegistry

TOKEN = "0123456789abcdef"


@pytest.fixture
def taken() -> list[InstanceFaults]:
    return []


@pytest.fixture
async def client(taken: list[InstanceFaults]) -> Any:
    def apply(faults: InstanceFaults) -> None:
        if "nowhere" in faults.full_tiers:
            raise UnknownNameError("location", "nowhere", ["here"])
        taken.append(faults)

    endpoint = FaultEndpoint(PlainTextResponse("the instance"), TOKEN, apply)
    async with httpx.AsyncClient(transport=httpx.ASGITransport(endpoint), base_url="http://x") as made:
        yield made


def bearer(token: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {token}"}


async def test_the_holder_of_the_token_replaces_all_faults(client: Any, taken: list[InstanceFaults]) -> None:
    body = {"links": {"tcp://b:1": {"bandwidth": 10, "cut": True}}, "controller_cut": True, "full_tiers": ["here"]}
    answer = await client.put("/faults", json=body, headers=bearer(TOKEN))
    assert (answer.status_code, answer.json()) == (200, {"status": "ok"})
    answer = await client.put("/faults", json={}, headers=bearer(TOKEN))
    assert taken == [InstanceFaults({"tcp://b:1": LinkFault(10.0, None, True)}, True, ["here"]), InstanceFaults()]


@pytest.mark.parametrize("token", ["", "Bearer", "0123456789abcdeX", TOKEN + "0", TOKEN[:-1], "ü" * 16])
async def test_nobody_else_does(client: Any, taken: list[InstanceFaults], token: str) -> None:
    for headers in ({}, {"Authorization": f"Bearer {token}".encode()}, {"Authorization": token.encode()}):
        for method in ("PUT", "GET", "POST", "DELETE"):
            answer = await client.request(method, "/faults", content=b"{}", headers=headers)
            assert answer.status_code == 401
            assert TOKEN not in answer.text
    assert taken == []


@pytest.mark.parametrize(
    ("method", "body", "status", "words"),
    [
        ("GET", b"", 405, "PUT"),
        ("PUT", b"", 400, "no faults"),
        ("PUT", b"[]", 400, "no faults"),
        ("PUT", b"\xff\xfe", 400, "no faults"),
        ("PUT", b'{"run": "x"}', 400, "run"),
        ("PUT", b'{"links": {"tcp://b:1": {"bandwidth": 0}}}', 400, "bandwidth"),
        ("PUT", b'{"links": {"tcp://b:1": {"bandwidth": 1e999}}}', 400, "no faults"),
        ("PUT", b'{"links": {"tcp://b:1": {"latency": -1}}}', 400, "latency"),
        ("PUT", b'{"full_tiers": ["nowhere"]}', 404, "nowhere"),
        ("PUT", b" " * (2**20 + 1), 413, "larger"),
    ],
)
async def test_what_it_does_not_take(
    client: Any, taken: list[InstanceFaults], method: str, body: bytes, status: int, words: str
) -> None:
    answer = await client.request(method, "/faults", content=body, headers=bearer(TOKEN))
    assert answer.status_code == status
    assert words in answer.json()["detail"]
    assert taken == []


async def test_everything_else_is_the_instances_own(client: Any) -> None:
    for path in ("/", "/health", "/faults/", "/v1/completions", "/x/faults"):
        assert (await client.get(path)).text == "the instance"


@given(st.binary(max_size=64))
def test_no_bytes_but_faults_are_faults(body: bytes) -> None:
    try:
        faults = decode_faults(body)
    except InvalidRequestError:
        return
    assert isinstance(faults, InstanceFaults)


@pytest.fixture
def environment(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    for variable in (TOKEN_VARIABLE, FAULTS_VARIABLE):
        monkeypatch.delenv(variable, raising=False)
    return monkeypatch


def test_without_a_token_no_faults_are_taken(environment: pytest.MonkeyPatch) -> None:
    assert from_environment() is None
    environment.setenv(FAULTS_VARIABLE, '{"controller_cut": true}')
    assert from_environment() is None


def test_token_and_faults_are_read_once_and_inherited_by_nobody(environment: pytest.MonkeyPatch) -> None:
    environment.setenv(TOKEN_VARIABLE, TOKEN)
    environment.setenv(FAULTS_VARIABLE, '{"controller_cut": true}')
    assert from_environment() == (TOKEN, InstanceFaults(controller_cut=True))
    assert not {TOKEN_VARIABLE, FAULTS_VARIABLE} & set(os.environ)
    environment.setenv(TOKEN_VARIABLE, TOKEN)
    assert from_environment() == (TOKEN, InstanceFaults())


@pytest.mark.parametrize(("token", "faults"), [("short", "{}"), ("", "{}"), (TOKEN, "{"), (TOKEN, '{"x": 1}')])
def test_a_wrong_environment_is_refused(environment: pytest.MonkeyPatch, token: str, faults: str) -> None:
    environment.setenv(TOKEN_VARIABLE, token)
    environment.setenv(FAULTS_VARIABLE, faults)
    with pytest.raises(ConfigError) as raised:
        from_environment()
    assert "LMCACHE_KIT_FAULT" in raised.value.message


def core(*capacities: int, placement: str = "broadcast") -> CacheCore:
    plugins = PluginRegistry(allow=[])
    policy, lru = plugins.get(PlacementPlugin, placement), plugins.get(EvictionPlugin, "lru")
    clock = ManualClock()
    tiers = [
        TierState(index, f"tier{index}", capacity, lru.factory(plugins.options(lru), capacity), clock)
        for index, capacity in enumerate(capacities)
    ]
    return CacheCore(tiers, policy.factory(plugins.options(policy)), clock, on_change=lambda change: None)


def put(made: CacheCore, tier: int, number: int) -> None:
    ticket = made.begin_put(tier, key(number), nbytes=10, num_tokens=1, codec="naive", cause="store")
    for removal in ticket.removals:
        made.retire(removal)
        made.forget(removal)
    ticket.removals.clear()
    assert made.start(ticket)
    made.commit(ticket)


def key(number: int) -> ChunkKey:
    return ChunkKey(model="m", hash=number)


def test_a_full_tier_takes_nothing_evicts_nothing_and_is_read() -> None:
    made = core(20, 20)
    put(made, 0, 1)
    put(made, 1, 1)
    put(made, 1, 2)
    made.tiers[1].full = True
    assert made.store_targets(10) == [0]
    with pytest.raises(CapacityError, match="tier1, which takes nothing: it is full"):
        made.begin_put(1, key(3), nbytes=10, num_tokens=1, codec="naive", cause="store")
    entry = made.acquire(1, key(2).name())
    assert entry is not None
    with pytest.raises(CapacityError, match="it is full"):
        made.begin_rewrite(1, entry, nbytes=5, codec="zstd")
    made.release(1, entry)
    assert made.holders(key(1).name()) == [0, 1]
    assert made.holders(key(2).name()) == [1]
    made.tiers[1].full = False
    assert made.store_targets(10) == [0, 1]
    put(made, 1, 3)
    assert made.holders(key(1).name()) == [0]


@pytest.mark.parametrize("placement", ["broadcast", "demote", "write_back"])
def test_no_placement_chooses_a_full_tier(placement: str) -> None:
    made = core(20, 1000, 1000, placement=placement)
    made.tiers[1].full = True
    assert 1 not in made.store_targets(10)
    put(made, 0, 1)
    assert 1 not in made.idle_targets(key(1).name())
    put(made, 0, 2)
    ticket = made.begin_put(0, key(3), nbytes=10, num_tokens=1, codec="naive", cause="store")
    assert [removal.entry.name for removal in ticket.removals] == [key(1).name()]
    assert all(each.demotion is None or each.demotion.tier != 1 for each in ticket.removals)
    made.tiers[0].full = made.tiers[2].full = True
    assert made.store_targets(10) == []


@pytest.fixture
async def peers() -> Any:
    """A client whose links may be adjusted, and the addresses of two listeners that answer nothing sensible."""

    async def handler(frames: Any) -> Any:
        return [b"?"]

    transport = InprocTransport()
    listeners = [await transport.listen(f"inproc://{name}", handler) for name in ("one", "two")]
    made = PeerClient(
        None, {"inproc": transport}, {"inproc://one": (1000.0, 0.0)}, adjustable=True, plugins=PluginRegistry(allow=[])
    )
    yield made, [listener.address for listener in listeners]
    await made.close()
    for listener in listeners:
        await listener.close()


async def fails(client: PeerClient, url: str) -> str:
    with pytest.raises(LMCacheKitError) as raised:
        await client.ping(url, timeout=5.0)
    return raised.value.message


async def test_links_are_adjusted_before_and_after_they_are_used(peers: Any) -> None:
    client, (one, two) = peers
    client.adjust({one: Adjustment(cut=True)})
    assert "is cut" in await fails(client, one)
    assert "is cut" not in await fails(client, two)
    client.adjust({two: Adjustment(cut=True), one: Adjustment(latency=0.001)})
    assert "is cut" not in await fails(client, one)
    assert "is cut" in await fails(client, two)
    stats = client.stats()
    assert (stats[one]["bandwidth"], stats[one]["latency"]) == (1000.0, 0.001), "what is not given stays as it was"
    client.adjust({})
    assert "is cut" not in await fails(client, two)
    stats = client.stats()
    assert (stats[one]["bandwidth"], stats[one]["latency"]) == (1000.0, 0.0)
    assert (stats[two]["bandwidth"], stats[two]["latency"]) == (None, 0.0)


async def test_a_cut_ends_a_request_under_way_and_others_go_on(peers: Any) -> None:
    client, (one, two) = peers
    client.adjust({one: Adjustment(latency=60.0), two: Adjustment(latency=0.01)})
    stuck, passing = (asyncio.ensure_future(client.ping(url, timeout=100.0)) for url in (one, two))
    await asyncio.sleep(0.001)
    client.adjust({one: Adjustment(cut=True), two: Adjustment(latency=0.01)})
    with pytest.raises(UnavailableError, match="is cut"):
        await stuck
    with pytest.raises(UnavailableError, match=r"peer inproc://two"):
        await passing


async def test_impossible_adjustments_are_refused_and_change_nothing(peers: Any) -> None:
    client, (one, _) = peers
    client.adjust({one: Adjustment(cut=True)})
    for wrong in ({"no url": Adjustment()}, {one: Adjustment(bandwidth=-1.0)}, {one: Adjustment(latency=-1.0)}):
        with pytest.raises(LMCacheKitError):
            client.adjust(wrong)
        assert "is cut" in await fails(client, one)
