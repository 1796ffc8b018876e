"""The sockets that workers talk to: PULL, ROUTER for requests, ROUTER for heartbeats."""

from __future__ import annotations

import ipaddress
import socket as sockets
from contextlib import suppress

import zmq

from lmcache_kit.controller.config import ControllerConfig
from lmcache_kit.controller.core import ControllerCore
from lmcache_kit.controller.sockets import LoopSocket
from lmcache_kit.errors import ConfigError

__all__ = ["Monitor", "join_address", "reachable_host"]

_LARGEST_FRAME = 64 * 2**20


def join_address(host: str, port: int) -> str:
    """``host:port``, with brackets around an IPv6 address."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def reachable_host(bound: str, worker_ip: str) -> str:
    """The address under which a worker at ``worker_ip`` reaches sockets bound to ``bound``."""
    if bound not in ("0.0.0.0", "::", "*"):
        return bound
    try:
        address = ipaddress.ip_address(worker_ip)
    except ValueError:
        return sockets.gethostname()
    family = sockets.AF_INET if address.version == 4 else sockets.AF_INET6
    with suppress(OSError), sockets.socket(family, sockets.SOCK_DGRAM) as probe:
        # Connecting a datagram socket sends nothing; it only makes the system choose the local address.
        probe.connect((worker_ip, 9))
        return str(probe.getsockname()[0])
    return sockets.gethostname()


class Monitor:
    """Binds the three sockets and feeds the core.

    Raises ConfigError, naming the flag, when a port is in use or the host is not an address of this machine.
    """

    def __init__(self, config: ControllerConfig, core: ControllerCore, context: zmq.Context[zmq.Socket[bytes]]) -> None:
        self._config = config
        self._core = core
        self._context = context
        self._open: list[LoopSocket] = []
        self.pull_port = 0
        self.reply_port: int | None = None
        self.heartbeat_port: int | None = None

    def start(self) -> None:
        """Bind and listen."""
        ports = self._config.monitor
        self.pull_port, pull = self._bind(zmq.PULL, "pull", ports.pull)
        self._pull = LoopSocket(pull, self._on_pushed)
        self._open.append(self._pull)
        if ports.reply is not None:
            self.reply_port, reply = self._bind(zmq.ROUTER, "reply", ports.reply)
            self._open.append(self._router(reply, "reply"))
        if ports.heartbeat is not None:
            self.heartbeat_port, heartbeat = self._bind(zmq.ROUTER, "heartbeat", ports.heartbeat)
            self._open.append(self._router(heartbeat, "heartbeat"))

    def heartbeat_address(self, worker_ip: str) -> str | None:
        """``host:port`` of the heartbeat socket as that worker reaches it; None when there is none."""
        if self.heartbeat_port is None:
            return None
        return join_address(reachable_host(self._config.bind_host, worker_ip), self.heartbeat_port)

    def close(self) -> None:
        """Close the sockets; idempotent."""
        while self._open:
            self._open.pop().close()

    def _bind(self, kind: int, name: str, port: int) -> tuple[int, zmq.Socket[bytes]]:
        host = self._config.bind_host
        socket = self._context.socket(kind)
        socket.setsockopt(zmq.LINGER, 0)
        socket.setsockopt(zmq.MAXMSGSIZE, _LARGEST_FRAME)
        if kind == zmq.PULL:
            # Losing operations costs a full sync; a queue of frames that wait for their turn costs only memory.
            socket.setsockopt(zmq.RCVHWM, 100_000)
        if ":" in host:
            socket.setsockopt(zmq.IPV6, 1)
        try:
            socket.bind(f"tcp://{join_address(host, port)}")
        except zmq.ZMQError as error:
            socket.close(linger=0)
            if error.errno == zmq.EADDRINUSE:
                raise ConfigError(
                    f"port {port} for the {name} socket is in use", hint="choose another --monitor-port"
                ) from None
            raise ConfigError(
                f"the {name} socket cannot be bound to {join_address(host, port)}: {error.strerror}",
                hint="check --host and --monitor-port",
            ) from None
        endpoint = socket.getsockopt_string(zmq.LAST_ENDPOINT)
        return int(endpoint.rpartition(":")[2]), socket

    def _on_pushed(self, frames: list[bytes]) -> None:
        for frame in frames:
            self._core.receive_pushed(frame)

    def _router(self, socket: zmq.Socket[bytes], name: str) -> LoopSocket:
        def answer(frames: list[bytes]) -> None:
            # [identity, (empty,) payload]; whatever stands before the payload comes back before the answer, so REQ,
            # DEALER with and without the empty frame, and DEALER with correlation ids all work.
            if len(frames) < 2:
                self._core.counters.malformed[name] += 1
                return
            listener.send([*frames[:-1], self._core.receive_request(frames[-1], name)])

        listener = LoopSocket(socket, answer)
        return listener
