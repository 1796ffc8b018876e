"""Invariants of simulated fleets that other simulators were found to break: room, memory, host time, the index."""

from __future__ import annotations

import asyncio
import importlib.util
import sys
import time
from pathlib import Path
from types import ModuleType
from typing import Any

from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st


def _load(name: str) -> ModuleType:
    """The tests are no package: the world of simulated fleets is in the file beside this one."""
    spec = importlib.util.spec_from_file_location(f"{__name__}_{name}", Path(__file__).with_name(f"{name}.py"))
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


fleets = _load("test_fleet_properties")
CHUNK, CPU, DISK = fleets.CHUNK, fleets.CPU, fleets.DISK
QUICK = settings(deadline=None, suppress_health_check=list(HealthCheck))
SAID = st.lists(st.text("ab", min_size=0, max_size=4), min_size=1, max_size=12)
POLICIES = st.sampled_from(["lru", "lfu", "fifo", "mru", "arc"])
PLACEMENTS = st.sampled_from(["broadcast", "demote", "write_back"])


class Watched(fleets.World):
    """Keeps what happened, and takes real time over some of it."""

    def __init__(self, *args: Any, pauses: Any = ()) -> None:
        self.happened: list[tuple[Any, ...]] = []
        self.pauses = pauses
        super().__init__(*args)

    def event(self, instance: str, event: Any) -> None:
        if len(self.happened) in self.pauses:
            time.sleep(0.002)
        self.happened.append((event.time, event.op, event.location, event.key.name(), event.nbytes, event.cause))
        super().event(instance, event)


def world(*chunks: int | None, policy: str = "lru", placement: str = "demote", **more: Any) -> Any:
    shape = {"tiers": fleets.tiers(*chunks, policy=policy), "placement": placement}
    return Watched([{"id": "a", **shape}], **more)


def ask_all(a_world: Any, said: list[str]) -> list[Any]:
    return a_world.facts("a", [fleets.prompt(symbols) for symbols in said])


def cached(answer: Any) -> int:
    return answer.usage["prompt_tokens_details"]["cached_tokens"]


def trie_hits(said: list[str]) -> list[int]:
    """Tokens that each prompt finds when nothing is ever forgotten: a walk down a trie of what was said."""
    root: dict[str, Any] = {}
    found = []
    for symbols in said:
        node, depth = root, 0
        for symbol in symbols:
            if symbol not in node:
                break
            node, depth = node[symbol], depth + 1
        found.append(depth * CHUNK)
        node = root
        for symbol in symbols:
            node = node.setdefault(symbol, {})
    return found


@settings(QUICK, max_examples=40)
@given(SAID, st.sampled_from([0, 1, 2, 5]), POLICIES, st.sampled_from(["demote", "write_back"]))
def test_nothing_is_lost_while_the_last_tier_has_room(said, chunks, policy, placement):
    """The rest of a prompt that is larger than the first tier goes to the last one at once."""
    answers = ask_all(world(chunks, None, policy=policy, placement=placement), said)
    assert [cached(answer) for answer in answers] == trie_hits(said)


@settings(QUICK, max_examples=30)
@given(SAID, st.sampled_from([1, 2, 5]), POLICIES, PLACEMENTS)
def test_a_tier_without_a_limit_answers_no_later_than_any_other(said, chunks, policy, placement):
    limited = ask_all(world(chunks, policy=policy, placement=placement), said)
    unlimited = ask_all(world(None, policy=policy, placement=placement), said)
    for less, more in zip(limited, unlimited, strict=True):
        assert cached(more) >= cached(less)
        # A chunk is read from memory sooner than it is computed, by the costs of these tests.
        assert more.ttft_seconds <= less.ttft_seconds + 1e-9
        assert more.seconds <= less.seconds + 1e-9


@settings(QUICK, max_examples=60)
@example(["aa", "baa", "aa", "b", "aa"], 3, 1)
@given(st.lists(st.text("abcd", min_size=1, max_size=4), min_size=1, max_size=30), st.integers(1, 6), st.integers(1, 3))
def test_more_room_answers_no_later(said, chunks, more):
    """For LRU and prompts that fit: each request moves all of its chunks up, the front last, whether they hit or not,
    so a tier holds the top of one stack, as deep as it has room."""
    said = [symbols[:chunks] for symbols in said]
    small, large = ask_all(world(chunks), said), ask_all(world(chunks + more), said)
    for before, after in zip(small, large, strict=True):
        assert after.ttft_seconds <= before.ttft_seconds + 1e-9


@settings(QUICK, max_examples=15)
@given(SAID, st.sampled_from([2, 5, None]), POLICIES, PLACEMENTS, st.sets(st.integers(0, 20), max_size=6))
def test_a_slow_host_changes_nothing(said, chunks, policy, placement, pauses):
    """Time that the machine takes must not leak into virtual time."""

    def record(*pauses: int) -> tuple[list[Any], list[Any]]:
        a_world = world(chunks, 3, policy=policy, placement=placement, pauses=pauses)
        answers = ask_all(a_world, said)
        return a_world.happened, [(answer.ttft_seconds, answer.seconds, cached(answer)) for answer in answers]

    events, answers = record(*pauses)
    assert (events, answers) == record()
    assert len([event for event in events if event[1] == "miss"]) <= len(said)


@settings(QUICK, max_examples=40)
@given(
    fleets.FLEETS,
    st.lists(st.tuples(fleets.PAUSES, st.one_of(fleets.ACTIONS, fleets.ACTIONS, fleets.FAULTS)), max_size=20),
    st.lists(fleets.SYMBOLS, min_size=1, max_size=6),
)
def test_lookups_are_the_tries_of_what_was_announced(fleet, actions, asked):
    """The controller's answers, once all is quiet, against tries made from the instances' own events."""
    a_world = fleets.world_of(fleet)
    core = a_world.fleet.simulated_controller

    async def work() -> None:
        core.watch()
        tasks, down = [], set()
        for pause, action in actions:
            await asyncio.sleep(pause)
            fault = action[0] in ("kill", "controller", "cut", "full")
            work = fleets.befall(a_world, action, down) if fault else fleets.act(a_world, action)
            tasks.append(asyncio.create_task(work))
        await asyncio.gather(*tasks)
        await asyncio.sleep(30)
        for symbols in asked:
            tokens = fleets.prompt(symbols)
            found = a_world.fleet.simulated_controller.core.lookup(tokens)
            for name in "ab":
                each = {place: depth(a_world, name, [place], symbols) for place in (CPU, DISK)}
                assert found.holders.get(name, {}) == {place: n for place, n in each.items() if n}
                assert found.prefix.get(name, 0) == depth(a_world, name, [CPU, DISK], symbols)

    a_world.run(work())


def depth(a_world: Any, name: str, places: list[str], symbols: str) -> int:
    """Tokens of the prefix whose chunks were all announced as admitted, and not as evicted, in one of the places."""
    held = {one.rpartition(".")[2] for place in places for one in a_world.contents.get((name, place), ())}
    end = 0
    for stop, identity in fleets.prompt(symbols).chunks(CHUNK, partial=False):
        if f"{identity:x}" not in held:
            break
        end = stop
    return end


@settings(QUICK, max_examples=60)
@given(st.lists(st.text("abc", min_size=1, max_size=5), min_size=1, max_size=20), st.integers(1, 8))
def test_lru_holds_no_chunk_without_those_in_front_of_it(said, chunks):
    """Also of prompts that do not fit: a chunk without its prefix would take room and serve nobody."""
    a_world = world(chunks)
    store = a_world.fleet.members["a"].instance.store
    for symbols in said:
        ask_all(a_world, [symbols])
        for other in said:
            held = [bool(store.core.holders(chunk.name)) for chunk in store.chunks(fleets.prompt(other))]
            assert held == sorted(held, reverse=True), f"after {symbols!r}, of {other!r}"
