"""Which methods are worked with, and their options."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec

from lmcache_kit.contracts.compression import CompressionMethod
from lmcache_kit.contracts.records import CompressionPlugin, Options
from lmcache_kit.errors import ConfigError, LMCacheKitError, PluginError
from lmcache_kit.plugins import PluginRegistry

__all__ = ["Choice", "choose_methods", "on_cpu"]

DEVICE = "device"
CPU, GPU = "cpu", "gpu"


@dataclass(frozen=True, slots=True)
class Choice:
    """A method with its options, not made yet.

    Args:
        record: the method's.
        options: all of them.
        given: those that the user set.
        device: the one that was asked for, if any; a method may know others than ``cpu`` and ``gpu``.
    """

    record: CompressionPlugin
    options: Options
    given: Mapping[str, Any]
    device: str | None = None

    @property
    def name(self) -> str:
        return self.record.name

    def make(self) -> CompressionMethod:
        """The method.

        Raises ConfigError when it does not run on the device that was asked for, PluginError when it cannot be made.
        """
        try:
            method = self.record.factory(self.options)
        except LMCacheKitError:
            raise
        except Exception as error:  # third-party code, such as a library that is not installed
            reason = " ".join(str(error).split())
            raise PluginError(f"{self.name} cannot be made: {type(error).__name__}: {reason}") from error
        if self.device in (CPU, GPU) and on_cpu(method) is not (self.device == CPU):
            raise ConfigError(f"{self.name} runs on {method.device}, not on device {self.device!r}")
        return method


def on_cpu(method: CompressionMethod) -> bool:
    """Whether the method works on the CPU."""
    return method.device.startswith(CPU)


def choose_methods(
    plugins: PluginRegistry, names: Sequence[str], values: Mapping[str, Any]
) -> tuple[list[Choice], dict[str, str]]:
    """The methods called ``names`` with the options ``values``; without names, all that take those options.

    Returns the choices, and the methods that were left out, each with the reason. ``device=cpu`` needs no option of a
    method that works on the CPU anyway.

    Raises UnknownNameError, and ConfigError for an option that a named method, or every method, does not take.
    """
    chosen, left_out = [], {}
    for name in names or plugins.names(CompressionPlugin.kind):
        record = plugins.get(CompressionPlugin, name)
        missing = _missing(record, values)
        if names and DEVICE in missing:
            raise ConfigError(
                f"compression method {name!r} runs on the CPU only: it has no option {DEVICE!r}",
                hint=f"leave out {DEVICE}={values[DEVICE]}, or the method",
            )
        if not names and missing:
            left_out[name] = f"no option {' and no option '.join(missing)}"
            continue
        given = dict(values)
        if DEVICE not in _fields(record):
            given.pop(DEVICE, None)
        try:
            options = plugins.options(record, given)
        except ConfigError as error:
            if names:
                raise
            left_out[name] = error.message
            continue
        chosen.append(Choice(record, options, given, values.get(DEVICE)))
    if not chosen:
        wanted = " and ".join(f"{name}={value}" for name, value in values.items())
        raise ConfigError(
            f"no compression method that is installed takes {wanted}",
            hint="`lmcache-kit plugins show METHOD` lists a method's options",
        )
    return chosen, left_out


def _fields(record: CompressionPlugin) -> set[str]:
    return {field.encode_name for field in msgspec.structs.fields(record.options)}


def _missing(record: CompressionPlugin, values: Mapping[str, Any]) -> list[str]:
    """The options that the record does not have and would need."""
    known = _fields(record)
    return [name for name, value in values.items() if name not in known and (name, value) != (DEVICE, CPU)]
