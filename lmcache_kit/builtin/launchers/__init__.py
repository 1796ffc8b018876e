"""Launchers that come with the core."""

from __future__ import annotations

from lmcache_kit.contracts.launcher import Launcher
from lmcache_kit.contracts.records import LauncherPlugin, Options, Plugin

__all__ = ["RECORDS"]


def _local(options: Options) -> Launcher:
    from lmcache_kit.builtin.launchers.local import LocalLauncher

    return LocalLauncher()


RECORDS: tuple[Plugin, ...] = (
    LauncherPlugin(
        name="local",
        summary="processes on this machine, which end with the runner",
        factory=_local,
        capabilities=frozenset({"faults"}),
    ),
)
