"""One instance as a whole: engine, cache and HTTP, started in order and shut down in reverse."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import logging
import signal
import socket
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import anyio
import uvicorn
import uvloop
from starlette.types import ASGIApp

from lmcache_kit.clock import Clock, WallClock
from lmcache_kit.contracts.engine import Engine
from lmcache_kit.errors import ConfigError
from lmcache_kit.http_limits import LimitedHttp
from lmcache_kit.instance.config.model import InstanceConfig
from lmcache_kit.instance.event_log import CacheEventLog
from lmcache_kit.instance.faults import from_environment
from lmcache_kit.instance.http.app import InstanceApp
from lmcache_kit.instance.http.fault_endpoint import FaultEndpoint
from lmcache_kit.instance.http.generation import Generator
from lmcache_kit.instance.http.metrics import InstanceMetrics
from lmcache_kit.instance.runtime import InstanceRuntime

__all__ = ["bind", "run", "serve"]

log = logging.getLogger(__name__)

_GRACE_SECONDS = 2  # how long requests under way may go on after the signal to stop
_BACKLOG = 2048


def bind(host: str, port: int) -> socket.socket:
    """A socket bound to ``host`` and ``port`` that does not listen yet, so that nobody connects before it is ready.

    Raises ConfigError when the port is in use or the host is not one of this machine.
    """
    bound: socket.socket | None = None
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        bound = socket.socket(family, kind, protocol)
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        bound.bind(address)
    except OSError as error:
        if bound is not None:
            bound.close()
        raise _cannot_listen(host, port, error) from None
    return bound


def run(
    config: InstanceConfig,
    engine: Engine,
    http_socket: socket.socket,
    *,
    served_models: Sequence[str],
    max_num_seqs: int = 16,
) -> None:
    """Serve until SIGTERM or SIGINT; see :func:`serve`."""

    async def until_signal() -> None:
        stop = asyncio.Event()
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, stop.set)
        await serve(config, engine, http_socket, served_models=served_models, max_num_seqs=max_num_seqs, stop=stop)

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(until_signal())


async def serve(
    config: InstanceConfig,
    engine: Engine,
    http_socket: socket.socket,
    *,
    served_models: Sequence[str],
    max_num_seqs: int = 16,
    stop: asyncio.Event,
    clock: Clock | None = None,
    on_ready: Callable[[str], None] | None = None,
) -> None:
    """Serve one instance until ``stop`` is set.

    Cache, peers and controller come first and HTTP last, so an instance that answers is complete. Then the line
    ``instance ID ready http=HOST:PORT`` goes to stderr. Shutdown ends requests under way after two seconds at most,
    then everything else in reverse order. The engine is closed in any case.

    Args:
        config: the instance's configuration.
        engine: the model.
        http_socket: what :func:`bind` made; closed at the end.
        served_models: names that requests may use, the first one is the default.
        max_num_seqs: most requests worked on at the same time.
        stop: set it to shut down.
        clock: the wall clock when None.
        on_ready: told ``HOST:PORT`` when the instance serves.

    Raises ConfigError when something cannot be started.
    """
    clock = clock or WallClock()
    async with contextlib.AsyncExitStack() as stack:
        stack.callback(http_socket.close)
        stack.callback(engine.close)
        log_event = stack.enter_context(CacheEventLog(config.event_log)) if config.event_log is not None else None
        faulty = from_environment()
        faults = None if faulty is None else faulty[1]
        runtime = InstanceRuntime(config, engine.info, clock=clock, on_event=log_event, faults=faults)
        stack.push_async_callback(runtime.close)
        await runtime.start()
        metrics = InstanceMetrics(served_models[0], config.instance_id, runtime.stats)
        generator = Generator(
            engine,
            runtime.store,
            chunk_size=config.hash_spec.chunk_size,
            metrics=metrics,
            clock=clock,
            save_decode_cache=config.save_decode_cache,
            max_num_seqs=max_num_seqs,
        )
        stack.push_async_callback(generator.close)

        async def health() -> dict[str, Any]:
            stats = runtime.stats()
            return {
                "status": "ok",
                "instance_id": config.instance_id,
                "model": engine.info.model,
                "fingerprint": engine.info.fingerprint,
                "chunk_size": config.hash_spec.chunk_size,
                "locations": runtime.store.locations(),
                "tiers": await runtime.tier_health(),
                "peer_url": runtime.peer_url,
                "worker": stats["worker"],
            }

        app: ASGIApp = InstanceApp(generator, metrics, clock=clock, served_models=served_models, health=health).app
        if faulty is not None:
            app = FaultEndpoint(app, faulty[0], runtime.apply)
        address = _address(http_socket)

        def ready() -> None:
            print(f"instance {config.instance_id} ready http={address}", file=sys.stderr, flush=True)
            if on_ready is not None:
                on_ready(address)

        await _serve_http(app, http_socket, stop, ready)
        log.info("instance %s is shutting down", config.instance_id)


async def _serve_http(app: ASGIApp, http_socket: socket.socket, stop: asyncio.Event, ready: Callable[[], None]) -> None:
    server = _Server(
        uvicorn.Config(
            app,
            http=LimitedHttp,
            ws="none",
            lifespan="off",
            log_config=None,
            log_level="warning",
            access_log=False,
            server_header=False,
            backlog=_BACKLOG,
            timeout_graceful_shutdown=_GRACE_SECONDS,
        ),
        ready,
    )

    async def end() -> None:
        await stop.wait()
        server.should_exit = True

    # Starlette streams through anyio, which loads its backend at the first use: about 20 ms that would stand in the
    # first request's time to first token.
    async with anyio.create_task_group():
        pass
    ending = asyncio.create_task(end(), name="stop HTTP")
    try:
        await server.serve(sockets=[http_socket])
    except OSError as error:  # another process began to listen between our bind and now
        host, port = http_socket.getsockname()[:2]
        raise _cannot_listen(host, port, error) from None
    finally:
        ending.cancel()


class _Server(uvicorn.Server):
    """uvicorn without signal handlers of its own: they would end the process before the cache is closed."""

    def __init__(self, config: uvicorn.Config, ready: Callable[[], None]) -> None:
        super().__init__(config)
        self._ready = ready

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        if self.started:
            self._ready()


def _address(bound: socket.socket) -> str:
    host, port = bound.getsockname()[:2]
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def _cannot_listen(host: str, port: int, error: OSError) -> ConfigError:
    if error.errno == errno.EADDRINUSE:
        return ConfigError(f"port {port} on {host} is in use", hint="choose another one with --port")
    if error.errno == errno.EACCES:
        return ConfigError(f"port {port} needs privileges", hint="choose one above 1023 with --port")
    return ConfigError(f"cannot listen on {host}:{port}: {error.strerror or error}", hint="see --host and --port")
