"""The engine: forward passes in fixed blocks, so that a loaded prefix and a computed one give the same bits.

The last bits of a matrix product depend on its shape. So the prompt is computed in blocks of ``prefill_block``
tokens counted from its first token, the same ones whether the tokens before a block were computed or loaded, and its
last token is computed alone, as it is when everything before it was loaded.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

# Weights and tokenizers are local files; nothing here may look for them, or report anything, over the network.
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import torch
import transformers

from lmcache_kit.contracts import Engine, EngineInfo, EngineSequence, SamplingParams
from lmcache_kit.errors import ConfigError, InvalidRequestError
from lmcache_kit.kv import KVTensor
from lmcache_kit_transformers.buffer import KVBuffer
from lmcache_kit_transformers.model import config_values, fingerprint, kv_layout, pretrained_model, seeded_model
from lmcache_kit_transformers.options import TransformersOptions
from lmcache_kit_transformers.presets import PRESETS, trained_tokenizer
from lmcache_kit_transformers.sampling import Sampler
from lmcache_kit_transformers.tokenizer import FolderTokenizer, TextTokenizer

__all__ = ["TransformersEngine", "make_engine"]


def make_engine(options: TransformersOptions, model: str) -> TransformersEngine:
    """The engine of ``options``. Raises ConfigError when it cannot be made."""
    device = torch.device(options.device)
    if device.type == "cuda" and not (torch.cuda.is_available() and (device.index or 0) < torch.cuda.device_count()):
        raise ConfigError(f"device {options.device!r} is not usable: torch sees no such GPU", hint="use device=cpu")
    torch.set_num_threads(options.threads)
    torch.use_deterministic_algorithms(True, warn_only=True)
    # Otherwise torch fills every new tensor with NaN first, which costs a prompt some percent; all that is read here
    # has been written.
    torch.utils.deterministic.fill_uninitialized_memory = False
    quiet: Any = transformers.logging
    quiet.set_verbosity_error()
    quiet.disable_progress_bar()
    dtype = options.dtype or ("float32" if device.type == "cpu" else "bfloat16")
    tokenizer: TextTokenizer
    preset = PRESETS.get(model)
    if preset is not None or options.config is not None:
        values = config_values(options.config or {})
        if preset is None:
            tokenizer = trained_tokenizer(options)
        else:
            tokenizer = preset.tokenizer(options)
            values = {**preset.config, **values}
        made = seeded_model(values, vocab_size=tokenizer.size, seed=options.seed, dtype=getattr(torch, dtype))
    else:
        folder = Path(model).expanduser()
        if not folder.is_dir():
            raise ConfigError(
                f"the transformers engine has no weights for {model!r}",
                hint=f"take a model that is made on the spot ({', '.join(PRESETS)}), give the engine option config (a "
                "small LlamaConfig), or as model the path of a local pretrained folder; nothing is downloaded",
            )
        if options.tokenizer_text is not None:
            raise ConfigError("tokenizer_text goes with config; a pretrained folder brings its own tokenizer")
        tokenizer = FolderTokenizer(folder)
        made = pretrained_model(folder, dtype=getattr(torch, dtype))
    return TransformersEngine(made.to(device), tokenizer, name=model, dtype=dtype, max_model_len=options.max_model_len)


class TransformersEngine(Engine):
    """A causal language model with full attention.

    Args:
        model: a transformers model in evaluation mode.
        tokenizer: its tokenizer.
        name: the name it is served under.
        dtype: of its KV.
        max_model_len: below the model's own limit, or None for that.
    """

    def __init__(
        self, model: Any, tokenizer: TextTokenizer, *, name: str, dtype: str, max_model_len: int | None = None
    ) -> None:
        config = model.config.get_text_config()
        limit = int(config.max_position_embeddings)
        if max_model_len is not None and max_model_len > limit:
            raise ConfigError(
                f"max_model_len {max_model_len} is above the model's max_position_embeddings {limit}",
                hint="lower it, or raise the limit in the config",
            )
        layout = kv_layout(config, dtype)
        self.model = model
        self.tokenizer = tokenizer
        self._info = EngineInfo(
            model=name,
            fingerprint=fingerprint(model, layout, tokenizer.identity),
            layout=layout,
            max_model_len=max_model_len or limit,
            eos_token_ids=tokenizer.eos_token_ids | _end_tokens(model),
            vocab_size=int(config.vocab_size),
        )
        self._probe()

    def _probe(self) -> None:
        """One forward pass, so that a model that cannot work here says so now and not at the first request."""
        try:
            sequence = self.start([0], prefix=None, prefill_block=1, sampling=SamplingParams(temperature=0))
            sequence.prefill()
            sequence.close()
        except Exception as error:
            reason = " ".join(str(error).split())
            raise ConfigError(
                f"a first token cannot be computed with this model: {reason}",
                hint="the engine needs keys and values of one shape in every layer, as Llama has them",
            ) from None

    @property
    def info(self) -> EngineInfo:
        return self._info

    def tokenize(self, text: str, *, add_special_tokens: bool = True) -> list[int]:
        return self.tokenizer.encode(text, add_special_tokens=add_special_tokens)

    def detokenize(self, tokens: Sequence[int], *, skip_special_tokens: bool = True) -> str:
        return self.tokenizer.decode(tokens, skip_special_tokens=skip_special_tokens)

    def token_text(self, token: int) -> str:
        return self.tokenizer.piece(token)

    def close(self) -> None:
        self.model = None

    def start(
        self, tokens: Sequence[int], *, prefix: KVTensor | None, prefill_block: int, sampling: SamplingParams
    ) -> EngineSequence:
        info = self._info
        if not tokens or prefill_block < 1:
            raise InvalidRequestError("a prompt needs at least one token, and a block too")
        if len(tokens) >= info.max_model_len:
            raise InvalidRequestError(
                f"a prompt of {len(tokens)} tokens leaves no room in a context of {info.max_model_len}"
            )
        if not all(0 <= token < info.vocab_size for token in tokens):
            raise InvalidRequestError(f"token ids must be between 0 and {info.vocab_size - 1}")
        if prefix is not None and (prefix.layout != info.layout or prefix.num_tokens >= len(tokens)):
            raise InvalidRequestError("the prefix handed in is longer than the prompt or of another layout")
        return TransformersSequence(self.model, info, list(tokens), prefix, prefill_block, Sampler(sampling))


def _end_tokens(model: Any) -> frozenset[int]:
    """Chat models end a turn with tokens that only their generation configuration names."""
    ends = getattr(getattr(model, "generation_config", None), "eos_token_id", None)
    if ends is None:
        return frozenset()
    return frozenset(ends if isinstance(ends, list) else [ends])


class TransformersSequence(EngineSequence):
    """One prompt; ``computed_tokens`` counts prompt tokens that went through the model."""

    def __init__(
        self,
        model: Any,
        info: EngineInfo,
        tokens: list[int],
        prefix: KVTensor | None,
        block: int,
        sampler: Sampler,
    ) -> None:
        self._model = model
        self._device = next(model.parameters()).device
        self._tokens = tokens
        self._prompt_length = len(tokens)
        self._block = block
        self._sampler = sampler
        self._limit = info.max_model_len
        self._cache: KVBuffer | None = KVBuffer(info.layout, len(tokens) + 1, self._device)
        self._last: KVTensor | None = None
        self.computed_tokens = 0
        if prefix is not None:
            self._cache.load(prefix)

    def prefill(self) -> int:
        cache, length = self._open(), self._prompt_length
        while cache.length < length - 1:
            boundary = (cache.length // self._block + 1) * self._block
            if boundary == length:
                # The prompt ends with a whole block. A longer prompt would compute this block in one piece, so its
                # last token's KV is taken from there, for whoever loads the block; the answer still uses the token
                # computed alone, for whoever asks for this prompt again.
                self._forward(length)
                self._last = cache.copy_out(length - 1, length)
                cache.length = length - 1
            else:
                self._forward(min(boundary, length - 1))
        return self._step()

    def decode(self) -> int:
        if len(self._tokens) >= self._limit:
            raise InvalidRequestError(f"the context of {self._limit} tokens is full")
        return self._step()

    def kv(self, start: int, stop: int) -> KVTensor:
        cache = self._open()
        if not 0 <= start <= stop <= cache.length:
            raise InvalidRequestError(f"KV of tokens {start} to {stop} was asked for, {cache.length} are computed")
        kv = cache.copy_out(start, stop)
        if self._last is not None and start < self._prompt_length <= stop:
            kv.data[:, :, self._prompt_length - 1 - start] = self._last.data[:, :, 0]
        return kv

    def close(self) -> None:
        self._cache = self._last = None

    def _open(self) -> KVBuffer:
        if self._cache is None:
            raise InvalidRequestError("the sequence is closed")
        return self._cache

    @torch.inference_mode()
    def _forward(self, stop: int) -> None:
        """Compute the KV of tokens up to ``stop``."""
        self._run(self._model.base_model, stop)

    @torch.inference_mode()
    def _step(self) -> int:
        """Compute the last token alone and choose the next one."""
        output = self._run(self._model, len(self._tokens))
        token = self._sampler.choose(output.logits[0, -1])
        self._tokens.append(token)
        return token

    def _run(self, module: Any, stop: int) -> Any:
        cache = self._open()
        start = cache.length
        cache.reserve(stop)
        ids = torch.tensor([self._tokens[start:stop]], dtype=torch.long, device=self._device)
        output = module(
            input_ids=ids,
            # The mask is made here, whole, because how models make it differs between versions of transformers.
            attention_mask=self._mask(start, stop),
            position_ids=torch.arange(start, stop, device=self._device).unsqueeze(0),
            past_key_values=cache,
            use_cache=True,
        )
        cache.length = stop
        self.computed_tokens += max(0, min(stop, self._prompt_length) - start)
        return output

    def _mask(self, start: int, stop: int) -> torch.Tensor:
        """``[1, 1, queries, keys]``, added to the scores: each token sees itself and those before it."""
        dtype = self._model.dtype
        mask = torch.full((stop - start, stop), torch.finfo(dtype).min, dtype=dtype, device=self._device)
        return mask.triu_(start + 1)[None, None]
