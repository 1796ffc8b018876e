"""The record of the engine; torch and transformers are imported only when an engine is made."""

from __future__ import annotations

from collections.abc import Iterable

from lmcache_kit import hookimpl
from lmcache_kit.contracts import Engine, EnginePlugin, Options
from lmcache_kit_transformers.options import TransformersOptions
from lmcache_kit_transformers.presets import DEFAULT_MODEL, PRESETS

__all__ = ["lmcache_kit_engines"]


def _engine(options: Options, model: str) -> Engine:
    from lmcache_kit_transformers.engine import make_engine

    assert isinstance(options, TransformersOptions)
    return make_engine(options, model)


@hookimpl
def lmcache_kit_engines() -> Iterable[EnginePlugin]:
    return [
        EnginePlugin(
            name="transformers",
            summary=f"Hugging Face transformers on torch; models: {', '.join(PRESETS)}, or a local folder",
            options=TransformersOptions,
            factory=_engine,
            capabilities=frozenset({"deterministic"}),
            default_model=DEFAULT_MODEL,
        )
    ]
