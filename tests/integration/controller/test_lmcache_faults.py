"""What breaks in LMCache's controller (faults 2, 3, 4, 8, 9, 10 and 11 of docs/explanation/faults.md) works here."""

from __future__ import annotations

import asyncio

import msgspec
import pytest

TOKENS = list(range(1000, 1600))
CPU = "LocalCPUBackend"


# --- 2: /check_finish always fails, ids are tracked nowhere, no unpin, pins expire silently ---------------------------


async def test_fault_02_check_finish_follows_a_job(fleet):
    worker = await fleet.joined(methods=["zstd"], locations=[CPU])
    states = iter(["queued", "running", "done"])

    def state(message):
        now = next(states)
        job = {
            "status": now,
            "num_tokens": 600,
            "tokens_done": 600,
            "bytes_before": 90,
            "bytes_after": 30,
            "ratio": 3.0,
        }
        return {"type": "CheckFinishWorkerRetMsg", "status": now, "job": job}

    worker.answers["CompressWorkerMsg"] = lambda message: {
        "type": "CompressWorkerRetMsg",
        "num_tokens": 600,
        "job": {"status": "queued", "num_tokens": 600},
    }
    worker.answers["CheckFinishWorkerMsg"] = state
    started = await fleet.post("/compress", instance_id="a", method="zstd", location=CPU, tokens=TOKENS)
    assert started.json()["num_tokens"] == 600
    event_id = started.json()["event_id"]
    seen = [(await fleet.post("/check_finish", event_id=event_id)).json() for _ in range(3)]
    assert [state["status"] for state in seen] == ["queued", "running", "done"]
    assert (seen[-1]["bytes_before"], seen[-1]["bytes_after"], seen[-1]["ratio"]) == (90, 30, 3.0)
    assert {call["worker_event_id"] for call in worker.calls} == {f"{event_id}:0"}


async def test_fault_02_check_finish_of_a_worker_without_jobs(fleet):
    await fleet.joined()
    started = await fleet.post("/compress", instance_id="a", method="cachegen", location=CPU, tokens=TOKENS)
    state = (await fleet.post("/check_finish", event_id=started.json()["event_id"])).json()
    assert (state["status"], state["num_tokens"], state["error"]) == ("done", 600, None)


async def test_fault_02_unknown_events_are_404(fleet):
    answer = await fleet.post("/check_finish", event_id="xxx")
    assert answer.status_code == 404
    assert "'xxx'" in answer.json()["detail"]


async def test_fault_02_pins_last_until_unpinned(fleet):
    worker = await fleet.joined()
    worker.answers["UnpinWorkerMsg"] = lambda message: {"type": "UnpinWorkerRetMsg", "num_tokens": 600}
    assert (await fleet.post("/pin", instance_id="a", location=CPU, tokens=TOKENS, owner="me")).status_code == 200
    unpinned = await fleet.post("/unpin", instance_id="a", location=CPU, tokens=TOKENS, owner="me")
    assert unpinned.json()["num_tokens"] == 600
    pin, unpin = worker.calls
    assert (pin["ttl"], pin["owner"], unpin["owner"], unpin["tokens"]) == (None, "me", "me", TOKENS)


# --- 3: unknown names answer 500, or 200 with nothing done ------------------------------------------------------------


@pytest.mark.parametrize(
    ("path", "more"),
    [
        ("/compress", {"method": "zstd", "location": CPU, "tokens": TOKENS}),
        ("/decompress", {"method": "zstd", "location": CPU, "tokens": TOKENS}),
        ("/pin", {"location": CPU, "tokens": TOKENS}),
        ("/unpin", {"location": CPU}),
        ("/clear", {"location": CPU}),
        ("/health", {}),
        ("/query_worker_info", {}),
    ],
)
async def test_fault_03_unknown_instance(fleet, path, more):
    await fleet.joined("known_instance")
    answer = await fleet.post(path, instance_id="other", **more)
    assert answer.status_code == 404
    assert "'other'" in answer.json()["detail"]
    assert "known_instance" in answer.json()["detail"]


async def test_fault_03_unknown_instance_of_a_move(fleet):
    await fleet.joined("known_instance")
    answer = await fleet.post("/move", old_position=["known_instance", CPU], new_position=["x", CPU], tokens=TOKENS)
    assert answer.status_code == 404
    assert "known_instance" in answer.json()["detail"]


async def test_fault_03_unknown_method_and_location_name_the_known_ones(fleet):
    await fleet.joined(methods=["zstd", "fp8"], locations=[CPU])
    answer = await fleet.post("/compress", instance_id="a", method="zsdt", location=CPU, tokens=TOKENS)
    assert answer.status_code == 404
    assert "fp8" in answer.json()["detail"]
    answer = await fleet.post("/clear", instance_id="a", location="LocalCpu")
    assert answer.status_code == 404
    assert CPU in answer.json()["detail"]


async def test_fault_03_a_workers_zero_tokens_are_no_success(fleet):
    worker = await fleet.joined()  # announces nothing, as LMCache's
    worker.answers["CompressWorkerMsg"] = lambda message: {"type": "CompressWorkerRetMsg", "num_tokens": 0}
    answer = await fleet.post("/compress", instance_id="a", method="nonsense", location=CPU, tokens=TOKENS)
    assert answer.status_code == 404


@pytest.mark.parametrize("body", [{}, {"tokens": []}, {"tokens": None}, {"tokens": "abc"}, {"tokens": [1.5]}])
async def test_fault_03_pin_without_tokens_is_400(fleet, body):
    worker = await fleet.joined()
    answer = await fleet.post("/pin", instance_id="a", location=CPU, **body)
    assert answer.status_code == 400
    assert "tokens" in answer.json()["detail"]
    assert worker.calls == []


@pytest.mark.parametrize("path", ["/compress", "/decompress"])
async def test_fault_03_compress_needs_tokens_or_null(fleet, path):
    worker = await fleet.joined()
    body = {"instance_id": "a", "method": "zstd", "location": CPU}
    assert (await fleet.post(path, **body)).status_code == 400
    assert (await fleet.post(path, **body, tokens=[])).status_code == 400
    worker.answers["CompressWorkerMsg"] = lambda message: {"type": "CompressWorkerRetMsg", "num_tokens": 7}
    worker.answers["DecompressWorkerMsg"] = lambda message: {"type": "DecompressWorkerRetMsg", "num_tokens": 7}
    assert (await fleet.post(path, **body, tokens=None)).json()["num_tokens"] == 7
    assert worker.calls[0]["tokens"] is None


async def test_fault_03_a_token_that_fits_no_message_is_400(fleet):
    await fleet.joined()
    answer = await fleet.post("/pin", instance_id="a", location=CPU, tokens=[0])
    assert answer.status_code == 200
    body = b'{"instance_id": "a", "location": "LocalCPUBackend", "tokens": [1' + b"0" * 40 + b"]}"
    answer = await fleet.http.post("/pin", content=body)
    assert answer.status_code == 400
    assert "64 bits" in answer.json()["detail"]
    assert (await fleet.http.post("/lookup", content=b'{"tokens": [1' + b"0" * 40 + b"]}")).status_code == 200


# --- 4: the worker's own text never reaches the client ----------------------------------------------------------------


async def test_fault_04_the_workers_words_reach_the_client(fleet):
    worker = await fleet.joined()
    worker.answers["CompressWorkerMsg"] = lambda message: {"type": "ErrorMsg", "error": "the moon is full"}
    answer = await fleet.post("/compress", instance_id="a", method="x", location=CPU, tokens=TOKENS)
    assert answer.status_code == 500
    assert answer.json()["detail"] == "worker a/0: the moon is full"


async def test_fault_04_with_their_status_and_hint(fleet):
    worker = await fleet.joined()
    worker.answers["DecompressWorkerMsg"] = lambda message: {
        "type": "ErrorMsg",
        "error": "it is zstd",
        "status": 409,
        "hint": "say zstd",
    }
    answer = await fleet.post("/decompress", instance_id="a", method="x", location=CPU, tokens=TOKENS)
    assert answer.status_code == 409
    assert answer.json()["detail"] == "worker a/0: it is zstd (say zstd)"


# --- 8: only the first holder, suffix holders credited ----------------------------------------------------------------


async def test_fault_08_every_holder_is_credited_with_its_prefix_only(fleet, until, keys_of):
    first, second, third = keys_of(TOKENS)
    a, b, c = [await fleet.joined(name) for name in "abc"]
    await a.admit([first, second, third])
    await a.admit([first], "LocalDiskBackend")
    await b.admit([first])
    await c.admit([second, third])
    await until(lambda: _sees(fleet, {"a": 600, "b": 256}))
    answer = (await fleet.post("/lookup", tokens=TOKENS)).json()
    assert answer["layout_info"] == {"a": [CPU, 600], "b": [CPU, 256]}
    assert answer["holders"] == {"a": {CPU: 600, "LocalDiskBackend": 256}, "b": {CPU: 256}}
    assert answer["a"] == [CPU, 600]
    assert "c" not in answer


async def _sees(fleet, prefix):
    return (await fleet.post("/lookup", tokens=TOKENS)).json()["prefix"] == prefix


# --- 9: dead workers and parallel calls -------------------------------------------------------------------------------


async def test_fault_09_a_dead_worker_costs_one_deadline_and_heals_at_a_new_address(make_fleet, until):
    fleet = await make_fleet(call_timeout=0.5)
    worker = await fleet.joined("a")
    await fleet.joined("b")
    assert (await fleet.post("/health", instance_id="a")).json()["error_codes"] == {"0": 0}
    await worker.die()
    silent = asyncio.gather(
        fleet.post("/health", instance_id="a"),
        *(fleet.post("/pin", instance_id="a", location=CPU, tokens=TOKENS) for _ in range(5)),
    )
    assert (await fleet.post("/health", instance_id="b")).status_code == 200, "others are not held up"
    for answer in await silent:
        assert answer.status_code == 503
        assert answer.headers["retry-after"] == "1"
        assert "worker a/0" in answer.json()["detail"]
    worker.calls.clear()
    await worker.listen()
    await worker.register()
    assert (await fleet.post("/health", instance_id="a")).status_code == 200
    assert [call["type"] for call in worker.calls] == ["HealthWorkerMsg"], "calls given up are not delivered later"


async def test_fault_09_a_worker_back_on_its_old_port_heals_by_itself(make_fleet, until):
    fleet = await make_fleet(call_timeout=0.3)
    worker = await fleet.joined("a")
    assert (await fleet.post("/health", instance_id="a")).status_code == 200
    port = worker.port
    await worker.die()
    assert (await fleet.post("/health", instance_id="a")).status_code == 503
    await worker.listen(port)

    async def healthy():
        return (await fleet.post("/health", instance_id="a")).status_code == 200

    await until(healthy)


async def test_fault_09_a_worker_that_hangs_does_not_hang_its_clients(make_fleet):
    fleet = await make_fleet(call_timeout=0.3)
    worker = await fleet.joined("a")
    worker.answers["ClearWorkerMsg"] = lambda message: None
    answer = await fleet.post("/clear", instance_id="a", location=CPU)
    assert answer.status_code == 503
    assert "did not answer" in answer.json()["detail"]


async def test_fault_09_a_worker_that_is_gone_is_told_before_the_deadline_of_calls(make_fleet):
    fleet = await make_fleet(call_timeout=100)
    worker = await fleet.joined("a")
    asked = asyncio.Event()
    worker.answers["ClearWorkerMsg"] = lambda message: asked.set()
    under_way = asyncio.create_task(fleet.post("/clear", instance_id="a", location=CPU))
    async with asyncio.timeout(30):
        await asked.wait()
        await worker.die()
        lost = await under_way
        refused = await fleet.post("/health", instance_id="a")
    assert lost.status_code == 503
    assert "closed its connection while a call was under way" in lost.json()["detail"]
    assert refused.status_code == 503
    assert f"worker a/0 cannot be reached at 127.0.0.1:{worker.port}" in refused.json()["detail"]


async def test_fault_09_missed_heartbeats_drop_the_worker_and_a_heartbeat_heals_it(make_fleet, until, keys_of):
    fleet = await make_fleet(worker_timeout=0.3, check_interval=0.05)
    worker = await fleet.joined("a")
    await worker.heartbeat()
    await worker.admit(keys_of(TOKENS))

    async def dead():
        info = (await fleet.post("/query_worker_info", instance_id="a")).json()["worker_infos"][0]
        return not info["alive"]

    await until(dead)
    assert await fleet.held(TOKENS) == 0
    answer = await fleet.post("/health", instance_id="a")
    assert answer.status_code == 503
    assert "heartbeats" in answer.json()["detail"]
    assert [command["command_type"] for command in await worker.heartbeat()] == ["full_sync"]
    await worker.full_sync(keys_of(TOKENS))
    assert await fleet.held(TOKENS) == 600
    assert (await fleet.post("/health", instance_id="a")).status_code == 200


@pytest.mark.parametrize("count", [30, 200])
async def test_fault_09_parallel_calls_to_one_worker_all_succeed(fleet, count):
    worker = await fleet.joined("a")
    answers = await asyncio.gather(
        *(fleet.post("/pin", instance_id="a", location=CPU, tokens=list(range(number + 1))) for number in range(count))
    )
    assert [answer.status_code for answer in answers] == [200] * count
    assert [answer.json()["num_tokens"] for answer in answers] == list(range(1, count + 1)), "each gets its own answer"
    assert len({answer.json()["event_id"] for answer in answers}) == count
    assert len(worker.calls) == count


# --- 10: one malformed frame stops all admits -------------------------------------------------------------------------


async def test_fault_10_malformed_frames_are_counted_and_survived(fleet, until, keys_of):
    worker = await fleet.joined("a")
    keys = keys_of(TOKENS)
    garbage = [b"", b"\xff" * 10, b"{", b"[]", b'{"type": "Nonsense"}', msgspec.msgpack.encode({"type": "RegisterMsg"})]
    for frame in garbage:
        await worker.push.send(frame)
    good = msgspec.msgpack.encode(worker.operations("admit", keys, CPU))
    await worker.push.send_multipart([b"\x81", good, b"\x00"])  # each part stands for itself

    async def there():
        return await fleet.held(TOKENS) == 600

    await until(there)
    metrics = (await fleet.http.get("/metrics")).text
    assert f'lmcache_kit_controller_malformed_frames_total{{socket="pull"}} {len(garbage) + 2}.0' in metrics


async def test_fault_10_malformed_requests_are_answered_in_words(fleet):
    worker = await fleet.joined("a")
    for socket in ("reply", "heartbeat"):
        answer = await worker.ask({"type": "Nonsense"}, socket=socket)
        assert answer["type"] == "ErrorMsg"
        assert "malformed" in answer["error"]
    assert await worker.heartbeat() == []


# --- 11: other chunk sizes and hashes never hit -----------------------------------------------------------------------


@pytest.mark.parametrize("chunk", [1, 16, 256, 1000])
async def test_fault_11_any_chunk_size(fleet, until, keys_of, chunk):
    worker = await fleet.joined("a", chunk_size=chunk, hash_algorithm="builtin", none_hash=0)
    await worker.admit(keys_of(TOKENS, chunk))

    async def there():
        return await fleet.held(TOKENS) == 600

    await until(there)


async def test_fault_11_the_documented_seed_and_another_hash_side_by_side(fleet, until):
    from lmcache_kit.kv.hashing import ChunkHasher, HashSpec

    seeded = await fleet.joined("a", none_hash=-6197052367682486848)
    # The check vector of the protocol page.
    await seeded.admit([4446532143507722017, -6761997240938222485, 6978284823502672967])
    other = await fleet.joined("b", chunk_size=64, hash_algorithm="sha256_cbor", none_hash=5)
    await other.admit(ChunkHasher(HashSpec(64, "sha256_cbor", 5)).hashes(TOKENS))
    await until(lambda: _sees(fleet, {"a": 600, "b": 600}))


async def test_fault_11_a_mismatch_is_explained(fleet, until, keys_of):
    worker = await fleet.joined("a")
    await worker.admit(keys_of(TOKENS, 128))

    async def explained():
        answer = await fleet.http.post("/lookup?explain=true", json={"tokens": TOKENS})
        return "match chunk size 128" in answer.json()["explain"]["instances"]["a"]["why"]

    await until(explained)
