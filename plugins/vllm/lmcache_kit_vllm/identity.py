"""What an engine serves, read off vLLM's configuration: the KV layout of the whole model, and its fingerprint."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import blake3
import msgspec

from lmcache_kit.contracts.engine import EngineInfo
from lmcache_kit.errors import ConfigError
from lmcache_kit.kv.layout import DTYPES, KVLayout

if TYPE_CHECKING:
    from vllm.config import VllmConfig
    from vllm.v1.kv_cache_interface import KVCacheConfig

__all__ = ["engine_info", "kv_layout", "layer_names"]

_WEIGHTS = ("*.safetensors", "*.bin", "*.pt", "*.gguf")
_PIECES, _PIECE_BYTES = 64, 2**14
_FULL_ATTENTION = ("FullAttentionSpec", "MLAAttentionSpec")
_VOLATILE = ("_name_or_path", "transformers_version", "_attn_implementation", "_attn_implementation_internal")


def layer_names(kv_cache_config: KVCacheConfig) -> list[str]:
    """The layers with KV, by their numbers: the order of the layout's first axis. Raises ConfigError."""
    groups = kv_cache_config.kv_cache_groups
    if len(groups) != 1:
        raise ConfigError(
            f"the model has {len(groups)} groups of KV caches, the connector stores models with one",
            hint="models with full attention in every layer have one; see --disable-hybrid-kv-cache-manager",
        )
    return sorted(groups[0].layer_names, key=_natural)


def _natural(name: str) -> list[tuple[int, int, str]]:
    return [(0, int(part), "") if part.isdigit() else (1, 0, part) for part in name.split(".")]


def kv_layout(config: VllmConfig, kv_cache_config: KVCacheConfig) -> KVLayout:
    """The layout of a token's KV over all ranks. Raises ConfigError for KV that cannot be stored."""
    parallel = config.parallel_config
    for name in ("pipeline_parallel_size", "data_parallel_size", "decode_context_parallel_size"):
        if getattr(parallel, name, 1) != 1:
            raise ConfigError(f"the connector does not work with {name} {getattr(parallel, name)}", hint="use 1")
    names = layer_names(kv_cache_config)
    spec: Any = kv_cache_config.kv_cache_groups[0].kv_cache_spec
    if type(spec).__name__ not in _FULL_ATTENTION:
        raise ConfigError(
            f"the connector stores KV of full attention, this model's is of {type(spec).__name__}",
            hint="use a model with full attention in every layer, such as Llama or DeepSeek",
        )
    latent = type(spec).__name__ == "MLAAttentionSpec"
    dtype = str(spec.dtype).removeprefix("torch.")
    if dtype not in DTYPES or config.cache_config.cache_dtype not in ("auto", *DTYPES):
        raise ConfigError(
            f"the connector does not store KV of type {config.cache_config.cache_dtype} ({dtype})",
            hint="leave --kv-cache-dtype out, and compress what is stored instead",
        )
    if not latent and getattr(spec, "head_size_v", spec.head_size) not in (None, spec.head_size):
        raise ConfigError(f"K has {spec.head_size} elements a head and V {spec.head_size_v}; they must be equal")
    heads = 1 if latent else config.model_config.get_total_num_kv_heads()
    return KVLayout(len(names), heads, spec.head_size, dtype, 1 if latent else 2)  # type: ignore[arg-type]


def engine_info(config: VllmConfig, layout: KVLayout) -> EngineInfo:
    """What the engine serves, as the cache wants to know it."""
    model = config.model_config
    return EngineInfo(
        model=str(model.served_model_name or model.model),
        fingerprint=_fingerprint(config, layout),
        layout=layout,
        max_model_len=model.max_model_len,
        eos_token_ids=frozenset(),
        vocab_size=model.get_vocab_size(),
    )


def _fingerprint(config: VllmConfig, layout: KVLayout) -> str:
    """Identifies weights, configuration and KV layout in 32 hexadecimal digits; the same on every machine."""
    model = config.model_config
    values = {name: value for name, value in model.hf_config.to_dict().items() if name not in _VOLATILE}
    digest = blake3.blake3(msgspec.json.encode(layout))
    digest.update(json.dumps(values, default=str, sort_keys=True).encode())
    digest.update(f"{model.dtype} {model.quantization}".encode())
    folder = _folder(config)
    if folder is None:
        digest.update(f"{model.model} {model.revision} {getattr(model.hf_config, '_commit_hash', None)}".encode())
    else:
        for file in sorted(file for pattern in _WEIGHTS for file in folder.glob(pattern)):
            digest.update(_sample(file))
    return digest.hexdigest(16)


def _folder(config: VllmConfig) -> Path | None:
    """Where the weights lie on this machine, if they do."""
    model = config.model_config
    if os.path.isdir(model.model):
        return Path(model.model)
    try:
        from huggingface_hub import snapshot_download

        return Path(
            snapshot_download(
                model.model,
                revision=model.revision,
                cache_dir=config.load_config.download_dir,
                local_files_only=True,
            )
        )
    except Exception:  # whatever the hub's client raises: the name identifies the model then
        return None


def _sample(file: Path) -> bytes:
    """Size and evenly spread pieces of a file, so that large models start quickly."""
    size = file.stat().st_size
    digest = blake3.blake3(str(size).encode())
    with file.open("rb") as opened:
        for index in range(_PIECES):
            opened.seek(size * index // _PIECES)
            digest.update(opened.read(_PIECE_BYTES))
    return digest.digest()
