"""Registration in all its forms, heartbeats, syncs and peers over real sockets."""

from __future__ import annotations

import msgspec
import zmq

from lmcache_kit.controller.config import MonitorPorts

TOKENS = list(range(700))
CPU = "LocalCPUBackend"


async def test_registration_tells_where_heartbeats_go(fleet):
    worker = fleet.worker()
    answer = await worker.register()
    assert answer == {
        "type": "RegisterRetMsg",
        "extra_config": {"heartbeat_url": f"127.0.0.1:{fleet.ports['heartbeat']}"},
    }


async def test_without_a_heartbeat_socket_none_is_told_and_the_reply_socket_takes_heartbeats(make_fleet):
    fleet = await make_fleet(monitor=MonitorPorts(0, 0, None))
    worker = fleet.worker()
    assert (await worker.register())["extra_config"] == {}
    answer = await worker.ask(worker.presence("HeartbeatMsg"))
    assert answer == {"type": "HeartbeatRetMsg", "commands": []}


async def test_a_worker_of_lmcache_03_needs_the_pull_port_only(make_fleet, until, keys_of):
    fleet = await make_fleet(monitor=MonitorPorts(0, None, None))
    worker = fleet.worker("lmcache_default_instance")
    await worker.listen()
    register = {"type": "RegisterMsg", **worker.identity, "ip": "127.0.0.1", "port": worker.port}
    await worker.push.send(msgspec.json.encode(register))
    for key in keys_of(TOKENS):
        await worker.send({"type": "KVAdmitMsg", **worker.identity, "key": key, "location": CPU})

    async def there():
        return await fleet.held(TOKENS, "lmcache_default_instance") == 700

    await until(there)
    assert (await fleet.post("/health", instance_id="lmcache_default_instance")).status_code == 200
    await worker.send({"type": "DeRegisterMsg", **worker.identity, "ip": "127.0.0.1", "port": worker.port})

    async def gone():
        return (await fleet.post("/health", instance_id="lmcache_default_instance")).status_code == 404

    await until(gone)


async def test_json_requests_are_answered_in_msgpack(fleet):
    worker = fleet.worker()
    await worker.listen()
    dealer = worker._connect(zmq.DEALER, fleet.ports["reply"])
    await dealer.send_multipart([b"", msgspec.json.encode(worker.presence("RegisterMsg"))])
    frames = await dealer.recv_multipart()
    assert frames[0] == b""
    assert msgspec.msgpack.decode(frames[1])["type"] == "RegisterRetMsg"


async def test_other_framings_get_their_envelope_back(fleet):
    worker = fleet.worker()
    await worker.listen()
    payload = msgspec.msgpack.encode(worker.presence("HeartbeatMsg"))
    request = worker._connect(zmq.REQ, fleet.ports["heartbeat"])
    await request.send(payload)
    assert msgspec.msgpack.decode(await request.recv())["commands"][0]["reason"] == "worker_re_registered"
    dealer = worker._connect(zmq.DEALER, fleet.ports["heartbeat"])
    await dealer.send(payload)
    assert msgspec.msgpack.decode(await dealer.recv())["type"] == "HeartbeatRetMsg"
    await dealer.send_multipart([b"corr", b"", payload])
    frames = await dealer.recv_multipart()
    assert frames[:2] == [b"corr", b""]


async def test_lost_frames_heal_with_the_next_heartbeat(fleet, until, keys_of):
    worker = await fleet.joined()
    keys = keys_of(TOKENS)
    await worker.admit(keys[:1])
    worker.operations("admit", keys[1:2], CPU)  # never sent
    await worker.admit(keys[2:])

    async def noticed():
        return (await fleet.post("/query_worker_info", instance_id="a")).json()["worker_infos"][0]["sync_reason"]

    await until(noticed)
    assert await fleet.held(TOKENS) == 256
    (command,) = await worker.heartbeat()
    assert (command["command_type"], command["reason"]) == ("full_sync", "sequence_gap")
    status = await worker.full_sync(keys)
    assert (status["can_exit_freeze"], status["missing_batches"]) == (True, [])
    assert await fleet.held(TOKENS) == 700
    assert await worker.heartbeat() == []


async def test_peers_find_each_other(fleet, until, keys_of):
    asking = await fleet.joined("a", peer_init_url="127.0.0.1:1")
    holder = await fleet.joined("b", peer_init_url="127.0.0.1:2")
    keys = keys_of(TOKENS)
    await holder.admit(keys[:2])

    async def there():
        return await fleet.held(TOKENS, "b") == 512

    await until(there)
    answer = await asking.ask({"type": "BatchedP2PLookupMsg", **asking.identity, "hashes": keys})
    assert answer["layout_info"] == [["b", CPU, 2, "127.0.0.1:2"]]


async def test_move_sends_the_targets_peer_url(fleet):
    source = await fleet.joined("a", peer_init_url="127.0.0.1:1")
    await fleet.joined("b", peer_init_url="127.0.0.1:2")
    body = {"old_position": ["a", CPU], "new_position": ["b", "LocalDiskBackend"], "tokens": TOKENS}
    assert (await fleet.post("/move", **body)).json()["num_tokens"] == 700
    assert (await fleet.post("/move", **body, should_copy=True)).status_code == 200
    assert (await fleet.post("/move", **body, copy=True)).status_code == 200
    assert (await fleet.post("/move", **body, copy=True, should_copy=False)).status_code == 400
    assert [call["copy"] for call in source.calls] == [False, True, True]
    assert source.calls[0]["new_position"] == ["127.0.0.1:2", "LocalDiskBackend"]
    assert source.calls[0]["old_position"] == CPU


async def test_ranks_are_asked_together(fleet):
    ranks = [await fleet.joined("a", number) for number in (0, 1)]
    ranks[1].answers["HealthWorkerMsg"] = lambda message: {"type": "HealthWorkerRetMsg", "error_code": 3}
    assert (await fleet.post("/health", instance_id="a")).json()["error_codes"] == {"0": 0, "1": 3}
    ranks[1].answers["PinWorkerMsg"] = lambda message: {"type": "ErrorMsg", "error": "no room"}
    answer = await fleet.post("/pin", instance_id="a", location=CPU, tokens=TOKENS)
    assert answer.json()["detail"] == "worker a/1: no room"
    ranks[1].answers["HealthWorkerMsg"] = lambda message: {"type": "ErrorMsg", "error": "ill"}
    health = (await fleet.post("/health", instance_id="a")).json()
    assert (health["error_codes"]["1"], health["errors"]) == (-1001, {"1": "ill"})


async def test_an_answer_that_cannot_be_read_is_502(fleet):
    worker = await fleet.joined()
    worker.answers["PinWorkerMsg"] = lambda message: {"type": "Nonsense"}
    answer = await fleet.post("/pin", instance_id="a", location=CPU, tokens=TOKENS)
    assert answer.status_code == 502


async def test_an_address_that_is_none_is_503(make_fleet):
    fleet = await make_fleet(call_timeout=0.2)
    for ip, port in (("", 1), ("no such host.invalid", 1), ("127.0.0.1", -5), ("a\x00b", 99999)):
        worker = fleet.worker("a")
        worker.port = port
        await worker.ask({**worker.presence("RegisterMsg"), "ip": ip})
        answer = await fleet.post("/health", instance_id="a")
        assert answer.status_code == 503
        assert "a/0" in answer.json()["detail"]
