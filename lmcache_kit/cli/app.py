"""The typer application: global options, and the commands of the modules beside this one."""

from __future__ import annotations

import importlib
import logging
import os
import sys
from typing import Annotated

import typer

from lmcache_kit import __version__
from lmcache_kit.cli import calibrate, client, codec, compare, controller, plugins, run, scenario, serve, sweep, trace
from lmcache_kit.errors import ConfigError
from lmcache_kit.plugins import MODULES_VARIABLE

__all__ = ["app"]

app = typer.Typer(
    name="lmcache-kit",
    help="A testbed and simulator for KV cache management in LLM serving.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
for module in (run, sweep, compare, calibrate, controller, serve, client, codec, plugins, scenario, trace):
    module.register(app)


def _version(value: bool) -> None:
    if value:
        typer.echo(f"lmcache-kit {__version__}")
        raise typer.Exit


@app.callback()
def options(
    plugin: Annotated[
        list[str] | None, typer.Option("-p", "--plugin", metavar="MODULE", help="Load this module as a plugin too.")
    ] = None,
    debug: Annotated[bool, typer.Option("--debug", help="Show tracebacks and debug logs.")] = False,
    version: Annotated[bool, typer.Option("--version", callback=_version, is_eager=True, help="Show it.")] = False,
) -> None:
    """Options that stand before the command."""
    logging.basicConfig(
        stream=sys.stderr,
        level=logging.DEBUG if debug else logging.INFO,
        format="%(asctime)s %(levelname)s %(name)s: %(message)s",
    )
    for noisy in ("httpx", "httpcore", "asyncio"):
        logging.getLogger(noisy).setLevel(logging.WARNING)
    if plugin:
        # What is asked for by name must be there; only plugins that happen to be installed are left out with a warning.
        for module in plugin:
            try:
                importlib.import_module(module)
            except Exception as error:  # a plugin's import may raise anything
                raise ConfigError(f"-p {module}: {type(error).__name__}: {error}") from error
        # Child processes of a run must see the same plugins, so the choice travels in the environment.
        inherited = [name for name in os.environ.get(MODULES_VARIABLE, "").split(",") if name]
        os.environ[MODULES_VARIABLE] = ",".join([*inherited, *plugin])
