"""What instances say to each other (docs/reference/peer.md).

A request is one msgpack map, its ``op`` names the operation, followed by the blob's frame for ``put``. An answer is
one msgpack map, its ``status`` is 200 or an HTTP-like error status, followed by the blob's frame for ``get``.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, TypeAlias

import msgspec

from lmcache_kit.contracts.storage import Buffer
from lmcache_kit.errors import InvalidRequestError

__all__ = [
    "MAX_HEADER_BYTES",
    "MAX_PAGE",
    "MAX_SECONDS",
    "PEER_VERSION",
    "Answer",
    "ContentsRequest",
    "GetRequest",
    "PeerRequest",
    "PingRequest",
    "PutRequest",
    "decode_answer",
    "decode_request",
    "encode_message",
]

PEER_VERSION = 1
MAX_PAGE = 10_000
"""Most chunk names in one answer to ``contents``."""
MAX_HEADER_BYTES = 4 * 2**20
MAX_SECONDS = 3600.0

Location = Annotated[str, msgspec.Meta(min_length=1, max_length=128)]
Name = Annotated[str, msgspec.Meta(min_length=1, max_length=128)]


class _Request(msgspec.Struct, tag_field="op", kw_only=True, frozen=True):
    """What all requests share.

    Args:
        v: version of this protocol.
        seconds: how long the requester waits; work that takes longer is given up.
    """

    v: int = PEER_VERSION
    seconds: Annotated[float, msgspec.Meta(gt=0, le=MAX_SECONDS)] = 30.0


class PingRequest(_Request, tag="ping", frozen=True):
    """Who is there?"""


class PutRequest(_Request, tag="put", frozen=True):
    """Store the blob that follows. Chunks with the same ``move`` are not evicted for each other."""

    location: Location
    move: Annotated[str, msgspec.Meta(max_length=256)] = ""


class GetRequest(_Request, tag="get", frozen=True):
    """The blob stored under ``key``, a chunk name."""

    location: Location
    key: Name


class ContentsRequest(_Request, tag="contents", frozen=True):
    """Chunk names of a location in ascending order, those after ``after``, at most ``limit``."""

    location: Location
    after: str = ""
    limit: Annotated[int, msgspec.Meta(ge=1, le=MAX_PAGE)] = MAX_PAGE


PeerRequest: TypeAlias = PingRequest | PutRequest | GetRequest | ContentsRequest


class Answer(msgspec.Struct, kw_only=True, frozen=True, omit_defaults=True):
    """The answer to any request.

    Args:
        v: version of this protocol.
        status: 200, or an error status with ``error`` and perhaps ``hint``.
        tokens: ``put``: tokens stored.
        found: ``get``: whether the blob follows.
        keys: ``contents``: chunk names.
        more: ``contents``: whether there are names after the last one.
        model: ``ping``: fingerprint of the model and layout that the instance serves.
        locations: ``ping``: the instance's tiers, fastest first.
    """

    v: int = PEER_VERSION
    status: int = 200
    error: str = ""
    hint: str | None = None
    tokens: int = 0
    found: bool = False
    keys: list[str] = []
    more: bool = False
    model: str = ""
    locations: list[str] = []


_encoder = msgspec.msgpack.Encoder()
_requests = msgspec.msgpack.Decoder(PeerRequest)
_answers = msgspec.msgpack.Decoder(Answer)


class _Version(msgspec.Struct, frozen=True):
    v: int = PEER_VERSION


_versions = msgspec.msgpack.Decoder(_Version)


def encode_message(message: PeerRequest | Answer) -> bytes:
    """The msgpack frame of a message."""
    return _encoder.encode(message)


def _check(frames: Sequence[Buffer]) -> Buffer:
    if not frames:
        raise InvalidRequestError("a peer message needs at least one frame")
    if len(frames[0]) > MAX_HEADER_BYTES:
        raise InvalidRequestError(f"the first frame of a peer message has at most {MAX_HEADER_BYTES} bytes")
    # The version is looked at first: a message of another version may differ in everything else.
    version = _versions.decode(frames[0]).v
    if version != PEER_VERSION:
        raise InvalidRequestError(
            f"peer protocol version {version} is not understood, this build speaks version {PEER_VERSION}",
            hint="run the same release on both instances",
        )
    return frames[0]


def decode_request(frames: Sequence[Buffer]) -> PeerRequest:
    """The request in ``frames[0]``. Raises InvalidRequestError for anything else, and for a wrong number of frames."""
    try:
        request: PeerRequest = _requests.decode(_check(frames))
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise InvalidRequestError(f"malformed peer request: {error}") from None
    expected = 2 if isinstance(request, PutRequest) else 1
    if len(frames) != expected:
        raise InvalidRequestError(f"this peer request has {expected} frame(s), not {len(frames)}")
    return request


def decode_answer(frames: Sequence[Buffer]) -> Answer:
    """The answer in ``frames[0]``. Raises InvalidRequestError for anything else, and for a wrong number of frames."""
    try:
        answer = _answers.decode(_check(frames))
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise InvalidRequestError(f"malformed peer answer: {error}") from None
    expected = 2 if answer.found else 1
    if len(frames) != expected:
        raise InvalidRequestError(f"this peer answer has {expected} frame(s), not {len(frames)}")
    return answer
