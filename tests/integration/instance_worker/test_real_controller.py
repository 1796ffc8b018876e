"""A whole instance (store, peer server, worker) against the real controller, in one process."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

from lmcache_kit.clock import WallClock
from lmcache_kit.contracts.engine import EngineInfo
from lmcache_kit.controller.config import ControllerConfig, MonitorPorts
from lmcache_kit.controller.server import ControllerServer
from lmcache_kit.instance.config.loading import instance_config
from lmcache_kit.instance.runtime import InstanceRuntime
from lmcache_kit.kv.layout import KVLayout, KVTensor

LAYOUT = KVLayout(num_layers=2, num_kv_heads=2, head_dim=8, dtype="float32")
INFO = EngineInfo(
    model="tiny", fingerprint="tiny-1", layout=LAYOUT, max_model_len=4096, eos_token_ids=frozenset(), vocab_size=1000
)
CPU, DISK = "LocalCPUBackend", "LocalDiskBackend"


def kv_of(tokens: list[int]) -> KVTensor:
    """KV that is a function of the tokens."""
    kv = KVTensor.empty(LAYOUT, len(tokens))
    kv.data[:] = np.asarray(tokens, dtype=np.float32)[None, None, :, None, None]
    return kv


class Http:
    """Calls of the controller's HTTP interface."""

    def __init__(self, server: ControllerServer) -> None:
        self._client = httpx.AsyncClient(base_url=f"http://127.0.0.1:{server.http_port}", timeout=30.0)

    async def post(self, path: str, **body: Any) -> Any:
        answer = await self._client.post(path, json=body)
        assert answer.status_code == 200, answer.text
        return answer.json()

    async def finished(self, event_id: str) -> Any:
        for _ in range(3000):
            job = await self.post("/check_finish", event_id=event_id)
            if job["status"] not in ("queued", "running"):
                return job
        raise AssertionError("the job does not end")

    async def close(self) -> None:
        await self._client.aclose()


@pytest.fixture
async def controllers() -> AsyncIterator[Callable[..., Awaitable[tuple[ControllerServer, Http]]]]:
    made: list[tuple[ControllerServer, Http]] = []

    async def make(monitor: MonitorPorts | None = None) -> tuple[ControllerServer, Http]:
        server = ControllerServer(ControllerConfig(port=0, monitor=monitor or MonitorPorts(0, 0, 0)))
        await server.start()
        made.append((server, Http(server)))
        return made[-1]

    yield make
    for server, http in made:
        await http.close()
        await server.close()


@pytest.fixture
async def instances(tmp_path: Path) -> AsyncIterator[Callable[..., Awaitable[InstanceRuntime]]]:
    made: list[InstanceRuntime] = []

    async def make(server: ControllerServer, instance_id: str, **keys: Any) -> InstanceRuntime:
        config = instance_config(
            {
                "chunk_size": 4,
                "enable_controller": True,
                "lmcache_instance_id": instance_id,
                "controller_pull_url": f"localhost:{server.monitor.pull_port}",
                "controller_reply_url": f"localhost:{server.monitor.reply_port}",
                "lmcache_worker_heartbeat_time": 1,
                "local_disk": "file://disk/",
                "max_local_disk_size": 1,
                **keys,
            },
            base_dir=tmp_path / instance_id,
        )
        runtime = InstanceRuntime(config, INFO, clock=WallClock())
        await runtime.start()
        made.append(runtime)
        return runtime

    yield make
    for runtime in made:
        await runtime.close()


async def settled(until: Any, runtime: InstanceRuntime) -> None:
    await until(lambda: runtime.stats()["worker"]["synced"])
    await until(lambda: runtime.stats()["worker"]["pending_operations"] == 0)


async def holders(http: Http, tokens: list[int]) -> Any:
    return (await http.post("/lookup", tokens=tokens))["holders"]


async def wait_for_holders(http: Http, tokens: list[int], want: Any) -> None:
    for _ in range(3000):
        found = await holders(http, tokens)
        if found == want:
            return
    assert found == want


TOKENS = list(range(100, 110))


async def test_what_is_stored_is_found(controllers: Any, instances: Any) -> None:
    server, http = await controllers()
    one = await instances(server, "one")
    await one.store.save(TOKENS, kv_of(TOKENS))
    await wait_for_holders(http, TOKENS, {"one": {CPU: 10, DISK: 10}})
    answer = await http.post("/lookup", tokens=[*TOKENS[:8], 5, 6])
    assert answer["layout_info"] == {"one": [CPU, 8]}


async def test_every_operation_reaches_the_instance(controllers: Any, instances: Any) -> None:
    server, http = await controllers()
    one = await instances(server, "one")
    await one.store.save(TOKENS, kv_of(TOKENS))
    await wait_for_holders(http, TOKENS, {"one": {CPU: 10, DISK: 10}})
    where = {"instance_id": "one", "location": CPU}
    assert (await http.post("/health", instance_id="one"))["error_codes"] == {"0": 0}
    assert (await http.post("/pin", **where, tokens=TOKENS, owner="me"))["num_tokens"] == 10
    assert (await http.post("/clear", **where))["num_tokens"] == 0
    assert (await http.post("/unpin", **where, owner="me"))["num_tokens"] == 10
    compressed = await http.post("/compress", **where, method="zstd", tokens=TOKENS)
    assert compressed["num_tokens"] == 10
    job = await http.finished(compressed["event_id"])
    assert (job["status"], job["tokens_done"]) == ("done", 10)
    assert job["bytes_after"] < job["bytes_before"]
    loaded = await one.store.load_prefix(TOKENS)
    assert [hit.codec for hit in loaded.hits] == ["zstd"] * 3
    np.testing.assert_array_equal(loaded.kv.data, kv_of(TOKENS).data)
    decompressed = await http.post("/decompress", **where, method="zstd", tokens=TOKENS)
    assert (await http.finished(decompressed["event_id"]))["status"] == "done"
    assert (await http.post("/clear", **where))["num_tokens"] == 10
    await wait_for_holders(http, TOKENS, {"one": {DISK: 10}})


async def test_errors_of_the_instance_reach_the_http_client(controllers: Any, instances: Any) -> None:
    server, http = await controllers()
    await instances(server, "one")
    await wait_for_holders(http, TOKENS, {})
    for _ in range(3000):
        answer = await http._client.post(
            "/compress", json={"instance_id": "one", "method": "zstd", "location": CPU, "tokens": TOKENS}
        )
        if "unknown instance" not in answer.text:
            break
    assert answer.status_code == 404, answer.text
    assert "zst" in answer.text or CPU in answer.text


@pytest.mark.parametrize("channel", ["zmq", "shm", "inproc"])
@pytest.mark.parametrize("latency", [None, "20ms"], ids=["unshaped", "shaped"])
async def test_move_between_instances(controllers: Any, instances: Any, channel: str, latency: str | None) -> None:
    server, http = await controllers()
    own = {"extra_config": {"lmcache_kit": {"transport": {"latency": latency} if latency else {}}}}
    one, two = [await instances(server, name, transfer_channel=channel, **own) for name in ("one", "two")]
    await one.store.save(TOKENS, kv_of(TOKENS))
    await wait_for_holders(http, TOKENS, {"one": {CPU: 10, DISK: 10}})
    moved = await http.post("/move", old_position=["one", CPU], new_position=["two", DISK], tokens=TOKENS, copy=False)
    assert moved["num_tokens"] == 10
    job = await http.finished(moved["event_id"])
    assert job["status"] == "done", job
    if latency:  # three chunks, there and back
        assert job["seconds"] >= 3 * 2 * 0.02
    await wait_for_holders(http, TOKENS, {"one": {DISK: 10}, "two": {DISK: 10}})
    loaded = await two.store.load_prefix(TOKENS)
    np.testing.assert_array_equal(loaded.kv.data, kv_of(TOKENS).data)


async def test_a_killed_and_restarted_controller_heals(controllers: Any, instances: Any) -> None:
    server, _ = await controllers()
    one = await instances(server, "one")
    await one.store.save(TOKENS, kv_of(TOKENS))
    ports = MonitorPorts(server.monitor.pull_port, server.monitor.reply_port, server.monitor.heartbeat_port)
    await server.close()
    more = [1, 2, 3, 4, 5]
    await one.store.save(more, kv_of(more))
    _, http = await controllers(ports)
    await wait_for_holders(http, TOKENS, {"one": {CPU: 10, DISK: 10}})
    await wait_for_holders(http, more, {"one": {CPU: 5, DISK: 5}})


async def test_a_restarted_instance_heals(controllers: Any, instances: Any) -> None:
    server, http = await controllers()
    one = await instances(server, "one")
    await one.store.save(TOKENS, kv_of(TOKENS))
    await wait_for_holders(http, TOKENS, {"one": {CPU: 10, DISK: 10}})
    # Gone without a word, as after kill -9: no deregistration, nothing evicted.
    one.worker.membership.registered = False
    await one.close()
    again = await instances(server, "one")
    await wait_for_holders(http, TOKENS, {"one": {DISK: 10}})
    loaded = await again.store.load_prefix(TOKENS)
    assert loaded.num_tokens == 10


async def test_leaving_in_good_order(controllers: Any, instances: Any) -> None:
    server, http = await controllers()
    one = await instances(server, "one")
    await one.store.save(TOKENS, kv_of(TOKENS))
    await wait_for_holders(http, TOKENS, {"one": {CPU: 10, DISK: 10}})
    await one.close()
    await wait_for_holders(http, TOKENS, {})


async def test_malformed_frames_do_not_stop_reports(controllers: Any, instances: Any, until: Any) -> None:
    server, http = await controllers()
    one = await instances(server, "one")
    await settled(until, one)
    push = one.worker._push._socket
    for frame in (b"", b"{", b"\xc1", b"\x81\xa4type\xa6Nobody"):
        await push.send_multipart([frame])
    await one.store.save(TOKENS, kv_of(TOKENS))
    await wait_for_holders(http, TOKENS, {"one": {CPU: 10, DISK: 10}})


async def test_lost_reports_heal(controllers: Any, instances: Any, until: Any) -> None:
    server, http = await controllers()
    one = await instances(server, "one")
    await settled(until, one)
    first = [7, 8, 9]
    await one.store.save(first, kv_of(first))
    await wait_for_holders(http, first, {"one": {CPU: 3, DISK: 3}})
    take = one.worker.reporting.changes.take

    def lost(most: int) -> list[Any]:
        take(most)  # numbered, and never sent
        return []

    one.worker.reporting.changes.take = lost
    await one.store.save(TOKENS, kv_of(TOKENS))
    await until(lambda: one.stats()["worker"]["pending_operations"] == 0)
    one.worker.reporting.changes.take = take
    more = [1, 2, 3, 4, 5]
    await one.store.save(more, kv_of(more))
    await wait_for_holders(http, TOKENS, {"one": {CPU: 10, DISK: 10}})


async def test_two_instances_of_different_chunk_size_and_hash(controllers: Any, instances: Any) -> None:
    server, http = await controllers()
    one = await instances(server, "one", chunk_size=4)
    two = await instances(server, "two", chunk_size=3, pre_caching_hash_algorithm="sha256_cbor", local_disk=None)
    await one.store.save(TOKENS, kv_of(TOKENS))
    await two.store.save(TOKENS[:7], kv_of(TOKENS[:7]))
    await wait_for_holders(http, TOKENS, {"one": {CPU: 10, DISK: 10}, "two": {CPU: 6}})
    await wait_for_holders(http, TOKENS[:7], {"one": {CPU: 4, DISK: 4}, "two": {CPU: 7}})
