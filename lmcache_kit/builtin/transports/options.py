"""Options of the built-in transports."""

from __future__ import annotations

from typing import Annotated

import msgspec

from lmcache_kit.contracts.records import Options

__all__ = ["InprocOptions", "ShmOptions", "ZmqOptions"]

Positive = Annotated[int, msgspec.Meta(ge=1)]
NotNegative = Annotated[int, msgspec.Meta(ge=0)]
Seconds = Annotated[float, msgspec.Meta(gt=0)]


class InprocOptions(Options, frozen=True):
    """Options of ``inproc``.

    Args:
        max_message_bytes: most bytes that all frames of one request or answer may have together.
    """

    max_message_bytes: Positive = 2**30


class ZmqOptions(Options, frozen=True):
    """Options of ``zmq``.

    Args:
        max_message_bytes: most bytes that all frames of one request or answer may have together; a connection that
            brings a larger frame is closed.
        max_in_flight: requests that one listener handles at a time; more wait in the sockets.
        connect_seconds: a request that finds no connection fails after this time, also when its own deadline is later;
            a peer that comes back is found within about a second.
        send_high_water: messages queued per connection before sending waits; 0 for no bound.
        receive_high_water: messages queued per connection before its sender is slowed down; 0 for no bound.
    """

    max_message_bytes: Positive = 2**30
    max_in_flight: Positive = 256
    connect_seconds: Seconds = 5.0
    send_high_water: NotNegative = 1000
    receive_high_water: NotNegative = 1000


class ShmOptions(Options, frozen=True):
    """Options of ``shm``.

    Args:
        threshold_bytes: frames of at least this size go through shared memory, smaller ones through the socket.
        directory: folder of the segments and sockets, on a memory file system; default ``/dev/shm`` or, where there is
            none, the folder for temporary files. Both sides must use the same.
        max_message_bytes: most bytes that all frames of one request or answer may have together.
        max_in_flight: requests that one listener handles at a time; more wait in the sockets.
        connect_seconds: a request that finds no connection fails after this time, also when its own deadline is later;
            a peer that comes back is found within about a second.
        answer_seconds: an answer that nobody fetched within this time is dropped, and its memory with it.
    """

    threshold_bytes: NotNegative = 64 * 2**10
    directory: str | None = None
    max_message_bytes: Positive = 2**30
    max_in_flight: Positive = 256
    connect_seconds: Seconds = 5.0
    answer_seconds: Seconds = 60.0
