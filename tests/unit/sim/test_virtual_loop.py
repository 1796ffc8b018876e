"""The event loop of virtual time: order, asyncio on it, and what it refuses."""

from __future__ import annotations

import asyncio
import gc
import itertools
import random
import socket
import sys

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lmcache_kit.errors import LMCacheKitError
from lmcache_kit.sim.loop import VirtualClock, VirtualLoop


def run(work):
    loop = VirtualLoop()
    return loop, loop.run(work)


# --- order -----------------------------------------------------------------------------------------------------------


@settings(max_examples=100)
@given(st.lists(st.tuples(st.sampled_from([0.0, 1.0, 1.5, 2.0, -1.0]), st.booleans()), max_size=40))
def test_what_is_due_happens_by_time_and_then_by_order_of_asking(asked):
    loop, seen = VirtualLoop(), []

    async def work():
        for place, (when, by_handle) in enumerate(asked):
            if by_handle:
                loop.call_at(when, lambda place=place: seen.append((loop.time(), place)))
            else:
                loop.at(when, lambda place: seen.append((loop.time(), place)), place)
        await asyncio.sleep(10)

    loop.run(work())
    expected = sorted((max(when, 0.0), place) for place, (when, _) in enumerate(asked))
    assert seen == expected


@settings(max_examples=50)
@given(st.lists(st.floats(0, 100), min_size=1, max_size=30))
def test_many_sleepers_wake_exactly_when_they_asked(pauses):
    loop, woken = VirtualLoop(), []

    async def sleeper(place, pause):
        await asyncio.sleep(pause)
        woken.append((loop.time(), place))

    async def work():
        await asyncio.gather(*(sleeper(place, pause) for place, pause in enumerate(pauses)))

    loop.run(work())
    # sleep(0) only lets others go first, so it may be done before a pause of 0 that was asked for earlier.
    assert sorted(woken) == sorted((pause, place) for place, pause in enumerate(pauses))
    assert [time for time, _ in woken] == sorted(pauses)


def test_time_never_goes_back():
    loop, times = VirtualLoop(), []
    rng = random.Random(1)

    def again(left):
        times.append(loop.time())
        if left:
            loop.at(loop.time() + rng.uniform(-1, 1), again, left - 1)

    async def work():
        for _ in range(5):
            loop.after(rng.random(), again, 20)
        await asyncio.sleep(1000)

    loop.run(work())
    assert len(times) == 105
    assert times == sorted(times)


def test_what_is_ready_goes_before_time_passes():
    loop, seen = VirtualLoop(), []

    async def work():
        loop.at(0.0, seen.append, "due")
        loop.call_soon(seen.append, "soon")
        loop.call_soon(loop.call_soon, seen.append, "soon after")
        await asyncio.sleep(1)

    loop.run(work())
    assert seen == ["soon", "soon after", "due"]


def test_two_runs_are_alike():
    def once():
        loop, seen = VirtualLoop(), []
        rng = random.Random(7)

        async def worker(name, slots):
            for step in range(5):
                async with slots:
                    await asyncio.sleep(rng.choice([0, 0.5, 1]))
                    seen.append((loop.time(), name, step))

        async def work():
            slots = asyncio.Semaphore(2)
            async with asyncio.TaskGroup() as group:
                for name in range(6):
                    group.create_task(worker(name, slots))

        loop.run(work())
        return seen

    assert once() == once()


# --- cancelling ------------------------------------------------------------------------------------------------------


def test_a_cancelled_call_never_happens():
    loop, seen = VirtualLoop(), []

    async def work():
        handles = [loop.call_later(1, seen.append, place) for place in range(3)]
        soon = loop.call_soon(seen.append, "soon")
        handles[1].cancel()
        soon.cancel()
        assert handles[1].cancelled()
        await asyncio.sleep(2)

    loop.run(work())
    assert seen == [0, 2]


def test_a_cancelled_task_can_clean_up():
    loop, seen = VirtualLoop(), []

    async def sleeper():
        try:
            await asyncio.sleep(100)
        except asyncio.CancelledError:
            seen.append(loop.time())
            raise

    async def work():
        task = asyncio.create_task(sleeper())
        await asyncio.sleep(3)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        return task.cancelled()

    assert loop.run(work())
    assert seen == [3]
    assert loop.time() == 3


def test_a_cancelled_deadline_takes_no_time():
    loop = VirtualLoop()

    async def work():
        async with asyncio.timeout(100):
            await asyncio.sleep(1)
        await asyncio.sleep(1)

    loop.run(work())
    assert loop.time() == 2


# --- asyncio ---------------------------------------------------------------------------------------------------------


def test_the_clock_and_asyncio_see_one_time():
    loop = VirtualLoop()
    clock = VirtualClock(loop)

    async def work():
        assert asyncio.get_running_loop() is loop
        assert loop.is_running()
        await asyncio.sleep(2.5)
        assert clock.now() == clock.unix() == loop.time() == asyncio.get_running_loop().time() == 2.5

    loop.run(work())
    assert not loop.is_running()


def test_wait_for_and_timeout_end_at_their_time():
    async def work():
        loop = asyncio.get_running_loop()
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(asyncio.sleep(10), 2)
        assert loop.time() == 2
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(3):
                await asyncio.Event().wait()
        assert loop.time() == 5
        assert await asyncio.wait_for(asyncio.sleep(1, "value"), 2) == "value"
        done, pending = await asyncio.wait(
            [asyncio.ensure_future(asyncio.sleep(pause)) for pause in (1, 2, 9)], timeout=2.5
        )
        assert (len(done), len(pending)) == (2, 1)
        for task in pending:
            task.cancel()
        assert loop.time() == 8.5

    run(work())


def test_a_group_fails_as_one():
    async def fails():
        await asyncio.sleep(1)
        raise ValueError("one of them")

    async def work():
        others = []

        async def together():
            async with asyncio.TaskGroup() as group:
                group.create_task(fails())
                others.append(group.create_task(asyncio.sleep(50)))

        with pytest.raises(ExceptionGroup) as caught:
            await together()
        assert others[0].cancelled()
        assert asyncio.get_running_loop().time() == 1
        return caught.value.exceptions[0]

    assert str(run(work())[1]) == "one of them"


def test_semaphores_events_queues_and_conditions_work():
    async def work():
        loop = asyncio.get_running_loop()
        slots, flag, queue, condition = asyncio.Semaphore(2), asyncio.Event(), asyncio.Queue(), asyncio.Condition()

        async def one(name):
            async with slots:
                await asyncio.sleep(1)
                await queue.put((loop.time(), name))

        tasks = [asyncio.create_task(one(name)) for name in "abcd"]
        got = [await queue.get() for _ in tasks]
        assert got == [(1, "a"), (1, "b"), (2, "c"), (2, "d")]
        loop.call_later(1, flag.set)
        await flag.wait()

        async def tell():
            await asyncio.sleep(1)
            async with condition:
                condition.notify_all()

        told = asyncio.create_task(tell())
        async with condition:
            await condition.wait()
        await told
        return loop.time()

    assert run(work())[1] == 4


def test_tasks_have_their_own_context():
    import contextvars

    name = contextvars.ContextVar("name", default="outside")

    async def work():
        async def one(value):
            name.set(value)
            await asyncio.sleep(1)
            return name.get()

        assert await asyncio.gather(one("a"), one("b")) == ["a", "b"]
        assert name.get() == "outside"

    run(work())


def test_the_result_and_the_error_of_the_work_come_out():
    async def fails():
        await asyncio.sleep(1)
        raise KeyError("it")

    with pytest.raises(KeyError):
        VirtualLoop().run(fails())

    async def succeeds():
        return 5

    assert VirtualLoop().run(succeeds()) == 5


def test_another_loop_can_run_afterwards():
    for failing in (True, False, True):

        async def work(failing=failing):
            if failing:
                raise ValueError

        if failing:
            with pytest.raises(ValueError):
                VirtualLoop().run(work())
        else:
            VirtualLoop().run(work())

    async def plain():
        return asyncio.get_running_loop()

    assert not isinstance(asyncio.run(plain()), VirtualLoop)


# --- failures --------------------------------------------------------------------------------------------------------


def test_a_task_that_nobody_waits_for_does_not_fail_in_silence():
    async def fails():
        await asyncio.sleep(1)
        raise ValueError("in the background")

    async def work():
        asyncio.get_running_loop().create_task(fails())
        await asyncio.sleep(100)

    loop = VirtualLoop()
    with pytest.raises(ValueError, match="in the background"):
        loop.run(work())
    assert loop.time() == 1


@pytest.mark.parametrize("how", ["at", "call_soon", "call_later"])
def test_a_call_that_fails_ends_the_run(how):
    loop = VirtualLoop()

    def fails():
        raise ValueError("in a call")

    async def work():
        if how == "at":
            loop.at(1, fails)
        elif how == "call_soon":
            loop.call_soon(fails)
        else:
            loop.call_later(1, fails)
        await asyncio.sleep(100)

    with pytest.raises(ValueError, match="in a call"):
        loop.run(work())
    assert not loop.is_running()


@pytest.mark.parametrize("waits", ["future", "event", "lock", "queue"])
def test_waiting_for_what_never_happens_is_an_error(waits):
    async def work():
        await asyncio.sleep(3)
        if waits == "future":
            await asyncio.get_running_loop().create_future()
        elif waits == "event":
            await asyncio.Event().wait()
        elif waits == "lock":
            lock = asyncio.Lock()
            await lock.acquire()
            await lock.acquire()
        else:
            await asyncio.Queue().get()

    loop = VirtualLoop()
    with pytest.raises(LMCacheKitError, match="never happens"):
        loop.run(work())
    assert loop.time() == 3


def test_an_endless_pause_never_ends():
    async def work():
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(asyncio.sleep(float("inf")), 5)
        async with asyncio.timeout(float("inf")):
            await asyncio.sleep(1)
        await asyncio.sleep(float("inf"))

    loop = VirtualLoop()
    with pytest.raises(LMCacheKitError, match="never happens"):
        loop.run(work())
    assert loop.time() == 6


def test_a_pause_of_no_number_is_refused():
    async def work():
        await asyncio.sleep(float("nan"))

    with pytest.raises((LMCacheKitError, ValueError)):  # ValueError from asyncio itself, in later versions of Python
        VirtualLoop().run(work())


def test_work_is_told_when_the_run_fails():
    seen = []

    async def work():
        try:
            await asyncio.Event().wait()
        finally:
            seen.append("cleaned up")

    with pytest.raises(LMCacheKitError, match="never happens"):
        VirtualLoop().run(work())
    assert seen == ["cleaned up"]


# --- what there is not -----------------------------------------------------------------------------------------------


async def _connection():
    await asyncio.open_connection("127.0.0.1", 1)


async def _server():
    await asyncio.start_server(lambda reader, writer: None, "127.0.0.1", 0)


async def _process():
    await asyncio.create_subprocess_exec(sys.executable, "-c", "")


async def _shell():
    await asyncio.create_subprocess_shell("true")


async def _thread():
    await asyncio.to_thread(print)


async def _executor():
    await asyncio.get_running_loop().run_in_executor(None, print)


async def _name():
    await asyncio.get_running_loop().getaddrinfo("localhost", 80)


async def _socket():
    with socket.socket() as one:
        one.setblocking(False)
        await asyncio.get_running_loop().sock_recv(one, 1)


async def _reader():
    with socket.socket() as one:
        asyncio.get_running_loop().add_reader(one, print)


async def _signal():
    asyncio.get_running_loop().add_signal_handler(10, print)


async def _threadsafe():
    asyncio.get_running_loop().call_soon_threadsafe(print)


@pytest.mark.parametrize(
    "work",
    [_connection, _server, _process, _shell, _thread, _executor, _name, _socket, _reader, _signal, _threadsafe],
    ids=lambda work: work.__name__.strip("_"),
)
def test_what_virtual_time_has_not_is_refused_by_name(work):
    with pytest.raises(LMCacheKitError, match="under the virtual clock"):
        VirtualLoop().run(work())


def test_loops_are_not_nested():
    async def inner():
        return 1

    async def work():
        VirtualLoop().run(inner())

    with pytest.raises(RuntimeError, match="inside another"):
        VirtualLoop().run(work())

    async def outside():
        with pytest.raises(RuntimeError, match="inside another"):
            VirtualLoop().run(inner())

    asyncio.run(outside())
    gc.collect()  # the refused work is closed: a coroutine that was never awaited would be a warning here


def test_tasks_left_behind_do_not_go_on():
    seen = []

    async def ticker():
        for number in itertools.count():
            seen.append(number)
            await asyncio.sleep(1)

    async def work():
        task = asyncio.create_task(ticker())
        await asyncio.sleep(2.5)
        return task

    loop, task = run(work())
    assert seen == [0, 1, 2]
    assert not task.done()
    task.cancel()
    loop._drain()
