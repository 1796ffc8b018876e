"""The typer application: global options, error manners, and the commands of the modules beside this one.

stdout holds only a command's result; logs, progress and errors go to stderr. Exit status: 0 done, 1 the work failed,
2 usage or configuration.
"""

from __future__ import annotations

import logging
import os
import sys
import traceback
from typing import Annotated

import typer

from lmcache_kit import __version__
from lmcache_kit.cli import client, controller, run, scenario, serve, trace
from lmcache_kit.cli import plugins as plugins_commands
from lmcache_kit.errors import ConfigError, LMCacheKitError
from lmcache_kit.plugins import MODULES_VARIABLE

__all__ = ["app", "main"]

app = typer.Typer(
    name="lmcache-kit",
    help="A testbed and simulator for KV cache management in LLM serving.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
app.add_typer(plugins_commands.app, name="plugins")
for module in (run, controller, serve, client, scenario, trace):
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
        # Child processes of a run must see the same plugins, so the choice travels in the environment.
        inherited = [name for name in os.environ.get(MODULES_VARIABLE, "").split(",") if name]
        os.environ[MODULES_VARIABLE] = ",".join([*inherited, *plugin])


def main(args: list[str] | None = None) -> int:
    """Run the command line and return its exit status."""
    arguments = sys.argv[1:] if args is None else args
    try:
        # typer shows usage errors, ends on a broken pipe and turns Ctrl-C into a message by itself; what is left for
        # us are the errors that we raise on purpose.
        app(arguments, prog_name="lmcache-kit")
    except SystemExit as done:
        return done.code if isinstance(done.code, int) else int(done.code is not None)
    except LMCacheKitError as error:
        if "--debug" in arguments:
            traceback.print_exc()
        typer.echo(f"error: {error.message}", err=True)
        if error.hint:
            typer.echo(f"hint: {error.hint}", err=True)
        return 2 if isinstance(error, ConfigError) else 1
    return 0
