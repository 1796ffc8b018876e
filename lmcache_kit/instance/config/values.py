"""Plain values of YAML files and environment variables, converted to what a configuration key wants.

Every function takes the key's name and the value, and raises ConfigError naming both when they do not fit.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from typing import Any, NoReturn

import yaml

from lmcache_kit.errors import ConfigError

__all__ = ["CONVERTERS", "refuse", "shown", "text_value"]

_TRUE = {"true", "1", "yes", "on"}
_FALSE = {"false", "0", "no", "off"}
_LONGEST_SHOWN = 80


def shown(value: Any) -> str:
    """``repr`` of a value, cut to a length that fits a message."""
    try:
        text = repr(value)
    except (ValueError, RecursionError):  # integers of thousands of digits, lists that contain themselves
        text = f"a {type(value).__name__}"
    return text if len(text) <= _LONGEST_SHOWN else text[: _LONGEST_SHOWN - 3] + "..."


def refuse(name: str, value: Any, want: str) -> NoReturn:
    """Raise ConfigError for a value of ``name`` that is not ``want``."""
    raise ConfigError(f"{name}: {shown(value)} is not {want}")


def _bool(name: str, value: Any) -> bool:
    text = str(value).strip().lower() if isinstance(value, bool | int | str) else ""
    if text in _TRUE:
        return True
    if text in _FALSE:
        return False
    refuse(name, value, "true or false")


def _int(name: str, value: Any) -> int:
    try:
        if isinstance(value, int) and not isinstance(value, bool):
            return value
        if isinstance(value, float) and value.is_integer():
            return int(value)
        if isinstance(value, str):
            return int(value)
    except ValueError:
        pass
    refuse(name, value, "a whole number")


def _float(name: str, value: Any) -> float:
    try:
        if isinstance(value, int | float | str) and not isinstance(value, bool):
            number = float(value)
            if not math.isnan(number):
                return number
    except (ValueError, OverflowError):
        pass
    refuse(name, value, "a number")


def _str(name: str, value: Any) -> str:
    if isinstance(value, str):
        return value.strip()
    if isinstance(value, int | float) and not isinstance(value, bool):
        return shown(value)
    refuse(name, value, "a text")


def _list(value: Any) -> list[Any]:
    if isinstance(value, str):
        return [part.strip() for part in value.split(",") if part.strip()]
    return list(value) if isinstance(value, list | tuple) else [value]


def _ints(name: str, value: Any) -> list[int]:
    return [_int(name, item) for item in _list(value)]


def _floats(name: str, value: Any) -> list[float]:
    return [_float(name, item) for item in _list(value)]


def _strs(name: str, value: Any) -> list[str]:
    return [_str(name, item) for item in _list(value)]


def _map(name: str, value: Any) -> dict[str, Any]:
    if isinstance(value, str):
        try:
            value = json.loads(value) if value.strip() else {}
        except (ValueError, RecursionError) as error:
            raise ConfigError(f"{name}: the text is not JSON: {error}") from None
    if not isinstance(value, Mapping):
        refuse(name, value, "a mapping")
    for key in value:
        if not isinstance(key, str):
            refuse(f"{name} key", key, "a text")
    return dict(value)


CONVERTERS: dict[str, Callable[[str, Any], Any]] = {
    "bool": _bool,
    "int": _int,
    "float": _float,
    "str": _str,
    "list of int": _ints,
    "list of float": _floats,
    "list of str": _strs,
    "mapping": _map,
}
"""Converter of each kind of key."""


def text_value(text: str) -> str:
    """The text of an environment variable without a pair of quotes around it, which YAML users often leave there."""
    text = text.strip()
    if len(text) >= 2 and text[0] == text[-1] and text[0] in "'\"":
        try:
            unquoted = yaml.safe_load(text)
        except yaml.YAMLError:
            return text[1:-1]
        return unquoted if isinstance(unquoted, str) else text[1:-1]
    return text
