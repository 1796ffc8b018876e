"""Arguments of a file system, with credentials that come from the environment and are shown nowhere."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from typing import Any
from urllib.parse import urlsplit

from lmcache_kit.errors import ConfigError

__all__ = ["Credentials", "refuse_credentials"]

_SECRET = re.compile(
    r"(secret|passw|passphrase|token|credential|connection_string|sas|account_key|private_key|access_key)|^key$",
    re.IGNORECASE,
)
# Values of options with such names that say how to find credentials instead of being some.
_HARMLESS = {"anon", "google_default", "cloud", "cache", "browser", ""}
_USER = re.compile(r"(?<=//)[^/@\s]+@")


def refuse_credentials(url: str, storage_options: Mapping[str, Any]) -> None:
    """Raise ConfigError for a credential in a url or among storage options: both are copied into a run's reports."""
    if urlsplit(url).password is not None:
        raise ConfigError(
            "the url holds a password, and urls are copied into reports",
            hint="put it into an environment variable and name that in secrets: {password: MY_VARIABLE}",
        )
    for path, value in _leaves(storage_options):
        if _SECRET.search(path.rpartition(".")[2]) and isinstance(value, str) and value not in _HARMLESS:
            raise ConfigError(
                f"storage_options.{path} looks like a credential, and options are copied into reports",
                hint=f"put it into an environment variable and name that in secrets: {{{path}: MY_VARIABLE}}",
            )


class Credentials:
    """A file system's arguments: ``storage_options`` and what ``secrets`` says to take from the environment.

    Raises ConfigError for a variable that is not set.
    """

    def __init__(self, storage_options: Mapping[str, Any], secrets: Mapping[str, str]) -> None:
        self.arguments: dict[str, Any] = _copy(storage_options)
        self._hidden: list[str] = []
        for path, variable in secrets.items():
            value = os.environ.get(variable)
            if value is None:
                raise ConfigError(
                    f"secrets.{path}: the environment variable {variable} is not set", hint=f"export {variable}=..."
                )
            self._hidden.append(value)
            _put(self.arguments, path, value)
        self._hidden.sort(key=len, reverse=True)

    def hide(self, text: str) -> str:
        """``text`` without any of the credentials."""
        for value in self._hidden:
            if value:
                text = text.replace(value, "***")
        return _USER.sub("***@", text)


def _leaves(options: Mapping[str, Any], path: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in options.items():
        if isinstance(value, Mapping):
            yield from _leaves(value, f"{path}{key}.")
        else:
            yield f"{path}{key}", value


def _copy(options: Mapping[str, Any]) -> dict[str, Any]:
    return {key: _copy(value) if isinstance(value, Mapping) else value for key, value in options.items()}


def _put(arguments: dict[str, Any], path: str, value: str) -> None:
    *folders, last = path.split(".")
    for folder in folders:
        inner = arguments.setdefault(folder, {})
        if not isinstance(inner, dict):
            raise ConfigError(f"secrets.{path}: storage_options.{folder} is not a mapping")
        arguments = inner
    arguments[last] = value
