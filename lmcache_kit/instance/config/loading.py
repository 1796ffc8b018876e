"""Loading an instance's configuration: an LMCache engine YAML file, the environment, and our own settings.

Order of precedence, lowest first: defaults, the file, ``LMCACHE_*`` variables, overrides of the caller. The file is
the given path or the one that ``LMCACHE_CONFIG_FILE`` names; without either there is none.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from lmcache_kit.errors import ConfigError
from lmcache_kit.instance.config.model import (
    ControllerSpec,
    InstanceConfig,
    LinkSpec,
    PeerSpec,
    PluginSpec,
    TierSpec,
)
from lmcache_kit.instance.config.resolve import DEFAULT_INSTANCE_ID, resolve
from lmcache_kit.instance.config.settings import CONFIG_FILE_VARIABLE, Settings
from lmcache_kit.instance.config.values import shown

__all__ = [
    "CONFIG_FILE_VARIABLE",
    "DEFAULT_INSTANCE_ID",
    "ControllerSpec",
    "InstanceConfig",
    "LinkSpec",
    "PeerSpec",
    "PluginSpec",
    "TierSpec",
    "instance_config",
    "load_config",
]

log = logging.getLogger(__name__)

_MAX_FILE_BYTES = 4 * 2**20


def load_config(
    path: str | Path | None = None,
    *,
    env: Mapping[str, str] | None = None,
    overrides: Mapping[str, Any] | None = None,
) -> InstanceConfig:
    """The configuration of ``path`` (or ``LMCACHE_CONFIG_FILE``) and the environment; warnings are logged, one each.

    Args:
        path: the YAML file; None takes the one named by the environment, or none.
        env: the environment; ``os.environ`` when None.
        overrides: keys that take precedence over file and environment.

    Raises ConfigError for a file that cannot be read or is no mapping, an unknown key (with the nearest known one)
    and a value that cannot be used.
    """
    env = os.environ if env is None else env
    name = str(path) if path is not None else env.get(CONFIG_FILE_VARIABLE, "").strip()
    values = _read(Path(name)) if name else {}
    base = Path(name).absolute().parent if name else Path.cwd()
    config = instance_config(values, env=env, overrides=overrides, base_dir=base, source=name)
    for warning in config.warnings:
        log.warning("%s", warning)
    return config


def instance_config(
    values: Mapping[Any, Any],
    *,
    env: Mapping[str, str] | None = None,
    overrides: Mapping[str, Any] | None = None,
    base_dir: Path | None = None,
    source: str = "",
) -> InstanceConfig:
    """The configuration of a plain mapping, as read from YAML.

    Args:
        values: keys and values.
        env: variables that override them; none when None.
        overrides: keys that override both.
        base_dir: folder that relative paths start at; the current one when None.
        source: name of the file, for errors.

    Raises ConfigError and nothing else, whatever ``values`` holds.
    """
    try:
        settings = Settings()
        for key, value in values.items():
            settings.add(key, value, spelled=key)
        for name, text in (env or {}).items():
            settings.add_variable(name, text)
        for key, value in (overrides or {}).items():
            settings.add(key, value, spelled=key, overrides=True)
        return resolve(settings, base_dir or Path.cwd(), env or {})
    except ConfigError as error:
        if not source:
            raise
        raise ConfigError(f"{source}: {error.message}", hint=error.hint) from None
    except RecursionError:
        raise ConfigError(f"{source or 'configuration'}: nested too deeply") from None


def _read(path: Path) -> dict[Any, Any]:
    try:
        with path.open("rb") as file:
            text = file.read(_MAX_FILE_BYTES + 1)
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else str(error)
        raise ConfigError(
            f"cannot read the configuration file {str(path)!r}: {reason}",
            hint=f"give an LMCache YAML file with --config or {CONFIG_FILE_VARIABLE}",
        ) from None
    if len(text) > _MAX_FILE_BYTES:
        raise ConfigError(f"{path}: larger than {_MAX_FILE_BYTES} bytes", hint="this is not a configuration file")
    try:
        loaded = yaml.safe_load(text)
    except (yaml.YAMLError, ValueError, TypeError, RecursionError) as error:  # impossible dates, unhashable keys
        raise ConfigError(f"{path}: not YAML: {' '.join(str(error).split())}") from None
    if loaded is None:
        return {}
    if not isinstance(loaded, dict):
        raise ConfigError(f"{path}: a mapping of keys to values is needed, not {shown(loaded)}")
    return loaded
