"""Each fault on real processes: what it breaks, what goes on meanwhile, and that everything is well afterwards."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import httpx
import pytest

from lmcache_kit.errors import UnavailableError

pytestmark = pytest.mark.asyncio(loop_scope="module")


def prompt(number: int, length: int = 512) -> list[int]:
    return [(7 * place + 131 * number) % 250 for place in range(length)]


async def moved(fleet: Any, tokens: list[int]) -> dict[str, Any]:
    """The end of a move of ``tokens`` from a to b."""
    started = await fleet.controller.move(("a", "LocalCPUBackend"), ("b", "LocalCPUBackend"), tokens)

    async def finished() -> dict[str, Any] | None:
        state = await fleet.controller.check_finish(started["event_id"])
        return state if state["status"] in ("done", "failed") else None

    found: dict[str, Any] = await fleet.until(finished, "the end of a move")
    return found


async def test_a_slow_link_is_slower_and_is_itself_again_afterwards(fleet: Any) -> None:
    await fleet.clients["a"].stream_complete(prompt(1), max_tokens=2)
    await fleet.faults.set_link("a", "b", 1e6, 0.02)
    begin = time.monotonic()
    slow = await moved(fleet, prompt(1))
    took = time.monotonic() - begin
    assert slow["status"] == "done"
    assert took >= slow["bytes_after"] / 1e6, "no faster than the link"
    await fleet.faults.set_link("a", "b", None, None)
    await fleet.clients["a"].stream_complete(prompt(2), max_tokens=2)
    fast = await moved(fleet, prompt(2))
    assert fast["status"] == "done"
    assert abs(fast["bytes_after"] - slow["bytes_after"]) < 100
    assert fast["seconds"] < slow["seconds"]


async def test_a_partition_during_a_move_is_a_clear_failure_and_mending_is_enough(fleet: Any) -> None:
    await fleet.clients["a"].stream_complete(prompt(3), max_tokens=2)
    await fleet.faults.set_link("a", "b", 0.2e6, None)  # so that the move is under way when the link is cut
    moving = asyncio.ensure_future(moved(fleet, prompt(3)))
    await asyncio.sleep(0.2)
    await fleet.faults.cut("a", "b")
    failed = await moving
    assert failed["status"] == "failed"
    assert f"the link to {fleet.peer_urls['b']} is cut" in failed["error"]
    assert (await moved(fleet, prompt(3)))["status"] == "failed"
    # Nothing else is touched: both serve and both are known.
    for name in ("a", "b"):
        await fleet.clients[name].stream_complete(prompt(3), max_tokens=2)
    await fleet.faults.mend("a", "b")
    await fleet.faults.set_link("a", "b", None, None)
    await fleet.clients["a"].stream_complete(prompt(4), max_tokens=2)
    assert (await moved(fleet, prompt(4)))["status"] == "done"


async def test_a_full_tier_is_passed_over_read_and_written_again(fleet: Any) -> None:
    first, second, third = prompt(10), prompt(11), prompt(12)
    client = fleet.clients["b"]
    await client.stream_complete(first, max_tokens=2)
    for location in ("LocalCPUBackend", "LocalDiskBackend"):
        await fleet.faults.fill_tier("b", location)
        if location == "LocalCPUBackend":
            done = await client.stream_complete(second, max_tokens=2)
            assert done.raw["lmcache_kit"]["stored_tokens"] == 512
            again = await client.stream_complete(second, max_tokens=2)
            assert again.raw["lmcache_kit"]["cached_tokens_by_location"].keys() == {"LocalDiskBackend"}
    # Both are full: completions go on, what is there is read, nothing is stored.
    done = await client.stream_complete(third, max_tokens=2)
    assert done.raw["lmcache_kit"]["stored_tokens"] == 0
    assert (await client.stream_complete(first, max_tokens=2)).cached_tokens > 0
    assert (await client.stream_complete(third, max_tokens=2)).cached_tokens == 0
    await fleet.clients["a"].stream_complete(third, max_tokens=2)
    refused = await moved(fleet, third)
    assert refused["status"] == "failed"
    assert "LocalCPUBackend, which takes nothing: it is full" in refused["error"]
    for location in ("LocalCPUBackend", "LocalDiskBackend"):
        await fleet.faults.empty_tier("b", location)
    assert (await client.stream_complete(third, max_tokens=2)).raw["lmcache_kit"]["stored_tokens"] == 512
    assert (await client.stream_complete(third, max_tokens=2)).cached_tokens > 0


async def test_an_instance_that_is_killed_under_load_comes_back_with_its_disk(fleet: Any) -> None:
    client, kept = fleet.clients["a"], prompt(20)
    await client.stream_complete(kept, max_tokens=2)
    load = [asyncio.ensure_future(client.stream_complete(prompt(30 + n), max_tokens=500)) for n in range(4)]
    work = asyncio.ensure_future(fleet.supervisor.run(_kill_and_restart(fleet, "a", load), during="the test"))
    await work
    done = await client.stream_complete(kept, max_tokens=2)
    assert done.raw["lmcache_kit"]["cached_tokens_by_location"] == {"LocalDiskBackend": 511}

    async def known() -> bool:
        return "a" in await fleet.held(kept)

    await fleet.until(known, "the controller's knowledge of what a holds")
    await fleet.clients["b"].stream_complete(prompt(40), max_tokens=2)
    assert (await moved(fleet, kept))["status"] == "done", "its peer address is what it was"


async def _kill_and_restart(fleet: Any, name: str, load: list[Any]) -> None:
    await asyncio.sleep(0.1)
    await fleet.faults.kill(name)
    for each in await asyncio.gather(*load, return_exceptions=True):
        assert isinstance(each, UnavailableError)
    with pytest.raises(UnavailableError, match="cannot be reached"):
        await fleet.clients[name].stream_complete(prompt(20), max_tokens=2)
    await fleet.clients["b"].stream_complete(prompt(20), max_tokens=2)
    await fleet.faults.restart(name)


async def test_a_controller_that_is_killed_knows_everything_again_when_it_is_back(fleet: Any) -> None:
    tokens = prompt(50)
    for client in fleet.clients.values():
        await client.stream_complete(tokens, max_tokens=2)
    await fleet.faults.kill("controller")
    with pytest.raises(UnavailableError, match="cannot be reached"):
        await fleet.controller.lookup(tokens)
    for client in fleet.clients.values():  # they serve without it
        assert (await client.stream_complete(tokens, max_tokens=2)).cached_tokens > 0
    await fleet.faults.restart("controller")
    held = await fleet.held(tokens)
    assert set(held) == {"a", "b"}
    assert {info["instance_id"] for info in (await fleet.controller.workers())["worker_infos"]} == {"a", "b"}


async def test_an_instance_parted_from_the_controller_serves_and_joins_again(fleet: Any) -> None:
    await fleet.faults.cut("b", "controller")
    tokens = prompt(60)
    for client in fleet.clients.values():
        await client.stream_complete(tokens, max_tokens=2)

    async def only_a() -> bool:
        return set(await fleet.held(tokens)) == {"a"}

    await fleet.until(only_a, "the controller's knowledge of a alone")
    with pytest.raises(UnavailableError):  # within the controller's own deadline, not for ever
        await fleet.controller.clear("b", "LocalCPUBackend")
    assert await only_a()
    await fleet.faults.mend("b", "controller")

    async def both() -> bool:
        return set(await fleet.held(tokens)) == {"a", "b"}

    await fleet.until(both, "the controller's knowledge of both")
    assert (await moved(fleet, tokens))["status"] == "done"


async def test_nobody_without_the_token_can_do_any_of_this(fleet: Any) -> None:
    async with httpx.AsyncClient(trust_env=False) as client:
        for headers in ({}, {"Authorization": "Bearer 00000000000000000000000000000000"}):
            answer = await client.put(f"{fleet.urls['a']}/faults", json={"controller_cut": True}, headers=headers)
            assert answer.status_code == 401
        answer = await client.put(
            f"{fleet.urls['a']}/faults",
            json={"full_tiers": ["nowhere"], "controller_cut": True},
            headers={"Authorization": f"Bearer {fleet.token}"},
        )
        assert answer.status_code == 404
        assert "LocalDiskBackend" in answer.json()["detail"]
        assert fleet.token not in (await client.get(f"{fleet.urls['a']}/metrics")).text
        assert (await client.get(f"{fleet.urls['a']}/health")).json()["worker"]["registered"]
