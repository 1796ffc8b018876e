"""What `vllm serve` looks like from the outside, without vLLM: its arguments, its HTTP answers and its processes.

The engine is a process of its own, as in vLLM; here it is our instance with the synthetic engine, so that its tiers,
its worker and its peer server are real. What is in front of it answers as vLLM 0.32 with our connector does: an empty
/health, facts of the cache under kv_transfer_params, and none of them beside streamed answers.

With STAND_IN=crash in the environment it ends while it starts.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import socket
import sys
from contextlib import asynccontextmanager
from typing import Any

import httpx
import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response, StreamingResponse
from starlette.routing import Route


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="vllm", allow_abbrev=False)
    serve = parser.add_subparsers(required=True).add_parser("serve", allow_abbrev=False)
    serve.add_argument("model_tag")
    serve.add_argument("--host", required=True)
    serve.add_argument("--port", type=int, required=True)
    serve.add_argument("--served-model-name", nargs="+", required=True)
    serve.add_argument("--max-num-seqs", type=int, required=True)
    serve.add_argument("--kv-transfer-config", type=json.loads, required=True)
    serve.add_argument("--enable-prompt-tokens-details", action="store_true", required=True)
    serve.add_argument("--shutdown-timeout", type=int, default=0)
    serve.add_argument("--enable-prefix-caching", action=argparse.BooleanOptionalAction)
    serve.add_argument("--max-model-len", type=int, default=4096)
    serve.add_argument("--dtype", default="auto")
    return parser.parse_args()


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class Front:
    """The API server in front of the engine's process."""

    def __init__(self, args: argparse.Namespace) -> None:
        self._args = args
        self._engine: asyncio.subprocess.Process | None = None
        self._port = free_port()
        self._http = httpx.AsyncClient(base_url=f"http://127.0.0.1:{self._port}", timeout=60, trust_env=False)
        self.app = Starlette(
            routes=[
                Route("/health", self.health),
                Route("/metrics", self.metrics),
                Route("/v1/models", self.forward),
                Route("/tokenize", self.forward, methods=["POST"]),
                Route("/detokenize", self.forward, methods=["POST"]),
                Route("/v1/completions", self.completions, methods=["POST"]),
            ],
            lifespan=self.lifespan,
        )

    @asynccontextmanager
    async def lifespan(self, app: Starlette) -> Any:
        args = self._args
        command = [sys.executable, "-m", "lmcache_kit", "serve", args.model_tag, "--engine", "synthetic"]
        command += ["--port", str(self._port), "--max-model-len", str(args.max_model_len), "--config"]
        command += [os.environ["LMCACHE_CONFIG_FILE"], "--max-num-seqs", str(args.max_num_seqs)]
        command += [word for name in args.served_model_name for word in ("--served-model-name", name)]
        self._engine = await asyncio.create_subprocess_exec(*command)
        while not await self._ready():  # noqa: ASYNC110  (another process)
            await asyncio.sleep(0.05)
        yield
        self._engine.terminate()
        await self._engine.wait()
        await self._http.aclose()

    async def _ready(self) -> bool:
        try:
            return (await self._http.get("/health")).status_code == 200
        except httpx.HTTPError:
            return False

    async def health(self, request: Request) -> Response:
        alive = self._engine is not None and self._engine.returncode is None
        return Response(status_code=200 if alive else 503)

    async def metrics(self, request: Request) -> Response:
        lines = (await self._http.get("/metrics")).text.splitlines(keepends=True)
        return PlainTextResponse("".join(line for line in lines if "vllm:" in line))

    async def forward(self, request: Request) -> Response:
        answer = await self._http.request(request.method, request.url.path, content=await request.body())
        return Response(answer.content, answer.status_code, media_type="application/json")

    async def completions(self, request: Request) -> Response:
        body = await request.body()
        if json.loads(body).get("stream"):
            return StreamingResponse(self._streamed(body), media_type="text/event-stream")
        answer = await self._http.post("/v1/completions", content=body)
        told = answer.json()
        if answer.status_code == 200:
            told["kv_transfer_params"] = {"lmcache_kit": told.pop("lmcache_kit")}
        return Response(json.dumps(told), answer.status_code, media_type="application/json")

    async def _streamed(self, body: bytes) -> Any:
        async with self._http.stream("POST", "/v1/completions", content=body) as answer:
            async for line in answer.aiter_lines():
                if line.startswith("data: {"):
                    told = json.loads(line.removeprefix("data: "))
                    told.pop("lmcache_kit", None)
                    line = f"data: {json.dumps(told)}"
                yield f"{line}\n"


def main() -> None:
    args = arguments()
    connector = args.kv_transfer_config
    assert connector["kv_connector"] == "LMCacheKitConnector", connector
    assert connector["kv_connector_module_path"] == "lmcache_kit_vllm", connector
    print("INFO the stand-in reads its weights", file=sys.stderr)
    if os.environ.get("STAND_IN") == "crash":
        sys.exit("ValueError: No available memory for the cache blocks.")
    uvicorn.run(Front(args).app, host=args.host, port=args.port, log_level="warning", lifespan="on")


if __name__ == "__main__":
    main()
