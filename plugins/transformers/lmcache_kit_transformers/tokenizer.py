"""Tokenizers: of the ``tokenizers`` library, trained on a text, or the one of a pretrained folder."""

from __future__ import annotations

import hashlib
import os
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import tokenizers
from tokenizers import decoders, models, pre_tokenizers, processors, trainers

from lmcache_kit.errors import ConfigError

__all__ = ["BOS", "EOS", "FolderTokenizer", "LibraryTokenizer", "TextTokenizer", "train_tokenizer"]

BOS, EOS = "<s>", "</s>"


class TextTokenizer(Protocol):
    """What the engine needs of a tokenizer."""

    size: int
    eos_token_ids: frozenset[int]
    identity: bytes

    def encode(self, text: str, *, add_special_tokens: bool) -> list[int]: ...

    def decode(self, tokens: Sequence[int], *, skip_special_tokens: bool) -> str: ...

    def piece(self, token: int) -> str: ...


class LibraryTokenizer:
    """A tokenizer of the ``tokenizers`` library; ``identity`` is its JSON."""

    def __init__(self, tokenizer: tokenizers.Tokenizer, *, eos_token_ids: frozenset[int]) -> None:
        self._tokenizer = tokenizer
        self.size: int = tokenizer.get_vocab_size()
        self.eos_token_ids = eos_token_ids
        self.identity = tokenizer.to_str().encode()

    def encode(self, text: str, *, add_special_tokens: bool) -> list[int]:
        ids: list[int] = self._tokenizer.encode(text, add_special_tokens=add_special_tokens).ids
        return ids

    def decode(self, tokens: Sequence[int], *, skip_special_tokens: bool) -> str:
        text: str = self._tokenizer.decode(list(tokens), skip_special_tokens=skip_special_tokens)
        return text

    def piece(self, token: int) -> str:
        return self._tokenizer.id_to_token(token) or ""


class FolderTokenizer:
    """The tokenizer of a pretrained folder."""

    def __init__(self, folder: Path) -> None:
        from transformers import AutoTokenizer

        try:
            self._tokenizer: Any = AutoTokenizer.from_pretrained(str(folder), local_files_only=True)
        except Exception as error:  # a damaged folder may break anything
            reason = " ".join(str(error).split())
            raise ConfigError(f"{folder} has no tokenizer that transformers can load: {reason}") from None
        self.size = len(self._tokenizer)
        eos = self._tokenizer.eos_token_id
        self.eos_token_ids: frozenset[int] = frozenset() if eos is None else frozenset({int(eos)})
        vocabulary = sorted(self._tokenizer.get_vocab().items(), key=lambda item: item[1])
        self.identity = repr(vocabulary).encode()

    def encode(self, text: str, *, add_special_tokens: bool) -> list[int]:
        return list(self._tokenizer.encode(text, add_special_tokens=add_special_tokens))

    def decode(self, tokens: Sequence[int], *, skip_special_tokens: bool) -> str:
        return str(
            self._tokenizer.decode(
                list(tokens), skip_special_tokens=skip_special_tokens, clean_up_tokenization_spaces=False
            )
        )

    def piece(self, token: int) -> str:
        return str(self._tokenizer.convert_ids_to_tokens(token) or "")


def train_tokenizer(text_path: str | None, vocab_size: int, cache_dir: str | None) -> LibraryTokenizer:
    """A byte-level BPE tokenizer trained on a text, from the cache when the same one was trained before.

    Without a text there are no merges: every byte is a token. Raises ConfigError when the text cannot be read.
    """
    if text_path is None:
        return _trained(_train("", 258))
    try:
        text = Path(text_path).expanduser().read_bytes()
    except OSError as error:
        raise ConfigError(
            f"cannot read tokenizer_text {text_path!r}: {error.strerror}", hint="give the path of a UTF-8 text file"
        ) from None
    recipe = f"1 {tokenizers.__version__} {vocab_size} ".encode()
    name = hashlib.sha256(recipe + text).hexdigest()[:32]
    stored = _cache_folder(cache_dir) / f"{name}.json"
    try:
        return _trained(tokenizers.Tokenizer.from_str(stored.read_text(encoding="utf-8")))
    except Exception:  # noqa: S110  (missing or damaged, the library raises bare Exception: train it again)
        pass
    trained = _train(text.decode(errors="replace"), vocab_size)
    _store(stored, trained.to_str())
    return _trained(trained)


def _trained(tokenizer: tokenizers.Tokenizer) -> LibraryTokenizer:
    eos = tokenizer.token_to_id(EOS)
    return LibraryTokenizer(tokenizer, eos_token_ids=frozenset() if eos is None else frozenset({eos}))


def _train(text: str, vocab_size: int) -> tokenizers.Tokenizer:
    tokenizer = tokenizers.Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[BOS, EOS],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(text.splitlines(keepends=True), trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{BOS} $A", special_tokens=[(BOS, tokenizer.token_to_id(BOS))]
    )
    return tokenizer


def _cache_folder(given: str | None) -> Path:
    if given is not None:
        return Path(given).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "lmcache-kit" / "tokenizers"


def _store(path: Path, text: str) -> None:
    """Atomically, since several instances of one fleet start at the same moment; a full disk is no reason to fail."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile("w", encoding="utf-8", dir=path.parent, delete=False) as file:
            file.write(text)
        os.replace(file.name, path)
    except OSError:
        return
