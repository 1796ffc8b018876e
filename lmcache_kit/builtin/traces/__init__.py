"""Trace readers that come with the core, one per module."""

from __future__ import annotations

from lmcache_kit.builtin.traces.options import KVCacheTesterOptions, LMCacheLookupOptions
from lmcache_kit.contracts.records import Options, Plugin, TracePlugin
from lmcache_kit.contracts.trace import TraceReader

__all__ = ["RECORDS"]


def _mooncake(options: Options) -> TraceReader:
    from lmcache_kit.builtin.traces.mooncake import MooncakeReader

    return MooncakeReader()


def _qwen_bailian(options: Options) -> TraceReader:
    from lmcache_kit.builtin.traces.qwen_bailian import QwenBailianReader

    return QwenBailianReader()


def _kv_cache_tester(options: Options) -> TraceReader:
    from lmcache_kit.builtin.traces.kv_cache_tester import KVCacheTesterReader

    assert isinstance(options, KVCacheTesterOptions)
    return KVCacheTesterReader(options)


def _lmcache_lookup(options: Options) -> TraceReader:
    from lmcache_kit.builtin.traces.lmcache_lookup import LMCacheLookupReader

    assert isinstance(options, LMCacheLookupOptions)
    return LMCacheLookupReader(options)


def _azure(options: Options) -> TraceReader:
    from lmcache_kit.builtin.traces.csv_lengths import AzureReader

    return AzureReader()


def _burstgpt(options: Options) -> TraceReader:
    from lmcache_kit.builtin.traces.csv_lengths import BurstGPTReader

    return BurstGPTReader()


RECORDS: tuple[Plugin, ...] = (
    TracePlugin(
        name="mooncake",
        summary="JSON lines of the Mooncake FAST'25 traces: 512 tokens per chained id, milliseconds",
        factory=_mooncake,
    ),
    TracePlugin(
        name="qwen_bailian",
        summary="JSON lines of the Qwen-Bailian traces: 16 tokens per id, chained by the reader",
        factory=_qwen_bailian,
    ),
    TracePlugin(
        name="kv_cache_tester",
        summary="agentic coding conversations, one JSON file each: 64 tokens per id of its file",
        options=KVCacheTesterOptions,
        factory=_kv_cache_tester,
    ),
    TracePlugin(
        name="lmcache_lookup",
        summary="LMCache's lookup_hashes_*.jsonl: hashes of full chunks",
        options=LMCacheLookupOptions,
        factory=_lmcache_lookup,
    ),
    TracePlugin(name="azure", summary="CSV of Azure's LLM traces: lengths and times, no prefixes", factory=_azure),
    TracePlugin(name="burstgpt", summary="CSV of BurstGPT: lengths and times, no prefixes", factory=_burstgpt),
)
