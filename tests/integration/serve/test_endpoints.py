"""Every endpoint but completions, and the manners of errors."""

from __future__ import annotations

import json
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families


async def error(served: Any, path: str, *, status: int, **request: Any) -> str:
    answer = await served.http.request(request.pop("method", "POST"), path, **request)
    assert answer.status_code == status, answer.text
    body = answer.json()
    assert body["error"]["message"] == body["detail"]
    assert body["error"]["code"] == status
    assert body["error"]["type"].endswith("Error")
    return body["detail"]


async def test_tokenize_answers_as_the_documents_show(serve, make_engine) -> None:
    served = await serve(make_engine())
    prompt = "Explain the significance of KV cache in language models."
    answer = await served.http.post("/tokenize", json={"model": "model-a", "prompt": prompt})
    tokens = [256, *prompt.encode()]
    expected = {"count": len(tokens), "max_model_len": 1024, "tokens": tokens, "token_strs": None}
    assert answer.text == json.dumps(expected, separators=(",", ":"))
    body = {"prompt": "ab", "add_special_tokens": False, "return_token_strs": True}
    answer = await served.http.post("/tokenize", json=body)
    assert answer.json() == {"count": 2, "max_model_len": 1024, "tokens": [97, 98], "token_strs": ["a", "b"]}


async def test_detokenize_is_the_way_back(serve, make_engine) -> None:
    served = await serve(make_engine())
    answer = await served.http.post("/detokenize", json={"model": "alias", "tokens": list("déjà".encode())})
    assert answer.json() == {"prompt": "déjà"}
    assert (await served.http.post("/detokenize", json={"tokens": []})).json() == {"prompt": ""}
    assert (await served.http.post("/detokenize", json={"tokens": [256, 97]})).json() == {"prompt": "<s>a"}
    for tokens in ([258], [-1], [97, 10**30]):
        assert "outside of the vocabulary" in await error(served, "/detokenize", status=400, json={"tokens": tokens})


async def test_models(serve, make_engine) -> None:
    served = await serve(make_engine())
    answer = (await served.http.get("/v1/models")).json()
    assert answer["object"] == "list"
    assert [model["id"] for model in answer["data"]] == ["model-a", "alias"]
    assert all(model["max_model_len"] == 1024 and model["root"] == "model-a" for model in answer["data"])


async def test_a_path_of_the_controller_says_whom_to_ask(serve, make_engine) -> None:
    served = await serve(make_engine())
    assert "an instance has no /lookup; is the controller meant?" in await error(
        served, "/lookup", status=404, json={"tokens": [1]}
    )


@pytest.mark.parametrize("path", ["/v1/completions", "/tokenize", "/detokenize"])
async def test_a_model_that_is_not_served(serve, make_engine, path: str) -> None:
    served = await serve(make_engine())
    body = {"model": "model-b", **({"tokens": [1]} if path == "/detokenize" else {"prompt": "a"})}
    detail = await error(served, path, status=404, json=body)
    assert "model-b" in detail
    assert "model-a, alias" in detail
    for name in ("model-a", "alias"):
        answer = await served.http.post(path, json={**body, "model": name})
        assert answer.status_code == 200
        assert answer.json().get("model", name) == name


@pytest.mark.parametrize("path", ["/v1/completions", "/tokenize", "/detokenize"])
@pytest.mark.parametrize("body", [b"", b"{", b"[]", b'"text"', b"\xff\xfe", b'{"model": 1}', b"{}"])
async def test_bodies_that_cannot_be_read(serve, make_engine, path: str, body: bytes) -> None:
    served = await serve(make_engine())
    assert "body" in await error(served, path, status=400, content=body)


async def test_bodies_that_are_too_large(serve, make_engine) -> None:
    served = await serve(make_engine(), max_body_bytes=1000)
    fits = json.dumps({"prompt": "a" * 900}).encode()
    assert (await served.http.post("/tokenize", content=fits)).status_code == 200
    assert "1000 bytes" in await error(served, "/tokenize", status=413, content=b" " * 1001)

    async def chunks() -> Any:
        for _ in range(11):
            yield b" " * 100

    assert "1000 bytes" in await error(served, "/tokenize", status=413, content=chunks())


@pytest.mark.parametrize("prompt", ["", [], [[]], [""]])
async def test_empty_prompts(serve, scripted, prompt: Any) -> None:
    served = await serve(scripted(b"x"))  # its tokenizer adds nothing
    assert "empty" in await error(served, "/v1/completions", status=400, json={"prompt": prompt})


@pytest.mark.parametrize("prompt", [[258], [-1], [1, 2, 10**25]])
async def test_tokens_outside_of_the_vocabulary(serve, make_engine, prompt: list[int]) -> None:
    served = await serve(make_engine())
    assert "vocabulary" in await error(served, "/v1/completions", status=400, json={"prompt": prompt})


@pytest.mark.parametrize(
    ("body", "what"),
    [
        ({"n": 2}, "n=2"),
        ({"logprobs": 1}, "logprobs=1"),
        ({"best_of": 4}, "best_of"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"temperature": -1}, "temperature"),
        ({"max_tokenz": 5}, "max_tokens"),
        ({"stream_options": {"include_usage": True}}, "stream=true"),
        ({"prompt": ["a", "b"]}, "one text"),
        ({"max_tokens": 10**6, "stream": True}, "maximum context length"),
    ],
)
async def test_wishes_that_cannot_be_met(serve, make_engine, body: dict[str, Any], what: str) -> None:
    served = await serve(make_engine())
    assert what in await error(served, "/v1/completions", status=400, json={"prompt": "a", **body})


async def test_unknown_paths_and_methods(serve, make_engine) -> None:
    served = await serve(make_engine())
    assert "/v1/chat/completions" in await error(served, "/v1/chat/completions", status=404, json={})
    assert "GET" in await error(served, "/v1/completions", status=405, method="GET")


async def test_metrics_count_what_happened(serve, make_engine) -> None:
    served = await serve(make_engine())
    for _ in range(2):
        await served.http.post("/v1/completions", json={"prompt": [1] * 100, "max_tokens": 10})
    answer = await served.http.get("/metrics")
    assert answer.headers["content-type"].startswith("text/plain")
    samples = {
        (sample.name, sample.labels.get("location") or sample.labels.get("finished_reason")): sample.value
        for family in text_string_to_metric_families(answer.text)
        for sample in family.samples
    }
    expected = {
        "vllm:prompt_tokens_total": 200,
        "vllm:generation_tokens_total": 20,
        "vllm:time_to_first_token_seconds_count": 2,
        "vllm:num_requests_running": 0,
        "lmcache:num_requested_tokens_total": 200,
        "lmcache:num_hit_tokens_total": 99,
        "lmcache:num_stored_tokens_total": 100,
        "lmcache:retrieve_hit_rate": 99 / 200,
        "lmcache_kit_store_loads_total": 1,
        "lmcache_kit_peer_refused_total": 0,
    }
    assert {name: samples[name, None] for name in expected} == expected
    assert samples["vllm:request_success_total", "length"] == 2
    assert samples["lmcache_kit_tier_hits_total", "LocalCPUBackend"] == 3
    assert samples["lmcache_kit_tier_chunks", "LocalCPUBackend"] == 2
    assert samples["lmcache_kit_tier_available", "LocalCPUBackend"] == 1, "a level, not a counter"
    layout = served.engine.info.layout
    assert samples["lmcache:local_cache_usage", None] == layout.nbytes(100)


async def test_openapi_describes_every_route_and_every_reference_leads_somewhere(serve, make_engine) -> None:
    served = await serve(make_engine())
    document = (await served.http.get("/openapi.json")).json()
    routes = {(route.path, method.lower()) for route in served.app.app.routes for method in route.methods - {"HEAD"}}
    assert {(path, method) for path, item in document["paths"].items() for method in item} == routes

    def references(value: Any) -> Any:
        if isinstance(value, dict):
            yield from [value["$ref"]] if "$ref" in value else []
            for each in value.values():
                yield from references(each)
        elif isinstance(value, list):
            for each in value:
                yield from references(each)

    found = set(references(document))
    assert found
    for reference in found:
        assert reference.removeprefix("#/components/schemas/") in document["components"]["schemas"]
    assert "max_tokens" in document["components"]["schemas"]["CompletionBody"]["properties"]
