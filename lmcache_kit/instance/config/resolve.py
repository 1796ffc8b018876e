"""From keys to an :class:`InstanceConfig`: what belongs together is combined and checked here."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from urllib.parse import quote

from lmcache_kit.errors import ConfigError, LMCacheKitError
from lmcache_kit.instance.config.controller import resolve_controller, resolve_peer
from lmcache_kit.instance.config.extension import SECTION, Extension, read_extension
from lmcache_kit.instance.config.keys import ENGINE_KEYS
from lmcache_kit.instance.config.model import InstanceConfig, PluginSpec
from lmcache_kit.instance.config.settings import Settings
from lmcache_kit.instance.config.tiers import resolve_tiers
from lmcache_kit.instance.config.values import shown
from lmcache_kit.kv.hashing import HashSpec, default_none_hash

__all__ = ["DEFAULT_INSTANCE_ID", "resolve"]

DEFAULT_INSTANCE_ID = "lmcache_default_instance"


def resolve(settings: Settings, base_dir: Path, env: Mapping[str, str]) -> InstanceConfig:
    """The configuration that the settings make. Raises ConfigError."""
    extension = _extension(settings)
    instance_id = _instance_id(settings)
    tiers = resolve_tiers(settings, extension, base_dir)
    controller = resolve_controller(settings, extension)
    peer = resolve_peer(settings, extension, joins=controller is not None)
    min_retrieve_tokens = settings.at_least("min_retrieve_tokens", 0)
    pin_ttl = float(settings.at_least("pin_timeout_sec", 1)) if settings.is_set("pin_timeout_sec") else None
    settings.warn_unsupported()
    read = settings.value("retrieve_locations")
    return InstanceConfig(
        instance_id=instance_id,
        hash_spec=_hash_spec(settings, extension),
        tiers=tiers,
        placement=PluginSpec(kind=extension.placement, options=extension.placement_options),
        store_method=extension.store_method,
        methods=extension.methods,
        min_retrieve_tokens=min_retrieve_tokens,
        save_decode_cache=settings.value("save_decode_cache"),
        retrieve_locations=tuple(read) if read else None,
        store_location=settings.value("store_location") or None,
        pin_ttl=pin_ttl,
        controller=controller,
        peer=peer,
        data_dir=_data_dir(extension, instance_id, base_dir, env),
        base_dir=base_dir,
        threads=extension.threads,
        event_log=base_dir / extension.event_log if extension.event_log else None,
        warnings=tuple(settings.warnings),
        values={name: settings.value(name) for name in ENGINE_KEYS},
    )


def _extension(settings: Settings) -> Extension:
    extra = settings.value("extra_config") or {}
    for name in extra:
        if name != "lmcache_kit":
            settings.warnings.append(f"extra_config.{name} has no effect: our own settings stand under {SECTION}")
    ours = extra.get("lmcache_kit")
    return read_extension({} if ours is None else ours)


def _instance_id(settings: Settings) -> str:
    name: str | None = settings.value("lmcache_instance_id")
    if not name:
        if settings.value("enable_controller"):
            raise ConfigError(
                "lmcache_instance_id is missing, and enable_controller is true",
                hint="the controller tells instances apart by it: give each its own",
            )
        return DEFAULT_INSTANCE_ID
    if len(name) > 256 or not name.isprintable():
        raise ConfigError(
            f"lmcache_instance_id: {shown(name)} is not a name", hint="use at most 256 printable characters"
        )
    return name


def _hash_spec(settings: Settings, extension: Extension) -> HashSpec:
    chunk_size = settings.at_least("chunk_size", 1)
    algorithm = settings.value("pre_caching_hash_algorithm")
    try:
        spec = HashSpec(chunk_size, algorithm, 0, settings.value("save_unfull_chunk"))
    except LMCacheKitError as error:
        raise ConfigError(f"pre_caching_hash_algorithm: {error.message}", hint=error.hint) from None
    none_hash = extension.none_hash if extension.none_hash is not None else default_none_hash(spec.algorithm)
    if not -(2**63) <= none_hash < 2**64:
        raise ConfigError(f"{SECTION}.none_hash: {shown(none_hash)} does not fit 64 bits")
    return HashSpec(chunk_size, spec.algorithm, none_hash, spec.save_unfull_chunk)


def _data_dir(extension: Extension, instance_id: str, base_dir: Path, env: Mapping[str, str]) -> Path:
    if extension.data_dir is not None:
        if not extension.data_dir or "\0" in extension.data_dir:
            raise ConfigError(f"{SECTION}.data_dir: {shown(extension.data_dir)} is not a folder")
        return base_dir / extension.data_dir
    cache = env.get("XDG_CACHE_HOME") or os.environ.get("XDG_CACHE_HOME")
    root = Path(cache) if cache else Path.home() / ".cache"
    # One folder per instance whatever the name holds: "..", "/" and the like are escaped.
    return root / "lmcache-kit" / quote(instance_id, safe="@:+").replace(".", "%2E")
