"""Messages to bytes and back; one decoder per socket, which takes what that socket may carry and nothing else."""

from __future__ import annotations

from typing import Any

import msgspec

from lmcache_kit.errors import InvalidRequestError
from lmcache_kit.messages.base import Message
from lmcache_kit.messages.control import ControlMsg, ControlRetMsg
from lmcache_kit.messages.worker import PushedMsg, WorkerReplyMsg, WorkerRequestMsg

__all__ = [
    "decode_control",
    "decode_control_reply",
    "decode_pushed",
    "decode_worker_reply",
    "decode_worker_request",
    "encode",
]

_encoder = msgspec.msgpack.Encoder()
_pushed = msgspec.msgpack.Decoder(PushedMsg)
_pushed_json = msgspec.json.Decoder(PushedMsg)
_request = msgspec.msgpack.Decoder(WorkerRequestMsg)
_request_json = msgspec.json.Decoder(WorkerRequestMsg)
_reply = msgspec.msgpack.Decoder(WorkerReplyMsg)
_control = msgspec.msgpack.Decoder(ControlMsg)
_control_reply = msgspec.msgpack.Decoder(ControlRetMsg)


def encode(message: Message) -> bytes:
    """The msgpack payload of a message."""
    return _encoder.encode(message)


def _decode(msgpack: Any, json: Any, payload: Any) -> Any:
    try:
        # A msgpack map starts with 0x80-0x8f, 0xde or 0xdf, never with '{'.
        if json is not None and bytes(payload[:1]) == b"{":
            return json.decode(payload)
        return msgpack.decode(payload)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise InvalidRequestError(f"malformed message: {error}") from None


def decode_pushed(payload: Any) -> PushedMsg:
    """A message of the controller's PULL socket. Raises InvalidRequestError for anything else."""
    return _decode(_pushed, _pushed_json, payload)  # type: ignore[no-any-return]


def decode_worker_request(payload: Any) -> WorkerRequestMsg:
    """A message of the controller's reply or heartbeat socket. Raises InvalidRequestError for anything else."""
    return _decode(_request, _request_json, payload)  # type: ignore[no-any-return]


def decode_worker_reply(payload: Any) -> WorkerReplyMsg:
    """The controller's answer to a worker's request. Raises InvalidRequestError for anything else."""
    return _decode(_reply, None, payload)  # type: ignore[no-any-return]


def decode_control(payload: Any) -> ControlMsg:
    """A message of a worker's control socket. Raises InvalidRequestError for anything else."""
    return _decode(_control, None, payload)  # type: ignore[no-any-return]


def decode_control_reply(payload: Any) -> ControlRetMsg:
    """A worker's answer on its control socket. Raises InvalidRequestError for anything else."""
    return _decode(_control_reply, None, payload)  # type: ignore[no-any-return]
