"""Models: seeded ones made from a configuration, and pretrained ones from a local folder."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import blake3
import msgspec
import torch
from torch.overrides import TorchFunctionMode
from transformers.models.llama.configuration_llama import LlamaConfig
from transformers.models.llama.modeling_llama import LlamaForCausalLM

from lmcache_kit.errors import ConfigError, InvalidRequestError, nearest
from lmcache_kit.kv import KVLayout

__all__ = ["config_values", "fingerprint", "kv_layout", "pretrained_model", "seeded_model"]

_ATTENTION = "sdpa"
_SAMPLES = 65536


def seeded_model(values: Mapping[str, Any], *, vocab_size: int, seed: int, dtype: torch.dtype) -> Any:
    """A Llama with random weights that depend on ``seed`` and the weights' names alone, not on library versions.

    Raises ConfigError for values of ``LlamaConfig`` that make no model.
    """
    known = {*LlamaConfig().to_dict(), "head_dim", "rope_theta", "rope_scaling"}
    for name in values:
        if name not in known:
            near = nearest(name, known)
            raise ConfigError(
                f"config: LlamaConfig has no value {name!r}", hint=f"did you mean {near!r}?" if near else None
            )
    # Llama's own ids for these would be ordinary tokens of our tokenizer.
    values = {"bos_token_id": 0, "eos_token_id": 1, "vocab_size": vocab_size, **values}
    if values["vocab_size"] < vocab_size:
        raise ConfigError(
            f"config: vocab_size {values['vocab_size']} is smaller than the tokenizer's {vocab_size}",
            hint="leave it out of the config, or lower the option vocab_size",
        )
    try:
        llama = LlamaConfig(**{**values, "attn_implementation": _ATTENTION})
        with _Unfilled():
            model: Any = LlamaForCausalLM(llama)
    except Exception as error:  # each version of transformers has its own classes for a bad configuration
        reason = " ".join(str(error).split())
        raise ConfigError(f"config: transformers cannot make a Llama of it: {reason}") from None
    spread = float(llama.initializer_range)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if weight.dim() < 2:  # norms keep their ones, biases their zeros
                continue
            generator = torch.Generator().manual_seed(_derived_seed(seed, name))
            weight.copy_(torch.empty(weight.shape, dtype=torch.float32).normal_(0.0, spread, generator=generator))
    return model.to(dtype).eval()


class _Unfilled(TorchFunctionMode):
    """Leaves weights as the memory was, because they are filled afterwards; drawing them twice takes a while."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        # By name, because versions of torch and transformers differ in whose function this is.
        if getattr(func, "__name__", None) in {"kaiming_uniform_", "normal_", "uniform_"}:
            return args[0] if args else (kwargs or {})["tensor"]
        return func(*args, **(kwargs or {}))


def pretrained_model(folder: Path, *, dtype: torch.dtype) -> Any:
    """The model of a local folder; nothing is downloaded and no code of the folder is run. Raises ConfigError."""
    from transformers import AutoModelForCausalLM  # knows all models there are, which takes a while

    try:
        model: Any = AutoModelForCausalLM.from_pretrained(
            str(folder),
            torch_dtype=dtype,
            attn_implementation=_ATTENTION,
            local_files_only=True,
            trust_remote_code=False,
        )
    except Exception as error:  # a damaged folder may break anything
        reason = " ".join(str(error).split())
        raise ConfigError(f"{folder} is no model that transformers can load: {reason}") from None
    return model.eval()


def kv_layout(config: Any, dtype: str) -> KVLayout:
    """The KV layout of a model's configuration.

    Raises ConfigError for a model that does not keep the full keys and values of every token in every layer.
    """
    kinds = set(getattr(config, "layer_types", None) or ["full_attention"])
    sliding = getattr(config, "sliding_window", None) and getattr(config, "use_sliding_window", True)
    if kinds != {"full_attention"} or (sliding and not getattr(config, "layer_types", None)):
        raise ConfigError(
            "this model has layers that do not keep the keys and values of all tokens, so its KV cannot be reused",
            hint="use a model with full attention in every layer, such as Llama",
        )
    heads = config.num_attention_heads
    try:
        return KVLayout(
            config.num_hidden_layers,
            getattr(config, "num_key_value_heads", None) or heads,
            getattr(config, "head_dim", None) or config.hidden_size // heads,
            dtype,  # type: ignore[arg-type]  # checked by the layout
        )
    except (AttributeError, InvalidRequestError) as error:
        raise ConfigError(f"the model's KV layout is not supported: {error}") from None


def fingerprint(model: Any, layout: KVLayout, tokenizer: bytes) -> str:
    """Identifies weights, KV layout and tokenizer in 32 hexadecimal digits.

    Of each weight up to 65,536 evenly spread elements are hashed, so that large models start quickly.
    """
    digest = blake3.blake3(msgspec.json.encode(layout))
    digest.update(hashlib.sha256(tokenizer).digest())
    config = model.config.get_text_config()
    for name in ("rope_theta", "rope_scaling", "rope_parameters", "rms_norm_eps", "hidden_act"):
        digest.update(repr((name, getattr(config, name, None))).encode())
    for name, weight in sorted(model.named_parameters()):
        flat = weight.detach().reshape(-1)
        sample = flat[:: max(1, flat.numel() // _SAMPLES)].contiguous().cpu()
        digest.update(f"{name}{tuple(weight.shape)}{weight.dtype}".encode())
        digest.update(sample.view(torch.uint8).numpy().data)
    return digest.hexdigest(16)


def config_values(config: str | Mapping[str, Any]) -> dict[str, Any]:
    """The values of the option ``config``. Raises ConfigError for a file that cannot be read."""
    if not isinstance(config, str):
        return dict(config)
    try:
        return msgspec.json.decode(Path(config).expanduser().read_bytes(), type=dict[str, Any])
    except OSError as error:
        raise ConfigError(f"cannot read the model config {config!r}: {error.strerror}") from None
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{config}: not a JSON object: {error}") from None


def _derived_seed(seed: int, name: str) -> int:
    return int.from_bytes(hashlib.sha256(f"{seed}/{name}".encode()).digest()[:8], "big") >> 1
