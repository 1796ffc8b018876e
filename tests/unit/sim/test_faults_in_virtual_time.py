"""What is lost, kept and repaired when instances die, links break and tiers fill up."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from lmcache_kit.errors import LMCacheKitError, UnavailableError

CPU, DISK = "LocalCPUBackend", "LocalDiskBackend"


async def outcome(work: Any) -> Any:
    try:
        return await work
    except LMCacheKitError as error:
        return error


# --- kill ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("at", [0.001, 0.05, 0.15, 0.3, 0.9])
def test_a_killed_instance_loses_what_it_works_on(lab: Any, at: float) -> None:
    """At any moment: loading, prefilling (13 tokens are 0.13 s), decoding, saving (1.5 s of disk)."""
    fleet = lab()

    async def work() -> None:
        asked = asyncio.create_task(outcome(fleet.ask("a", lab.prompt("xyz"), 5)))
        await asyncio.sleep(at)
        await fleet.fleet.kill("a")
        answer = await asked
        assert isinstance(answer, UnavailableError)
        assert fleet.loop.time() == at
        assert isinstance(await outcome(fleet.ask("a", lab.prompt("x"))), UnavailableError)
        assert isinstance(await outcome(fleet.client("a").health()), UnavailableError)
        await asyncio.sleep(60)
        assert fleet.told("admit") == [], "it died before its save ended"
        await fleet.fleet.restart("a")
        await fleet.settle()
        assert fleet.held("a") == {CPU: set(), DISK: set()}
        fleet.check_index()

    fleet.run(work())


@pytest.mark.parametrize("wait", [0.0, 0.5, 1.0, 3.0])
def test_a_save_under_way_does_not_reach_the_next_life(lab: Any, wait: float) -> None:
    """The disk would have needed until after the restart."""
    fleet = lab(costs={"restart_seconds": 0.1})

    async def work() -> None:
        asked = asyncio.create_task(outcome(fleet.ask("a", lab.prompt("vwxyz"))))
        await asyncio.sleep(0.5)
        await fleet.fleet.kill("a")
        await asked
        await asyncio.sleep(wait)
        await fleet.fleet.restart("a")
        await asyncio.sleep(10)
        assert fleet.held("a") == {CPU: set(), DISK: set()}
        fleet.check_index()
        assert (await fleet.controller.lookup(lab.prompt("vwxyz")))["layout_info"] == {}
        assert fleet.told("admit") == []

    fleet.run(work())


def test_memory_is_lost_and_disk_is_found_again(lab: Any) -> None:
    fleet = lab()

    async def work() -> None:
        await fleet.ask("a", lab.prompt("xyz"))
        await fleet.settle()
        before = fleet.held("a")
        assert before[CPU] == before[DISK] != set()
        await fleet.controller.pin("a", DISK, lab.prompt("x"))
        await fleet.fleet.kill("a")
        await fleet.fleet.restart("a")
        await fleet.settle()
        assert fleet.held("a") == {CPU: set(), DISK: before[DISK]}
        fleet.check_index()
        assert [event.cause for event in fleet.told("admit")[-3:]] == ["recover"] * 3
        answer = await fleet.ask("a", lab.prompt("xyz"))
        assert answer.raw["lmcache_kit"]["cached_tokens_by_location"] == {DISK: 12}
        assert await fleet.controller.clear("a", DISK) != {}, "pins died with it"
        await fleet.settle()
        assert fleet.held("a")[DISK] == set()

    fleet.run(work())


@pytest.mark.parametrize("batched", [False, True])
def test_a_restarted_engine_has_nothing_to_do(lab: Any, batched: bool) -> None:
    costs = {"engines": {"synthetic": {"prefill_token": 1.0, "decode_base": 1.0, "batched": batched}}}
    fleet = lab(costs={**costs, "restart_seconds": 0.5})

    async def work() -> None:
        asked = [asyncio.create_task(outcome(fleet.ask("a", lab.prompt(text * 5), 50))) for text in "pqrs"]
        await asyncio.sleep(1)
        await fleet.fleet.kill("a")
        await asyncio.gather(*asked)
        await fleet.fleet.restart("a")
        answer = await fleet.ask("a", lab.prompt("z"), 3)
        assert answer.ttft_seconds == pytest.approx(5, abs=0.1)
        assert answer.seconds == pytest.approx(7, abs=1.2)

    fleet.run(work())


def test_requests_that_wait_are_lost_too(lab: Any) -> None:
    fleet = lab(instances=[{"id": "a", "max_num_seqs": 1}])

    async def work() -> None:
        asked = [asyncio.create_task(outcome(fleet.ask("a", lab.prompt(text)))) for text in "pqr"]
        await asyncio.sleep(0.001)
        await fleet.fleet.kill("a")
        assert all(isinstance(answer, UnavailableError) for answer in await asyncio.gather(*asked))
        await fleet.fleet.restart("a")
        assert (await fleet.ask("a", lab.prompt("z"))).ttft_seconds == pytest.approx(0.05, abs=0.01)

    fleet.run(work())


@pytest.mark.parametrize("which", ["a", "b"])
def test_a_move_ends_with_either_end(lab: Any, which: str) -> None:
    """1,100 bytes a chunk at 1 kB/s: seconds for each."""
    fleet = lab(links=[{"between": ["a", "b"], "bandwidth": "8kbps"}])

    async def work() -> None:
        await fleet.ask("a", lab.prompt("vwxyz"))
        await fleet.settle()
        begun = await fleet.controller.move(("a", CPU), ("b", CPU), lab.prompt("vwxyz"))
        await asyncio.sleep(2.5)
        arrived = len(fleet.held("b")[CPU])
        assert 1 <= arrived <= 3
        await fleet.fleet.kill(which)
        if which == "b":
            state = await fleet.controller.wait_finished(begun["event_id"])
            assert state["status"] == "failed"
            assert len(fleet.held("a")[CPU]) == 5 - arrived, "what did not arrive stays"
        await asyncio.sleep(30)
        if which == "a":
            assert len(fleet.held("b")[CPU]) == arrived
        await fleet.fleet.restart(which)
        await asyncio.sleep(30)
        fleet.check_index()

    fleet.run(work())


def test_compressing_does_not_mind_what_leaves_meanwhile(lab: Any) -> None:
    codecs = {"naive": {}, "fp8": {"ratio": 2, "encode_gbps": 1e-6, "decode_gbps": 1e-6}}
    fleet = lab(costs={"codecs": codecs})

    async def work() -> None:
        await fleet.ask("a", lab.prompt("xyz"))
        await fleet.settle()
        begun = await fleet.controller.compress("a", "fp8", CPU)
        await asyncio.sleep(1.5)  # in the middle of a chunk
        await fleet.controller.clear("a", CPU)
        state = await fleet.controller.wait_finished(begun["event_id"])
        assert state["status"] == "done", state
        await fleet.settle()
        fleet.check_index()
        tier = fleet.member("a").tiers[0].state
        assert (tier.held, tier.claimed, tier.leaving) == (0, 0, 0)

    fleet.run(work())


# --- the controller --------------------------------------------------------------------------------------------------


def test_a_restarted_controller_learns_everything_by_heartbeats(lab: Any) -> None:
    fleet = lab()

    async def work() -> None:
        fleet.fleet.simulated_controller.watch()
        await fleet.ask("a", lab.prompt("xyz"))
        await fleet.ask("b", lab.prompt("x"))
        await fleet.settle()
        assert (await fleet.controller.lookup(lab.prompt("xyz")))["prefix"] == {"a": 12, "b": 4}
        await fleet.fleet.kill("controller")
        assert isinstance(await outcome(fleet.controller.lookup(lab.prompt("x"))), UnavailableError)
        assert isinstance(await outcome(fleet.controller.clear("a", CPU)), UnavailableError)
        await fleet.ask("b", lab.prompt("xyz"))  # which it never hears of
        await fleet.fleet.restart("controller")
        await asyncio.sleep(10)
        assert (await fleet.controller.lookup(lab.prompt("xyz")))["prefix"] == {"a": 12, "b": 12}
        fleet.check_index()

    fleet.run(work())


def test_a_restarted_controller_is_told_at_once_by_those_that_live(lab: Any) -> None:
    fleet = lab(costs={"restart_seconds": 0.0})

    async def work() -> None:
        await fleet.ask("a", lab.prompt("xyz"))
        await fleet.ask("b", lab.prompt("xyz"))
        await fleet.settle()
        await fleet.fleet.kill("controller")
        await fleet.fleet.kill("b")
        await fleet.fleet.restart("controller")
        assert (await fleet.controller.lookup(lab.prompt("xyz")))["prefix"] == {"a": 12}
        await fleet.fleet.restart("b")
        await fleet.settle()
        assert (await fleet.controller.lookup(lab.prompt("xyz")))["prefix"] == {"a": 12, "b": 12}
        fleet.check_index()

    fleet.run(work())


def test_a_partition_makes_lookups_stale_until_it_is_mended(lab: Any) -> None:
    fleet = lab()

    async def work() -> None:
        fleet.fleet.simulated_controller.watch()
        await fleet.ask("a", lab.prompt("xy"))
        await fleet.settle()
        await fleet.fleet.cut("a", "controller")
        await fleet.client("a").health()
        await fleet.ask("a", lab.prompt("xyz"))
        await fleet.settle()
        assert (await fleet.controller.lookup(lab.prompt("xyz")))["prefix"] == {"a": 8}, "of before the cut"
        assert isinstance(await outcome(fleet.controller.clear("a", CPU)), LMCacheKitError)
        assert len(fleet.held("a")[CPU]) == 3
        await fleet.fleet.mend("a", "controller")
        await asyncio.sleep(10)
        assert (await fleet.controller.lookup(lab.prompt("xyz")))["prefix"] == {"a": 12}
        fleet.check_index()

    fleet.run(work())


def test_an_instance_that_restarts_behind_a_partition_is_found_afterwards(lab: Any) -> None:
    fleet = lab()

    async def work() -> None:
        fleet.fleet.simulated_controller.watch()
        await fleet.ask("a", lab.prompt("xyz"))
        await fleet.settle()
        await fleet.fleet.cut("controller", "a")
        await fleet.fleet.kill("a")
        await fleet.fleet.restart("a")
        await asyncio.sleep(3)
        await fleet.fleet.mend("controller", "a")
        await asyncio.sleep(10)
        fleet.check_index()
        assert fleet.held("a")[CPU] == set()
        assert len(fleet.indexed("a")[DISK]) == 3

    fleet.run(work())


# --- links and tiers -------------------------------------------------------------------------------------------------


async def moving(fleet: Any, tokens: list[int], copy: bool = True) -> tuple[float, dict[str, Any]]:
    begun = await fleet.controller.move(("a", CPU), ("b", CPU), tokens, copy=copy)
    state = await fleet.controller.wait_finished(begun["event_id"])
    return state["seconds"], state


def test_a_slow_link_slows_moves_until_it_is_restored(lab: Any) -> None:
    fleet = lab(links=[{"between": ["a", "b"], "bandwidth": "8Mbps", "latency": "10ms"}])

    async def work() -> None:
        await fleet.ask("a", lab.prompt("xyz"))
        await fleet.settle()
        usual, _ = await moving(fleet, lab.prompt("xyz"))
        await fleet.fleet.set_link("b", "a", 1000.0, None)
        slow, _ = await moving(fleet, lab.prompt("xyz"))
        await fleet.fleet.set_link("a", "b", None, 2.0)
        late, _ = await moving(fleet, lab.prompt("xyz"))
        await fleet.fleet.set_link("a", "b", None, None)
        again, _ = await moving(fleet, lab.prompt("xyz"))
        nbytes = sum(entry.nbytes for entry in fleet.member("a").tiers[0].state.entries.values())
        # Three chunks: twice the latency for each, and a millisecond to read, write and read it back.
        assert usual == pytest.approx(0.069 + nbytes / 1e6, rel=0.01)
        assert slow == pytest.approx(0.069 + nbytes / 1e3, abs=0.03)
        assert late == pytest.approx(12 + nbytes / 1e6, abs=0.03)
        assert again == pytest.approx(usual, abs=0.01)
        (traffic,) = fleet.fleet.network.traffic()
        assert (traffic["from"], traffic["to"]) == ("a", "b")
        assert (traffic["bytes"], traffic["messages"]) == (4 * nbytes, 12)

    fleet.run(work())


def test_a_cut_link_fails_moves_and_keeps_the_source(lab: Any) -> None:
    fleet = lab()

    async def work() -> None:
        await fleet.ask("a", lab.prompt("xyz"))
        await fleet.settle()
        await fleet.fleet.cut("a", "b")
        _, state = await moving(fleet, lab.prompt("xyz"), copy=False)
        assert state["status"] == "failed"
        assert len(fleet.held("a")[CPU]) == 3
        await fleet.fleet.mend("b", "a")
        _, state = await moving(fleet, lab.prompt("xyz"), copy=False)
        assert state["status"] == "done"
        await fleet.settle()
        assert (len(fleet.held("a")[CPU]), len(fleet.held("b")[CPU])) == (0, 3)
        fleet.check_index()

    fleet.run(work())


def test_a_link_that_breaks_under_a_chunk_loses_that_chunk_only(lab: Any) -> None:
    fleet = lab(links=[{"between": ["a", "b"], "bandwidth": "8kbps"}])

    async def work() -> None:
        await fleet.ask("a", lab.prompt("xyz"))
        await fleet.settle()
        begun = await fleet.controller.move(("a", CPU), ("b", CPU), lab.prompt("xyz"))
        await asyncio.sleep(1.5)  # the second chunk is on its way
        await fleet.fleet.cut("a", "b")
        state = await fleet.controller.wait_finished(begun["event_id"])
        assert state["status"] == "failed"
        assert len(fleet.held("a")[CPU]) + len(fleet.held("b")[CPU]) == 3
        await fleet.settle()
        fleet.check_index()

    fleet.run(work())


def test_a_full_tier_takes_nothing_and_still_serves(lab: Any) -> None:
    fleet = lab()

    async def work() -> None:
        await fleet.ask("a", lab.prompt("x"))
        await fleet.fleet.fill_tier("a", CPU)
        answer = await fleet.ask("a", lab.prompt("xyz"))
        assert answer.raw["lmcache_kit"]["cached_tokens_by_location"] == {CPU: 4}
        held = fleet.held("a")
        assert (len(held[CPU]), len(held[DISK])) == (1, 3)
        await fleet.fleet.kill("a")
        await fleet.fleet.restart("a")
        await fleet.ask("a", lab.prompt("pq"))
        held = fleet.held("a")
        assert (len(held[CPU]), len(held[DISK])) == (0, 5), "a fault outlives a restart"
        await fleet.fleet.empty_tier("a", CPU)
        await fleet.ask("a", lab.prompt("rs"))
        held = fleet.held("a")
        assert (len(held[CPU]), len(held[DISK])) == (2, 7)
        await fleet.settle()
        fleet.check_index()

    fleet.run(work())


def test_upkeep_alone_does_not_keep_a_run_going(lab: Any) -> None:
    fleet = lab()

    async def work() -> None:
        fleet.fleet.simulated_controller.watch()
        await asyncio.sleep(20)
        await asyncio.Event().wait()

    with pytest.raises(LMCacheKitError, match="never happens"):
        fleet.run(work())
    assert fleet.loop.time() == 20
