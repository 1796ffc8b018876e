"""A tokenizer of Llama 3.1's size, with Llama 3.1's token ids for one sentence.

LMCache's documents show the 12 token ids of one prompt. So that their requests can be sent as they stand, the pieces
of that prompt have these ids here. Nothing else is Llama's: a byte is a token, and every id left over is a made-up
word of three syllables, so that whatever a model with random weights answers can be read, streamed and told apart.
A text keeps its bytes, whatever it is.
"""

from __future__ import annotations

import itertools

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, processors

from lmcache_kit_transformers.tokenizer import LibraryTokenizer

__all__ = ["wide_tokenizer"]

_WORDS_END = 128000
_SIZE = 128256
# "." has the id 13 because bytes come in the usual order of byte-level vocabularies.
_PINNED = {
    279: "Ġthe",
    304: "Ġin",
    315: "Ġof",
    849: "Ex",
    4211: "Ġmodels",
    4221: "Ġlanguage",
    6636: "Ġcache",
    21435: "plain",
    26431: "Ġsignificance",
    85748: "ĠKV",
}
_SPECIAL = {128000: "<|begin_of_text|>", 128001: "<|end_of_text|>", 128009: "<|eot_id|>"}
_BOS, _EOS = 128000, frozenset({128001, 128009})
_SYLLABLES = [consonant + vowel for consonant in "bdfklmnprst" for vowel in "aeiou"]


def wide_tokenizer() -> LibraryTokenizer:
    """The tokenizer, made in a fraction of a second; all 128,256 ids have a text."""
    vocabulary = _vocabulary()
    # There are no merges: a word that is in the vocabulary is one token, any other one is its bytes.
    tokenizer = Tokenizer(
        models.BPE(vocab={piece: token for token, piece in enumerate(vocabulary)}, merges=[], ignore_merges=True)
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split(Regex("Ex(?=plain)"), "isolated"), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(piece, special=True) for piece in vocabulary[_WORDS_END:]])
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{vocabulary[_BOS]} $A", special_tokens=[(vocabulary[_BOS], _BOS)]
    )
    return LibraryTokenizer(tokenizer, eos_token_ids=_EOS)


def _vocabulary() -> list[str]:
    """The piece of every id, in the letters that stand for bytes (a space is Ġ)."""
    letters = [chr(byte) for byte in range(256) if _printable(byte)]
    letters += [chr(256 + number) for number in range(256 - len(letters))]
    words = ("Ġ" + "".join(syllables) for syllables in itertools.product(_SYLLABLES, repeat=3))
    return [
        *letters,
        *(_PINNED.get(token) or next(words) for token in range(len(letters), _WORDS_END)),
        *(_SPECIAL.get(token) or f"<|reserved_special_token_{token}|>" for token in range(_WORDS_END, _SIZE)),
    ]


def _printable(byte: int) -> bool:
    """Bytes that stand for themselves in byte-level vocabularies; the others get letters of their own."""
    return 33 <= byte <= 126 or 161 <= byte <= 172 or 174 <= byte <= 255
