"""Options of the engine."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from msgspec import Meta

from lmcache_kit.contracts import Options

__all__ = ["TransformersOptions"]


class TransformersOptions(Options, frozen=True):
    """How the model is made.

    Args:
        config: values of transformers' ``LlamaConfig``, or the path of a JSON file with them; the model is then made
            on the spot with random weights of ``seed``. A model of ``presets.PRESETS`` has its own, which these go
            over. For other names without it, the name must be a local folder with pretrained weights and a tokenizer.
        seed: of the weights.
        tokenizer_text: path of the text that a byte-level BPE tokenizer is trained on; without it every byte is a
            token. Only with ``config`` or ``tiny-llama``.
        vocab_size: entries of the trained tokenizer.
        max_model_len: most tokens of prompt and output together; the model's own limit when left out.
        dtype: of weights and KV; float32 on the CPU and bfloat16 elsewhere when left out.
        device: ``cpu``, ``cuda`` or ``cuda:1``.
        threads: CPU threads of torch. Sums depend on how they are split among threads, so instances that exchange KV
            should use the same number.
        cache_dir: folder for trained tokenizers; ``lmcache-kit/tokenizers`` in the user's cache folder when left out.
    """

    config: str | dict[str, Any] | None = None
    seed: Annotated[int, Meta(ge=0, le=2**63 - 1)] = 0
    tokenizer_text: str | None = None
    vocab_size: Annotated[int, Meta(ge=258, le=2**20)] = 1024
    max_model_len: Annotated[int, Meta(ge=2)] | None = None
    dtype: Literal["float32", "bfloat16", "float16"] | None = None
    device: Annotated[str, Meta(pattern=r"^(cpu|cuda(:\d+)?)$")] = "cpu"
    threads: Annotated[int, Meta(ge=1, le=1024)] = 1
    cache_dir: str | None = None
