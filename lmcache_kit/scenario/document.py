"""A scenario's text as plain data: safe, bounded and without silent surprises.

YAML has dates, sets, recursive aliases and repeated keys; a scenario has none of them, and each is refused by path.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from lmcache_kit.errors import ConfigError

__all__ = ["dump", "join", "parse", "parse_value", "read"]

MAX_BYTES = 4 * 2**20
MAX_NODES = 200_000
MAX_DEPTH = 64


def join(path: str, key: object) -> str:
    """The dotted path of ``key`` inside ``path``, as ``--set`` takes it."""
    return f"{path}.{key}" if path else str(key)


class _Loader(yaml.SafeLoader):
    """SafeLoader that refuses a key written twice, which YAML forbids and PyYAML overlooks."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[str] = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode) and key.tag != "tag:yaml.org,2002:merge":
                if key.value in seen:
                    line = key.start_mark.line + 1
                    raise ConfigError(f"key {key.value!r} stands twice (again in line {line})", hint="remove one")
                seen.add(key.value)
        return super().construct_mapping(node, deep)


def parse(text: str | bytes, *, source: str) -> Any:
    """The document as dictionaries with text keys, lists and scalars. Raises ConfigError naming ``source``."""
    try:
        data = yaml.load(text, Loader=_Loader)  # noqa: S506  (a SafeLoader)
        return _Plain().copy(data, "", 0)
    except ConfigError as error:
        raise ConfigError(f"{source}: {error.message}", hint=error.hint) from None
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        where = f", line {mark.line + 1}, column {mark.column + 1}" if mark else ""
        raise ConfigError(f"{source}{where}: {error.problem or error.context or 'not YAML'}") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"{source} is not YAML: {' '.join(str(error).split())}") from None
    except RecursionError:
        raise ConfigError(f"{source} is nested too deeply") from None
    except (ValueError, OverflowError, TypeError, AttributeError, KeyError, IndexError) as error:
        # PyYAML's constructors let the errors of int(), date() and hash() through.
        raise ConfigError(f"{source} holds a value that cannot be read: {error}") from None


def read(path: Path) -> Any:
    """:func:`parse` of a file."""
    try:
        if path.stat().st_size > MAX_BYTES:
            raise ConfigError(f"{path} is larger than {MAX_BYTES} bytes")
        content = path.read_bytes()
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error.strerror}") from None
    return parse(content, source=str(path))


def parse_value(text: str) -> Any:
    """One value as YAML reads it: ``3`` is a number, ``true`` a truth value, ``[a, b]`` a list."""
    return parse(text, source=f"value {text!r}")


class _Dumper(yaml.SafeDumper):
    """SafeDumper that escapes unprintable texts: PyYAML's other quotes fold U+0085 and lose it."""


def _text(dumper: yaml.SafeDumper, value: str) -> yaml.ScalarNode:
    return dumper.represent_scalar("tag:yaml.org,2002:str", value, style=None if value.isprintable() else '"')


_Dumper.add_representer(str, _text)


def dump(data: Any) -> str:
    """YAML text of plain data, keys in their order; :func:`parse` gives the data back."""
    return yaml.dump(data, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=110)


class _Plain:
    """Copies loaded YAML into a plain tree; aliases are spelled out, within bounds."""

    def __init__(self) -> None:
        self._nodes = 0

    def copy(self, value: Any, path: str, depth: int) -> Any:
        self._nodes += 1
        if self._nodes > MAX_NODES or depth > MAX_DEPTH:
            raise ConfigError(f"{path or 'the document'} is too large or refers to itself")
        if value is None or isinstance(value, bool | int | float | str):
            return value
        if isinstance(value, list):
            return [self.copy(each, join(path, index), depth + 1) for index, each in enumerate(value)]
        if isinstance(value, dict):
            for key in value:
                if not isinstance(key, str):
                    raise ConfigError(f"key {key!r} in {path or 'the document'} is not text", hint="quote it")
            return {key: self.copy(each, join(path, key), depth + 1) for key, each in value.items()}
        raise ConfigError(
            f"{path or 'the document'} is a {type(value).__name__}, which a scenario has no use for",
            hint="quote it to make it text",
        )
