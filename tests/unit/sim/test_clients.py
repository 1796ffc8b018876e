"""The simulated clients say what the real ones say, for everything that workloads may ask."""

from __future__ import annotations

import pytest

from lmcache_kit.errors import ConflictError, InvalidRequestError, NotFoundError, UnavailableError, UnknownNameError

CPU, DISK = "LocalCPUBackend", "LocalDiskBackend"


def test_everything_a_controller_is_asked(lab):
    world = lab()

    async def work():
        controller = world.controller
        await world.ask("a", lab.prompt("ab"))
        await world.settle()
        assert (await controller.health("a"))["error_codes"] == {"0": 0}
        assert {one["instance_id"] for one in (await controller.workers())["worker_infos"]} == {"a", "b"}
        assert [one["instance_id"] for one in (await controller.workers("b"))["worker_infos"]] == ["b"]
        assert (await controller.query_instance("a"))["res"] == "a"
        assert (await controller.key_stats())["total_key_count"] == 4
        asked = await controller.lookup(lab.prompt("ab"), explain=True)
        assert asked["explain"]["num_tokens"] == len(lab.prompt("ab"))
        assert asked["layout_info"] == {"a": [CPU, 8]}
        await controller.close()

    world.run(work())


@pytest.mark.parametrize("work", ["query", "health", "workers"])
def test_unknown_names_are_refused_as_by_the_real_one(lab, work):
    world = lab()

    async def ask():
        controller = world.controller
        call = {"query": controller.query_instance, "health": controller.health, "workers": controller.workers}[work]
        with pytest.raises(NotFoundError):
            await call("nobody")

    world.run(ask())


def test_a_job_that_takes_longer_than_one_waits(lab):
    world = lab(costs={"codecs": {"naive": {}, "fp8": {"ratio": 2, "encode_gbps": 1e-6}}})

    async def work():
        await world.ask("a", lab.prompt("a" * 20))
        await world.settle()
        begun = await world.controller.compress("a", "fp8", CPU)
        with pytest.raises(UnavailableError, match=r"still running after 0\.1 s"):
            await world.controller.wait_finished(begun["event_id"], timeout=0.1)
        assert (await world.controller.wait_finished(begun["event_id"]))["status"] == "done"

    world.run(work())


def test_everything_an_instance_is_asked(lab):
    world = lab()

    async def work():
        client = world.client("a")
        tokens = await client.tokenize("hello")
        assert (await client.detokenize(tokens)).endswith("hello")
        (model,) = await client.models()
        assert await client.model() == model
        assert await client.model("another") == "another"
        assert (await client.health())["status"] == "ok"
        answer = await client.complete("hello", max_tokens=2)
        assert answer["choices"][0]["finish_reason"] == "length"
        assert answer["usage"]["prompt_tokens"] == len(tokens)
        for bad in ({"prompt": [], "max_tokens": 1}, {"prompt": [1], "max_tokens": 0}):
            with pytest.raises(InvalidRequestError, match="at least one token"):
                await client.complete(bad["prompt"], max_tokens=bad["max_tokens"])
        used = [line for line in (await client.metrics()).splitlines() if CPU in line]
        assert float(used[0].rpartition(" ")[2]) == world.member("a").tiers[0].state.held
        await client.close()
        await world.fleet.kill("a")
        with pytest.raises(UnavailableError, match="cannot be reached"):
            await client.health()

    world.run(work())


def test_controls_refuse_what_the_real_store_refuses(lab):
    world = lab()

    async def work():
        await world.ask("a", lab.prompt("ab"))
        await world.settle()
        store = world.member("a").controlled
        assert store.locations() == [CPU, DISK]
        assert {key.hash for key in store.contents(CPU)} == world.held("a")[CPU]
        with pytest.raises(ConflictError, match="already in"):
            store.start_move("e", CPU, "", CPU, None, copy=True)
        with pytest.raises(UnknownNameError):
            store.contents("nowhere")
        key = store.contents(CPU)[0]
        with pytest.raises(ConflictError, match="belongs to model other"):
            await store.receive(CPU, type(key)("other", 1), 10, 4, "naive", "m")

    world.run(work())


def test_what_leaves_before_its_turn_is_no_error(lab):
    """A job plans, and what it planned may be gone, or in another method, when its turn comes."""
    world = lab(costs={"codecs": {"naive": {}, "fp8": {"ratio": 2, "encode_gbps": 1e-5, "decode_gbps": 1e6}}})

    async def work():
        await world.ask("a", lab.prompt("abcd"))
        await world.settle()
        store = world.member("a").controlled
        before = len(world.held("a")[CPU])
        store.start_compress("first", "fp8", CPU, None)
        store.start_compress("second", "fp8", CPU, None)
        store.start_move("third", CPU, "", DISK, None, copy=True)
        await world.controller.clear("a", CPU)
        for _ in range(100):
            await world.settle()
        states = [store.job(event) for event in ("first", "second", "third")]
        assert [state.status for state in states] == ["done"] * 3
        assert [state.tokens_done for state in states] == [0, 0, 0]
        assert states[0].num_tokens == 4 * before

    world.run(work())


def test_decompress_leaves_alone_what_was_recoded_since(lab):
    world = lab()

    async def work():
        await world.ask("a", lab.prompt("ab"))
        await world.settle()
        store = world.member("a").controlled
        store.start_compress("first", "fp8", CPU, None)
        await world.settle()
        store.start_decompress("second", "fp8", CPU, None)
        store.start_decompress("third", "fp8", CPU, None)
        await world.settle()
        assert store.job("second").tokens_done == 8
        assert (store.job("third").status, store.job("third").tokens_done) == ("done", 0)
        assert {entry.codec for entry in world.member("a").tiers[0].state.entries.values()} == {"naive"}

    world.run(work())
