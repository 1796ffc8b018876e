"""Real LMCache and ours as processes: a controller and a worker of each."""

from __future__ import annotations

import json
import signal
import sys
from pathlib import Path
from typing import Any

import httpx
import yaml
from interop_processes import Process, Processes, eventually, free_port_row, free_ports

CPU, DISK = "LocalCPUBackend", "LocalDiskBackend"

# A model whose quantization LMCache's CacheGen has in a table; of any other it asks the Hugging Face Hub.
MODEL = "meta-llama/Llama-3.1-8B-Instruct"
OFFLINE = {"HF_HUB_OFFLINE": "1", "LMCACHE_TRACK_USAGE": "false", "NO_COLOR": "1"}
QUICK_SYNC = {
    "full_sync_startup_delay_s": 0.0,
    "full_sync_status_poll_interval_s": 0.2,
    "full_sync_batch_size": 2,
}


class Ports:
    """Ports of a controller: one monitor port with the two after it, or three of their own."""

    def __init__(self, *, single: bool = False) -> None:
        if single:
            self.pull = free_port_row(3)
            self.reply, self.heartbeat = self.pull + 1, self.pull + 2
            self.options = ["--monitor-port", str(self.pull)]
        else:
            self.pull, self.reply, self.heartbeat = free_ports(3)
            names = {"pull": self.pull, "reply": self.reply, "heartbeat": self.heartbeat}
            self.options = ["--monitor-ports", json.dumps(names)]
        (self.http,) = free_ports(1)


class Controller:
    """A controller's HTTP interface; ``start`` and ``end`` it as often as needed, on the same ports."""

    def __init__(self, processes: Processes, program: list[str], ports: Ports, options: list[str]) -> None:
        self.ports = ports
        self.client = processes.client(f"http://127.0.0.1:{ports.http}")
        self._processes = processes
        self._command = [*program, "--host", "127.0.0.1", "--port", str(ports.http), *ports.options, *options]
        self.process: Process
        self.start()

    def start(self) -> None:
        self.process = self._processes.start("controller", *self._command, **OFFLINE)
        self.process.wait_for(lambda: self.post("/lookup", tokens=[1]).status_code == 200, "answers")

    def end(self, number: int = signal.SIGKILL) -> None:
        self.process.end(number)

    def post(self, path: str, **body: Any) -> httpx.Response:
        return self.client.post(path, json=body)

    def done(self, path: str, **body: Any) -> Any:
        answer = self.post(path, **body)
        assert answer.status_code == 200, f"{path}: {answer.status_code} {answer.text}\n{self.process.text()[-2000:]}"
        return answer.json()

    def held(self, tokens: list[int]) -> dict[str, list[Any]]:
        """What ``/lookup`` says: [location, tokens] by instance."""
        return dict(self.done("/lookup", tokens=tokens)["layout_info"])

    def wait_for_held(self, tokens: list[int], want: dict[str, list[Any]]) -> None:
        try:
            eventually(lambda: self.held(tokens) == want, f"lookup says {want}", seconds=60)
        except AssertionError as error:
            raise AssertionError(f"{error}; it says {self.held(tokens)}\n{self.process.text()[-2000:]}") from None

    def worker(self, instance: str) -> dict[str, Any] | None:
        """What it knows of worker 0 of an instance; asked for all of them, LMCache answers from a cache."""
        answer = self.post("/query_worker_info", instance_id=instance)
        infos = answer.json()["worker_infos"] if answer.status_code == 200 else []
        return dict(infos[0]) if infos else None


def our_controller(processes: Processes, ports: Ports, *options: str) -> Controller:
    return Controller(processes, [sys.executable, "-m", "lmcache_kit", "controller"], ports, list(options))


def real_controller(processes: Processes, environment: Any, ports: Ports, *options: str) -> Controller:
    return Controller(processes, [environment.bin("lmcache_controller")], ports, list(options))


def with_peers(channel: str) -> dict[str, Any]:
    """Settings of a worker that others reach."""
    init, lookup = free_ports(2)
    ports = {"p2p_init_ports": [init], "p2p_lookup_ports": [lookup]}
    return {"enable_p2p": True, "p2p_host": "127.0.0.1", **ports, "transfer_channel": channel}


class RealWorker:
    """LMCache's standalone engine with its worker, unmodified; KV is stored and read by its internal API."""

    def __init__(
        self, processes: Processes, environment: Any, ports: Ports, instance: str, *, hash_seed: str = "0", **keys: Any
    ) -> None:
        self.instance = instance
        # Its API listens on the port after the one that the configuration names.
        first = free_port_row(2)
        (self.control_port,) = free_ports(1)
        self.settings = {
            "chunk_size": 256,
            "local_cpu": True,
            "max_local_cpu_size": 0.5,
            "enable_controller": True,
            "lmcache_instance_id": instance,
            "controller_pull_url": f"127.0.0.1:{ports.pull}",
            "controller_reply_url": f"127.0.0.1:{ports.reply}",
            "lmcache_worker_ports": [self.control_port],
            "lmcache_worker_heartbeat_delay_time": 0,
            "lmcache_worker_heartbeat_time": 1,
            "internal_api_server_enabled": True,
            "internal_api_server_host": "127.0.0.1",
            "internal_api_server_port_start": first,
            **keys,
            "extra_config": {**QUICK_SYNC, **keys.pop("extra_config", {})},
        }
        self.client = processes.client(f"http://127.0.0.1:{first + 1}")
        self._processes = processes
        self._environment = environment
        self._seed = hash_seed
        self.process: Process
        self.start()

    def start(self) -> None:
        config = self._processes.folder / f"{self.instance}.yaml"
        config.write_text(yaml.safe_dump(self.settings))
        command = [self._environment.python, "-m", "lmcache.v1.standalone", "--config", config]
        shape = ["--model-name", MODEL, "--kv-shape", "32,2,256,2,16"]
        self.process = self._processes.start(self.instance, *command, *shape, **OFFLINE, PYTHONHASHSEED=self._seed)
        self.process.wait_for(lambda: self.client.get("/version").status_code == 200, "answers")

    def _call(self, path: str, first: int, last: int) -> Any:
        answer = self.client.post(path, params={"tokens_mock": f"{first},{last}"})
        assert answer.status_code == 200, f"{answer.text}\n{self.process.text()[-3000:]}"
        return answer.json()

    def store(self, first: int, last: int) -> None:
        """KV of the tokens ``first`` to ``last - 1``."""
        self._call("/cache/store", first, last)

    def retrieve(self, first: int, last: int) -> int:
        """Tokens of that prompt that were found."""
        return int(self._call("/cache/retrieve", first, last)["num_retrieved"])


class OurInstance:
    """``lmcache-kit serve`` with the synthetic engine; a character of a prompt is a token."""

    def __init__(self, processes: Processes, ports: Ports, instance: str, *options: str, **keys: Any) -> None:
        self.instance = instance
        self.port, control, peer = free_ports(3)
        self.settings = {
            "chunk_size": 256,
            "local_cpu": True,
            "max_local_cpu_size": 1,
            "enable_controller": True,
            "lmcache_instance_id": instance,
            "controller_pull_url": f"127.0.0.1:{ports.pull}",
            "controller_reply_url": f"127.0.0.1:{ports.reply}",
            "lmcache_worker_ports": [control],
            "lmcache_worker_heartbeat_time": 1,
            "p2p_host": "127.0.0.1",
            "p2p_init_ports": [peer],
            **keys,
        }
        self.client = processes.client(f"http://127.0.0.1:{self.port}")
        self._processes = processes
        self._options = options
        self.process: Process
        self.start()

    def start(self) -> None:
        config: Path = self._processes.folder / f"{self.instance}.yaml"
        config.write_text(yaml.safe_dump({key: value for key, value in self.settings.items() if value is not None}))
        command = [sys.executable, "-m", "lmcache_kit", "serve", "--engine", "synthetic", "--model", "m"]
        self.process = self._processes.start(
            self.instance, *command, "--config", config, "--port", self.port, *self._options
        )
        self.process.wait_for(lambda: self.client.get("/health").status_code == 200, "answers")

    def complete(self, prompt: str) -> dict[str, Any]:
        answer = self.client.post(
            "/v1/completions", json={"model": "m", "prompt": prompt, "max_tokens": 2, "temperature": 0}
        )
        assert answer.status_code == 200, answer.text
        return dict(answer.json())

    def tokens(self, prompt: str) -> list[int]:
        return list(self.client.post("/tokenize", json={"model": "m", "prompt": prompt}).json()["tokens"])
