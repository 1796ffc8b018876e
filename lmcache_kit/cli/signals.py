"""Work that SIGINT and SIGTERM end in order."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Coroutine
from typing import Any, TypeVar

import typer

__all__ = ["until_signalled"]

T = TypeVar("T")


def until_signalled(work: Coroutine[Any, Any, T], *, stopping: str) -> T:
    """The result of ``work``. The first SIGINT or SIGTERM cancels it, and the command ends as by that signal.

    ``stopping`` is what is being stopped then, for the line on stderr.
    """
    caught: list[int] = []

    async def supervised() -> T:
        loop = asyncio.get_running_loop()
        task = asyncio.ensure_future(work)

        def stop(number: int) -> None:
            caught.append(number)
            if len(caught) == 1:
                typer.echo(f"{signal.Signals(number).name}: stopping {stopping}", err=True)
                task.cancel()

        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, stop, number)
        try:
            return await task
        finally:
            for number in (signal.SIGINT, signal.SIGTERM):
                loop.remove_signal_handler(number)

    try:
        return asyncio.run(supervised())
    except asyncio.CancelledError:
        raise typer.Exit(128 + caught[0] if caught else 1) from None
