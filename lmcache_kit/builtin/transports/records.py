"""Records of the built-in transports; the modules behind them are imported when one is made."""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

from lmcache_kit.builtin.transports.options import InprocOptions, ShmOptions, ZmqOptions
from lmcache_kit.contracts.records import Options, TransportPlugin

if TYPE_CHECKING:
    from lmcache_kit.contracts.transport import Transport

__all__ = ["RECORDS"]


def _inproc(options: Options) -> Transport:
    from lmcache_kit.builtin.transports.inproc import InprocTransport

    return InprocTransport(cast("InprocOptions", options))


def _zmq(options: Options) -> Transport:
    from lmcache_kit.builtin.transports.zeromq import ZmqTransport

    return ZmqTransport(cast("ZmqOptions", options))


def _shm(options: Options) -> Transport:
    from lmcache_kit.builtin.transports.shared_memory import ShmTransport

    return ShmTransport(cast("ShmOptions", options))


RECORDS: tuple[TransportPlugin, ...] = (
    TransportPlugin(
        name="inproc",
        summary="within one process, by reference",
        scheme="inproc",
        options=InprocOptions,
        factory=_inproc,
        capabilities=frozenset({"same_process"}),
    ),
    TransportPlugin(
        name="zmq",
        summary="across hosts, ZeroMQ over TCP",
        scheme="tcp",
        options=ZmqOptions,
        factory=_zmq,
    ),
    TransportPlugin(
        name="shm",
        summary="on one host, large frames through shared memory",
        scheme="shm",
        options=ShmOptions,
        factory=_shm,
        capabilities=frozenset({"same_host"}),
    ),
)
