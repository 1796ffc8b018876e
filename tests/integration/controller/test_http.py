"""HTTP manners: errors, limits, the token, documents, and bytes that are no HTTP."""

from __future__ import annotations

import asyncio
import contextlib
import random

import msgspec
import pytest
from prometheus_client.parser import text_string_to_metric_families

TOKENS = list(range(600))


async def test_liveness_and_empty_answers(fleet):
    assert (await fleet.http.get("/health")).json()["status"] == "ok"
    assert (await fleet.http.get("/controller/workers")).json() == {"workers": [], "total_count": 0}
    assert (await fleet.http.get("/controller/key-stats")).json()["instances"] == []
    answer = (await fleet.post("/lookup", tokens=[])).json()
    assert (answer["layout_info"], answer["holders"]) == ({}, {})


@pytest.mark.parametrize(
    ("body", "text"),
    [
        (b"", "empty"),
        (b"{", "truncated"),
        (b"[]", "object"),
        (b"{}", "tokens"),
        (b'{"tokens": [1, "2"]}', "$.tokens[1]"),
        (b'{"tokens": null}', "tokens"),
        (b"\xff\xfe", ""),
        (b'{"tokens":' + b"[" * 100_000, ""),
    ],
)
async def test_bodies_that_cannot_be_read_are_400(fleet, body, text):
    answer = await fleet.http.post("/lookup", content=body)
    assert answer.status_code == 400
    assert text in answer.json()["detail"]


async def test_unknown_keys_are_ignored_as_lmcache_does(fleet):
    assert (await fleet.post("/lookup", tokens=[1], something="else")).status_code == 200


async def test_unknown_paths_and_methods(fleet):
    answer = await fleet.http.get("/nowhere")
    assert (answer.status_code, "a controller has no /nowhere" in answer.json()["detail"]) == (404, True)
    answer = await fleet.http.get("/lookup")
    assert (answer.status_code, answer.headers["allow"]) == (405, "POST")
    assert "GET" in answer.json()["detail"]
    answer = await fleet.http.put("/health")  # GET and POST are two routes
    assert (answer.status_code, answer.headers["allow"]) == (405, "GET, HEAD, POST")


async def test_large_bodies_are_refused_however_they_come(make_fleet):
    fleet = await make_fleet(max_body_bytes=1000)
    large = msgspec.json.encode({"tokens": list(range(1000))})

    async def pieces():
        for start in range(0, len(large), 100):
            yield large[start : start + 100]

    for content in (large, pieces(), b" " * 20_000_000):
        answer = await fleet.http.post("/lookup", content=content)
        assert answer.status_code == 413
        assert "1000 bytes" in answer.json()["detail"]
    assert (await fleet.post("/lookup", tokens=[1])).status_code == 200

    async def small():
        yield b'{"tokens"'
        yield b": [1]}"

    assert (await fleet.http.post("/lookup", content=small())).status_code == 200


async def test_the_token_guards_everything_but_the_liveness(make_fleet):
    fleet = await make_fleet(token="open sesame")
    paths = ["/controller/workers", "/controller/key-stats", "/metrics", "/openapi.json"]
    wrong = [
        {},
        {"Authorization": "Bearer nope"},
        {"Authorization": "open sesame"},
        {"Authorization": "Basic b3Blbg=="},
    ]
    for headers in wrong:
        for path in paths:
            answer = await fleet.http.get(path, headers=headers)
            assert answer.status_code == 401
            assert "Authorization" in answer.json()["detail"]
        answer = await fleet.http.post("/lookup", json={"tokens": [1]}, headers=headers)
        assert (answer.status_code, answer.headers["www-authenticate"]) == (401, "Bearer")
    assert (await fleet.http.get("/health")).status_code == 200
    headers = {"Authorization": "bearer open sesame"}
    assert (await fleet.http.post("/lookup", json={"tokens": [1]}, headers=headers)).status_code == 200
    for path in paths:
        assert (await fleet.http.get(path, headers=headers)).status_code == 200
    document = (await fleet.http.get("/openapi.json", headers=headers)).json()
    assert document["components"]["securitySchemes"]["bearer"]["scheme"] == "bearer"


async def test_explain_by_parameter_and_by_field(fleet):
    await fleet.joined()
    for answer in (
        await fleet.http.post("/lookup?explain=true", json={"tokens": TOKENS}),
        await fleet.post("/lookup", tokens=TOKENS, explain=True),
    ):
        explained = answer.json()["explain"]
        assert explained["specs"][0]["ended"] == "no instance holds chunk 0"
        assert isinstance(explained["specs"][0]["chunks"][0]["key"], str)
    assert "explain" not in (await fleet.http.post("/lookup?explain=0", json={"tokens": TOKENS})).json()
    assert "explain" in (await fleet.http.post("/lookup?explain=True", json={"tokens": TOKENS})).json()
    for asked in ({}, {"explain": True}):
        wrong = await fleet.http.post("/lookup?explain=maybe", json={"tokens": TOKENS, **asked})
        assert wrong.status_code == 400


async def test_an_instance_named_like_a_key_of_the_answer(fleet, until, keys_of):
    worker = await fleet.joined("event_id")
    await worker.admit(keys_of(TOKENS))

    async def there():
        return await fleet.held(TOKENS, "event_id") == 600

    await until(there)
    answer = (await fleet.post("/lookup", tokens=TOKENS)).json()
    assert len(answer["event_id"]) == 32
    assert answer["layout_info"]["event_id"] == ["LocalCPUBackend", 600]


async def test_who_is_there(fleet, until):
    worker = await fleet.joined("a", 0, model="m", chunk_size=16, none_hash=2**63)
    await fleet.joined("a", 1)
    await fleet.joined("b", 0)
    await worker.admit([1, 2, 3])

    async def counted():
        return (await fleet.http.get("/controller/key-stats")).json()["total_key_count"] == 3

    await until(counted)
    stats = (await fleet.http.get("/controller/key-stats")).json()
    assert (stats["total_instance_count"], stats["total_worker_count"]) == (2, 3)
    assert stats["instances"][0]["locations"] == {"LocalCPUBackend": 3}
    everyone = (await fleet.post("/query_worker_info", instance_id="all")).json()["worker_infos"]
    assert [(info["instance_id"], info["worker_id"]) for info in everyone] == [("a", 0), ("a", 1), ("b", 0)]
    assert (everyone[0]["none_hash"], everyone[0]["chunk_size"], everyone[0]["model"]) == (str(2**63), 16, "m")
    some = await fleet.post("/query_worker_info", instance_id="a", worker_ids=[1])
    assert [info["worker_id"] for info in some.json()["worker_infos"]] == [1]
    assert (await fleet.post("/query_worker_info", instance_id="a", worker_ids=[7])).status_code == 404
    assert (await fleet.http.get("/controller/workers?instance_id=a")).json()["total_count"] == 2
    one = (await fleet.http.get("/controller/workers?instance_id=a&worker_id=0")).json()
    assert (one["key_count"], one["alive"]) == (3, True)
    assert (await fleet.http.get("/controller/workers?instance_id=a&worker_id=9")).status_code == 404
    for number in ("x", "", "9" * 5000, "-", "%D9%A3"):
        answer = await fleet.http.get(f"/controller/workers?worker_id={number}")
        assert (answer.status_code, len(answer.text) < 100) == (400, True)
    found = (await fleet.post("/query_instance", ip="127.0.0.1", event_id="mine")).json()
    assert found == {"event_id": "mine", "res": "a", "instances": ["a", "b"]}
    missing = await fleet.post("/query_instance", ip="10.0.0.1")
    assert (missing.status_code, "127.0.0.1" in missing.json()["detail"]) == (404, True)


async def test_metrics_are_prometheus_text_with_lmcaches_names(fleet):
    await fleet.joined()
    await fleet.post("/lookup", tokens=TOKENS)
    await fleet.post("/health", instance_id="a")
    answer = await fleet.http.get("/metrics")
    assert answer.headers["content-type"].startswith("text/plain")
    samples = {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(answer.text)
        for sample in family.samples
    }
    assert samples["lmcache:cache_controller_registered_workers_count", ()] == 1
    assert samples["lmcache_kit_controller_lookup_tokens_total", ()] == 600
    assert samples["lmcache_kit_controller_worker_calls_total", (("outcome", "answered"),)] == 1
    assert samples["lmcache_kit_controller_http_requests_total", (("path", "/lookup"), ("status", "200"))] == 1


async def test_the_openapi_document_speaks_of_what_is_there(fleet):
    document = (await fleet.http.get("/openapi.json")).json()
    assert document["openapi"].startswith("3.1")

    def references(node):
        if isinstance(node, dict):
            yield from ([node["$ref"]] if "$ref" in node else [])
            for value in node.values():
                yield from references(value)
        elif isinstance(node, list):
            for value in node:
                yield from references(value)

    names = {reference.rpartition("/")[2] for reference in references(document)}
    assert names <= set(document["components"]["schemas"])
    for path, methods in document["paths"].items():
        for method in methods:
            answer = await fleet.http.request(method.upper(), path)
            assert answer.status_code in (200, 400), path


async def test_bytes_that_are_no_protocol_stop_nothing(fleet, until, keys_of):
    worker = await fleet.joined()
    chance = random.Random(7)
    ports = [fleet.server.http_port, *fleet.ports.values()]
    greeting = b"\xff" + bytes(8) + b"\x7f\x03\x00NULL" + bytes(16) + b"\x00" + bytes(31)
    for port in ports:
        for start in (b"", b"GET / HTTP/1.1\r\n", b"POST /lookup HTTP/1.1\r\ncontent-length: -4\r\n\r\n", greeting):
            _, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(start + chance.randbytes(300))
            await asyncio.sleep(0)
            writer.close()
            with contextlib.suppress(ConnectionError):
                await writer.wait_closed()
    await worker.admit(keys_of(TOKENS))

    async def there():
        return await fleet.held(TOKENS) == 600

    await until(there)
