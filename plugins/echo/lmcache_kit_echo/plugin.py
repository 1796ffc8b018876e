"""What lmcache-kit sees: a hook that yields records. Nothing heavy is imported before a method is made."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Annotated

from msgspec import Meta

from lmcache_kit.contracts.compression import CompressionMethod
from lmcache_kit.contracts.records import CompressionPlugin, Options
from lmcache_kit.hookspecs import hookimpl

__all__ = ["EchoOptions", "lmcache_kit_compression_methods"]


class EchoOptions(Options, frozen=True):
    """Options of ``echo``.

    Args:
        level: of zlib, 1 (fastest) to 9 (smallest).
    """

    level: Annotated[int, Meta(ge=1, le=9)] = 1


def _make(options: Options) -> CompressionMethod:
    from lmcache_kit_echo.method import EchoMethod

    assert isinstance(options, EchoOptions)
    return EchoMethod(level=options.level)


@hookimpl
def lmcache_kit_compression_methods() -> Iterable[CompressionPlugin]:
    yield CompressionPlugin(
        name="echo",
        summary="lossless; differences between tokens, then zlib (the example plugin)",
        factory=_make,
        options=EchoOptions,
        capabilities=frozenset({"lossless", "deterministic"}),
    )
