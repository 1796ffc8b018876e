"""Copies between the blocks on a CUDA device and the staging memory of the host, beside the model's own stream.

Loads go to the device in one transfer a layer and are spread into the blocks there, on a stream of their own; the
model waits layer by layer, or for all of them. Saves are collected on the model's stream, where they see what it wrote
and come before what it writes next, and leave for the host on a third stream while the model goes on.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Sequence

import torch

from lmcache_kit_vllm.blocks import LayerBlocks
from lmcache_kit_vllm.rank_side import Placed, RankCopier
from lmcache_kit_vllm.staging import MappedStaging

__all__ = ["CudaCopier"]

log = logging.getLogger(__name__)


class CudaCopier(RankCopier):
    """One rank's, on the device that its blocks are on.

    Args:
        layers: this rank's blocks.
    """

    def __init__(self, layers: Sequence[LayerBlocks]) -> None:
        super().__init__(layers)
        self._device = layers[0].cache.device
        self._inward = torch.cuda.Stream(self._device)
        self._outward = torch.cuda.Stream(self._device)
        self._arrived: list[torch.cuda.Event] = []
        self._saves: list[Placed] = []
        # Copies by the event behind which they are done, and for saves by way of other memory, what is left to do.
        self._open: list[tuple[torch.cuda.Event, list[int], list[tuple[torch.Tensor, torch.Tensor]]]] = []
        self._detours: list[tuple[torch.Tensor, torch.Tensor]] = []
        self._locked: int | None = None

    def close(self) -> None:
        if self._locked is not None:
            torch.cuda.synchronize(self._device)
            torch.cuda.cudart().cudaHostUnregister(self._locked)
            self._locked = None

    def prepare(self, staging: MappedStaging) -> None:
        """Lock the memory's pages, which copies beside the host's own work need."""
        address, size = staging.address.ctypes.data, staging.address.nbytes
        code = torch.cuda.cudart().cudaHostRegister(address, size, 0)
        if int(code) == 0:
            self._locked = address
            return
        log.warning("the staging memory cannot be page-locked (CUDA error %d): copies are slower", int(code))
        with contextlib.suppress(RuntimeError):  # CUDA reports the error once more to whoever calls it next
            torch.zeros(1, device=self._device)

    def begin_loads(self, loads: Sequence[Placed]) -> None:
        self._arrived = []
        if not loads:
            return
        model = torch.cuda.current_stream(self._device)
        self._inward.wait_stream(model)  # the blocks may have been zeroed there a moment ago
        with torch.cuda.stream(self._inward):
            places = [self._to_device(block, offset) for _, _, block, offset in loads]
            for index, layer in enumerate(self.layers):
                for (_, kv, _, _), (block, offset) in zip(loads, places, strict=True):
                    layer.write(block, offset, self._fetch(kv[index]))
                event = torch.cuda.Event()
                event.record()
                self._arrived.append(event)
        self._open.append((self._arrived[-1], [copy.number for copy, *_ in loads], []))

    def _fetch(self, kv: torch.Tensor) -> torch.Tensor:
        if not kv.is_contiguous():  # a share of the heads, or of the tokens: gathered by the host first
            kv = torch.empty_like(kv, memory_format=torch.contiguous_format, pin_memory=True).copy_(kv)
        return kv.to(self._device, non_blocking=True)

    def _to_device(self, block: torch.Tensor, offset: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        both = torch.stack((block, offset)).pin_memory().to(self._device, non_blocking=True)
        return both[0], both[1]

    def await_load(self, layer: int) -> None:
        if layer < len(self._arrived):
            torch.cuda.current_stream(self._device).wait_event(self._arrived[layer])

    def begin_saves(self, saves: Sequence[Placed]) -> None:
        self._saves = [(copy, kv, *self._to_device(block, offset)) for copy, kv, block, offset in saves]
        self._detours = []

    def save_layer(self, layer: int) -> None:
        model = torch.cuda.current_stream(self._device)
        for _, kv, block, offset in self._saves:
            taken = self.layers[layer].read(block, offset).contiguous()
            self._outward.wait_stream(model)
            taken.record_stream(self._outward)
            with torch.cuda.stream(self._outward):
                if kv[layer].is_contiguous():
                    kv[layer].copy_(taken, non_blocking=True)
                else:
                    detour = torch.empty(taken.shape, dtype=taken.dtype, pin_memory=True)
                    detour.copy_(taken, non_blocking=True)
                    self._detours.append((kv[layer], detour))

    def finish_saves(self) -> None:
        if not self._saves:
            return
        event = torch.cuda.Event()
        event.record(self._outward)
        self._open.append((event, [copy.number for copy, *_ in self._saves], self._detours))
        self._saves, self._detours = [], []

    def take_done(self, *, wait: bool = False) -> list[int]:
        done: list[int] = []
        rest = []
        for event, numbers, detours in self._open:
            if wait:
                event.synchronize()
            if not event.query():
                rest.append((event, numbers, detours))
                continue
            for target, detour in detours:
                target.copy_(detour)
            done += numbers
        self._open = rest
        return done
