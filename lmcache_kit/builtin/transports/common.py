"""What the built-in transports share: sizes of frames, errors as text, names of addresses."""

from __future__ import annotations

import re
from collections.abc import Sequence

from lmcache_kit.contracts.storage import Buffer
from lmcache_kit.errors import ConfigError, InvalidRequestError, LMCacheKitError, TransportError, UnavailableError

__all__ = ["MAX_FRAMES", "check_frames", "error_text", "frames_size", "no_answer", "refused", "split_address"]

MAX_FRAMES = 65_535
_NAME = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9._-]{0,63}")


def frames_size(frames: Sequence[Buffer]) -> int:
    """Bytes of all frames together."""
    return sum(memoryview(frame).nbytes for frame in frames)


def check_frames(frames: Sequence[Buffer], limit: int) -> int:
    """Bytes of all frames together.

    Raises InvalidRequestError when they are more than ``limit``, too many, or not contiguous bytes.
    """
    if len(frames) > MAX_FRAMES:
        raise InvalidRequestError(f"a message of {len(frames)} frames is too long, at most {MAX_FRAMES} are allowed")
    try:
        size = frames_size(frames)
    except TypeError as error:
        raise InvalidRequestError(f"a frame is not bytes-like: {error}") from None
    if not all(isinstance(frame, bytes) or memoryview(frame).c_contiguous for frame in frames):
        raise InvalidRequestError("a frame is not contiguous in memory")
    if size > limit:
        raise InvalidRequestError(
            f"a message of {size} bytes exceeds the limit of {limit} bytes",
            hint="raise the transport's max_message_bytes on both sides",
        )
    return size


def error_text(error: BaseException) -> tuple[str, str | None]:
    """Message and hint of anything that a handler raised."""
    if isinstance(error, LMCacheKitError):
        return error.message, error.hint
    return f"{type(error).__name__}: {error}" if str(error) else type(error).__name__, None


def refused(address: str, message: str, hint: str | None = None) -> TransportError:
    """The peer's handler raised ``message``."""
    return TransportError(f"{address} refused the request: {message}", hint=hint)


def no_answer(address: str, timeout: float, *, connected: bool) -> UnavailableError:
    """The deadline passed."""
    if connected:
        return UnavailableError(f"{address} did not answer within {timeout:.3g} s")
    return UnavailableError(f"nobody listens at {address}, waited {timeout:.3g} s", hint="is the peer running?")


def split_address(address: str, scheme: str, *, wildcard: bool = False) -> str:
    """The name in ``scheme://name``; ``*`` is allowed when ``wildcard``. Raises ConfigError for anything else."""
    prefix = f"{scheme}://"
    name = address.removeprefix(prefix)
    if not address.startswith(prefix) or not (_NAME.fullmatch(name) or (wildcard and name == "*")):
        raise ConfigError(
            f"{address!r} is not an address of the {scheme} transport",
            hint=f"write {prefix}name with 1 to 64 letters, digits, '.', '_' or '-'",
        )
    return name
