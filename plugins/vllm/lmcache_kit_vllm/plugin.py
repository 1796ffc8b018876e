"""The record of the engine ``vllm``: a real vLLM server, started with this package as its KV connector."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from lmcache_kit.contracts.engine import ServerCommand, ServerSpec
from lmcache_kit.contracts.records import EnginePlugin, Options
from lmcache_kit.hookspecs import hookimpl
from lmcache_kit_vllm.options import ConnectorOptions

__all__ = ["VllmOptions", "lmcache_kit_engines"]


class VllmOptions(Options, frozen=True):
    """Options of the engine ``vllm``. Whatever else ``vllm serve`` takes stands under the engine's ``args``.

    Args:
        executable: the command ``vllm``: a path, or a name on PATH; left out, the one beside the running Python, else
            the one on PATH. lmcache-kit-vllm must be installed where it is.
        dtype: of weights and KV; left out, what vLLM chooses.
        max_model_len: most tokens of prompt and output together; left out, the model's own limit.
        gpu_memory_utilization: share of the GPU's memory that vLLM takes.
        prefix_caching: vLLM's own cache of prefixes in its memory; left out, what vLLM chooses. Off, every hit comes
            from lmcache-kit's tiers.
        connector: options of the connector.
        cache_dir: folder for the model ``tiny-llama``; ``lmcache-kit/models`` in the user's cache folder when left out.
    """

    executable: str | None = None
    dtype: Literal["auto", "float32", "bfloat16", "float16"] | None = None
    max_model_len: Annotated[int, Meta(ge=2)] | None = None
    gpu_memory_utilization: Annotated[float, Meta(gt=0, le=1)] | None = None
    prefix_caching: bool | None = None
    connector: ConnectorOptions = msgspec.field(default_factory=ConnectorOptions)
    cache_dir: str | None = None


def _server(options: Options, spec: ServerSpec) -> ServerCommand:
    from lmcache_kit_vllm.command import server_command

    assert isinstance(options, VllmOptions)
    return server_command(options, spec)


@hookimpl
def lmcache_kit_engines() -> Iterable[EnginePlugin]:
    yield EnginePlugin(
        name="vllm",
        summary="a real vLLM server; models: tiny-llama, or what vLLM serves",
        options=VllmOptions,
        server=_server,
        default_model="tiny-llama",
    )
