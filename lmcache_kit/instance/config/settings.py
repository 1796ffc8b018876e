"""The keys that a file and the environment set, converted and checked one by one."""

from __future__ import annotations

from typing import Any

from lmcache_kit.errors import ConfigError, nearest
from lmcache_kit.instance.config.extension import SECTION
from lmcache_kit.instance.config.keys import ALIASES, ENGINE_KEYS, OLD_KEYS, ConfigKey
from lmcache_kit.instance.config.values import CONVERTERS, shown, text_value

__all__ = ["CONFIG_FILE_VARIABLE", "Settings"]

CONFIG_FILE_VARIABLE = "LMCACHE_CONFIG_FILE"
_PREFIX = "LMCACHE_"
_NAMES = (*ENGINE_KEYS, *ALIASES, *OLD_KEYS)


class Settings:
    """Keys as they were given, converted and checked one by one."""

    def __init__(self) -> None:
        self.given: dict[str, Any] = {}
        self.spelled: dict[str, str] = {}
        self.warnings: list[str] = []

    def add(self, key: object, value: Any, *, spelled: object, overrides: bool = False) -> None:
        """Take one key. ``spelled`` is how the user wrote it; ``overrides`` replaces an earlier value."""
        if not isinstance(key, str):
            raise ConfigError(f"{shown(key)} is not a key", hint="keys are texts")
        name = ALIASES.get(key, key)
        definition = _definition(name)
        if definition is None:
            if key == "ec" or (key.startswith("ec_") and _definition(ALIASES.get(key[3:], key[3:])) is not None):
                self.warnings.append(f"{spelled} has no effect: there is no encoder cache; only KV is cached")
                return
            near = nearest(key, _NAMES)
            raise ConfigError(
                f"unknown key {key!r}",
                hint=f"did you mean {near!r}?" if near else f"our own settings stand under {SECTION}",
            )
        if value is None:
            return
        converted = CONVERTERS[definition.kind](str(spelled), value)
        if name in self.given and not overrides and self.given[name] != converted:
            raise ConfigError(
                f"{self.spelled[name]} and {spelled} mean the same key and differ", hint="keep one of them"
            )
        self.given[name], self.spelled[name] = converted, str(spelled)

    def add_variable(self, variable: str, text: str) -> None:
        """Take an environment variable when it is one of LMCache's."""
        if not variable.startswith(_PREFIX) or variable.startswith((f"{_PREFIX}KIT_", f"{_PREFIX}EC_")):
            return
        key = variable.removeprefix(_PREFIX).lower()
        if _definition(ALIASES.get(key, key)) is not None:
            value = text_value(text)
            self.add(key, value or None, spelled=variable, overrides=True)
            return
        near = nearest(key, _NAMES) if variable != CONFIG_FILE_VARIABLE else None
        if near is not None:
            # Not refused: other programs of the LMCache family read variables of this prefix too.
            self.warnings.append(f"{variable} has no effect; did you mean {_PREFIX}{near.upper()}?")

    def is_set(self, name: str) -> bool:
        return name in self.given

    def value(self, name: str) -> Any:
        """The value in force."""
        definition = _definition(name)
        assert definition is not None
        return self.given.get(name, definition.initial)

    def at_least(self, name: str, least: int) -> int:
        """The whole number in force. Raises ConfigError when it is below ``least`` or does not fit 64 bits."""
        value: int = self.value(name)
        if not least <= value < 2**63:
            raise ConfigError(f"{name}: {shown(value)} must be at least {least} and below 2**63")
        return value

    def warn_unsupported(self) -> None:
        """One warning per key that was set to something else than LMCache's default and has no effect here."""
        for name, value in self.given.items():
            definition = _definition(name)
            assert definition is not None
            default = definition.default
            if default is not None:
                default = CONVERTERS[definition.kind](name, default)
            if not definition.honoured and value != default:
                self.warnings.append(f"{self.spelled[name]} has no effect: {definition.note}")


def _definition(name: str) -> ConfigKey | None:
    return ENGINE_KEYS.get(name) or OLD_KEYS.get(name)
