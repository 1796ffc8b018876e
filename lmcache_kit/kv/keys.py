"""Names of stored chunks."""

from __future__ import annotations

import re

import msgspec

from lmcache_kit.errors import InvalidRequestError

__all__ = ["ChunkKey"]

_NAME = re.compile(r"([0-9a-z_-]{1,64})\.(n?)([0-9a-f]{1,32})")


class ChunkKey(msgspec.Struct, frozen=True, order=True, gc=False):
    """A chunk of one model's KV cache.

    Args:
        model: fingerprint of model and layout (``EngineInfo.fingerprint``): lower-case letters, digits, - and _.
        hash: the chunk hash as it goes over the wire; may be negative.
    """

    model: str
    hash: int

    def name(self) -> str:
        """A string safe as a file name and as a server key; :meth:`parse` turns it back."""
        value = self.hash
        return f"{self.model}.{value:x}" if value >= 0 else f"{self.model}.n{-value:x}"

    @classmethod
    def parse(cls, name: str) -> ChunkKey:
        """The key of a name made by :meth:`name`. Raises InvalidRequestError for any other string."""
        match = _NAME.fullmatch(name)
        if match is None:
            raise InvalidRequestError(f"{name!r} is not a chunk name")
        model, sign, digits = match.groups()
        value = int(digits, 16)
        key = cls(model, -value if sign else value)
        if key.name() != name:
            raise InvalidRequestError(f"{name!r} is not a chunk name in its only spelling")
        return key
