"""What the ``lmcache-kit`` command calls: error manners and exit status around the commands.

stdout holds only a command's result; logs, progress and errors go to stderr. Exit status: 0 done, 1 the work failed,
2 usage or configuration, 130 interrupted.
"""

from __future__ import annotations

import sys
import traceback

__all__ = ["main"]


def main(args: list[str] | None = None) -> int:
    """Run the command line and return its exit status."""
    arguments = sys.argv[1:] if args is None else args
    try:
        # Imported here, so that Ctrl-C during the imports is no traceback either.
        from lmcache_kit.cli.app import app

        # typer shows usage errors, ends on a broken pipe and turns Ctrl-C into a status by itself; what is left for
        # us are the errors that we raise on purpose, and our own mistakes.
        app(arguments, prog_name="lmcache-kit")
    except SystemExit as done:
        return done.code if isinstance(done.code, int) else int(done.code is not None)
    except KeyboardInterrupt:
        return 130
    except Exception as error:
        return _tell(error, debug="--debug" in arguments)
    return 0


def _tell(error: Exception, *, debug: bool) -> int:
    from lmcache_kit.errors import ConfigError, LMCacheKitError, UnknownNameError

    if debug:
        traceback.print_exc()
    if not isinstance(error, LMCacheKitError):
        # Third-party code below a plugin raises what it likes, and so does a fault of ours.
        first_line = next(iter(str(error).splitlines()), "")
        _say(f"error: unexpected {type(error).__name__}{': ' if first_line else ''}{first_line}")
        if not debug:
            _say("hint: lmcache-kit --debug COMMAND shows where; please report it")
        return 1
    _say(f"error: {error.message}")
    if error.hint:
        _say(f"hint: {error.hint}")
    # A name that is not known was typed by the user: here, or in a file that the user named.
    return 2 if isinstance(error, ConfigError | UnknownNameError) else 1


def _say(text: str) -> None:
    print(text, file=sys.stderr)
