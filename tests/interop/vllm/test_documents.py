"""LMCache's two documents with vLLM itself: their configurations and curl commands, in their order.

Their `vllm serve` names our connector, and a folder under the name of their model: it has the token ids of their
prompt.
tests/integration/documents does the same with our own server, and compares the texts below with the documents'.
"""

from __future__ import annotations

import contextlib
import json
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

LOOKUP_YAML = """\
chunk_size: 256
local_cpu: True
max_local_cpu_size: 5
# cache controller configurations
enable_controller: True
lmcache_instance_id: "lmcache_default_instance"
controller_url: "localhost:9001"
distributed_url: "localhost:8002"
lmcache_worker_port: 8001
"""

COMPRESS_YAML = """\
chunk_size: 256
local_cpu: True
max_local_cpu_size: 5
# cache controller configurations
enable_controller: True
lmcache_instance_id: "lmcache_default_instance"
controller_pull_url: "localhost:9001"
lmcache_worker_ports: 8001
# Peer identifiers
p2p_host: "localhost"
p2p_init_ports: 8200
"""

SERVE = """\
vllm serve {model} --served-model-name meta-llama/Llama-3.1-8B-Instruct --max-model-len 4096 \
--gpu-memory-utilization 0.8 --port 8000 --enable-prompt-tokens-details {more} --kv-transfer-config \
'{{"kv_connector":"LMCacheKitConnector","kv_role":"kv_both","kv_connector_module_path":"lmcache_kit_vllm"}}'"""

COMPLETION = """\
curl -X POST http://localhost:8000/v1/completions \\
-H "Content-Type: application/json" \\
-d '{
"model": "meta-llama/Llama-3.1-8B-Instruct",
"prompt": "Explain the significance of KV cache in language models.",
"max_tokens": 10
}'"""

TOKENIZE = """\
curl -X POST http://localhost:8000/tokenize \\
-H "Content-Type: application/json" \\
-d '{
"model": "meta-llama/Llama-3.1-8B-Instruct",
"prompt": "Explain the significance of KV cache in language models."
}'"""

LOOKUP = """\
curl -X POST http://localhost:9000/lookup \\
-H "Content-Type: application/json" \\
-d '{
"tokens": [128000, 849, 21435, 279, 26431, 315, 85748, 6636, 304, 4221, 4211, 13]
}'"""

COMPRESS = """\
curl -X POST http://localhost:9000/compress \\
-H "Content-Type: application/json" \\
-d '{
"instance_id": "lmcache_default_instance",
"method": "cachegen",
"location": "LocalCPUBackend",
"tokens": [128000, 849, 21435, 279, 26431, 315, 85748, 6636, 304, 4221, 4211, 13]
}'"""

DECOMPRESS = COMPRESS.replace("/compress", "/decompress")

TOKENIZED = (
    '{"count":12,"max_model_len":4096,'
    '"tokens":[128000,849,21435,279,26431,315,85748,6636,304,4221,4211,13],"token_strs":null}'
)


PORTS = (8000, 8001, 8002, 8200, 9000, 9001, 9002, 9003)


class Documents:
    """vLLM and the controller as the documents start them."""

    def __init__(self, env: Any, model: Path, processes: Any, servers: Any) -> None:
        self.env, self.model, self.processes, self.servers = env, model, processes, servers
        self.vllm: Any = None
        self.controller: Any = None

    def close(self) -> None:
        if self.vllm is not None:
            self.servers.end(self.vllm)

    def serve(self, configuration: str, *, hash_seed: str | None, more: str = "") -> None:
        (self.processes.folder / "example.yaml").write_text(configuration)
        bin_folder = Path(self.env.bin("vllm")).parent
        variables = {
            **self.servers.quiet(self.env),
            "LMCACHE_CONFIG_FILE": "example.yaml",
            "VLLM_CPU_KVCACHE_SPACE": "1",
            **({} if hash_seed is None else {"PYTHONHASHSEED": hash_seed}),
        }
        command = "exec " + str(bin_folder) + "/" + SERVE.format(model=self.model, more=more)
        self.vllm = self.processes.start("vllm", "bash", "-c", command, **variables)

    def control(self, *, hash_seed: str | None) -> None:
        command = [sys.executable, "-m", "lmcache_kit", "controller", "--host", "localhost", "--port", "9000"]
        variables = {} if hash_seed is None else {"PYTHONHASHSEED": hash_seed}
        self.controller = self.processes.start("controller", *command, "--monitor-port", "9001", **variables)

    def wait_until_ready(self) -> None:
        ready = "Application startup complete"
        self.vllm.wait_for(lambda: ready in self.vllm.text(), ready, seconds=self.servers.START_SECONDS)
        self.controller.wait_for(lambda: "controller ready" in self.controller.text(), "its ready line")

    def curl(self, command: str) -> Any:
        """The JSON answer of a command of the documents."""
        done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, timeout=60)
        assert done.returncode == 0, f"{done.stderr}\n{self.vllm.text()[-3000:]}"
        return json.loads(done.stdout)

    def found(self) -> Any:
        """The lookup, as soon as the controller has heard of the chunk."""

        def answer() -> dict[str, Any] | None:
            value: dict[str, Any] = self.curl(LOOKUP)
            assert value["event_id"]
            return value if "lmcache_default_instance" in value else None

        return self.controller.wait_for(answer, "a lookup that finds something")["lmcache_default_instance"]

    def finished(self, event_id: str) -> dict[str, Any]:
        command = f'curl --silent -X POST http://localhost:9000/check_finish -d \'{{"event_id": "{event_id}"}}\''

        def ended() -> dict[str, Any] | None:
            state: dict[str, Any] = self.curl(command)
            return state if state["status"] in ("done", "failed") else None

        state: dict[str, Any] = self.controller.wait_for(ended, "the end of the job")
        return state


def free(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) != 0


@pytest.fixture
def documents(
    vllm_env: Any,
    models: dict[str, Path],
    processes: Any,
    servers: Any,
    load_module: Callable[[str], ModuleType],
) -> Iterator[Documents]:
    if shutil.which("curl") is None:
        pytest.skip("the documents are about curl commands and curl is not installed")
    for _ in range(100):  # what another test has just killed may hold one a moment longer
        taken = [port for port in PORTS if not free(port)]
        if not taken:
            break
        time.sleep(0.1)
    else:
        pytest.skip(f"the documents use fixed ports and {taken} are in use on this machine")
    with contextlib.closing(Documents(vllm_env, models["documents"], processes, servers)) as started:
        yield started


@pytest.mark.exercises("vLLM: LMCache's document on lookup, the instance first, vLLM compiling its model")
def test_lookup(documents: Documents) -> None:
    documents.serve(LOOKUP_YAML, hash_seed="123")
    documents.control(hash_seed="123")
    documents.wait_until_ready()
    assert len(documents.curl(COMPLETION)["choices"][0]["text"].split()) >= 1
    assert documents.curl(TOKENIZE) == json.loads(TOKENIZED)
    assert documents.found() == ["LocalCPUBackend", 12]
    # Both sides were started with PYTHONHASHSEED=123, so the chunk has the key that LMCache gives it under this seed.
    [spec] = documents.curl(LOOKUP.replace("/lookup", "/lookup?explain=true"))["explain"]["specs"]
    assert spec["none_hash"] == "-6197052367682486848"
    assert documents.curl(COMPLETION)["usage"]["prompt_tokens_details"]["cached_tokens"] == 11


@pytest.mark.exercises("vLLM: LMCache's document on compress and decompress, the controller first")
def test_compress_and_decompress(documents: Documents) -> None:
    documents.control(hash_seed=None)
    documents.serve(COMPRESS_YAML, hash_seed=None, more="--enforce-eager")
    documents.wait_until_ready()
    cold = documents.curl(COMPLETION)
    assert documents.curl(TOKENIZE) == json.loads(TOKENIZED)
    assert documents.found() == ["LocalCPUBackend", 12]
    compress = documents.curl(COMPRESS)
    assert compress["num_tokens"] == 12
    packed = documents.finished(compress["event_id"])
    assert (packed["status"], packed["tokens_done"]) == ("done", 12)
    assert packed["bytes_after"] < packed["bytes_before"]
    assert documents.found() == ["LocalCPUBackend", 12]
    warm = documents.curl(COMPLETION)
    assert [each["usage"]["prompt_tokens_details"]["cached_tokens"] for each in (cold, warm)] == [0, 11]
    assert warm["kv_transfer_params"]["lmcache_kit"]["codecs"] == {"cachegen": 1}
    decompress = documents.curl(DECOMPRESS)
    assert decompress["num_tokens"] == 12
    unpacked = documents.finished(decompress["event_id"])
    assert (unpacked["status"], unpacked["bytes_after"]) == ("done", packed["bytes_before"])
    raw = documents.curl(COMPLETION)
    assert raw["kv_transfer_params"]["lmcache_kit"]["codecs"] == {"naive": 1}
    assert documents.vllm.running()
