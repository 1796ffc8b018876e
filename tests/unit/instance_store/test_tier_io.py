import asyncio
import logging

import pytest

from lmcache_kit.errors import UnavailableError
from lmcache_kit.instance.store.execution import BackgroundQueue, Signal, Work
from lmcache_kit.instance.store.tier_io import TierIO

REMOTE = "RemoteBackend"


@pytest.fixture
def work():
    work = Work(2)
    yield work
    work.close()


def batching(base):
    class Batching(base):
        """Reads several objects in one exchange."""

        short = False

        def __init__(self):
            super().__init__()
            self.exchanges = []

        def get_many(self, names):
            self.exchanges.append(list(names))
            self._called("get_many")
            return [self.objects.get(name) for name in names][1 if self.short else 0 :]

    return Batching()


async def test_reads_that_begin_together_share_an_exchange(lab, work):
    backend = batching(lab.backend)
    backend.objects = {"a": b"1", "b": b"22"}
    io = TierIO([lab.tier(REMOTE, backend=backend)], work)
    assert await asyncio.gather(*[io.get(0, name) for name in "abca"]) == [b"1", b"22", None, b"1"]
    assert backend.exchanges == [["a", "b", "c"]]
    assert await io.get(0, "b") == b"22"
    assert backend.exchanges[1:] == [["b"]]
    assert io.counters[0].bytes_read == 1 + 2 + 1 + 2


async def test_an_exchange_that_fails_fails_each_read(lab, work):
    backend = batching(lab.backend)
    io = TierIO([lab.tier(REMOTE, backend=backend)], work)
    backend.fail = lambda call, name: call == "get_many"
    results = await asyncio.gather(*[io.get(0, name) for name in "ab"], return_exceptions=True)
    assert [type(result) for result in results] == [UnavailableError] * 2
    backend.fail = lambda call, name: False
    backend.short = True
    results = await asyncio.gather(*[io.get(0, name) for name in "ab"], return_exceptions=True)
    assert "gave 1 of 2 objects" in str(results[0])
    assert isinstance(results[1], UnavailableError)


async def test_a_cancelled_read_leaves_the_others(lab, work):
    backend = batching(lab.backend)
    backend.objects = {"a": b"1", "b": b"2"}
    io = TierIO([lab.tier(REMOTE, backend=backend)], work)
    first, second = (asyncio.create_task(io.get(0, name)) for name in "ab")
    await asyncio.sleep(0)
    first.cancel()
    assert await second == b"2"
    with pytest.raises(asyncio.CancelledError):
        await first


async def test_a_store_loads_through_exchanges(lab, tokens):
    backend = batching(lab.backend)
    store = lab.store(lab.tier(REMOTE, backend=backend))
    kv = lab.kv(20)
    await store.save(tokens, kv)
    loaded = await store.load_prefix(tokens)
    assert bytes(loaded.kv.tobytes_view()) == bytes(kv.tobytes_view())
    assert backend.count("get") == 0
    assert len(backend.exchanges) == 1
    lab.check(store)


async def test_a_read_does_not_join_one_from_before_a_write(lab, work):
    tier = lab.tier(REMOTE)
    tier.backend.objects["a"] = b"old"
    io = TierIO([tier], work)
    gate = tier.backend.shut("get")
    early = asyncio.create_task(io.get(0, "a"))
    await tier.backend.called("get")
    await io.put(0, "a", b"new")
    late = asyncio.create_task(io.get(0, "a"))
    gate.set()
    await early
    assert await late == b"new"
    assert tier.backend.count("get") == 2


async def test_a_store_that_is_down_is_news_once(lab, work, caplog):
    tier = lab.tier(REMOTE)
    io = TierIO([tier], work)
    tier.backend.fail = lambda call, name: True
    with caplog.at_level(logging.WARNING):
        for _ in range(3):
            with pytest.raises(UnavailableError, match="RemoteBackend failed: get was told to fail"):
                await io.get(0, "a")
        assert len(caplog.records) == 1
        tier.backend.fail = lambda call, name: False
        await io.get(0, "a")
        tier.backend.fail = lambda call, name: True
        with pytest.raises(UnavailableError):
            await io.size(0, "a")
        assert len(caplog.records) == 2
    assert io.counters[0].unavailable == 4


async def test_close_goes_on_after_a_backend_that_fails(lab, work):
    tiers = [lab.tier("A"), lab.tier("B")]

    def close():
        raise RuntimeError("no")

    tiers[0].backend.close = close
    await TierIO(tiers, work).close()
    assert tiers[1].backend.closed


async def test_a_full_background_queue_drops_and_a_failure_does_not_stop_it(caplog):
    queue, done = BackgroundQueue(limit=2), []

    async def fail():
        raise ValueError("x")

    async def work():
        done.append(1)

    assert queue.add(fail)
    assert queue.add(work)
    assert not queue.add(work)
    await queue.idle()
    assert (done, queue.dropped) == ([1], 1)
    assert "background work failed" in caplog.text
    assert queue.add(work)
    await queue.idle()
    assert done == [1, 1]


async def test_a_signal_wakes_everybody_once():
    signal, woken = Signal(), []

    async def wait(name):
        await signal.wait()
        woken.append(name)

    tasks = [asyncio.create_task(wait(name)) for name in "ab"]
    await asyncio.sleep(0)
    tasks[0].cancel()
    signal.notify()
    signal.notify()
    await asyncio.gather(*tasks, return_exceptions=True)
    assert woken == ["b"]


async def test_work_ends_when_its_waiter_is_cancelled(work):
    done = []

    async def two_steps():
        await work.call(done.append, 1)
        await work.call(done.append, 2)

    waiter = asyncio.create_task(work.finish(two_steps()))
    await asyncio.sleep(0)
    waiter.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiter
    await work.drain()
    assert done == [1, 2]
