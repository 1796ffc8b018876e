"""Decoding while bytes arrive: a layer is there as soon as its bytes are."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

from lmcache_kit.contracts.storage import Buffer
from lmcache_kit.errors import BlobError
from lmcache_kit.kv.layout import KVLayout, KVTensor
from lmcache_kit_cachegen.container import Directory, head_size
from lmcache_kit_cachegen.method import CacheGen
from lmcache_kit_cachegen.reading import Block

__all__ = ["LayerStream"]

Array = np.ndarray[Any, np.dtype[Any]]


class LayerStream:
    """Layers of one payload, in order, from its bytes in pieces of any size::

        stream = LayerStream(method, layout, num_tokens)
        for piece in pieces:
            for layer in stream.feed(piece):
                use(layer)
        stream.finish()

    A payload begins with what every layer needs (header, directory and the blocks' fixed parts, a small part of it);
    after that each layer is complete with its own bytes. Bytes of layers that were handed out are not kept.

    Args:
        method: what decodes.
        layout: of the whole payload.
        num_tokens: tokens of the payload.
        version: of the payload's format; the method's own by default.
    """

    def __init__(self, method: CacheGen, layout: KVLayout, num_tokens: int, version: int | None = None) -> None:
        self._method = method
        self._layout = layout
        self._num_tokens = num_tokens
        self._version = method.version if version is None else version
        self._pending = bytearray()
        self._directory: Directory | None = None
        self._fixed: Array | None = None
        self._next = 0

    @property
    def layers_done(self) -> int:
        """Layers handed out so far."""
        return self._next

    def feed(self, piece: Buffer) -> list[KVTensor]:
        """The layers ``[1, P, T, H, D]`` that became complete with the next bytes, often none.

        Raises BlobError as soon as the bytes at hand are wrong, or more than the payload has; a stream is then of no
        further use.
        """
        self._pending += memoryview(piece).cast("B")
        if self._directory is None:
            head = self._take(head_size(self._layout))
            if head is None:
                return []
            self._directory = self._method.read_directory(head.data, self._layout, self._num_tokens, self._version)
        if self._fixed is None:
            self._fixed = self._take(self._directory.data_start - head_size(self._layout))
            if self._fixed is None:
                return []
        layers: list[KVTensor] = []
        while self._next < self._layout.num_layers:
            layer = self._layer(self._directory, self._fixed)
            if layer is None:
                return layers
            layers.append(layer)
        if self._pending:
            raise BlobError(f"cachegen payload goes on after the {self._directory.size} bytes that it announces")
        return layers

    def finish(self) -> None:
        """Raises BlobError unless every layer was handed out."""
        if self._next < self._layout.num_layers or self._directory is None:
            raise BlobError(f"cachegen payload ends within layer {self._next} of {self._layout.num_layers}")

    def _take(self, size: int) -> Array | None:
        """The next ``size`` bytes, or None while they are not all there."""
        if len(self._pending) < size:
            return None
        with memoryview(self._pending) as pending, pending[:size] as part:  # while they are open it cannot shrink
            taken = np.frombuffer(bytes(part), dtype=np.uint8)
        del self._pending[:size]
        return taken

    def _layer(self, directory: Directory, fixed: Array) -> KVTensor | None:
        planes = self._layout.planes
        entries = directory.entries[self._next * planes : (self._next + 1) * planes]
        data = self._take(sum(entry.data_bytes for entry in entries))
        if data is None:
            return None
        kv = KVTensor.empty(replace(self._layout, num_layers=1), self._num_tokens)
        places = kv.data.reshape(planes, self._num_tokens, directory.header.channels)
        blocks = []
        for place, (entry, out) in enumerate(zip(entries, places, strict=True)):
            start = entry.fixed_start - head_size(self._layout)
            offset = entry.data_start - entries[0].data_start
            blocks.append(
                Block(
                    directory.header,
                    self._next * planes + place,
                    entry,
                    fixed[start : start + entry.fixed_bytes],
                    data[offset : offset + entry.data_bytes],
                    out,
                )
            )
        self._method.decode_blocks(blocks)
        self._next += 1
        return kv
