import asyncio

import pytest

from lmcache_kit.clock import ManualClock
from lmcache_kit.errors import CapacityError, ConflictError, NotFoundError
from lmcache_kit.instance.store.jobs import JobTable


async def test_jobs_run_in_order_and_one_at_a_time():
    clock, seen = ManualClock(), []
    table = JobTable(clock)

    def work(name):
        async def run(job):
            seen.append((name, table.get("1").status, table.get("2").status))
            clock.advance(2)
            await asyncio.sleep(0)
            job.add(tokens=4, before=100, after=25)

        return run

    assert table.add("1", 4, work("1")).status == "queued"
    assert table.add("2", 8, work("2")).status == "queued"
    await table.idle()
    assert seen == [("1", "running", "queued"), ("2", "done", "running")]
    info = table.get("2")
    assert (info.num_tokens, info.tokens_done, info.ratio, info.seconds, info.error) == (8, 4, 4.0, 2.0, None)
    assert table.counts() == {"queued": 0, "running": 0, "done": 2, "failed": 0}


@pytest.mark.parametrize(
    ("error", "text"),
    [
        (CapacityError("no room", hint="clear it"), "no room (clear it)"),
        (ZeroDivisionError("x"), "ZeroDivisionError: x"),
    ],
)
async def test_a_job_that_raises_is_failed_and_the_next_one_runs(error, text):
    table = JobTable(ManualClock())

    async def bad(job):
        raise error

    async def good(job):
        pass

    table.add("bad", 1, bad)
    table.add("good", 1, good)
    await table.idle()
    assert (table.get("bad").status, table.get("bad").error) == ("failed", text)
    assert table.get("good").status == "done"
    assert table.get("good").ratio is None


async def test_retention_is_bounded_and_never_forgets_what_runs():
    table = JobTable(ManualClock(), keep=3)
    gate = asyncio.Event()

    async def wait(job):
        await gate.wait()

    async def run(job):
        pass

    table.add("first", 1, wait)
    for number in range(5):
        table.add(str(number), 1, run)
    await asyncio.sleep(0)
    assert table.get("first").status == "running"
    assert [table.get(str(number)).status for number in range(5)] == ["queued"] * 5
    gate.set()
    await table.idle()
    table.add("last", 1, run)
    await table.idle()
    with pytest.raises(NotFoundError, match="unknown event 'first'"):
        table.get("first")
    assert table.get("last").status == "done"
    assert sum(table.counts().values()) == 3


async def test_an_event_id_names_one_job():
    table = JobTable(ManualClock())

    async def run(job):
        pass

    table.add("x", 1, run)
    with pytest.raises(ConflictError, match="already names a job"):
        table.add("x", 1, run)
    await table.idle()
