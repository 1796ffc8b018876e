"""``lmcache-kit controller``: run a controller, with the flags of LMCache's own."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

__all__ = ["register"]


def register(app: typer.Typer) -> None:
    """Add the command to the application."""
    app.command()(controller)


def controller(
    host: Annotated[str | None, typer.Option("--host", help="Address to bind. Default: 127.0.0.1.")] = None,
    port: Annotated[int | None, typer.Option("--port", help="HTTP port; 0: any free one. Default: 9000.")] = None,
    monitor_port: Annotated[
        int | None,
        typer.Option(
            "--monitor-port",
            help="First of three ports for workers: pull, reply (the next one) and heartbeat (the one after). "
            "0: any free ones. Default: 9001.",
        ),
    ] = None,
    monitor_ports: Annotated[
        str | None,
        typer.Option(
            "--monitor-ports",
            metavar="JSON",
            help='Each of them, e.g. \'{"pull": 8300, "reply": 8400, "heartbeat": null}\'.',
        ),
    ] = None,
    config: Annotated[
        Path | None, typer.Option("--config", help="LMCache's controller configuration file (YAML); flags win over it.")
    ] = None,
    token: Annotated[
        str | None,
        typer.Option("--token", envvar="LMCACHE_KIT_TOKEN", help="Bearer token that HTTP clients must send."),
    ] = None,
    worker_timeout: Annotated[
        float | None,
        typer.Option(
            "--worker-timeout",
            "--lmcache-worker-timeout",
            help="Seconds without a heartbeat until a worker counts as dead. Default: 60.",
        ),
    ] = None,
    health_check_interval: Annotated[
        float | None,
        typer.Option(
            "--health-check-interval",
            help="Seconds between two looks for dead workers; -1: workers are never given up. Default: 1.",
        ),
    ] = None,
    call_timeout: Annotated[
        float, typer.Option("--call-timeout", help="Seconds that a worker has to answer a call.")
    ] = 10.0,
    max_body_size: Annotated[str, typer.Option("--max-body-size", help="Largest HTTP body.")] = "16MiB",
    none_hash: Annotated[
        int | None,
        typer.Option(
            "--none-hash",
            help="Hash before the first chunk, for workers that announce none (LMCache's). "
            "Default: made from PYTHONHASHSEED as vLLM does, or 0.",
        ),
    ] = None,
    chunk_size: Annotated[
        int, typer.Option("--chunk-size", help="Tokens per chunk, for workers that announce none.")
    ] = 256,
    hash_algorithm: Annotated[
        str, typer.Option("--hash-algorithm", help="Chunk hash, for workers that announce none.")
    ] = "builtin",
) -> None:
    """Run a controller until interrupted. It says on stderr where it listens."""
    from lmcache_kit.controller.config import (
        ControllerConfig,
        MonitorPorts,
        parse_monitor_ports,
        read_config_file,
    )
    from lmcache_kit.controller.server import run
    from lmcache_kit.errors import ConfigError, LMCacheKitError
    from lmcache_kit.kv.hashing import HASH_ALGORITHMS, HashSpec, default_none_hash
    from lmcache_kit.units import parse_size

    if monitor_port is not None and monitor_ports is not None:
        raise ConfigError("--monitor-port and --monitor-ports are given both", hint="leave one of them out")
    file = {} if config is None else read_config_file(config)
    settings: dict[str, Any] = {
        "token": token,
        "call_timeout": call_timeout,
        "max_body_bytes": parse_size(max_body_size),
    }
    settings["host"] = host or file.get("controller_host", "127.0.0.1")
    settings["port"] = file.get("controller_port", 9000) if port is None else port
    if monitor_ports is not None:
        settings["monitor"] = parse_monitor_ports(monitor_ports)
    elif monitor_port is None and "controller_monitor_ports" in file:
        settings["monitor"] = parse_monitor_ports(file["controller_monitor_ports"])
    else:
        settings["monitor"] = MonitorPorts.following(9001 if monitor_port is None else monitor_port)
    timeout = file.get("lmcache_worker_timeout", 60.0) if worker_timeout is None else worker_timeout
    interval = file.get("health_check_interval", 1.0) if health_check_interval is None else health_check_interval
    settings["worker_timeout"] = None if interval == -1 else timeout
    settings["check_interval"] = 1.0 if interval == -1 else interval
    try:
        if none_hash is None:
            none_hash = default_none_hash(hash_algorithm) if hash_algorithm in HASH_ALGORITHMS else 0
        settings["default_spec"] = HashSpec(chunk_size=chunk_size, algorithm=hash_algorithm, none_hash=none_hash)
    except LMCacheKitError as error:
        raise ConfigError(error.message, hint=error.hint) from None
    run(ControllerConfig(**settings))
