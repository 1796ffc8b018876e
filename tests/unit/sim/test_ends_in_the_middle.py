"""Instances that die, and chunks that go, at any moment of what a request or a job does."""

from __future__ import annotations

import asyncio

import pytest

from lmcache_kit.errors import UnavailableError

CPU, DISK = "LocalCPUBackend", "LocalDiskBackend"
SLOW = {
    "engines": {
        "synthetic": {"prefill_token": 0.01, "decode_base": 0.1, "tokenize_token": 0.002, "start_token": 0.003}
    },
    "request_seconds": 0.02,
    "threads": 1,
}


@pytest.mark.parametrize("cores", [None, 1.0])
@pytest.mark.parametrize("batched", [False, True])
@pytest.mark.parametrize("when", [step * 0.013 for step in range(1, 40, 3)])
def test_an_instance_killed_in_the_middle_of_a_request_fails_it(lab, when, batched, cores):
    engines = {"synthetic": {**SLOW["engines"]["synthetic"], "batched": batched}}
    world = lab(costs={**SLOW, "engines": engines, "cores": cores})

    async def work():
        world.fleet.simulated_controller.watch()
        await world.ask("a", lab.prompt("ab"))
        await world.settle()
        alone = await world.ask("a", lab.prompt("abc"), 3)
        await world.settle()
        asking = asyncio.create_task(world.ask("a", lab.prompt("abd"), 3))
        await asyncio.sleep(when)
        await world.fleet.kill("a")
        if when < alone.seconds * 0.9:
            with pytest.raises(UnavailableError):
                await asking
        else:
            await asyncio.gather(asking, return_exceptions=True)
        await world.fleet.restart("a")
        await asyncio.sleep(10)
        world.check_index("a")
        # Memory went with the process, what was on disk did not.
        again = await world.ask("a", lab.prompt("ab"))
        assert again.usage["prompt_tokens_details"]["cached_tokens"] == 8

    world.run(work())


def test_on_a_shared_processor_an_instance_reads_one_request_after_another(lab):
    # Of an engine that takes no time to the first token, and with cores enough for both.
    world = lab(costs={"engines": {"synthetic": {"decode_base": 0.1}}, "request_seconds": 0.02, "cores": 8.0})

    async def work():
        world.fleet.simulated_controller.watch()
        alone = await world.ask("a", lab.prompt("xyz"))
        first, second = await asyncio.gather(world.ask("a", lab.prompt("abc")), world.ask("a", lab.prompt("def")))
        assert first.ttft_seconds == pytest.approx(alone.ttft_seconds)
        assert second.ttft_seconds == pytest.approx(alone.ttft_seconds + 0.02)

    world.run(work())


def test_what_was_not_read_yet_dies_with_its_instance(lab):
    world = lab(costs={**SLOW, "cores": 8.0})

    async def work():
        world.fleet.simulated_controller.watch()
        alone = await world.ask("a", lab.prompt("xyz"))
        several = [asyncio.create_task(world.ask("a", lab.prompt(3 * each))) for each in "defgh"]
        await asyncio.sleep(SLOW["request_seconds"] * 2.5)
        await world.fleet.kill("a")
        assert all(
            isinstance(each, UnavailableError) for each in await asyncio.gather(*several, return_exceptions=True)
        )
        await world.fleet.restart("a")
        await asyncio.sleep(10)
        # Nobody reads on for those that are gone.
        again = await world.ask("a", lab.prompt("ijk"))
        assert again.ttft_seconds == pytest.approx(alone.ttft_seconds)

    world.run(work())


@pytest.mark.parametrize("how", ["clear", "kill"])
def test_what_goes_while_its_new_encoding_is_written_stays_gone(lab, how):
    world = lab()

    async def work():
        world.fleet.simulated_controller.watch()
        await world.ask("a", lab.prompt("ab"))
        await asyncio.sleep(5)
        begun = await world.controller.compress("a", "fp8", DISK)
        await asyncio.sleep(0.2)  # a write to this disk takes half a second
        if how == "clear":
            await world.controller.clear("a", DISK)
            state = await world.controller.wait_finished(begun["event_id"])
            assert (state["status"], state["tokens_done"]) == ("done", 0)
            assert world.held("a")[DISK] == set()
            await world.settle()
            world.check_index("a")
        else:
            await world.fleet.kill("a")
            await asyncio.sleep(5)
            await world.fleet.restart("a")
            await asyncio.sleep(5)
            assert len(world.held("a")[DISK]) == 2
            assert {entry.codec for entry in world.member("a").tiers[1].state.entries.values()} == {"naive"}

    world.run(work())


def test_an_instances_own_link_is_that_to_every_other(lab):
    shaped = {"transport": {"bandwidth": "80kbps", "latency": "10ms"}}
    world = lab(instances=[{"id": "a", **shaped}, {"id": "b"}])

    async def work():
        await world.ask("a", lab.prompt("abcd"))
        await world.settle()
        began = world.loop.time()
        moving = await world.controller.move(("a", CPU), ("b", CPU), copy=True)
        state = await world.controller.wait_finished(moving["event_id"])
        assert state["status"] == "done"
        assert world.loop.time() - began >= 4 * lab.chunk_bytes * 8 / 80_000

    world.run(work())
