"""Engines that come with the core."""

from __future__ import annotations

from lmcache_kit.builtin.engines.options import SyntheticOptions
from lmcache_kit.contracts.engine import Engine
from lmcache_kit.contracts.records import EnginePlugin, Options, Plugin

__all__ = ["RECORDS"]


def _synthetic(options: Options, model: str) -> Engine:
    from lmcache_kit.builtin.engines.synthetic import SyntheticEngine

    assert isinstance(options, SyntheticOptions)
    return SyntheticEngine(options, model)


RECORDS: tuple[Plugin, ...] = (
    EnginePlugin(
        name="synthetic",
        summary="numpy only; text that depends on every byte of KV, for tests and fleets without torch",
        options=SyntheticOptions,
        factory=_synthetic,
        capabilities=frozenset({"deterministic"}),
    ),
)
