"""``python -m lmcache_kit_transformers.folder MODEL FOLDER``: a model that is made on the spot, as a pretrained folder.

Any program that reads Hugging Face folders can then serve it, this engine included.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any

from lmcache_kit.cli.values import key_values
from lmcache_kit.contracts import EnginePlugin
from lmcache_kit.errors import ConfigError, LMCacheKitError
from lmcache_kit.plugins import PluginRegistry
from lmcache_kit_transformers.options import TransformersOptions
from lmcache_kit_transformers.plugin import lmcache_kit_engines

__all__ = ["main", "write_folder"]


def write_folder(model: str, options: TransformersOptions, folder: Path) -> None:
    """Write configuration, weights (safetensors) and tokenizer of ``model`` into ``folder``, which must not exist.

    The folder is there whole or not at all. Raises ConfigError when the engine cannot make the model, or the folder
    cannot be written.
    """
    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerFast

    from lmcache_kit_transformers.engine import make_engine
    from lmcache_kit_transformers.tokenizer import LibraryTokenizer

    if folder.exists():
        raise ConfigError(f"{folder} is there already", hint="name a new folder")
    fast: Any = PreTrainedTokenizerFast
    engine = make_engine(options, model)
    made = engine.tokenizer
    if not isinstance(made, LibraryTokenizer):
        raise ConfigError(f"{model!r} is a pretrained folder already", hint="copy it")
    tokenizer = Tokenizer.from_str(made.identity.decode())
    named = {
        role: tokenizer.id_to_token(token)
        for role, token in (("bos_token", engine.model.config.bos_token_id), ("eos_token", min(made.eos_token_ids)))
    }
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        unfinished = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
        try:
            engine.model.save_pretrained(str(unfinished))
            written = fast(tokenizer_object=tokenizer, clean_up_tokenization_spaces=False, **named)
            written.save_pretrained(str(unfinished))
            _for_every_version(unfinished / "tokenizer_config.json")
            unfinished.chmod(0o755)
            os.replace(unfinished, folder)
        finally:
            shutil.rmtree(unfinished, ignore_errors=True)
    except OSError as error:
        if not (folder / "config.json").is_file():  # else another process has written the same in the meantime
            raise ConfigError(f"{folder} cannot be written: {error.strerror}") from None


def _for_every_version(config: Path) -> None:
    """Name the tokenizer's class as transformers 4 knows it; 5 reads that too, but writes a name of its own."""
    values = {**json.loads(config.read_text(encoding="utf-8")), "tokenizer_class": "PreTrainedTokenizerFast"}
    values.pop("backend", None)
    config.write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")


def main(arguments: list[str] | None = None) -> int:
    """Run the command and return its exit status."""
    parser = argparse.ArgumentParser(prog="python -m lmcache_kit_transformers.folder", description=__doc__)
    parser.add_argument("model", help="a model that the engine makes on the spot, e.g. tiny-llama")
    parser.add_argument("folder", type=Path, help="the folder to write, which must not exist")
    parser.add_argument("--option", action="append", default=[], metavar="KEY=VALUE", help="option of the engine")
    given = parser.parse_args(arguments)
    (record,) = (each for each in lmcache_kit_engines() if isinstance(each, EnginePlugin))
    try:
        options = PluginRegistry.options(record, key_values(given.option, "--option"))
        assert isinstance(options, TransformersOptions)
        write_folder(given.model, options, given.folder)
    except LMCacheKitError as error:
        print(f"error: {error.message}", file=sys.stderr)
        if error.hint:
            print(f"hint: {error.hint}", file=sys.stderr)
        return 2 if isinstance(error, ConfigError) else 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
