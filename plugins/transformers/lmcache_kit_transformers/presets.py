"""Models known by name: made on the spot, so that a first command needs neither options nor files."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from lmcache_kit.errors import ConfigError
from lmcache_kit_transformers.options import TransformersOptions

if TYPE_CHECKING:
    from lmcache_kit_transformers.tokenizer import TextTokenizer

__all__ = ["DEFAULT_MODEL", "PRESETS", "Preset", "trained_tokenizer"]


@dataclass(frozen=True, slots=True)
class Preset:
    """A model without a file.

    Args:
        config: values of ``LlamaConfig``; the engine's option ``config`` goes over them.
        tokenizer: makes the tokenizer. Raises ConfigError for options that do not go with it.
    """

    config: Mapping[str, Any]
    tokenizer: Callable[[TransformersOptions], TextTokenizer]


def trained_tokenizer(options: TransformersOptions) -> TextTokenizer:
    """The tokenizer trained on the text that the options name."""
    from lmcache_kit_transformers.tokenizer import train_tokenizer

    return train_tokenizer(options.tokenizer_text, options.vocab_size, options.cache_dir)


def _wide_tokenizer(options: TransformersOptions) -> TextTokenizer:
    from lmcache_kit_transformers.wide_tokenizer import wide_tokenizer

    if options.tokenizer_text is not None:
        raise ConfigError(
            "tiny-llama-3.1 brings its own tokenizer", hint="tokenizer_text goes with --model tiny-llama, or a config"
        )
    return wide_tokenizer()


# The initial range is wider than Llama's own, so that the small models' answers depend on the whole prompt.
PRESETS: Mapping[str, Preset] = {
    "tiny-llama": Preset(
        config={
            "hidden_size": 256,
            "intermediate_size": 688,
            "num_hidden_layers": 4,
            "num_attention_heads": 8,
            "num_key_value_heads": 4,
            "max_position_embeddings": 4096,
            "initializer_range": 0.05,
        },
        tokenizer=trained_tokenizer,
    ),
    "tiny-llama-3.1": Preset(
        config={
            "hidden_size": 128,
            "intermediate_size": 344,
            "num_hidden_layers": 4,
            "num_attention_heads": 8,
            "num_key_value_heads": 4,
            "max_position_embeddings": 131072,
            "initializer_range": 0.1,
            "tie_word_embeddings": True,
            "bos_token_id": 128000,
            "eos_token_id": [128001, 128009],
        },
        tokenizer=_wide_tokenizer,
    ),
}

DEFAULT_MODEL = "tiny-llama-3.1"
