"""Models that are made on the spot, so that a first server needs neither files nor a network."""

from __future__ import annotations

import importlib.util
import logging
import os
import subprocess
import sys
from pathlib import Path

from lmcache_kit.errors import ConfigError, LMCacheKitError

__all__ = ["TINY_MODELS", "tiny_model"]

log = logging.getLogger(__name__)

_MAKER = "lmcache_kit_transformers"
# Its heads are 32 wide, the smallest that vLLM's CPU attention takes; those of tiny-llama-3.1 are 16. The number goes
# up whenever what is written changes.
TINY_MODELS = {"tiny-llama": "1"}


def tiny_model(name: str, cache_dir: str | None) -> str:
    """The folder of one of :data:`TINY_MODELS`, which is made when it is not in the cache yet.

    Raises ConfigError when lmcache-kit-transformers, which makes it, is not installed, and LMCacheKitError when it
    fails.
    """
    folder = _cache_folder(cache_dir) / f"{name}-{TINY_MODELS[name]}"
    if (folder / "config.json").is_file():  # folders are put in place whole
        return str(folder)
    if importlib.util.find_spec(_MAKER) is None:
        raise ConfigError(
            f"the model {name!r} is made by lmcache-kit-transformers, which is not installed",
            hint="pip install lmcache-kit-transformers, or name a model that vLLM knows",
        )
    log.info("making the model %s in %s", name, folder)
    # In a process of its own: importing torch here would change the environment and the memory that vLLM begins with.
    command = [sys.executable, "-m", f"{_MAKER}.folder", name, str(folder), "--option", "seed=1"]
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True)  # noqa: S603
    if done.returncode and not (folder / "config.json").is_file():  # else somebody made it at the same time
        said = done.stderr.strip().splitlines()
        raise LMCacheKitError(f"the model {name!r} could not be made in {folder}: {said[0] if said else 'no reason'}")
    return str(folder)


def _cache_folder(given: str | None) -> Path:
    if given is not None:
        return Path(given).expanduser().resolve()
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "lmcache-kit" / "models"
