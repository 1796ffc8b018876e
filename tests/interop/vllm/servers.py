"""Real ``vllm serve`` and ``lmcache-kit controller`` processes, driven over HTTP as a user would."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import yaml
from prometheus_client.parser import text_string_to_metric_families

CPU, DISK, REMOTE = "LocalCPUBackend", "LocalDiskBackend", "RemoteBackend"
TRANSFER = '{"kv_connector":"LMCacheKitConnector","kv_role":"kv_both","kv_connector_module_path":"lmcache_kit_vllm"}'
# vLLM binds the threads of its ranks to cores of different memory nodes unless it is told not to.
RANKS = {"VLLM_CPU_OMP_THREADS_BIND": "nobind", "OMP_NUM_THREADS": "1"}
START_SECONDS = 180.0
WAIT_SECONDS = 60.0
Json = dict[str, Any]


@dataclass(frozen=True)
class Answer:
    """What a completion came to.

    Args:
        tokens: of the output.
        text: of the output.
        cached: prompt tokens that were not computed.
        said: what the connector says of the request.
    """

    tokens: list[int]
    text: str
    cached: int
    said: Json


class VllmServer:
    """One ``vllm serve``."""

    def __init__(self, process: Any, port: int, model: str) -> None:
        self.process = process
        self.model = model
        self._stirred = 0
        self.http = httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=WAIT_SECONDS, trust_env=False)

    def wait_until_ready(self) -> None:
        self.process.wait_for(
            lambda: self.http.get("/health").status_code == 200, "an answer of /health", seconds=START_SECONDS
        )

    def body(self, prompt: Sequence[int] | str, max_tokens: int, **more: Any) -> Json:
        given = prompt if isinstance(prompt, str) else list(prompt)
        return {
            "model": self.model,
            "prompt": given,
            "max_tokens": max_tokens,
            "temperature": 0,
            "ignore_eos": True,
            "return_token_ids": True,
            **more,
        }

    def complete(self, prompt: Sequence[int] | str, max_tokens: int = 8, **more: Any) -> Answer:
        """A greedy completion that goes well."""
        answer = self.http.post("/v1/completions", json=self.body(prompt, max_tokens, **more))
        assert answer.status_code == 200, f"{answer.status_code} {answer.text}\n{self.process.text()[-4000:]}"
        value = answer.json()
        [choice] = value["choices"]
        details = value["usage"]["prompt_tokens_details"] or {}
        said = (value["kv_transfer_params"] or {}).get("lmcache_kit") or {}
        return Answer(choice["token_ids"], choice["text"], details.get("cached_tokens") or 0, said)

    def complete_all(self, prompts: Sequence[Sequence[int]], max_tokens: int = 8) -> list[Answer]:
        """Greedy completions at once."""
        with ThreadPoolExecutor(len(prompts)) as pool:
            return list(pool.map(lambda each: self.complete(each, max_tokens), prompts))

    def first_token_seconds(self, prompt: Sequence[int]) -> float:
        """From sending a request to its first token."""
        began = time.perf_counter()
        with self.http.stream("POST", "/v1/completions", json=self.body(prompt, 2, stream=True)) as answer:
            for line in answer.iter_lines():
                if line.startswith("data: "):
                    return time.perf_counter() - began
        raise AssertionError("no token came")

    def abandon(self, prompt: Sequence[int], after: float, max_tokens: int = 64) -> None:
        """Send a request and hang up after so many seconds."""
        try:
            self.http.post("/v1/completions", json=self.body(prompt, max_tokens), timeout=httpx.Timeout(10, read=after))
        except httpx.ReadTimeout:
            return
        raise AssertionError(f"the request was over within {after:g} s")

    def metric(self, name: str, **labels: str) -> float:
        """The sum of the samples of ``name`` that carry ``labels``."""
        total = 0.0
        for family in text_string_to_metric_families(self.http.get("/metrics").text):
            for sample in family.samples:
                if sample.name == name and labels.items() <= sample.labels.items():
                    total += sample.value
        return total

    def until(self, check: Callable[[], Any], what: str, seconds: float = WAIT_SECONDS) -> Any:
        """The first true value of ``check``, while the server lives."""
        return self.process.wait_for(check, what, seconds=seconds)

    def stir(self) -> None:
        """Make the engine do a step: vLLM collects a connector's numbers only then."""
        self._stirred += 1
        self.complete([2 + self._stirred % 2000, 3 + self._stirred // 2000], 2)  # a prompt that nobody has sent before

    def until_metric(self, name: str, wanted: Callable[[float], bool], **labels: str) -> float:
        """Until a metric of the cache has a value, in an engine without requests."""

        def look() -> tuple[float] | None:
            self.stir()
            value = self.metric(name, **labels)
            return (value,) if wanted(value) else None

        return float(self.until(look, f"a value of {name}")[0])

    def stop(self, number: int = signal.SIGTERM) -> int | None:
        """Signal it as an operator would; its exit code."""
        code = end(self.process, number)
        self.http.close()
        return code

    def close(self) -> None:
        """End it if it runs."""
        if self.process.running():
            self.stop()
        self.http.close()


class Controller:
    """``lmcache-kit controller``; ``kill`` and ``start`` again on the same ports."""

    def __init__(self, processes: Any, *flags: str) -> None:
        self.processes = processes
        self.flags = flags
        self.ports: dict[str, int] = {}
        self.process: Any = None
        self.http: httpx.Client
        self.start()

    def start(self) -> None:
        port, where = "0", ["--monitor-port", "0"]
        if self.ports:
            names = ("pull", "reply", "heartbeat")
            port = str(self.ports["http"])
            where = ["--monitor-ports", json.dumps({name: self.ports[name] for name in names if name in self.ports})]
        command = [sys.executable, "-m", "lmcache_kit", "controller", "--port", port, *where, *self.flags]
        self.process = self.processes.start("controller", *command)
        pattern = re.compile(r"^controller ready http=(\S+):(\d+) (.*)$", re.MULTILINE)
        match = self.process.wait_for(lambda: pattern.search(self.process.text()), "its ready line")
        self.ports = {name: int(number) for name, number in re.findall(r"(\w+)=(\d+)", match[3])}
        self.ports["http"] = int(match[2])
        self.http = httpx.Client(base_url=f"http://127.0.0.1:{match[2]}", timeout=WAIT_SECONDS, trust_env=False)

    def kill(self) -> None:
        self.process.end(signal.SIGKILL)
        self.http.close()

    def close(self) -> None:
        """End its connections; the process ends with the others."""
        self.http.close()

    def configuration(self, instance_id: str) -> Json:
        """What an instance of this controller has in its configuration."""
        return {
            "enable_controller": True,
            "lmcache_instance_id": instance_id,
            "controller_pull_url": f"127.0.0.1:{self.ports['pull']}",
            "controller_reply_url": f"127.0.0.1:{self.ports['reply']}",
            "lmcache_worker_heartbeat_time": 1,
        }

    def post(self, path: str, **body: Any) -> Json:
        answer = self.http.post(path, json=body)
        assert answer.status_code == 200, f"{path} {body}: {answer.status_code} {answer.text}"
        value: Json = answer.json()
        return value

    def do(self, path: str, **body: Any) -> Json:
        """An operation, and its state when it has gone well."""
        event_id = self.post(path, **body)["event_id"]

        def ended() -> Json | None:
            state = self.post("/check_finish", event_id=event_id)
            return state if state["status"] in ("done", "failed") else None

        state: Json = self.process.wait_for(ended, f"the end of {path}")
        assert state["status"] == "done", state
        return state

    def holders(self, tokens: Sequence[int]) -> dict[str, dict[str, int]]:
        """What it says: instance -> location -> tokens."""
        found: dict[str, dict[str, int]] = self.post("/lookup", tokens=list(tokens))["holders"]
        return found

    def until_held(self, tokens: Sequence[int], instance_id: str, location: str, count: int) -> None:
        self.process.wait_for(
            lambda: self.holders(tokens).get(instance_id, {}).get(location) == count,
            f"{count} tokens in {location} of {instance_id}",
        )

    def until_joined(self, instance_id: str) -> None:
        def joined() -> bool:
            infos = self.post("/query_worker_info", instance_id="all")["worker_infos"]
            return any(info["instance_id"] == instance_id for info in infos)

        self.process.wait_for(joined, f"{instance_id} to join")


class Background:
    """Completions over and over in threads of their own, until told to stop; every answer is kept."""

    def __init__(self, server: VllmServer, prompts: Sequence[Sequence[int]], max_tokens: int = 8) -> None:
        self.answers: list[tuple[int, Answer]] = []
        self.errors: list[BaseException] = []
        self._server, self._prompts, self._max_tokens = server, prompts, max_tokens
        self._stop = threading.Event()
        self._threads = [threading.Thread(target=self._run, args=(first,), daemon=True) for first in range(2)]

    def _run(self, first: int) -> None:
        number = first
        while not self._stop.is_set():
            index = number % len(self._prompts)
            try:
                self.answers.append((index, self._server.complete(self._prompts[index], self._max_tokens)))
            except BaseException as error:
                self.errors.append(error)
                return
            number += 1

    def more(self, count: int) -> None:
        """Until so many more completions have ended."""
        goal = len(self.answers) + count
        self._server.until(lambda: self.errors or len(self.answers) >= goal, f"{count} more completions")

    def __enter__(self) -> Background:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join(WAIT_SECONDS)


class Starter:
    """Starts servers of one environment.

    Args:
        env: the environment with vLLM.
        models: folders of models by name.
        processes: where they are started.
        module: ``processes`` of tests/interop.
    """

    def __init__(self, env: Any, models: Mapping[str, Path], processes: Any, module: Any) -> None:
        self.env, self.models, self.processes, self._module = env, models, processes, module
        self.folder: Path = processes.folder
        self._started: list[VllmServer | Controller] = []

    def configuration(self, name: str, own: Mapping[str, Any] | None = None, **keys: Any) -> Path:
        """A configuration file of LMCache; ``own`` are our settings."""
        path = self.folder / f"{name}.yaml"
        settings = {**keys, "extra_config": {"lmcache_kit": {"data_dir": f"data-{name}", **(own or {})}}}
        path.write_text(yaml.safe_dump(settings))
        return path

    def begin(
        self,
        configuration: Path,
        *arguments: str,
        model: str = "small",
        dtype: str = "float32",
        environment: Mapping[str, str] | None = None,
    ) -> VllmServer:
        """A server that is starting."""
        [port] = self._module.free_ports(1)
        command = [self.env.bin("vllm"), "serve", str(self.models[model]), "--port", str(port)]
        command += ["--served-model-name", "m", "--kv-transfer-config", TRANSFER, "--dtype", dtype]
        command += ["--enforce-eager", "--max-model-len", "4096", "--enable-prompt-tokens-details"]
        if not any(argument.startswith("--kv-cache-memory-bytes") for argument in arguments):
            command += ["--kv-cache-memory-bytes", "256M"]
        variables = {**quiet(self.env), "LMCACHE_CONFIG_FILE": str(configuration), **(environment or {})}
        process = self.processes.start(configuration.stem, *command, *arguments, **variables)
        server = VllmServer(process, port, "m")
        self._started.append(server)
        return server

    def start(self, configuration: Path, *arguments: str, **more: Any) -> VllmServer:
        server = self.begin(configuration, *arguments, **more)
        server.wait_until_ready()
        return server

    def controller(self, *flags: str) -> Controller:
        controller = Controller(self.processes, *flags)
        self._started.append(controller)
        return controller

    def close(self) -> None:
        """End what was started."""
        for started in self._started:
            started.close()


class InProcess:
    """Runs in_process.py."""

    def __init__(self, env: Any, model: Path, folder: Path) -> None:
        self.env, self.model, self.folder = env, model, folder

    def run(
        self,
        name: str,
        steps: Sequence[Json],
        *,
        configuration: Mapping[str, Any] | None,
        engine: Mapping[str, Any] | None = None,
        **job: Any,
    ) -> list[Any]:
        """What the steps came to; without a configuration it is vLLM alone."""
        folder = self.folder / name
        folder.mkdir()
        arguments = {
            "model": str(self.model),
            "enforce_eager": True,
            "max_model_len": 2048,
            "dtype": "float32",
            "enable_prefix_caching": False,
            "kv_cache_memory_bytes": 2**28,
            **(engine or {}),
        }
        variables = quiet(self.env)
        if configuration is not None:
            arguments["kv_transfer_config"] = json.loads(TRANSFER)
            (folder / "example.yaml").write_text(yaml.safe_dump(dict(configuration)))
            variables["LMCACHE_CONFIG_FILE"] = str(folder / "example.yaml")
        (folder / "job.json").write_text(json.dumps({"engine": arguments, "steps": list(steps), **job}))
        script = Path(__file__).with_name("in_process.py")
        command = [self.env.python, str(script), str(folder / "job.json"), str(folder / "result.json")]
        log = folder / "log"
        with log.open("wb") as file:
            code = subprocess.run(
                command, stdout=file, stderr=file, env={**clean_environment(), **variables}, timeout=START_SECONDS
            ).returncode
        assert code == 0, log.read_text(errors="replace")[-4000:]
        results: list[Any] = json.loads((folder / "result.json").read_text())
        return results


def quiet(env: Any) -> dict[str, str]:
    """Variables that keep vLLM from the network, and what it caches in the environment's own folder."""
    cache = env.folder / "cache"
    folders = {"VLLM_CACHE_ROOT": cache / "vllm", "TORCHINDUCTOR_CACHE_DIR": cache / "inductor"}
    return {"HF_HUB_OFFLINE": "1", "VLLM_NO_USAGE_STATS": "1", **{name: str(path) for name, path in folders.items()}}


def end(process: Any, number: int = signal.SIGTERM) -> int | None:
    """End a vLLM server; its exit code."""
    shared = shared_memory(process.child.pid)
    code: int | None = process.end(number, seconds=60)
    # A killed vLLM, and one whose helper process is killed with the group, leaves its own queues behind.
    for path in shared:
        path.unlink(missing_ok=True)
    return code


def shared_memory(group: int) -> set[Path]:
    """What the processes of a group have mapped of /dev/shm."""
    inodes: set[str] = set()  # who makes a semaphore maps it before it gets its name
    for process in Path("/proc").glob("[0-9]*"):
        try:
            if os.getpgid(int(process.name)) == group:
                maps = (process / "maps").read_text().splitlines()
                inodes.update(line.split()[4] for line in maps if " /dev/shm/" in line)
        except OSError:  # it has ended
            continue
    return {Path(entry) for entry in os.scandir("/dev/shm") if str(entry.inode()) in inodes}


def clean_environment() -> dict[str, str]:
    """This process's environment without what configures an instance."""

    return {
        name: value
        for name, value in os.environ.items()
        if not name.startswith("LMCACHE_") and name != "PYTHONHASHSEED"
    }
