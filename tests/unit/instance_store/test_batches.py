"""Calls that share a thread's turn: grouping, order, and failures that stay with their own call."""

from __future__ import annotations

import asyncio
import threading
from itertools import pairwise

import pytest

from lmcache_kit.instance.store.execution import Batches, Work


class CountingWork(Work):
    """Counts turns."""

    turns = 0

    async def call(self, function, *args):
        self.turns += 1
        return await super().call(function, *args)


@pytest.fixture
def work():
    made = CountingWork(2)
    yield made
    made.close()


async def test_small_calls_share_a_turn_and_keep_their_results(work):
    batches = Batches(work, least_bytes=100)
    found = await asyncio.gather(*(batches.call(1, pow, 2, number) for number in range(20)))
    assert found == [2**number for number in range(20)]
    assert work.turns == 1


async def test_large_calls_have_turns_of_their_own(work):
    batches = Batches(work, least_bytes=100)
    await asyncio.gather(*(batches.call(1000, int) for _ in range(7)))
    assert work.turns == 7


async def test_turns_are_as_many_as_the_bytes_are_worth_and_hold_neighbours(work):
    batches = Batches(work, least_bytes=100)
    places = await asyncio.gather(*(batches.call(30, threading.get_ident) for _ in range(11)))
    assert work.turns == 3
    assert sum(before != after for before, after in pairwise(places)) <= 2


async def test_calls_of_later_moments_start_again(work):
    batches = Batches(work, least_bytes=100)
    assert [await batches.call(1, abs, -number) for number in range(3)] == [0, 1, 2]
    assert work.turns == 3


async def test_a_failure_is_its_callers_alone(work):
    batches = Batches(work, least_bytes=100)
    found = await asyncio.gather(*(batches.call(1, divmod, 6, n) for n in (1, 0, 2)), return_exceptions=True)
    assert found[0] == (6, 0)
    assert isinstance(found[1], ZeroDivisionError)
    assert found[2] == (3, 0)


async def test_a_caller_that_leaves_takes_nobody_along(work):
    batches = Batches(work, least_bytes=100)
    gate = threading.Event()
    leaving = asyncio.create_task(batches.call(1, gate.wait, 30))
    staying = asyncio.create_task(batches.call(1, int, "7"))
    await asyncio.sleep(0)
    leaving.cancel()
    await asyncio.sleep(0.01)
    gate.set()
    assert await staying == 7
    assert leaving.cancelled()


async def test_closed_threads_are_an_error_for_every_caller():
    work = Work(1)
    work.close()
    batches = Batches(work)
    found = await asyncio.gather(batches.call(1, int), batches.call(1, int), return_exceptions=True)
    assert [type(error) for error in found] == [RuntimeError, RuntimeError]
