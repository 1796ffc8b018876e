"""The controller as a process: sockets bound, core fed, calls made, until told to stop."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import signal
import socket as sockets
import sys
from collections.abc import Callable, Iterator
from typing import Self

import uvicorn
import zmq

from lmcache_kit.controller.calls import WorkerCalls
from lmcache_kit.controller.config import ControllerConfig
from lmcache_kit.controller.core import ControllerCore
from lmcache_kit.controller.handlers import Handlers
from lmcache_kit.controller.http import make_app
from lmcache_kit.controller.metrics import ControllerMetrics
from lmcache_kit.controller.monitor import Monitor, join_address
from lmcache_kit.controller.routes import routes
from lmcache_kit.errors import ConfigError, LMCacheKitError
from lmcache_kit.http_limits import LimitedHttp

__all__ = ["ControllerServer", "run", "serve"]

log = logging.getLogger(__name__)


class _Uvicorn(uvicorn.Server):
    """A server that leaves signals to us."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


class ControllerServer:
    """A running controller on the current event loop; an async context manager.

    Raises ConfigError, naming the flag to change, when a port is in use.
    """

    def __init__(self, config: ControllerConfig) -> None:
        self.config = config
        self.core = ControllerCore(
            default_spec=config.default_spec,
            worker_timeout=config.worker_timeout,
            sync_timeout=config.sync_timeout,
            heartbeat_address=self._heartbeat_address,
        )
        self.http_port = 0
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self.monitor = Monitor(config, self.core, self._context)
        self._calls = WorkerCalls(self.core.registry, self._context, self.core.counters, timeout=config.call_timeout)
        self._listening: sockets.socket | None = None
        self._http: _Uvicorn | None = None
        self._tasks: list[asyncio.Task[None]] = []

    async def __aenter__(self) -> Self:
        try:
            await self.start()
        except BaseException:
            await self.close()
            raise
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self.close()

    async def start(self) -> None:
        """Bind everything and answer."""
        self._listening = _bind_http(self.config)
        self.http_port = self._listening.getsockname()[1]
        self.monitor.start()
        metrics = ControllerMetrics(self.core)
        app = make_app(self.config, routes(Handlers(self.core, self._calls)), metrics)
        self._http = _Uvicorn(
            uvicorn.Config(
                app,
                http=LimitedHttp,
                ws="none",
                lifespan="off",
                log_config=None,
                log_level="warning",
                access_log=False,
                server_header=False,
                timeout_keep_alive=75,
                timeout_graceful_shutdown=2,
            )
        )
        self._tasks = [
            asyncio.create_task(self._http.serve(sockets=[self._listening]), name="controller-http"),
            asyncio.create_task(self._watch(), name="controller-watch"),
        ]
        while not self._http.started:
            await asyncio.sleep(0.001)
            if self._tasks[0].done():
                await self._tasks[0]
                raise LMCacheKitError("the HTTP server ended while starting")

    @property
    def ready_line(self) -> str:
        """Where it listens, in one line."""
        host = self.config.bind_host
        parts = [f"http={join_address(host, self.http_port)}", f"pull={self.monitor.pull_port}"]
        parts += [
            f"{name}={port}"
            for name, port in (("reply", self.monitor.reply_port), ("heartbeat", self.monitor.heartbeat_port))
            if port is not None
        ]
        return f"controller ready {' '.join(parts)}"

    async def wait(self) -> None:
        """Return when the HTTP server ends by itself, which it does not do in good order."""
        await self._tasks[0]

    async def close(self) -> None:
        """Stop answering, end calls under way, close every socket; idempotent."""
        self._calls.close()
        if self._http is not None:
            self._http.should_exit = True
        if self._tasks:
            self._tasks[1].cancel()
            await asyncio.gather(*self._tasks, return_exceptions=True)
            self._tasks = []
        self.monitor.close()
        if self._listening is not None:
            self._listening.close()
            self._listening = None
        self._context.destroy(linger=0)

    def _heartbeat_address(self, worker_ip: str) -> str | None:
        return self.monitor.heartbeat_address(worker_ip)

    async def _watch(self) -> None:
        while True:
            try:
                more = self.core.tick()
                self._calls.prune()
            except Exception:
                log.exception("the watch over the workers met an error and goes on")
                more = False
            await asyncio.sleep(0.001 if more else self.config.check_interval)


def _bind_http(config: ControllerConfig) -> sockets.socket:
    host, port = config.bind_host, config.port
    try:
        family, kind, protocol, _, address = sockets.getaddrinfo(host, port, type=sockets.SOCK_STREAM)[0]
    except OSError as error:
        raise ConfigError(f"host {host!r} cannot be resolved: {error.strerror}", hint="check --host") from None
    listening = sockets.socket(family, kind, protocol)
    try:
        listening.setsockopt(sockets.SOL_SOCKET, sockets.SO_REUSEADDR, 1)
        listening.bind(address)
        listening.listen(2048)
    except OSError as error:
        listening.close()
        place = join_address(host, port)
        raise ConfigError(
            f"HTTP cannot listen on {place}: {error.strerror}", hint="choose another --port, or check --host"
        ) from None
    listening.setblocking(False)
    return listening


async def serve(config: ControllerConfig, *, ready: Callable[[ControllerServer], None] | None = None) -> None:
    """Run a controller until cancelled; ``ready`` is called once it listens. Raises ConfigError."""
    async with ControllerServer(config) as server:
        if ready is not None:
            ready(server)
        await server.wait()


def run(config: ControllerConfig) -> None:
    """Run a controller until SIGINT or SIGTERM; says on stderr where it listens. Raises ConfigError."""

    async def main() -> None:
        task = asyncio.ensure_future(serve(config, ready=lambda server: print(server.ready_line, file=sys.stderr)))
        loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, task.cancel)
        with contextlib.suppress(asyncio.CancelledError):
            await task

    try:
        import uvloop
    except ImportError:  # not made for this platform
        asyncio.run(main())
    else:
        uvloop.run(main())
