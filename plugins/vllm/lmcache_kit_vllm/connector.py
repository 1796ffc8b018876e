"""vLLM's side of the connector: a ``KVConnectorBase_V1`` that hands everything to the scheduler's or the rank's half.

Written for vLLM 0.32; vLLM calls this interface experimental.
"""

from __future__ import annotations

import logging
import os
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from vllm.distributed.kv_transfer.kv_connector.v1.base import (
    KVConnectorBase_V1,
    KVConnectorMetadata,
    KVConnectorRole,
    KVConnectorWorkerMetadata,
)
from vllm.v1.metrics.cache_hit_source import CacheHitSource

from lmcache_kit.clock import WallClock
from lmcache_kit.errors import ConfigError
from lmcache_kit.instance.config.loading import load_config
from lmcache_kit_vllm.blocks import LayerBlocks, PackedBlocks, TokenBlocks
from lmcache_kit_vllm.cache_thread import CacheThread
from lmcache_kit_vllm.identity import engine_info, kv_layout, layer_names
from lmcache_kit_vllm.metrics import CacheMetrics, CacheStats, levels
from lmcache_kit_vllm.options import ConnectorOptions, read_options
from lmcache_kit_vllm.packing import element_places
from lmcache_kit_vllm.plan import Report, StepPlan
from lmcache_kit_vllm.rank_side import HostCopier, RankCopier, RankSide, head_share
from lmcache_kit_vllm.requests import SavePolicy
from lmcache_kit_vllm.scheduler_side import SchedulerSide
from lmcache_kit_vllm.staging import Staging, usual_size

if TYPE_CHECKING:
    from vllm.config import VllmConfig
    from vllm.distributed.kv_transfer.kv_connector.v1.metrics import KVConnectorPromMetrics, KVConnectorStats
    from vllm.forward_context import ForwardContext
    from vllm.v1.attention.backend import AttentionMetadata
    from vllm.v1.core.kv_cache_manager import KVCacheBlocks
    from vllm.v1.core.sched.output import SchedulerOutput
    from vllm.v1.kv_cache_interface import KVCacheConfig
    from vllm.v1.outputs import KVConnectorOutput
    from vllm.v1.request import Request

__all__ = ["LMCacheKitConnector"]

_SOURCES = {"LocalCPUBackend": CacheHitSource.HOST, "LocalDiskBackend": CacheHitSource.DISK}


@dataclass
class _Metadata(KVConnectorMetadata):
    plan: StepPlan


@dataclass
class _RankMetadata(KVConnectorWorkerMetadata):
    report: Report

    def aggregate(self, other: KVConnectorWorkerMetadata) -> KVConnectorWorkerMetadata:
        assert isinstance(other, _RankMetadata)
        return _RankMetadata(self.report.plus(other.report))


class LMCacheKitConnector(KVConnectorBase_V1):
    """Stores and loads KV through an lmcache-kit instance inside the engine.

    The instance is described by LMCache's configuration file (``LMCACHE_CONFIG_FILE``); ``kv_connector_extra_config``
    takes :class:`~lmcache_kit_vllm.options.ConnectorOptions`. All tensor parallel ranks share one instance.

    Raises ConfigError for a model or a way to run it whose KV cannot be stored.
    """

    def __init__(self, vllm_config: VllmConfig, role: KVConnectorRole, kv_cache_config: KVCacheConfig) -> None:
        super().__init__(vllm_config=vllm_config, role=role, kv_cache_config=kv_cache_config)
        _log_with_vllm()
        options = read_options(self._kv_transfer_config.kv_connector_extra_config)
        self._layout = kv_layout(vllm_config, kv_cache_config)
        self._layer_names = layer_names(kv_cache_config)
        self._scheduler: SchedulerSide | None = None
        self._rank: RankSide | None = None
        self._layers: dict[str, int] = {}
        self._layerwise = _is_layerwise(vllm_config, options)
        self._last_stats: Mapping[str, Any] | None = None
        if role is KVConnectorRole.SCHEDULER:
            self._scheduler = self._make_scheduler_side(options)

    def _make_scheduler_side(self, options: ConnectorOptions) -> SchedulerSide:
        config = self._vllm_config
        # jax would take most of the device's memory for itself, which is vLLM's.
        os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
        instance = load_config()
        batch = max(config.scheduler_config.max_num_batched_tokens, config.model_config.max_model_len)
        staging = Staging(options.staging_bytes(usual_size(self._layout, batch)), self._layout)
        return SchedulerSide(
            CacheThread(instance, engine_info(config, self._layout)),
            staging,
            SavePolicy(instance.hash_spec, instance.save_decode_cache),
            options,
            block_size=config.cache_config.block_size,
            ranks=config.parallel_config.world_size,
            loads=self._kv_transfer_config.is_kv_consumer,
            saves=self._kv_transfer_config.is_kv_producer,
            clock=WallClock(),
        )

    @property
    def requires_kv_delivery(self) -> bool:
        """False: KV that is not stored is computed again."""
        return False

    @classmethod
    def requires_piecewise_for_cudagraph(cls, extra_config: dict[str, Any]) -> bool:
        """Whether the model must announce its layers, which whole CUDA graphs do not."""
        return bool(read_options(extra_config).layerwise)

    # --- on the ranks ------------------------------------------------------------------------------------------------

    def register_kv_caches(self, kv_caches: dict[str, torch.Tensor]) -> None:
        config = self._vllm_config
        missing = [name for name in self._layer_names if name not in kv_caches]
        if missing:
            raise ConfigError(f"vLLM registers no KV cache for {missing[0]}")
        self._layers = {name: index for index, name in enumerate(self._layer_names)}
        layers = self._layer_blocks([kv_caches[name] for name in self._layer_names])
        copier: RankCopier
        if layers[0].cache.is_cuda:
            from lmcache_kit_vllm.cuda_copier import CudaCopier

            copier = CudaCopier(layers)
        else:
            copier = HostCopier(layers)
        ranks = config.parallel_config.tensor_parallel_size
        self._rank = RankSide(
            copier,
            self._layout,
            head_share(self._layout, config.parallel_config.rank % ranks, ranks),
            block_size=config.cache_config.block_size,
            layerwise=self._layerwise,
        )

    def _layer_blocks(self, caches: list[torch.Tensor]) -> list[LayerBlocks]:
        layout = self._layout
        for cache in caches:
            if cache.ndim != 4 or cache.shape[-1] != layout.planes * layout.head_dim:
                raise ConfigError(
                    f"this attention backend's KV cache has shape {tuple(cache.shape)}, the connector wants "
                    f"[blocks, KV heads, tokens, {layout.planes * layout.head_dim}]",
                    hint="choose another one with --attention-backend",
                )
        if caches[0].device.type != "cpu":
            return [TokenBlocks(cache, layout.planes) for cache in caches]
        places: dict[str, torch.Tensor] = {}
        blocks: list[LayerBlocks] = []
        for name, cache in zip(self._layer_names, caches, strict=True):
            isa = self._vllm_config.compilation_config.static_forward_context[name].isa
            if isa not in places:
                places[isa] = _cpu_places(cache, isa)
            blocks.append(PackedBlocks(cache, places[isa]))
        return blocks

    def bind_connector_metadata(self, connector_metadata: KVConnectorMetadata) -> None:
        super().bind_connector_metadata(connector_metadata)
        assert isinstance(connector_metadata, _Metadata)
        if self._rank is not None:
            self._rank.begin(connector_metadata.plan)

    def start_load_kv(self, forward_context: ForwardContext, **kwargs: Any) -> None:
        if self._rank is not None:
            self._rank.load()

    def wait_for_layer_load(self, layer_name: str) -> None:
        if self._rank is not None and layer_name in self._layers:
            self._rank.before_layer(self._layers[layer_name])

    def save_kv_layer(
        self, layer_name: str, kv_layer: torch.Tensor, attn_metadata: AttentionMetadata, **kwargs: Any
    ) -> None:
        if self._rank is not None and layer_name in self._layers:
            self._rank.after_layer(self._layers[layer_name])

    def wait_for_save(self) -> None:
        if self._rank is not None:
            self._rank.end()

    def get_block_ids_with_load_errors(self) -> set[int]:
        return self._rank.take_failed_blocks() if self._rank is not None else set()

    def build_connector_worker_meta(self) -> KVConnectorWorkerMetadata | None:
        report = self._rank.take_report() if self._rank is not None else None
        return None if report is None else _RankMetadata(report)

    # --- in the scheduler --------------------------------------------------------------------------------------------

    def _on_scheduler(self) -> SchedulerSide:
        assert self._scheduler is not None, "vLLM calls this on the scheduler's connector"
        return self._scheduler

    def get_num_new_matched_tokens(self, request: Request, num_computed_tokens: int) -> tuple[int | None, bool]:
        return self._on_scheduler().matched(request, num_computed_tokens), False

    def update_state_after_alloc(self, request: Request, blocks: KVCacheBlocks, num_external_tokens: int) -> None:
        self._on_scheduler().allocated(request, num_external_tokens)

    def get_external_cache_hit_sources(self, request: Request, num_external_tokens: int) -> dict[CacheHitSource, int]:
        """vLLM's names for the tiers; those it has no name for are unspecified."""
        sources: Counter[CacheHitSource] = Counter()
        for location, tokens in self._on_scheduler().hit_locations(request.request_id).items():
            sources[_SOURCES.get(location, CacheHitSource.EXTERNAL_UNSPECIFIED)] += tokens
        return dict(sources)

    def build_connector_meta(self, scheduler_output: SchedulerOutput) -> KVConnectorMetadata:
        return _Metadata(self._on_scheduler().plan(scheduler_output))

    def update_connector_output(self, connector_output: KVConnectorOutput) -> None:
        metadata = connector_output.kv_connector_worker_meta
        if isinstance(metadata, _RankMetadata):
            self._on_scheduler().reported(metadata.report)

    def request_finished(self, request: Request, block_ids: list[int]) -> tuple[bool, dict[str, Any] | None]:
        facts = self._on_scheduler().finished(request.request_id)
        return False, {"lmcache_kit": facts} if facts is not None else None

    def has_pending_push_work(self) -> bool:
        return self._scheduler is not None and self._scheduler.is_waiting_for_ranks

    def reset_cache(self) -> bool | None:
        return self._on_scheduler().clear()

    # --- on both -----------------------------------------------------------------------------------------------------

    def shutdown(self) -> None:
        if self._rank is not None:
            self._rank.close()
        if self._scheduler is not None:
            self._scheduler.close()

    def get_kv_connector_stats(self) -> KVConnectorStats | None:
        if self._scheduler is None:
            return None
        data = self._scheduler.tallies.take()
        stats = self._scheduler.stats()
        if stats is not self._last_stats:
            self._last_stats = stats
            data["levels"] = levels(stats)
        return CacheStats(data=data) if data else None

    @classmethod
    def build_kv_connector_stats(cls, data: dict[str, Any] | None = None) -> KVConnectorStats | None:
        return CacheStats(data=data or {})

    @classmethod
    def build_prom_metrics(cls, *args: Any) -> KVConnectorPromMetrics | None:
        return CacheMetrics(*args)


def _log_with_vllm() -> None:
    """Have our log lines appear among vLLM's, which sets up the log of its own package alone."""
    vllm = logging.getLogger("vllm")
    for name in ("lmcache_kit", "lmcache_kit_vllm"):
        logger = logging.getLogger(name)
        if not logger.handlers:
            logger.handlers = list(vllm.handlers)
            logger.setLevel(vllm.level)
            logger.propagate = vllm.propagate


def _is_layerwise(config: VllmConfig, options: ConnectorOptions) -> bool:
    """Whether the model announces each layer in every step."""
    if options.layerwise is not None:
        return options.layerwise
    return bool(config.model_config.enforce_eager) or config.device_config.device_type == "cpu"


def _cpu_places(cache: torch.Tensor, isa: str) -> torch.Tensor:
    from vllm import _custom_ops as ops

    def write(
        key: torch.Tensor,
        value: torch.Tensor,
        key_cache: torch.Tensor,
        value_cache: torch.Tensor,
        slots: torch.Tensor,
    ) -> None:
        ops.cpu_attn_reshape_and_cache(
            key, value, key_cache, value_cache, slots, isa, k_scale=1.0, v_scale=1.0, kv_cache_dtype="auto"
        )

    _, heads, block_size, content = cache.shape
    try:
        return element_places(
            write, block_size=block_size, head_dim=content // 2, dtype=cache.dtype, num_heads=int(heads)
        )
    except (ValueError, RuntimeError) as error:  # vLLM's own word for a head size that it has no kernel for
        raise ConfigError(f"vLLM's CPU attention ({isa}) cannot be read token by token: {error}") from None
