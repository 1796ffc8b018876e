"""What controller and instance show to the outside: documents, metrics, guards."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import httpx
import jsonschema
import pytest
from openapi_spec_validator import OpenAPIV31SpecValidator

CPU = "LocalCPUBackend"
PROMPT = [(13 * n) % 256 for n in range(100)]
METRIC = re.compile(r"^(lmcache|vllm):[a-z0-9_]+|^lmcache_kit_[a-z0-9_]+")


def names(text: str) -> set[str]:
    """Names of the samples of a Prometheus text."""
    found = {re.split(r"[{ ]", line)[0] for line in text.splitlines() if line and not line.startswith("#")}
    assert found
    return found


def test_documents_are_valid_and_answers_keep_them(fleet: Any) -> None:
    a = fleet.start("a")
    a.complete(PROMPT)
    fleet.until_held(PROMPT, {"a": {CPU: 100}})
    event = fleet.post("/compress", instance_id="a", method="zstd", location=CPU, tokens=PROMPT)
    fleet.finished(event)
    calls: dict[str, tuple[httpx.Client, list[tuple[str, str, Any]]]] = {
        "controller": (
            fleet.http,
            [
                ("POST", "/lookup", {"tokens": PROMPT, "explain": True}),
                ("POST", "/check_finish", {"event_id": event["event_id"]}),
                ("POST", "/pin", {"instance_id": "a", "location": CPU, "tokens": PROMPT}),
                ("POST", "/unpin", {"instance_id": "a", "location": CPU}),
                ("POST", "/health", {"instance_id": "a"}),
                ("POST", "/query_instance", {"event_id": "x", "ip": "127.0.0.1"}),
                ("POST", "/query_worker_info", {"instance_id": "all"}),
                ("POST", "/clear", {"instance_id": "a", "location": CPU}),
                ("GET", "/controller/key-stats", None),
                ("GET", "/controller/workers", None),
                ("GET", "/health", None),
            ],
        ),
        "instance": (
            a.http,
            [
                ("POST", "/v1/completions", {"prompt": "one two", "max_tokens": 2}),
                ("GET", "/v1/models", None),
                ("POST", "/tokenize", {"prompt": "one two"}),
                ("POST", "/detokenize", {"tokens": [104, 105]}),
                ("GET", "/health", None),
            ],
        ),
    }
    for http, made in calls.values():
        document = http.get("/openapi.json").json()
        OpenAPIV31SpecValidator(document).validate()
        for method, path, body in made:
            answer = http.request(method, path, json=body)
            assert answer.status_code == 200, answer.text
            schema = document["paths"][path][method.lower()]["responses"]["200"]["content"]["application/json"][
                "schema"
            ]
            whole = {**schema, "components": document["components"]}
            jsonschema.Draft202012Validator(whole).validate(answer.json())
    described = {
        (m.upper(), path) for path, ways in fleet.http.get("/openapi.json").json()["paths"].items() for m in ways
    }
    assert described >= {(method, path) for method, path, _ in calls["controller"][1]}


def test_metrics_have_their_names_and_count(fleet: Any) -> None:
    a = fleet.start("a")
    for _ in range(2):
        a.complete(PROMPT)
    fleet.until_held(PROMPT, {"a": {CPU: 100}})
    shown = names(a.http.get("/metrics").text)
    assert all(METRIC.match(name) for name in shown), shown
    assert {name for name in shown if name.startswith("vllm:")} >= {
        "vllm:prompt_tokens_total",
        "vllm:generation_tokens_total",
        "vllm:num_requests_running",
        "vllm:num_requests_waiting",
        "vllm:time_to_first_token_seconds_count",
        "vllm:e2e_request_latency_seconds_count",
    }
    assert a.metric("vllm:prompt_tokens_total") == 200
    assert a.metric("lmcache:num_hit_tokens_total") == 99
    assert a.metric("lmcache_kit_tier_used_bytes", location=CPU) > 0
    shown = names(fleet.http.get("/metrics").text)
    assert all(METRIC.match(name) for name in shown), shown
    assert "lmcache:cache_controller_registered_workers_count" in shown


def test_the_token_the_limit_and_the_address(make_fleet: Any) -> None:
    fleet = make_fleet("--token", "secret", "--max-body-size", "64KiB")
    assert fleet.http.get("/health").status_code == 200
    for method, path in (
        ("POST", "/lookup"),
        ("GET", "/metrics"),
        ("GET", "/openapi.json"),
        ("GET", "/controller/workers"),
    ):
        answer = fleet.http.request(method, path, json={"tokens": [1]})
        assert (answer.status_code, answer.headers["www-authenticate"]) == (401, "Bearer")
    fleet.http.headers["Authorization"] = "Bearer secret"
    assert fleet.post("/lookup", tokens=PROMPT)["layout_info"] == {}
    assert "body" in fleet.post("/lookup", 413, tokens=[1] * 65536)["detail"]
    # Every socket of the controller and of an instance that joined it is on the loopback interface.
    a = fleet.start("a")
    children = {process.child.pid for process in (fleet.controller, a.process)}
    assert listening(children) == {"0100007F"}


def listening(pids: set[int]) -> set[str]:
    """Local addresses of the listening TCP sockets of some processes, as the kernel writes them."""
    table = Path("/proc/net/tcp")
    if not table.exists():
        pytest.skip("needs /proc/net/tcp")
    inodes = set()
    for pid in pids:
        for link in Path(f"/proc/{pid}/fd").iterdir():
            target = str(link.readlink()) if link.is_symlink() else ""
            if target.startswith("socket:["):
                inodes.add(target[8:-1])
    found = set()
    for name in ("tcp", "tcp6"):
        for line in Path(f"/proc/net/{name}").read_text().splitlines()[1:]:
            fields = line.split()
            if fields[3] == "0A" and fields[9] in inodes:
                found.add(fields[1].partition(":")[0])
    assert found
    return found


def test_no_endpoint_shows_the_environment_or_runs_code(fleet: Any) -> None:
    a = fleet.start("a", environment={"SOME_SECRET": "gobbledygook"})
    for http in (fleet.http, a.http):
        paths = [
            *http.get("/openapi.json").json()["paths"],
            "/metrics",
            "/openapi.json",
            "/env",
            "/conf",
            "/run_script",
        ]
        for path in paths:
            for method in ("GET", "POST"):
                assert "gobbledygook" not in http.request(method, path, json={}).text
        for path in ("/env", "/conf", "/run_script", "/docs", "/loglevel", "/threads"):
            assert http.get(path).status_code == 404
