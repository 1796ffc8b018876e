"""The command: ready line, ports in use, SIGKILL and restart, signals."""

from __future__ import annotations

import asyncio
import re
import signal
import socket
import subprocess
import sys
from contextlib import closing, contextmanager

import httpx
import pytest
import zmq

COMMAND = [sys.executable, "-m", "lmcache_kit", "controller"]
TOKENS = list(range(700))


@contextmanager
def started(*flags):
    """A controller process and the ports of its ready line; killed at the end."""
    process = subprocess.Popen([*COMMAND, *flags], stderr=subprocess.PIPE, text=True)
    try:
        for line in process.stderr:
            if line.startswith("controller ready"):
                break
        else:
            raise AssertionError(f"it ended with {process.wait()}")
        ports = {name: int(port) for name, port in re.findall(r"(pull|reply|heartbeat)=(\d+)", line)}
        ports["http"] = int(re.search(r"http=\S+:(\d+)", line)[1])
        yield process, ports
    finally:
        process.kill()
        process.wait()
        process.stderr.close()


async def test_killed_and_restarted_it_learns_everything_again(make_fleet, until, keys_of):
    fleet = await make_fleet()  # for its workers; the controller under test is the process
    keys = keys_of(TOKENS)
    with started("--port", "0", "--monitor-port", "0") as (process, ports):
        worker = fleet.worker("a")
        worker.ports = ports
        worker.push.close()
        worker.push = worker._connect(zmq.PUSH, ports["pull"])
        await worker.register()
        await worker.admit(keys)
        url = f"http://127.0.0.1:{ports['http']}"
        async with httpx.AsyncClient(base_url=url, trust_env=False, timeout=30) as http:

            async def held():
                return (await http.post("/lookup", json={"tokens": TOKENS})).json()["prefix"] == {"a": 700}

            await until(held)
        process.send_signal(signal.SIGKILL)
        process.wait()
    monitor = f'{{"pull": {ports["pull"]}, "reply": {ports["reply"]}, "heartbeat": {ports["heartbeat"]}}}'
    with started("--port", str(ports["http"]), "--monitor-ports", monitor) as (process, again):
        assert again == ports
        async with httpx.AsyncClient(base_url=url, trust_env=False, timeout=30) as http:
            assert (await http.post("/lookup", json={"tokens": TOKENS})).json()["prefix"] == {}
            (command,) = await worker.heartbeat()
            assert command["command_type"] == "full_sync"
            await worker.full_sync(keys)
            await until(held_by(http))
            assert (await http.post("/health", json={"instance_id": "a"})).json()["error_codes"] == {"0": 0}
        process.send_signal(signal.SIGTERM)
        assert await asyncio.to_thread(process.wait, 30) == 0


def held_by(http):
    async def held():
        return (await http.post("/lookup", json={"tokens": TOKENS})).json()["prefix"] == {"a": 700}

    return held


@pytest.mark.parametrize("which", ["http", "monitor"])
def test_a_port_in_use_names_the_flag_to_change(which):
    with closing(socket.create_server(("127.0.0.1", 0))) as taken:
        port = taken.getsockname()[1]
        flags = ["--port", "0", "--monitor-ports", f'{{"pull": {port}}}']
        if which == "http":
            flags = ["--port", str(port), "--monitor-port", "0"]
        done = subprocess.run([*COMMAND, *flags], capture_output=True, text=True, timeout=60)
    assert done.returncode == 2
    assert str(port) in done.stderr
    assert ("--port" if which == "http" else "--monitor-port") in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("flags", "text"),
    [
        (["--monitor-ports", "nonsense"], "--monitor-ports"),
        (["--monitor-port", "1", "--monitor-ports", '{"pull": 2}'], "leave one of them out"),
        (["--hash-algorithm", "md5"], "md5"),
        (["--host", "256.1.1.1"], "--host"),
        (["--config", "/nowhere/at/all.yaml"], "cannot be read"),
    ],
)
def test_wrong_flags_are_refused(flags, text, capsys):
    from lmcache_kit.cli import main

    assert main(["controller", *flags]) == 2
    error = capsys.readouterr().err
    assert text in error
    assert "error:" in error


def test_the_command_imports_nothing_heavy():
    code = (
        "import sys, lmcache_kit.cli, lmcache_kit.controller.server;"
        "print([name for name in ('torch', 'jax', 'transformers') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.strip() == "[]"
