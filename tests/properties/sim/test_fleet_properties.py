"""What must hold in every simulated fleet, whatever its traffic and whatever befalls it."""

from __future__ import annotations

import asyncio
import itertools
import logging
from collections.abc import Coroutine, Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lmcache_kit.contracts.trace import TraceRecord
from lmcache_kit.errors import CapacityError, LMCacheKitError, UnavailableError
from lmcache_kit.instance.core.events import CacheEvent
from lmcache_kit.live.folder import OutputFolder
from lmcache_kit.plugins import PluginRegistry
from lmcache_kit.scenario.loader import scenario_from_data
from lmcache_kit.sim.costs import load_costs
from lmcache_kit.sim.fleet import SimFleet
from lmcache_kit.sim.loop import VirtualLoop
from lmcache_kit.traffic.prompt import BlockPrompt

CHUNK = 4
TOKEN_BYTES = 2 * 2 * 2 * 32 * 2
BLOB = CHUNK * TOKEN_BYTES + 120
"""One chunk of KV and its header, about."""

CPU, DISK = "LocalCPUBackend", "LocalDiskBackend"
PLUGINS = PluginRegistry(allow=[])
COSTS: dict[str, Any] = {
    "engines": {"synthetic": {"prefill_token": 0.003, "decode_base": 0.02, "copy_token": 0.0001}},
    "tiers": {
        CPU: {"read_gbps": 0.001, "write_gbps": 0.001, "read_seconds": 0.0005, "write_seconds": 0.001},
        DISK: {"read_gbps": 0.0003, "write_gbps": 0.0001, "read_seconds": 0.004, "write_seconds": 0.01},
    },
    "codecs": {"naive": {}, "fp8": {"ratio": 2.0}},
}
QUICK = settings(deadline=None, suppress_health_check=list(HealthCheck))
ids = itertools.count()


def prompt(symbols: str, tail: int = 1) -> BlockPrompt:
    """One block of a chunk's size per symbol, and ``tail`` tokens of its own. Blocks are known by all before them."""
    blocks = tuple(int.from_bytes(symbols[: end + 1].encode(), "big") for end in range(len(symbols)))
    record = TraceRecord(
        arrival=0.0,
        input_tokens=len(symbols) * CHUNK + tail,
        output_tokens=1,
        block_ids=blocks,
        tail_tokens=tail,
    )
    return BlockPrompt(record, CHUNK, unique=next(ids))


class Broken(logging.Handler):
    """Jobs that failed for a reason that is none: the table that runs them logs what nobody foresaw as an error."""

    def __init__(self) -> None:
        super().__init__(logging.ERROR)
        self.records: list[logging.LogRecord] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.records.append(record)


BROKEN = Broken()
logging.getLogger("lmcache_kit.instance.store.jobs").addHandler(BROKEN)


class World:
    """A fleet whose every decision is checked against what was decided before."""

    def __init__(self, instances: Sequence[dict[str, Any]], costs: dict[str, Any] | None = None, **more: Any) -> None:
        scenario = scenario_from_data(
            {
                "name": "world",
                "clock": "virtual",
                "instance_defaults": {
                    "engine": {"kind": "synthetic", "options": {"num_layers": 2, "num_kv_heads": 2, "head_dim": 32}},
                    "chunk_size": CHUNK,
                    "save_unfull_chunk": False,
                },
                "instances": list(instances),
                "workloads": [{"name": "unused", "kind": "traffic"}],
                "costs": {**COSTS, **(costs or {})},
                **more,
            }
        )
        BROKEN.records.clear()
        self.loop = VirtualLoop()
        self.contents: dict[tuple[str, str], set[str]] = {}
        self.read_on: set[tuple[str, str, str]] = set()
        self.counts: dict[str, int] = {}
        self.fleet = SimFleet(
            scenario,
            PLUGINS,
            load_costs(scenario.costs, Path()),
            self.loop,
            on_event=self.event,
            folder=OutputFolder(Path("nowhere")),
        )
        self.controller = self.fleet.controller

    # --- what is checked at every decision ---

    def event(self, instance: str, event: CacheEvent) -> None:
        self.counts[event.op] = self.counts.get(event.op, 0) + 1
        assert event.time == self.loop.time()
        member, name = self.fleet.members[instance], event.key.name()
        held = self.contents.setdefault((instance, event.location), set())
        assert member.instance.alive, "the dead decide nothing"
        if event.op == "admit":
            assert name not in held
            held.add(name)
        elif event.op == "evict":
            held.remove(name)
            state = next(tier.state for tier in member.tiers if tier.location == event.location)
            if event.cause in ("capacity", "demote"):
                assert state.entries[name].readers == 0, "somebody reads it"
            elif state.entries[name].readers:
                # Cleared or moved away while it is read: whoever reads it has it, and says so afterwards.
                self.read_on.add((instance, event.location, name))
            assert not state.pins.pinned(name), "it is pinned"
        elif event.op != "miss":
            being_read = event.op == "hit" and (instance, event.location, name) in self.read_on
            assert name in held or being_read, f"{event.op} without a put before"
        for tier in member.tiers:
            state = tier.state
            assert state.capacity is None or 0 <= state.held <= state.capacity

    def check_at_rest(self) -> None:
        assert BROKEN.records == []
        core = self.fleet.simulated_controller.core
        for name, member in self.fleet.members.items():
            worker = core.registry.find(name, 0)
            for tier in member.tiers:
                state = tier.state
                listed = {entry.name for entry in state.listed()}
                assert listed == set(state.entries) == self.contents.get((name, tier.location), set())
                assert state.held == sum(entry.nbytes for entry in state.entries.values())
                assert (state.claimed, state.leaving) == (0, 0)
                assert all(entry.readers == 0 and not entry.rewriting for entry in state.entries.values())
                slot = worker.slots.get(tier.location)
                indexed = set() if slot is None else set(core.contents.index.keys(slot))
                assert indexed == {entry.key.hash for entry in state.entries.values()}

    # --- what can be done ---

    def run(self, work: Coroutine[Any, Any, Any]) -> Any:
        try:
            return self.loop.run(work)
        finally:
            self.fleet.close()

    async def ask(self, name: str, tokens: Sequence[int], max_tokens: int = 1) -> Any:
        return await self.fleet.instances[name].client.stream_complete(tokens, max_tokens=max_tokens)

    def facts(self, name: str, prompts: Sequence[Sequence[int]], gap: float = 10.0) -> list[Any]:
        """The answers to prompts that come one after another, each after all of the last one is done."""

        async def work() -> list[Any]:
            found = []
            for tokens in prompts:
                found.append(await self.ask(name, tokens))
                await asyncio.sleep(gap)
            return found

        answers: list[Any] = self.run(work())
        return answers

    async def kill(self, name: str) -> None:
        await self.fleet.kill(name)
        for (instance, _), held in self.contents.items():
            if instance == name:
                held.clear()


SYMBOLS = st.text("ab", min_size=0, max_size=6)
PROMPTS = st.lists(SYMBOLS, min_size=1, max_size=12)


def tiers(*chunks: int | None, policy: str = "lru") -> list[dict[str, Any]]:
    """Memory and then disk, of so many chunks."""
    return [
        {"kind": kind, "eviction": policy, **({} if count is None else {"capacity": count * BLOB})}
        for kind, count in zip(("memory", "disk"), chunks, strict=False)
    ]


# --- anything at any time --------------------------------------------------------------------------------------------

NAMES = st.sampled_from("ab")
PLACES = st.sampled_from([CPU, DISK])
MAYBE = st.one_of(st.none(), SYMBOLS.filter(bool))
ACTIONS = st.one_of(
    st.tuples(st.just("ask"), NAMES, SYMBOLS, st.integers(1, 4)),
    st.tuples(st.just("ask"), NAMES, SYMBOLS, st.integers(1, 4)),
    st.tuples(st.just("ask"), NAMES, SYMBOLS, st.integers(1, 4)),
    st.tuples(st.just("move"), NAMES, PLACES, NAMES, PLACES, MAYBE, st.booleans()),
    st.tuples(st.just("compress"), NAMES, PLACES, MAYBE),
    st.tuples(st.just("decompress"), NAMES, PLACES, MAYBE),
    st.tuples(st.just("pin"), NAMES, PLACES, SYMBOLS.filter(bool), st.sampled_from([None, 0.05, 0.3])),
    st.tuples(st.just("unpin"), NAMES, PLACES),
    st.tuples(st.just("clear"), NAMES, PLACES),
    st.tuples(st.just("lookup"), SYMBOLS),
)
FAULTS = st.one_of(
    st.tuples(st.just("kill"), NAMES, st.sampled_from([0.0, 0.2])),
    st.tuples(st.just("controller"), st.sampled_from([0.0, 0.2])),
    st.tuples(st.just("cut"), st.sampled_from([("a", "b"), ("a", "controller")]), st.sampled_from([0.05, 0.5])),
    st.tuples(st.just("full"), NAMES, PLACES, st.sampled_from([0.05, 0.5])),
)
FLEETS = st.fixed_dictionaries(
    {
        "chunks": st.tuples(st.sampled_from([1, 2, 4, 7, None]), st.sampled_from([2, 5, 9, None])),
        "policy": st.sampled_from(["lru", "lfu", "fifo", "mru", "arc"]),
        "placement": st.sampled_from(["broadcast", "demote", "write_back"]),
        "seqs": st.sampled_from([1, 2, 16]),
        "batched": st.booleans(),
    }
)


def world_of(fleet: dict[str, Any]) -> World:
    engine = {**COSTS["engines"]["synthetic"], "batched": fleet["batched"]}
    shape = {
        "tiers": tiers(*fleet["chunks"], policy=fleet["policy"]),
        "placement": fleet["placement"],
        "max_num_seqs": fleet["seqs"],
    }
    return World(
        [{"id": name, **shape} for name in "ab"],
        {"engines": {"synthetic": engine}, "restart_seconds": 0.1},
        links=[{"between": ["a", "b"], "bandwidth": "400kbps", "latency": "2ms"}],
    )


async def act(world: World, action: tuple[Any, ...]) -> None:
    """Anything may be refused, since what it is about may be gone or down; nothing may go wrong."""
    controller = world.controller
    try:
        match action:
            case "ask", name, symbols, tokens:
                answer = await world.ask(name, prompt(symbols), tokens)
                facts = answer.raw["lmcache_kit"]
                assert answer.ttft_seconds >= facts["load_seconds"] + facts["prefill_seconds"] - 1e-9
                assert answer.seconds >= answer.ttft_seconds
                assert sum(facts["cached_tokens_by_location"].values()) <= len(symbols) * CHUNK
            case "move", source, place, target, other, symbols, copy:
                await controller.move((source, place), (target, other), symbols and prompt(symbols), copy=copy)
            case "compress", name, place, symbols:
                await controller.compress(name, "fp8", place, symbols and prompt(symbols))
            case "decompress", name, place, symbols:
                await controller.decompress(name, "fp8", place, symbols and prompt(symbols))
            case "pin", name, place, symbols, ttl:
                await controller.pin(name, place, prompt(symbols), ttl=ttl)
            case "unpin", name, place:
                await controller.unpin(name, place)
            case "clear", name, place:
                await controller.clear(name, place)
            case "lookup", symbols:
                await controller.lookup(prompt(symbols))
    except (LMCacheKitError, CapacityError, UnavailableError):
        pass


async def befall(world: World, fault: tuple[Any, ...], down: set[str]) -> None:
    fleet = world.fleet
    match fault:
        case "kill", name, wait if name not in down:
            down.add(name)
            await world.kill(name)
            await asyncio.sleep(wait)
            await fleet.restart(name)
            down.discard(name)
        case "controller", wait if "controller" not in down:
            down.add("controller")
            await fleet.kill("controller")
            await asyncio.sleep(wait)
            await fleet.restart("controller")
            down.discard("controller")
        case "cut", ends, span:
            await fleet.cut(*ends)
            await asyncio.sleep(span)
            await fleet.mend(*ends)
        case "full", name, place, span:
            await fleet.fill_tier(name, place)
            await asyncio.sleep(span)
            await fleet.empty_tier(name, place)


PAUSES = st.sampled_from([0.0, 0.0, 0.003, 0.02, 0.1, 1.0])


@settings(QUICK, max_examples=80)
@given(FLEETS, st.lists(st.tuples(PAUSES, ACTIONS), min_size=1, max_size=25))
def test_decisions_make_sense_together(fleet, actions):
    world = world_of(fleet)

    async def work() -> None:
        tasks = []
        for pause, action in actions:
            await asyncio.sleep(pause)
            tasks.append(asyncio.create_task(act(world, action)))
        await asyncio.gather(*tasks)
        await asyncio.sleep(30)
        world.check_at_rest()

    world.run(work())


@settings(QUICK, max_examples=100)
@given(FLEETS, st.lists(st.tuples(PAUSES, st.one_of(ACTIONS, ACTIONS, FAULTS)), min_size=1, max_size=25))
def test_and_still_do_when_things_fail(fleet, actions):
    world = world_of(fleet)

    async def work() -> None:
        world.fleet.simulated_controller.watch()
        tasks, down = [], set()
        for pause, action in actions:
            await asyncio.sleep(pause)
            fault = action[0] in ("kill", "controller", "cut", "full")
            tasks.append(asyncio.create_task(befall(world, action, down) if fault else act(world, action)))
        await asyncio.gather(*tasks)
        await asyncio.sleep(30)
        world.check_at_rest()

    world.run(work())


# --- oracles ---------------------------------------------------------------------------------------------------------


@settings(QUICK, max_examples=40)
@given(PROMPTS)
def test_without_limits_a_prompt_finds_all_that_was_said_before(said):
    world = World([{"id": "a", "tiers": tiers(None)}])
    seen: set[str] = set()
    for symbols, answer in zip(said, world.facts("a", [prompt(symbols) for symbols in said]), strict=True):
        known = max(end for end in range(len(symbols) + 1) if end == 0 or symbols[:end] in seen)
        facts = answer.raw["lmcache_kit"]
        assert sum(facts["cached_tokens_by_location"].values()) == known * CHUNK
        assert facts["stored_tokens"] == (len(symbols) - known) * CHUNK
        seen.update(symbols[:end] for end in range(1, len(symbols) + 1))


def hits(said: Sequence[str], chunks: int) -> list[bool]:
    world = World([{"id": "a", "tiers": tiers(chunks)}])
    answers = world.facts("a", [prompt(symbols) for symbols in said])
    return [answer.usage["prompt_tokens_details"]["cached_tokens"] > 0 for answer in answers]


@settings(QUICK, max_examples=40)
@given(st.lists(st.sampled_from("abcdefgh"), min_size=1, max_size=40), st.integers(1, 7))
def test_a_larger_cache_finds_no_less(said, chunks):
    """LRU, one tier, prompts of one chunk: what a stack of the last ones used says, and so more with more room.

    Not with longer prompts, simulated or real: a save leaves a prompt's front as what was used least recently, and how
    much of a prompt is saved anew depends on the room. (aa, baa, aa, b, aa finds more with 3 chunks than with 4.)
    """
    stack: list[str] = []
    expected, more = [], []
    for symbol in said:
        depth = stack.index(symbol) if symbol in stack else chunks + 1
        expected.append(depth < chunks)
        more.append(depth < chunks + 1)
        if symbol in stack:
            stack.remove(symbol)
        stack.insert(0, symbol)
    assert hits(said, chunks) == expected
    assert hits(said, chunks + 1) == more
    assert sum(more) >= sum(expected)


@settings(QUICK, max_examples=30)
@given(
    PROMPTS,
    st.tuples(st.sampled_from([2, 5, None]), st.sampled_from([3, 9, None])),
    st.sampled_from(["broadcast", "demote", "write_back"]),
    st.lists(st.sampled_from([1.0, 1.5, 10.0]), min_size=4, max_size=4),
    st.sampled_from([CPU, DISK]),
)
def test_a_faster_tier_makes_no_request_wait_longer(said, chunks, placement, factors, which):
    asked = [prompt(symbols) for symbols in said]
    shape = [{"id": "a", "tiers": tiers(*chunks), "placement": placement}]
    slow = COSTS["tiers"][which]
    read, write, reads, writes = factors
    fast = {
        "read_gbps": slow["read_gbps"] * read,
        "write_gbps": slow["write_gbps"] * write,
        "read_seconds": slow["read_seconds"] / reads,
        "write_seconds": slow["write_seconds"] / writes,
    }
    before = World(shape).facts("a", asked)
    after = World(shape, {"tiers": {**COSTS["tiers"], which: fast}}).facts("a", asked)
    for old, new in zip(before, after, strict=True):
        assert new.usage == old.usage, "decisions do not depend on it"
        assert new.ttft_seconds <= old.ttft_seconds + 1e-9
        assert new.seconds <= old.seconds + 1e-9


@settings(QUICK, max_examples=30)
@given(SYMBOLS.filter(bool), st.integers(1, 6), st.sampled_from([CPU, DISK]))
def test_the_first_token_comes_after_the_reload_and_the_prefill(symbols, tail, place):
    kind = {CPU: "memory", DISK: "disk"}[place]
    world = World([{"id": "a", "tiers": [{"kind": kind}]}], {"codecs": {"naive": {"decode_gbps": 0.001}}})
    first, again = world.facts("a", [prompt(symbols), prompt(symbols, tail)])
    tier = COSTS["tiers"][place]
    assert first.raw["lmcache_kit"]["load_seconds"] == pytest.approx(0)
    facts = again.raw["lmcache_kit"]
    kv = len(symbols) * CHUNK * TOKEN_BYTES
    stored = facts["loaded_bytes"]
    reading = len(symbols) * tier["read_seconds"] + stored / (tier["read_gbps"] * 1e9)
    assert reading <= facts["load_seconds"] <= reading + kv / 0.001e9 + 1e-9
    assert facts["prefill_seconds"] == pytest.approx(tail * 0.003)
    assert again.ttft_seconds == pytest.approx(facts["load_seconds"] + facts["prefill_seconds"])


# --- who pays for what -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("count", [1, 2, 5])
def test_loads_at_the_same_time_share_a_tier(count: int) -> None:
    """Each alone takes the same time; together the last one takes as many times that."""
    costs = {"engines": {"synthetic": {}}, "codecs": {"naive": {"decode_gbps": 1e9}}}
    world = World([{"id": "a", "tiers": tiers(None)}], costs)
    said = [chr(ord("a") + place) * 4 for place in range(count)]

    async def work() -> tuple[float, list[float]]:
        for symbols in said:
            await world.ask("a", prompt(symbols))
            await asyncio.sleep(1)
        alone = await world.ask("a", prompt(said[0]))
        await asyncio.sleep(1)
        together = await asyncio.gather(*(world.ask("a", prompt(symbols)) for symbols in said))
        return alone.ttft_seconds, [answer.ttft_seconds for answer in together]

    alone, together = world.run(work())
    assert together == pytest.approx([alone * (place + 1) for place in range(count)], rel=0.01)


@pytest.mark.parametrize("ratio", [1.0, 2.0, 8.0])
def test_a_link_carries_encoded_bytes(ratio: float) -> None:
    world = World(
        [{"id": name, "tiers": tiers(None)} for name in "ab"],
        {"codecs": {"naive": {}, "fp8": {"ratio": ratio}}},
        links=[{"between": ["a", "b"], "bandwidth": "8Mbps"}],
    )

    async def work() -> float:
        await world.ask("a", prompt("abcd"))
        await asyncio.sleep(1)
        packing = await world.controller.compress("a", "fp8", CPU)
        await world.controller.wait_finished(packing["event_id"])
        moving = await world.controller.move(("a", CPU), ("b", CPU))
        state = await world.controller.wait_finished(moving["event_id"])
        assert state["status"] == "done"
        await asyncio.sleep(1)
        world.check_at_rest()
        answer = await world.ask("b", prompt("abcd"))
        facts = answer.raw["lmcache_kit"]
        assert facts["codecs"] == {"fp8": 4}
        assert facts["loaded_kv_bytes"] == 4 * CHUNK * TOKEN_BYTES
        return float(facts["loaded_bytes"])

    loaded = world.run(work())
    (link,) = world.fleet.network.traffic()
    raw = 4 * CHUNK * TOKEN_BYTES
    assert link["bytes"] == loaded
    assert raw / ratio < loaded < raw / ratio + 4 * 120
    assert link["busy_seconds"] == pytest.approx(loaded / 1e6)


@settings(QUICK, max_examples=20)
@given(st.lists(st.tuples(st.sampled_from([0.0, 0.01, 0.2]), SYMBOLS), min_size=2, max_size=12), st.integers(1, 3))
def test_no_more_requests_run_than_may(arrivals, most):
    world = World([{"id": "a", "tiers": tiers(3), "max_num_seqs": most}])
    instance, seen = world.fleet.members["a"].instance, []
    begin = instance._begin

    def watched(request: Any) -> None:
        begin(request)
        seen.append(instance._running)
        assert instance._running <= most

    instance._begin = watched

    async def work() -> None:
        tasks = []
        for pause, symbols in arrivals:
            await asyncio.sleep(pause)
            tasks.append(asyncio.create_task(world.ask("a", prompt(symbols), 3)))
        answers = await asyncio.gather(*tasks)
        assert len(seen) == len(arrivals) == len(answers)
        assert instance._running == 0

    world.run(work())
