"""An engine that is a server of its own: ``lmcache-kit serve`` becomes its command."""

from __future__ import annotations

import logging
import os
import shlex
import sys
from collections.abc import Callable
from typing import Any, NoReturn

import typer
from typer.core import TyperCommand

from lmcache_kit.contracts.engine import ServerCommand, ServerSpec
from lmcache_kit.contracts.records import EnginePlugin, Options
from lmcache_kit.errors import ConfigError, LMCacheKitError, UnavailableError

__all__ = ["WithServerArguments", "become", "server_arguments"]

log = logging.getLogger(__name__)

_KEY = f"{__name__}.arguments"


class WithServerArguments(TyperCommand):
    """A command that leaves what stands behind ``--`` to somebody else, who asks :func:`server_arguments` for it."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        own, rest = (args[: args.index("--")], args[args.index("--") + 1 :]) if "--" in args else (args, [])
        ctx.meta[_KEY] = tuple(rest)
        return super().parse_args(ctx, own)

    def collect_usage_pieces(self, ctx: Any) -> list[str]:
        return [*super().collect_usage_pieces(ctx), "[-- ARGS]"]


def server_arguments(ctx: typer.Context) -> tuple[str, ...]:
    """The arguments behind ``--``."""
    found: tuple[str, ...] = ctx.meta[_KEY]
    return found


def become(
    record: EnginePlugin,
    options: Options,
    spec: ServerSpec,
    *,
    execute: Callable[[str, list[str], dict[str, str]], Any] = os.execvpe,
) -> NoReturn:
    """Replace this process with the server; its process id, its log and whoever it ends with stay the same.

    Raises ConfigError when the plugin refuses, and UnavailableError when its program cannot be run.
    """
    command = _command(record, options, spec)
    shown = shlex.join(command.argv)
    log.info("engine %s: %s", record.name, shown)
    # Nothing of this process is left to write out what is still in its buffers.
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    try:
        execute(command.argv[0], list(command.argv), {**os.environ, **command.env})
    except FileNotFoundError:
        # Also what a script says whose interpreter, in its first line, is gone.
        raise UnavailableError(
            f"engine {record.name!r}: {command.argv[0]!r} is not there, or the interpreter that it names"
        ) from None
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise UnavailableError(f"engine {record.name!r}: {command.argv[0]!r} cannot be run: {reason}") from None
    raise AssertionError("exec returned")


def _command(record: EnginePlugin, options: Options, spec: ServerSpec) -> ServerCommand:
    assert record.server is not None
    try:
        command = record.server(options, spec)
    except LMCacheKitError as error:
        raise ConfigError(f"engine {record.name!r}: {error.message}", hint=error.hint) from None
    if not isinstance(command, ServerCommand) or not command.argv:
        raise ConfigError(f"engine {record.name!r}: its server gave {command!r:.80}, not a ServerCommand")
    return command
