"""The control socket: every message, many at a time, and whatever else may arrive."""

from __future__ import annotations

import asyncio
import os
from typing import Any

import msgspec
import pytest
import zmq
import zmq.asyncio

from lmcache_kit.errors import ConfigError, LMCacheKitError
from lmcache_kit.messages import (
    CheckFinishWorkerMsg,
    CheckFinishWorkerRetMsg,
    ClearWorkerMsg,
    ClearWorkerRetMsg,
    CompressWorkerMsg,
    CompressWorkerRetMsg,
    DecompressWorkerMsg,
    DecompressWorkerRetMsg,
    ErrorMsg,
    HealthWorkerMsg,
    HealthWorkerRetMsg,
    MoveWorkerMsg,
    MoveWorkerRetMsg,
    PinWorkerMsg,
    PinWorkerRetMsg,
    UnpinWorkerMsg,
    UnpinWorkerRetMsg,
    decode_control_reply,
    encode,
)

CPU, DISK = "LocalCPUBackend", "LocalDiskBackend"


@pytest.fixture
async def line(workers: Any, caller: Any, free_port: Any) -> Any:
    """A caller of a worker whose controller is absent."""
    worker = await workers(free_port(), free_port())
    return caller(worker.port)


async def test_every_message_reaches_the_store(line: Any, store: Any) -> None:
    tokens = [1, 2, 3]
    answers = [
        await line.call(PinWorkerMsg(worker_event_id="a", location=CPU, tokens=tokens, owner="me", ttl=2.5)),
        await line.call(UnpinWorkerMsg(worker_event_id="b", location=CPU, tokens=tokens, owner="me")),
        await line.call(UnpinWorkerMsg(worker_event_id="b", location=CPU)),
        await line.call(ClearWorkerMsg(worker_event_id="c", location=DISK)),
        await line.call(CompressWorkerMsg(worker_event_id="d", method="zstd", location=CPU, tokens=tokens)),
        await line.call(DecompressWorkerMsg(worker_event_id="e", method="zstd", location=CPU)),
        await line.call(
            MoveWorkerMsg(worker_event_id="f", old_position=CPU, new_position=("h:1", DISK), tokens=tokens)
        ),
        await line.call(
            MoveWorkerMsg(worker_event_id="g", old_position=CPU, new_position=("", DISK), tokens=tokens, copy=False)
        ),
        await line.call(HealthWorkerMsg(worker_event_id="h")),
        await line.call(CheckFinishWorkerMsg(worker_event_id="d")),
    ]
    assert [type(answer) for answer in answers] == [
        PinWorkerRetMsg,
        UnpinWorkerRetMsg,
        UnpinWorkerRetMsg,
        ClearWorkerRetMsg,
        CompressWorkerRetMsg,
        DecompressWorkerRetMsg,
        MoveWorkerRetMsg,
        MoveWorkerRetMsg,
        HealthWorkerRetMsg,
        CheckFinishWorkerRetMsg,
    ]
    assert [answer.num_tokens for answer in answers[:8]] == [3, 3, 5, 7, 12, 12, 12, 12]
    assert all(answer.job.status == "running" for answer in answers[4:8])
    assert answers[8].error_code == 0
    assert (answers[9].status, answers[9].job.num_tokens) == ("running", 12)
    assert store.calls == [
        ("pin", CPU, tokens, "me", 2.5),
        ("unpin", CPU, tokens, "me"),
        ("unpin", CPU, None, ""),
        ("clear", DISK),
        ("compress", "zstd", CPU, tokens),
        ("decompress", "zstd", CPU, None),
        ("move", CPU, "h:1", DISK, tokens, True),
        ("move", CPU, "", DISK, tokens, False),
    ]


async def test_errors_carry_text_status_and_hint(line: Any) -> None:
    answer = await line.call(ClearWorkerMsg(worker_event_id="a", location="LocalCPU"))
    assert isinstance(answer, ErrorMsg)
    assert answer.status == 404
    assert "unknown location 'LocalCPU'" in answer.error
    assert "LocalCPUBackend" in answer.hint
    answer = await line.call(CompressWorkerMsg(worker_event_id="a", method="zst", location=CPU, tokens=[1]))
    assert (answer.status, "zst" in answer.error, "zstd" in answer.hint) == (404, True, True)
    answer = await line.call(CheckFinishWorkerMsg(worker_event_id="nobody"))
    assert answer.status == 404
    await line.call(CompressWorkerMsg(worker_event_id="x", method="zstd", location=CPU, tokens=[1]))
    answer = await line.call(CompressWorkerMsg(worker_event_id="x", method="zstd", location=CPU, tokens=[1]))
    assert answer.status == 409


async def test_an_unexpected_error_is_answered_and_logged(
    line: Any, store: Any, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*args: Any, **keys: Any) -> int:
        raise ZeroDivisionError("oops")

    monkeypatch.setattr(store, "pin", broken)
    answer = await line.call(PinWorkerMsg(worker_event_id="a", location=CPU, tokens=[1]))
    assert (answer.status, answer.error) == (500, "the instance failed: ZeroDivisionError: oops")
    assert "ZeroDivisionError" in caplog.text
    assert (await line.call(HealthWorkerMsg(worker_event_id="b"))).error_code == 0


async def test_pins_without_ttl_take_the_configured_one(workers: Any, caller: Any, free_port: Any, store: Any) -> None:
    worker = await workers(free_port(), free_port(), pin_timeout_sec=300)
    line = caller(worker.port)
    await line.call(PinWorkerMsg(worker_event_id="a", location=CPU, tokens=[1]))
    await line.call(PinWorkerMsg(worker_event_id="a", location=CPU, tokens=[1], ttl=1.0))
    assert [call[-1] for call in store.calls] == [300.0, 1.0]


async def test_health_tells_how_many_tiers_are_gone(workers: Any, caller: Any, free_port: Any) -> None:
    worker = await workers(free_port(), free_port(), health=2)
    assert (await caller(worker.port).call(HealthWorkerMsg(worker_event_id="a"))).error_code == 2


async def test_a_slow_operation_does_not_hold_up_others(line: Any, store: Any) -> None:
    store.gate = asyncio.Event()
    await line.socket.send_multipart([b"slow", b"", encode(ClearWorkerMsg(worker_event_id="a", location=CPU))])
    for _ in range(30):
        await line.call(HealthWorkerMsg(worker_event_id="b"))
    store.gate.set()
    async with asyncio.timeout(30):
        frames = await line.socket.recv_multipart()
    assert frames[:2] == [b"slow", b""]


async def test_many_in_flight_on_one_connection_get_their_own_answers(line: Any) -> None:
    for number in range(200):
        message = PinWorkerMsg(worker_event_id="p", location=CPU, tokens=list(range(number)))
        await line.socket.send_multipart([b"%d" % number, b"", encode(message)])
    answers = {}
    async with asyncio.timeout(30):
        while len(answers) < 200:
            frames = await line.socket.recv_multipart()
            answers[int(frames[0])] = decode_control_reply(frames[2]).num_tokens
    assert answers == {number: number for number in range(200)}


async def test_a_req_socket_works_as_lmcaches_controller_uses_it(workers: Any, free_port: Any) -> None:
    worker = await workers(free_port(), free_port())
    context = zmq.asyncio.Context()
    socket = context.socket(zmq.REQ)
    socket.linger = 0
    try:
        socket.connect(f"tcp://127.0.0.1:{worker.port}")
        async with asyncio.timeout(30):
            for _ in range(3):
                await socket.send(encode(HealthWorkerMsg(worker_event_id="a")))
                assert decode_control_reply(await socket.recv()).error_code == 0
    finally:
        socket.close(linger=0)
        context.term()


def _garbage() -> list[bytes]:
    pin = msgspec.msgpack.encode
    return [
        b"",
        b"\x00",
        b"{}",
        b'{"type": "HealthWorkerMsg", "worker_event_id": "a"}',
        b"\xc1" * 20,
        os.urandom(64),
        b"\x91" * 5000,
        pin({"type": "Nobody"}),
        pin({"type": "PinWorkerMsg"}),
        pin({"type": "PinWorkerMsg", "worker_event_id": 1, "location": CPU, "tokens": [1]}),
        pin({"type": "PinWorkerMsg", "worker_event_id": "a", "location": CPU, "tokens": ["x"]}),
        pin({"type": "MoveWorkerMsg", "worker_event_id": "a", "old_position": CPU, "new_position": ["a"]}),
        pin([1, 2, 3]),
        pin(None),
        pin({"type": "HealthWorkerMsg", "worker_event_id": "a"})[:-1],
        pin({"type": "HealthWorkerMsg", "worker_event_id": "a"}) + b"\x00",
    ]


@pytest.mark.parametrize("payload", _garbage(), ids=range(len(_garbage())))
async def test_malformed_payloads_are_answered_and_survived(line: Any, payload: bytes) -> None:
    answer = await line.call(None, raw=payload)
    assert isinstance(answer, ErrorMsg)
    assert answer.status == 400
    assert "malformed" in answer.error
    assert (await line.call(HealthWorkerMsg(worker_event_id="a"))).error_code == 0


@pytest.mark.parametrize(
    "frames",
    [
        [b""],
        [b"", b""],
        [b"a", b"b", b"c"],
        [b"", b"", b""],
        [b"a", b"", b"b", b"c"],
        [b"", encode(HealthWorkerMsg(worker_event_id="a")), b"more"],
    ],
)
async def test_malformed_envelopes_are_survived(line: Any, frames: list[bytes]) -> None:
    await line.socket.send_multipart(frames)
    async with asyncio.timeout(30):
        answer = await line.socket.recv_multipart()
    assert decode_control_reply(answer[-1]).status == 400
    assert (await line.call(HealthWorkerMsg(worker_event_id="a"))).error_code == 0


async def test_a_dealer_without_the_empty_frame_is_answered_alike(line: Any) -> None:
    await line.socket.send(encode(HealthWorkerMsg(worker_event_id="a")))
    async with asyncio.timeout(30):
        frames = await line.socket.recv_multipart()
    assert len(frames) == 1
    assert decode_control_reply(frames[0]).error_code == 0


async def test_a_caller_that_leaves_is_survived(workers: Any, caller: Any, free_port: Any, store: Any) -> None:
    worker = await workers(free_port(), free_port())
    store.gate = asyncio.Event()
    leaving = caller(worker.port)
    await leaving.socket.send_multipart([b"x", b"", encode(ClearWorkerMsg(worker_event_id="a", location=CPU))])
    line = caller(worker.port)
    await line.call(HealthWorkerMsg(worker_event_id="a"))
    leaving.socket.close(linger=0)
    store.gate.set()
    for _ in range(5):
        await line.call(HealthWorkerMsg(worker_event_id="a"))


async def test_raw_bytes_on_the_port_are_survived(workers: Any, caller: Any, free_port: Any) -> None:
    worker = await workers(free_port(), free_port())
    for junk in (b"GET / HTTP/1.1\r\n\r\n", os.urandom(4096), b"\xff" * 12):
        _, writer = await asyncio.open_connection("127.0.0.1", worker.port)
        writer.write(junk)
        await writer.drain()
        writer.close()
        await writer.wait_closed()
    assert (await caller(worker.port).call(HealthWorkerMsg(worker_event_id="a"))).error_code == 0


async def test_closing_with_a_call_under_way_does_not_hang(
    workers: Any, caller: Any, free_port: Any, store: Any
) -> None:
    worker = await workers(free_port(), free_port())
    store.gate = asyncio.Event()
    line = caller(worker.port)
    await line.socket.send_multipart([b"x", b"", encode(ClearWorkerMsg(worker_event_id="a", location=CPU))])
    await line.call(HealthWorkerMsg(worker_event_id="a"))
    await worker.close()


async def test_a_port_in_use_names_the_key_to_change(workers: Any, free_port: Any) -> None:
    worker = await workers(free_port(), free_port())
    with pytest.raises(ConfigError) as caught:
        await workers(free_port(), free_port(), lmcache_worker_ports=[worker.port])
    assert str(worker.port) in caught.value.message
    assert "lmcache_worker_ports" in caught.value.hint


async def test_a_host_of_another_machine_names_the_key_to_change(workers: Any, free_port: Any) -> None:
    with pytest.raises(ConfigError) as caught:
        await workers(free_port(), free_port(), extra_config={"lmcache_kit": {"control_host": "192.0.2.1"}})
    assert "control_host" in caught.value.hint


async def test_the_socket_is_not_reachable_from_outside_when_the_controller_is_local(
    workers: Any, free_port: Any
) -> None:
    worker = await workers(free_port(), free_port())
    assert worker._control._socket.getsockopt_string(zmq.LAST_ENDPOINT).startswith("tcp://127.0.0.1:")


async def test_the_port_is_free_again_after_closing(workers: Any, free_port: Any) -> None:
    first = await workers(free_port(), free_port())
    await first.close()
    for attempt in range(100):
        try:
            second = await workers(free_port(), free_port(), lmcache_worker_port=first.port)
            break
        except LMCacheKitError:
            assert attempt < 99
            await asyncio.sleep(0.02)
    assert second.port == first.port
