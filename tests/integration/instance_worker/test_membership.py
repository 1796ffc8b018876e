"""Joining a controller: now, later, again, and one of LMCache 0.3."""

from __future__ import annotations

from typing import Any

import pytest

from lmcache_kit.instance.worker import membership
from lmcache_kit.messages import (
    DeRegisterMsg,
    ErrorMsg,
    FullSyncCommand,
    FullSyncStartMsg,
    HealthWorkerMsg,
    HeartbeatMsg,
    KVAdmitMsg,
    KVEvictMsg,
    RegisterMsg,
    RegisterRetMsg,
)


async def test_registration_carries_what_the_controller_must_know(controllers: Any, workers: Any, until: Any) -> None:
    controller = controllers()
    worker = await workers(controller.pull_port, controller.reply_port, chunk_size=16)
    await until(lambda: worker.registered)
    message = controller.of(RegisterMsg)[0]
    assert (message.instance_id, message.worker_id, message.ip) == ("one", 0, "127.0.0.1")
    assert message.port == worker.port > 0
    assert message.peer_init_url == "tcp://127.0.0.1:8200"
    assert (message.chunk_size, message.hash_algorithm, message.save_unfull_chunk) == (16, "builtin", True)
    assert message.methods == ["naive", "zstd"]
    assert message.locations == ["LocalCPUBackend", "LocalDiskBackend"]
    assert message.model == "tiny"


async def test_heartbeats_go_to_the_announced_socket(controllers: Any, workers: Any, until: Any) -> None:
    controller = controllers(heartbeat=True)
    worker = await workers(controller.pull_port, controller.reply_port)
    await until(lambda: controller.of(HeartbeatMsg))
    await until(lambda: worker.stats()["heartbeats"] >= 1)
    assert worker.stats()["last_heartbeat_unix"] > 1e9
    assert worker.membership._heartbeats.address.port == controller.heartbeat_port


async def test_heartbeats_use_the_reply_socket_when_there_is_no_other(
    controllers: Any, workers: Any, until: Any
) -> None:
    controller = controllers()
    worker = await workers(controller.pull_port, controller.reply_port)
    await until(lambda: worker.stats()["heartbeats"] >= 1)


async def test_no_heartbeats_when_the_interval_is_zero(controllers: Any, workers: Any, until: Any, store: Any) -> None:
    controller = controllers()
    worker = await workers(controller.pull_port, controller.reply_port, lmcache_worker_heartbeat_time=0)
    await until(lambda: worker.reporting.synced.is_set())
    assert controller.of(HeartbeatMsg) == []


@pytest.mark.parametrize("url", ["nonsense", "*:1", ":::", "http://a:1"])
async def test_a_useless_heartbeat_url_is_survived(controllers: Any, workers: Any, until: Any, url: str) -> None:
    controller = controllers()
    controller.heartbeat_port = 1
    reply = controller._reply

    def answer(message: Any) -> Any:
        if isinstance(message, RegisterMsg):
            reply(message)
            return RegisterRetMsg(extra_config={"heartbeat_url": url})
        return None

    controller.answer = answer
    worker = await workers(controller.pull_port, controller.reply_port)
    await until(lambda: worker.registered)


async def test_the_controller_may_come_later(
    controllers: Any, workers: Any, until: Any, free_port: Any, store: Any, caller: Any
) -> None:
    pull, reply = free_port(), free_port()
    worker = await workers(pull, reply)
    store.change("admit", "LocalCPUBackend", 1)
    # Meanwhile the instance answers.
    assert (await caller(worker.port).call(HealthWorkerMsg(worker_event_id="e"))).error_code == 0
    assert not worker.registered
    controller = controllers(pull=pull, reply=reply)
    await until(lambda: controller.index["LocalCPUBackend"] == {1})
    assert worker.registered


async def test_a_restarted_controller_is_told_everything_again(
    controllers: Any, workers: Any, until: Any, store: Any
) -> None:
    first = controllers()
    worker = await workers(first.pull_port, first.reply_port)
    for key in range(10):
        store.change("admit", "LocalCPUBackend", key)
    await until(lambda: first.index["LocalCPUBackend"] == set(range(10)))
    await first.close()
    store.change("evict", "LocalCPUBackend", 3)
    store.change("admit", "LocalDiskBackend", 77)
    second = controllers(pull=first.pull_port, reply=first.reply_port)
    await until(lambda: second.index["LocalCPUBackend"] == set(range(10)) - {3})
    await until(lambda: second.index["LocalDiskBackend"] == {77})
    await until(lambda: worker.reporting.synced.is_set())
    store.change("admit", "LocalCPUBackend", 100)
    await until(lambda: 100 in second.index["LocalCPUBackend"])


async def test_a_controller_that_forgot_the_worker_gets_a_sync(
    controllers: Any, workers: Any, until: Any, store: Any
) -> None:
    controller = controllers()
    worker = await workers(controller.pull_port, controller.reply_port)
    store.change("admit", "LocalCPUBackend", 5)
    await until(lambda: controller.index["LocalCPUBackend"] == {5})
    controller.workers.clear()
    controller.index.clear()
    await until(lambda: controller.index["LocalCPUBackend"] == {5})
    assert worker.registered


async def test_heartbeats_that_fail_make_it_register_again(
    controllers: Any, workers: Any, until: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(membership, "REQUEST_SECONDS", 0.05)
    controller = controllers()
    worker = await workers(controller.pull_port, controller.reply_port)
    await until(lambda: worker.registered)
    controller.lose = lambda message: isinstance(message, HeartbeatMsg)
    before = len(controller.of(RegisterMsg))
    await until(lambda: len(controller.of(RegisterMsg)) > before)


async def test_a_late_answer_is_not_taken_for_the_next_one(
    controllers: Any, workers: Any, until: Any, monkeypatch: pytest.MonkeyPatch, store: Any
) -> None:
    monkeypatch.setattr(membership, "REQUEST_SECONDS", 0.3)
    controller = controllers()
    lost = []

    def lose(message: Any) -> bool:
        if isinstance(message, RegisterMsg) and len(lost) < 2:
            lost.append(message)
            return True
        return False

    controller.lose = lose
    worker = await workers(controller.pull_port, controller.reply_port)
    await until(lambda: worker.registered)
    assert len(lost) == 2


async def test_a_refused_registration_is_tried_again(
    controllers: Any, workers: Any, until: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(membership, "SLOWEST_RETRY_SECONDS", 0.05)
    controller = controllers()
    refused = []

    def answer(message: Any) -> Any:
        if isinstance(message, RegisterMsg) and not refused:
            refused.append(message)
            return ErrorMsg(error="no room for you", status=409)
        return None

    controller.answer = answer
    worker = await workers(controller.pull_port, controller.reply_port)
    await until(lambda: worker.registered)
    assert "no room for you" in caplog.text


async def test_nonsense_on_the_reply_socket_is_survived(
    controllers: Any, workers: Any, until: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(membership, "FIRST_RETRY_SECONDS", 0.01)
    controller = controllers()
    controller.garbled = 2
    worker = await workers(controller.pull_port, controller.reply_port)
    await until(lambda: worker.registered)
    assert controller.garbled == 0
    assert len(controller.of(RegisterMsg)) == 3


async def test_a_controller_of_lmcache_03_gets_single_messages_on_its_only_port(
    controllers: Any, workers: Any, until: Any, monkeypatch: pytest.MonkeyPatch, store: Any, free_port: Any
) -> None:
    monkeypatch.setattr(membership, "REQUEST_SECONDS", 0.05)
    monkeypatch.setattr(membership, "FIRST_RETRY_SECONDS", 0.01)
    controller = controllers(with_reply=False)
    store.change("admit", "LocalCPUBackend", 1)
    worker = await workers(controller.pull_port, free_port())
    await until(lambda: controller.of(KVAdmitMsg))
    kinds = [type(message) for message in controller.received]
    assert kinds.index(RegisterMsg) < kinds.index(KVAdmitMsg)
    assert worker.stats()["pushed_registration"]
    await until(lambda: worker.reporting.synced.is_set())
    store.change("admit", "LocalDiskBackend", 2)
    store.change("evict", "LocalCPUBackend", 1)
    await until(lambda: controller.of(KVEvictMsg))
    assert [(one.location, one.key) for one in controller.of(KVEvictMsg)] == [("LocalCPUBackend", 1)]
    assert ("LocalDiskBackend", 2) in [(one.location, one.key) for one in controller.of(KVAdmitMsg)]
    assert controller.of(FullSyncStartMsg) == []


async def test_closing_says_goodbye(controllers: Any, workers: Any, until: Any) -> None:
    controller = controllers()
    worker = await workers(controller.pull_port, controller.reply_port)
    await until(lambda: worker.registered)
    port = worker.port
    await worker.close()
    await until(lambda: controller.of(DeRegisterMsg))
    message = controller.of(DeRegisterMsg)[0]
    assert (message.instance_id, message.worker_id, message.ip, message.port) == ("one", 0, "127.0.0.1", port)
    await worker.close()


async def test_closing_without_a_controller_does_not_hang(workers: Any, free_port: Any) -> None:
    worker = await workers(free_port(), free_port())
    await worker.close()
    assert not worker.registered


async def test_a_command_in_a_heartbeat_is_executed(controllers: Any, workers: Any, until: Any, store: Any) -> None:
    controller = controllers()
    worker = await workers(controller.pull_port, controller.reply_port)
    await until(lambda: worker.reporting.synced.is_set())
    store.change("admit", "LocalCPUBackend", 1)
    await until(lambda: controller.index["LocalCPUBackend"] == {1})
    syncs = len(controller.of(FullSyncStartMsg))
    controller.index.clear()
    controller.commands = [FullSyncCommand(reason="test")]
    await until(lambda: controller.index["LocalCPUBackend"] == {1})
    assert len(controller.of(FullSyncStartMsg)) > syncs
