"""docs/reference/http.md names every path that the servers have, and no other."""

from __future__ import annotations

import re
from pathlib import Path

import httpx
from openapi_spec_validator import OpenAPIV31SpecValidator

from lmcache_kit.controller.config import ControllerConfig, MonitorPorts
from lmcache_kit.controller.server import ControllerServer
from lmcache_kit.instance.http.openapi import openapi

PAGE = (Path(__file__).parents[2] / "docs" / "reference" / "http.md").read_text()
PATH = re.compile(r"`(GET|POST) (/[^`]*)`")


def documented(section: str) -> set[str]:
    text = PAGE.split(f"## {section}\n", 1)[1].split("\n## ", 1)[0]
    rows = [line for line in text.splitlines() if line.startswith("| `")]
    return {f"{method} {path}" for row in rows for method, path in PATH.findall(row.split("|")[1])}


def described(document: dict) -> set[str]:
    return {f"{method.upper()} {path}" for path, methods in document["paths"].items() for method in methods}


async def test_the_controllers_paths() -> None:
    config = ControllerConfig(port=0, monitor=MonitorPorts.following(0))
    async with ControllerServer(config) as server, httpx.AsyncClient(trust_env=False) as client:
        document = (await client.get(f"http://127.0.0.1:{server.http_port}/openapi.json")).json()
    assert documented("Controller") == described(document)
    OpenAPIV31SpecValidator(document).validate()


def test_the_instances_paths() -> None:
    assert documented("Instance") == described(openapi())
    OpenAPIV31SpecValidator(openapi()).validate()
