"""The connector on a rank: copies between this rank's blocks and the staging memory.

A rank holds some of the KV heads of every layer. Ranks whose heads are the same (more ranks than heads, or multi-head
latent attention) all load, and the first of them saves.
"""

from __future__ import annotations

import contextlib
import logging
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from lmcache_kit.kv.layout import KVLayout
from lmcache_kit_vllm.blocks import LayerBlocks, slots
from lmcache_kit_vllm.plan import Copy, Report, StepPlan
from lmcache_kit_vllm.staging import MappedStaging

__all__ = ["HeadShare", "HostCopier", "Placed", "RankCopier", "RankSide", "head_share", "staged"]

log = logging.getLogger(__name__)

Placed = tuple[Copy, torch.Tensor, torch.Tensor, torch.Tensor]
"""A copy, its bits in the staging memory ``[L, P, T, h, D]``, and the places (block, token) ``[T]`` of its tokens."""


@dataclass(frozen=True, slots=True)
class HeadShare:
    """KV heads ``start`` to ``stop`` of the model are on this rank; ``saves`` where it is the first that has them."""

    start: int
    stop: int
    saves: bool


def head_share(layout: KVLayout, rank: int, ranks: int) -> HeadShare:
    """The heads of one of ``ranks`` tensor parallel ranks, as vLLM distributes them."""
    heads = layout.num_kv_heads
    if ranks <= heads:
        each = heads // ranks
        return HeadShare(rank * each, (rank + 1) * each, True)
    copies = ranks // heads
    return HeadShare(rank // copies, rank // copies + 1, rank % copies == 0)


def staged(staging: MappedStaging, copy: Copy, layout: KVLayout, share: HeadShare) -> torch.Tensor:
    """The bits in the staging memory that a copy is about, ``[L, P, T, h, D]`` integers; a view."""
    kv = staging.tensor(copy.piece, layout).data
    integers = kv.view(np.dtype(f"i{layout.np_dtype.itemsize}"))
    part = integers[:, :, copy.start - copy.piece_start : copy.stop - copy.piece_start, share.start : share.stop]
    return torch.from_numpy(part)


class RankCopier(ABC):
    """Makes copies layer by layer. Layers come in the layout's order.

    Args:
        layers: this rank's blocks.
    """

    def __init__(self, layers: Sequence[LayerBlocks]) -> None:
        self.layers = layers

    def prepare(self, staging: MappedStaging) -> None:  # noqa: B027  (optional to override, not abstract)
        """The staging memory is known; called once, before the first copy."""

    def close(self) -> None:  # noqa: B027  (optional to override, not abstract)
        """No more copies follow; idempotent."""

    @abstractmethod
    def begin_loads(self, loads: Sequence[Placed]) -> None:
        """Begin to write staged KV into blocks."""

    @abstractmethod
    def await_load(self, layer: int) -> None:
        """Have the model's reads of a layer come after its loads."""

    @abstractmethod
    def begin_saves(self, saves: Sequence[Placed]) -> None:
        """Note what is to be read in this step."""

    @abstractmethod
    def save_layer(self, layer: int) -> None:
        """Read a layer's noted tokens, after the model's writes."""

    @abstractmethod
    def finish_saves(self) -> None:
        """All layers are read: from now on the blocks may be overwritten."""

    @abstractmethod
    def take_done(self, *, wait: bool = False) -> list[int]:
        """Numbers of the copies that have been finished since the last call; of all begun ones with ``wait``."""


class HostCopier(RankCopier):
    """Copies in the memory of the host, as the model comes to each layer."""

    def __init__(self, layers: Sequence[LayerBlocks]) -> None:
        super().__init__(layers)
        self._loads: list[Placed] = []
        self._loaded = 0
        self._saves: list[Placed] = []
        self._done: list[int] = []

    def begin_loads(self, loads: Sequence[Placed]) -> None:
        self._loads = list(loads)
        self._loaded = 0

    def await_load(self, layer: int) -> None:
        while self._loads and self._loaded <= layer:
            for _, kv, block, offset in self._loads:
                self.layers[self._loaded].write(block, offset, kv[self._loaded])
            self._loaded += 1
            if self._loaded == len(self.layers):
                self._done += [copy.number for copy, *_ in self._loads]
                self._loads = []

    def begin_saves(self, saves: Sequence[Placed]) -> None:
        self._saves = list(saves)

    def save_layer(self, layer: int) -> None:
        for _, kv, block, offset in self._saves:
            kv[layer].copy_(self.layers[layer].read(block, offset))

    def finish_saves(self) -> None:
        self._done += [copy.number for copy, *_ in self._saves]
        self._saves = []

    def take_done(self, *, wait: bool = False) -> list[int]:
        if wait:
            self.await_load(len(self.layers) - 1)
        done, self._done = self._done, []
        return done


class RankSide:
    """One rank's.

    Args:
        copier: makes the copies.
        layout: KV of the whole model.
        share: the heads of this rank.
        block_size: tokens in a block of the scheduler.
        layerwise: whether the model announces each layer, so that copies go on while it runs.
    """

    def __init__(
        self, copier: RankCopier, layout: KVLayout, share: HeadShare, *, block_size: int, layerwise: bool
    ) -> None:
        self._copier = copier
        self._layout = layout
        self._share = share
        self._block_size = block_size
        self._layerwise = layerwise
        self._staging: MappedStaging | None = None
        self._report = Report()
        self._saved_layers: set[int] = set()
        self._plan: StepPlan | None = None
        self._failed_blocks: set[int] = set()

    def begin(self, plan: StepPlan) -> None:
        """A step begins."""
        self._plan = plan
        self._saved_layers.clear()
        with self._saving():
            if self._share.saves:
                self._copier.begin_saves([self._places(copy) for copy in plan.saves])
            else:
                self._report.done.update(copy.number for copy in plan.saves)

    def load(self) -> None:
        """Begin the step's loads; finish them where the model does not announce its layers.

        vLLM calls this before the model runs when there are loads, and afterwards when there are none.
        """
        if self._plan is None or not self._plan.loads:
            return
        with self._loading():
            self._copier.begin_loads([self._places(copy) for copy in self._plan.loads])
            if not self._layerwise:
                self._copier.await_load(self._last)

    @property
    def _last(self) -> int:
        return len(self._copier.layers) - 1

    def _places(self, copy: Copy) -> Placed:
        assert self._plan is not None
        if self._staging is None:
            self._staging = MappedStaging(self._plan.place)
            self._copier.prepare(self._staging)
        block, offset = slots(
            copy.blocks,
            copy.start,
            copy.stop,
            block_size=self._block_size,
            kernel_block_size=self._copier.layers[0].block_size,
        )
        return copy, staged(self._staging, copy, self._layout, self._share), block, offset

    def before_layer(self, layer: int) -> None:
        """The model is about to read a layer."""
        if self._layerwise:
            with self._loading():
                self._copier.await_load(layer)

    def after_layer(self, layer: int) -> None:
        """The model has written a layer."""
        if self._layerwise and self._saves and layer not in self._saved_layers:
            self._saved_layers.add(layer)
            with self._saving():
                self._copier.save_layer(layer)

    @property
    def _saves(self) -> bool:
        return self._plan is not None and bool(self._plan.saves) and self._share.saves

    def end(self) -> None:
        """The model has run: what it did not announce is copied now."""
        if self._plan is None:
            return
        with self._loading():
            self._copier.await_load(self._last)
        if self._saves:
            with self._saving():
                for layer in range(self._last + 1):
                    if layer not in self._saved_layers:
                        self._copier.save_layer(layer)
                self._copier.finish_saves()
        self._plan = None

    @contextlib.contextmanager
    def _loading(self) -> Iterator[None]:
        """A failure makes blocks that vLLM computes again, or whose requests it fails: its kv_load_failure_policy."""
        try:
            yield
        except Exception:
            assert self._plan is not None
            log.exception("KV of %d requests could not be copied into their blocks", len(self._plan.loads))
            self._failed_blocks.update(block for copy in self._plan.loads for block in copy.blocks)
            self._give_up(self._plan.loads)
            self._copier.begin_loads([])
            self._plan.loads.clear()

    @contextlib.contextmanager
    def _saving(self) -> Iterator[None]:
        """A failure makes KV that is not stored."""
        try:
            yield
        except Exception:
            assert self._plan is not None
            log.exception("KV of %d requests could not be copied out of their blocks", len(self._plan.saves))
            self._give_up(self._plan.saves)
            self._copier.begin_saves([])
            self._plan.saves.clear()

    def _give_up(self, copies: Sequence[Copy]) -> None:
        numbers = [copy.number for copy in copies]
        self._report.done.update(numbers)
        self._report.failed.update(numbers)

    def take_failed_blocks(self) -> set[int]:
        """Blocks of the scheduler that do not hold what they should."""
        failed, self._failed_blocks = self._failed_blocks, set()
        return failed

    def take_report(self) -> Report | None:
        """What was done since the last report."""
        self._report.done.update(self._copier.take_done())
        report, self._report = self._report, Report()
        return report if report.done else None

    def close(self) -> None:
        """Finish what was begun."""
        self.end()
        self._copier.take_done(wait=True)
        self._copier.close()
