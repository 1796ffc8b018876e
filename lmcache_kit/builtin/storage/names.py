"""The one place that turns storage names into file names."""

from __future__ import annotations

import re
import zlib

from lmcache_kit.errors import InvalidRequestError

__all__ = ["SUFFIX", "check_name", "is_name", "relative_path"]

SUFFIX = ".blob"

_NAME = re.compile(r"[0-9a-z._-]{1,128}")
_SHARDS = 256


def is_name(name: str) -> bool:
    """Whether ``name`` is one that a storage backend must accept."""
    return _NAME.fullmatch(name) is not None


def check_name(name: str) -> str:
    """``name`` itself. Raises InvalidRequestError when it could not be the name of a stored object."""
    if not is_name(name):
        raise InvalidRequestError(
            f"{name!r} cannot name a stored object", hint="1 to 128 of the characters 0-9 a-z . _ -"
        )
    return name


def relative_path(name: str) -> tuple[str, str]:
    """Folder and file name of an object. The suffix makes ``.`` and ``..`` ordinary file names."""
    check_name(name)
    return f"{zlib.crc32(name.encode()) % _SHARDS:02x}", name + SUFFIX
