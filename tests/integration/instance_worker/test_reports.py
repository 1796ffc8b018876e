"""What the controller hears of the contents: changes in order, full syncs that survive losses."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from lmcache_kit.instance.worker import full_sync, reporting
from lmcache_kit.instance.worker import worker as worker_module
from lmcache_kit.messages import (
    BatchedKVOperationMsg,
    ErrorMsg,
    FullSyncBatchMsg,
    FullSyncEndMsg,
    FullSyncStartMsg,
    FullSyncStartRetMsg,
)

CPU, DISK = "LocalCPUBackend", "LocalDiskBackend"


async def test_changes_arrive_in_order_and_counted_per_location(
    controllers: Any, workers: Any, until: Any, store: Any
) -> None:
    controller = controllers()
    worker = await workers(controller.pull_port, controller.reply_port)
    await until(lambda: worker.reporting.synced.is_set())
    for key in range(200):
        store.change("admit", CPU, key)
        if key % 3 == 0:
            store.change("admit", DISK, -key)
        if key % 2:
            store.change("evict", CPU, key)
    await until(lambda: controller.index[CPU] == set(range(0, 200, 2)))
    await until(lambda: controller.index[DISK] == {-key for key in range(0, 200, 3)})
    assert controller.numbers[CPU] == list(range(300))
    assert controller.numbers[DISK] == list(range(67))
    batches = controller.of(BatchedKVOperationMsg)
    assert all(len(batch.operations) <= 50 for batch in batches)
    assert worker.stats()["reported_operations"] == 367


async def test_few_changes_leave_soon(controllers: Any, workers: Any, until: Any, store: Any) -> None:
    controller = controllers()
    worker = await workers(controller.pull_port, controller.reply_port)
    await until(lambda: worker.reporting.synced.is_set())
    store.change("admit", CPU, 2**64 - 1)
    store.change("admit", CPU, -(2**63))
    await until(lambda: controller.index[CPU] == {2**64 - 1, -(2**63)})


async def test_a_sync_has_batches_of_two_thousand(controllers: Any, workers: Any, until: Any, store: Any) -> None:
    for key in range(4500):
        store.change("admit", CPU, key)
    controller = controllers()
    worker = await workers(controller.pull_port, controller.reply_port)
    await until(lambda: worker.reporting.synced.is_set())
    assert controller.index[CPU] == set(range(4500))
    starts = {message.location: message for message in controller.of(FullSyncStartMsg)}
    assert (starts[CPU].total_keys, starts[CPU].batch_count) == (4500, 3)
    assert (starts[DISK].total_keys, starts[DISK].batch_count) == (0, 1)
    batches = [message for message in controller.of(FullSyncBatchMsg) if message.location == CPU]
    assert [(message.batch_id, len(message.keys)) for message in batches] == [(0, 2000), (1, 2000), (2, 500)]
    assert [message.actual_total_keys for message in controller.of(FullSyncEndMsg)] == [4500, 0]


async def test_lost_batches_are_sent_again(controllers: Any, workers: Any, until: Any, store: Any) -> None:
    for key in range(9000):
        store.change("admit", CPU, key)
    controller = controllers()
    lost: set[int] = set()

    def lose(message: Any) -> bool:
        if isinstance(message, FullSyncBatchMsg) and message.batch_id in (1, 3) and message.batch_id not in lost:
            lost.add(message.batch_id)
            return True
        return False

    controller.lose = lose
    worker = await workers(controller.pull_port, controller.reply_port)
    await until(lambda: worker.reporting.synced.is_set())
    assert lost == {1, 3}
    assert controller.index[CPU] == set(range(9000))
    assert len(controller.of(FullSyncStartMsg)) == 2


async def test_a_lost_end_is_sent_again(controllers: Any, workers: Any, until: Any, store: Any) -> None:
    store.change("admit", CPU, 1)
    controller = controllers()
    lost: list[Any] = []

    def lose(message: Any) -> bool:
        if isinstance(message, FullSyncEndMsg) and not lost:
            lost.append(message)
            return True
        return False

    controller.lose = lose
    worker = await workers(controller.pull_port, controller.reply_port)
    await until(lambda: worker.reporting.synced.is_set())
    assert controller.index[CPU] == {1}


async def test_changes_during_a_sync_come_after_it(controllers: Any, workers: Any, until: Any, store: Any) -> None:
    for key in range(100):
        store.change("admit", CPU, key)
    controller = controllers()
    seen: list[Any] = []

    def answer(message: Any) -> Any:
        if isinstance(message, FullSyncStartMsg) and message.location == CPU and not seen:
            seen.append(message)
            for key in range(50):  # while the sync runs
                store.change("evict", CPU, key)
            store.change("admit", CPU, 1000)
        return None

    controller.answer = answer
    worker = await workers(controller.pull_port, controller.reply_port)
    await until(lambda: worker.reporting.synced.is_set())
    await until(lambda: controller.index[CPU] == {*range(50, 100), 1000})
    kinds = [type(message) for message in controller.received]
    assert kinds.index(BatchedKVOperationMsg) > kinds.index(FullSyncEndMsg)


@pytest.mark.parametrize("refusal", ["refused", "error"])
async def test_without_full_sync_everything_goes_as_plain_admissions(
    controllers: Any, workers: Any, until: Any, store: Any, refusal: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reporting, "SYNC_RETRY_SECONDS", 0.001)
    for key in range(3000):
        store.change("admit", CPU, key)
    controller = controllers()

    def answer(message: Any) -> Any:
        if not isinstance(message, FullSyncStartMsg):
            return None
        if refusal == "error":
            return ErrorMsg(error="unknown message")
        return FullSyncStartRetMsg(sync_id=message.sync_id, accepted=False, error_msg="not now")

    controller.answer = answer
    worker = await workers(controller.pull_port, controller.reply_port)
    await until(lambda: controller.index[CPU] == set(range(3000)))
    await until(lambda: worker.reporting.synced.is_set())
    store.change("evict", CPU, 0)
    await until(lambda: 0 not in controller.index[CPU])
    assert len(controller.of(FullSyncStartMsg)) == reporting.SYNC_TRIES


async def test_a_sync_that_the_controller_lost_track_of_is_begun_again(
    controllers: Any, workers: Any, until: Any, store: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(full_sync, "_SLOWEST_POLL", 0.02)
    store.change("admit", CPU, 1)
    controller = controllers()
    forgotten: list[Any] = []

    def lose(message: Any) -> bool:
        if isinstance(message, FullSyncEndMsg) and not forgotten:
            forgotten.append(message)
            controller.syncs.clear()
            return True
        return False

    controller.lose = lose
    worker = await workers(controller.pull_port, controller.reply_port)
    await until(lambda: worker.reporting.synced.is_set())
    assert controller.index[CPU] == {1}


async def test_too_many_changes_while_the_controller_is_away_become_a_sync(
    controllers: Any, workers: Any, until: Any, store: Any
) -> None:
    first = controllers()
    worker = await workers(
        first.pull_port, first.reply_port, extra_config={"lmcache_kit": {"max_pending_operations": 100}}
    )
    await until(lambda: worker.reporting.synced.is_set())
    await first.close()
    for key in range(5000):
        store.change("admit", CPU, key)
        if key % 500 == 0:
            await asyncio.sleep(0)
    assert worker.stats()["dropped_operations"] > 0
    assert worker.stats()["pending_operations"] <= 100
    second = controllers(pull=first.pull_port, reply=first.reply_port)
    await until(lambda: second.index[CPU] == set(range(5000)))


async def test_an_overflow_while_the_controller_is_there_becomes_a_sync(
    controllers: Any, workers: Any, until: Any, store: Any
) -> None:
    controller = controllers()
    worker = await workers(
        controller.pull_port, controller.reply_port, extra_config={"lmcache_kit": {"max_pending_operations": 10}}
    )
    await until(lambda: worker.reporting.synced.is_set())
    for key in range(1000):  # without giving the loop a chance
        store.change("admit", CPU, key)
    await until(lambda: controller.index[CPU] == set(range(1000)))


async def test_a_failing_part_of_the_worker_starts_again(
    controllers: Any, workers: Any, until: Any, store: Any, monkeypatch: pytest.MonkeyPatch, caplog: Any
) -> None:
    monkeypatch.setattr(worker_module, "_PAUSE_AFTER_FAILURE", 0.01)
    controller = controllers()
    contents, broken = store.contents, []

    def once(location: str) -> Any:
        if not broken:
            broken.append(location)
            raise RuntimeError("dictionary changed size")
        return contents(location)

    monkeypatch.setattr(store, "contents", once)
    store.change("admit", CPU, 1)
    await workers(controller.pull_port, controller.reply_port)
    await until(lambda: broken)
    await until(lambda: controller.index[CPU] == {1})
    assert "starts again" in caplog.text
