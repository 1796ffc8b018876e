"""``KEY=VALUE`` texts of the command line."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import yaml

from lmcache_kit.errors import ConfigError

__all__ = ["key_values"]


def key_values(texts: Sequence[str], flag: str) -> dict[str, Any]:
    """``key=value`` texts as a mapping; values are read as YAML, so they have a type; of a key given twice the last.

    Args:
        texts: as given to ``flag``.
        flag: named in errors, e.g. ``--engine-option``.

    Raises ConfigError.
    """
    options: dict[str, Any] = {}
    for text in texts:
        key, equals, value = text.partition("=")
        key = key.strip()
        if not equals or not key:
            raise ConfigError(f"{flag} {text!r} is not KEY=VALUE", hint=f"write it like {flag} size=64")
        try:
            options[key] = yaml.safe_load(value)
        # Some values that look like dates raise ValueError.
        except (yaml.YAMLError, ValueError):
            raise ConfigError(f"{flag} {key}: the value {value!r} cannot be read", hint="quote it as in YAML") from None
    return options
