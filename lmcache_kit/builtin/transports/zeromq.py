"""Transport across hosts: ZeroMQ over TCP."""

from __future__ import annotations

import re

from lmcache_kit.builtin.transports.options import ZmqOptions
from lmcache_kit.builtin.transports.zmq_channel import ZmqChannel
from lmcache_kit.builtin.transports.zmq_listener import ZmqListener
from lmcache_kit.contracts.transport import Channel, FrameHandler, Listener, Transport
from lmcache_kit.errors import ConfigError

__all__ = ["ZmqTransport"]

_ADDRESS = re.compile(r"tcp://(\*|\[[0-9A-Fa-f:.%a-z]+\]|[A-Za-z0-9._-]+):([0-9]{1,5})")


def _check(address: str, *, listening: bool) -> str:
    match = _ADDRESS.fullmatch(address)
    if match is None or int(match[2]) > 65_535 or (not listening and (match[1] == "*" or int(match[2]) == 0)):
        raise ConfigError(f"{address!r} is not a TCP address", hint="write it like tcp://127.0.0.1:8200")
    return address


class ZmqTransport(Transport):
    """Addresses are ``tcp://host:port``; listening on port 0 chooses one, on host ``*`` listens on all interfaces."""

    def __init__(self, options: ZmqOptions | None = None) -> None:
        self._options = options or ZmqOptions()

    async def listen(self, address: str, handler: FrameHandler) -> Listener:
        return ZmqListener(_check(address, listening=True), address, handler, self._options)

    async def connect(self, address: str) -> Channel:
        return ZmqChannel(_check(address, listening=False), address, self._options)
