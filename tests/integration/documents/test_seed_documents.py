"""The two documents of LMCache that this project follows, command by command, with both orders of starting.

Only two commands differ from the documents: ``lmcache-kit serve`` stands for ``vllm serve`` and ``lmcache-kit
controller`` for ``lmcache_controller``. Configurations and curl commands are theirs as they stand, ports included.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

DOCUMENTS = Path(__file__).parents[4] / "shared" / "seeds"
WAIT_SECONDS = 60.0

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
lmcache-kit serve --engine transformers --model tiny-llama-3.1 \
--served-model-name meta-llama/Llama-3.1-8B-Instruct --max-model-len 4096 --gpu-memory-utilization 0.8 --port 8000 \
--kv-transfer-config '{"kv_connector":"LMCacheConnectorV1", "kv_role":"kv_both"}'"""

CONTROLLER = "lmcache-kit controller --host localhost --port 9000 --monitor-port 9001"

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


class Fleet:
    """The documents' instance and controller as processes, started by hand."""

    def __init__(self, folder: Path, configuration: str, hash_seed: str | None) -> None:
        self.folder = folder
        (folder / "example.yaml").write_text(configuration)
        path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
        self.environment = {**os.environ, "PATH": path}
        self.environment.pop("PYTHONHASHSEED", None)
        if hash_seed is not None:
            self.environment["PYTHONHASHSEED"] = hash_seed
        self.processes: dict[str, subprocess.Popen[bytes]] = {}

    def start(self, name: str) -> None:
        """``instance`` or ``controller``; until it answers."""
        command, port = {"instance": (SERVE, 8000), "controller": (CONTROLLER, 9000)}[name]
        environment = {**self.environment, **({"LMCACHE_CONFIG_FILE": "example.yaml"} if name == "instance" else {})}
        with self.log(name).open("wb") as log:
            self.processes[name] = subprocess.Popen(
                ["bash", "-c", f"exec {command}"], cwd=self.folder, env=environment, stdout=log, stderr=log
            )
        self.until(lambda: self.get(f"http://localhost:{port}/health"), f"the {name} does not answer")

    def run(self, command: str) -> Any:
        """The JSON answer of a curl command."""
        done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, timeout=WAIT_SECONDS)
        assert done.returncode == 0, f"{done.stderr}\n{self.logs()}"
        return json.loads(done.stdout)

    def get(self, url: str) -> bool:
        for name, process in self.processes.items():
            assert process.poll() is None, f"the {name} ended\n{self.logs()}"
        try:
            with urllib.request.urlopen(url, timeout=5) as answer:
                return bool(answer.status == 200)
        except (urllib.error.URLError, ConnectionError, TimeoutError):
            return False

    def until(self, condition: Any, what: str) -> Any:
        """The first true value of ``condition``."""
        deadline = time.monotonic() + WAIT_SECONDS
        while time.monotonic() < deadline:
            if value := condition():
                return value
            time.sleep(0.05)
        raise AssertionError(f"{what}\n{self.logs()}")

    def finished(self, event_id: str) -> dict[str, Any]:
        """The job's state at its end."""
        command = f'curl --silent -X POST http://localhost:9000/check_finish -d \'{{"event_id": "{event_id}"}}\''

        def ended() -> dict[str, Any] | None:
            state: dict[str, Any] = self.run(command)
            return state if state["status"] in ("done", "failed") else None

        return self.until(ended, "the job does not end")

    def log(self, name: str) -> Path:
        return self.folder / f"{name}.log"

    def logs(self) -> str:
        return "\n".join(f"--- {name}\n{self.log(name).read_text()}" for name in self.processes)

    def stop(self) -> None:
        for process in self.processes.values():
            process.terminate()
        for process in self.processes.values():
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(30)
            process.kill()
            process.wait()


@pytest.fixture(params=["instance first", "controller first"])
def fleet(
    request: pytest.FixtureRequest, document: tuple[str, str | None, list[int]], tmp_path: Path
) -> Iterator[Fleet]:
    configuration, hash_seed, ports = document
    if shutil.which("curl") is None:
        pytest.skip("the documents are about curl commands and curl is not installed")
    if taken := [port for port in ports if busy(port)]:
        pytest.skip(f"the documents use fixed ports and {taken} are in use on this machine")
    fleet = Fleet(tmp_path, configuration, hash_seed)
    try:
        order = ["instance", "controller"]
        for name in order if request.param == "instance first" else reversed(order):
            fleet.start(name)
        yield fleet
    finally:
        fleet.stop()
    assert {name: process.returncode for name, process in fleet.processes.items()} == dict.fromkeys(order, 0)
    assert "Traceback" not in fleet.logs()


def busy(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def found(fleet: Fleet) -> Any:
    """The lookup, as soon as the controller has heard of the chunk."""

    def answer() -> dict[str, Any] | None:
        value: dict[str, Any] = fleet.run(LOOKUP)
        assert value["event_id"]
        return value if "lmcache_default_instance" in value else None

    return fleet.until(answer, "the controller finds nothing")["lmcache_default_instance"]


@pytest.mark.parametrize("document", [(LOOKUP_YAML, "123", [8000, 8001, 8002, 9000, 9001, 9002, 9003])], ids=["lookup"])
def test_lookup(fleet: Fleet) -> None:
    assert len(fleet.run(COMPLETION)["choices"][0]["text"].split()) >= 1
    assert fleet.run(TOKENIZE) == json.loads(TOKENIZED)
    assert found(fleet) == ["LocalCPUBackend", 12]
    # Both sides were started with PYTHONHASHSEED=123, so the chunk has the key that LMCache gives it under this seed.
    [spec] = fleet.run(LOOKUP.replace("/lookup", "/lookup?explain=true"))["explain"]["specs"]
    assert spec["none_hash"] == "-6197052367682486848"


@pytest.mark.parametrize(
    "document", [(COMPRESS_YAML, None, [8000, 8001, 8200, 9000, 9001, 9002, 9003])], ids=["compress"]
)
def test_compress_and_decompress(fleet: Fleet) -> None:
    cold = fleet.run(COMPLETION)
    assert fleet.run(TOKENIZE) == json.loads(TOKENIZED)
    assert found(fleet) == ["LocalCPUBackend", 12]
    compress = fleet.run(COMPRESS)
    assert compress["num_tokens"] == 12
    packed = fleet.finished(compress["event_id"])
    assert (packed["status"], packed["tokens_done"]) == ("done", 12)
    assert packed["bytes_after"] < packed["bytes_before"]
    assert found(fleet) == ["LocalCPUBackend", 12]
    warm = fleet.run(COMPLETION)
    assert [each["usage"]["prompt_tokens_details"]["cached_tokens"] for each in (cold, warm)] == [0, 11]
    assert warm["lmcache_kit"]["codecs"] == {"cachegen": 1}
    decompress = fleet.run(DECOMPRESS)
    assert decompress["num_tokens"] == 12
    unpacked = fleet.finished(decompress["event_id"])
    assert (unpacked["status"], unpacked["bytes_after"]) == ("done", packed["bytes_before"])


def test_the_texts_are_the_documents() -> None:
    if not DOCUMENTS.is_dir():
        pytest.skip("the documents are kept beside the project, not in it")
    lookup, compress = (path.read_text() for path in sorted(DOCUMENTS.iterdir()))
    for text in (LOOKUP_YAML, COMPLETION, TOKENIZE, TOKENIZED, LOOKUP):
        assert text in lookup
    for text in (COMPRESS_YAML, COMPLETION, TOKENIZE, TOKENIZED, COMPRESS, DECOMPRESS):
        assert text in compress
