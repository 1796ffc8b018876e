"""The part of a configuration that is about tiers."""

from __future__ import annotations

import math
from pathlib import Path

from lmcache_kit.errors import ConfigError
from lmcache_kit.instance.config.extension import SECTION, Extension, TierOptions
from lmcache_kit.instance.config.keys import ENGINE_KEYS
from lmcache_kit.instance.config.model import PluginSpec, TierSpec
from lmcache_kit.instance.config.settings import Settings
from lmcache_kit.instance.config.values import shown
from lmcache_kit.units import parse_size

__all__ = ["resolve_tiers"]

GB = 1024**3
"""What LMCache means by a GB."""

_REMOTE_PLUGIN = dict.fromkeys(("redis", "rediss", "valkey", "valkeys", "unix"), "valkey")


def _gigabytes(settings: Settings, name: str) -> int | None:
    value: float = settings.value(name)
    if value < 0:
        raise ConfigError(f"{name}: {shown(value)} is below 0", hint="give GB of 1024**3 bytes")
    return None if math.isinf(value) else int(value * GB)


def resolve_tiers(settings: Settings, extension: Extension, base_dir: Path) -> tuple[TierSpec, ...]:
    policy = settings.value("cache_policy").lower()
    if extension.tiers is not None:
        clash = [
            settings.spelled[name]
            for name in ("max_local_cpu_size", "local_disk", "max_local_disk_size", "remote_url", "remote_serde")
            if settings.is_set(name) and settings.value(name) != ENGINE_KEYS[name].default
        ]
        if clash:
            raise ConfigError(
                f"{SECTION}.tiers and {', '.join(clash)} both describe tiers",
                hint="remove one of them: with tiers only those are used",
            )
        return tuple(_own_tier(tier, index, policy) for index, tier in enumerate(extension.tiers))
    eviction = PluginSpec(kind=policy)
    tiers: list[TierSpec] = []
    if settings.value("local_cpu"):
        capacity = _gigabytes(settings, "max_local_cpu_size")
        if capacity == 0:
            raise ConfigError(
                "max_local_cpu_size: no room for a single byte while local_cpu is true",
                hint="or set local_cpu to false",
            )
        tiers.append(TierSpec(storage=PluginSpec(kind="memory"), capacity_bytes=capacity, eviction=eviction))
    disk = _disk_folder(settings, base_dir)
    if disk is not None:
        storage = PluginSpec(kind="disk", options={"path": str(disk)})
        tiers.append(
            TierSpec(storage=storage, capacity_bytes=_gigabytes(settings, "max_local_disk_size"), eviction=eviction)
        )
    url = settings.value("remote_url")
    if url:
        storage = _remote(url)
        if settings.is_set("blocking_timeout_secs"):
            deadline = float(settings.at_least("blocking_timeout_secs", 1))
            storage = PluginSpec(kind=storage.kind, options={**storage.options, "timeout": deadline})
        tiers.append(TierSpec(storage=storage, eviction=eviction, method=settings.value("remote_serde") or "naive"))
    elif settings.value("remote_serde") not in ("", "naive"):
        settings.warnings.append(f"{settings.spelled['remote_serde']} has no effect: there is no remote_url")
    return tuple(tiers)


def _own_tier(tier: TierOptions, index: int, policy: str) -> TierSpec:
    capacity = None
    if tier.capacity is not None:
        try:
            capacity = parse_size(tier.capacity)
        except (ConfigError, ValueError) as error:
            what = error.message if isinstance(error, ConfigError) else str(error)
            raise ConfigError(f"{SECTION}.tiers[{index}].capacity: {what}", hint="write it like 64MiB") from None
    return TierSpec(
        storage=PluginSpec(kind=tier.kind, options=tier.options),
        location=tier.location,
        capacity_bytes=capacity,
        eviction=PluginSpec(kind=tier.eviction or policy, options=tier.eviction_options),
        method=tier.method,
    )


def _disk_folder(settings: Settings, base_dir: Path) -> Path | None:
    text = settings.value("local_disk")
    folders = [part.strip().removeprefix("file://") for part in (text or "").split(",")]
    folders = [folder for folder in folders if folder]
    if not folders or "\0" in text:
        if text:
            raise ConfigError(f"local_disk: {shown(text)} is not a folder", hint="write it like file:///var/cache/kv/")
        return None
    if not settings.value("max_local_disk_size"):
        settings.warnings.append(
            f"{settings.spelled['local_disk']} has no effect: max_local_disk_size is 0; set it to the GB to use on disk"
        )
        return None
    if len(folders) > 1:
        settings.warnings.append(
            f"{settings.spelled['local_disk']}: only {folders[0]} is used; there is one worker per instance"
        )
    return base_dir / Path(folders[0]).expanduser()


def _remote(url: str) -> PluginSpec:
    scheme, separator, rest = url.partition("://")
    plugin = _REMOTE_PLUGIN.get(scheme.lower())
    if not separator or not rest or plugin is None:
        raise ConfigError(
            f"remote_url: {shown(url)} cannot be used",
            hint=f"supported: {', '.join(f'{known}://' for known in _REMOTE_PLUGIN)}; other stores are "
            f"storage plugins under {SECTION}.tiers",
        )
    return PluginSpec(kind=plugin, options={"url": url})
