"""Client commands: one per operation of the controller."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Annotated, Any

import typer

from lmcache_kit.cli.client_tables import print_health, print_lookup, print_status
from lmcache_kit.cli.output import Format, FormatOption, print_facts, print_json
from lmcache_kit.client import ControllerClient, InstanceClient
from lmcache_kit.errors import ConfigError, LMCacheKitError

__all__ = ["register"]

UrlOption = Annotated[
    str, typer.Option("--url", envvar="LMCACHE_KIT_CONTROLLER_URL", help="The controller's HTTP address.")
]
TokenOption = Annotated[
    str | None, typer.Option("--token", envvar="LMCACHE_KIT_TOKEN", help="Bearer token, when the controller wants one.")
]
TimeoutOption = Annotated[float, typer.Option("--timeout", help="Seconds to wait for an answer.")]
TokensOption = Annotated[
    str | None,
    typer.Option("--tokens", help="Token ids: 1,2,3 or @FILE with them, separated by commas or white space."),
]
PromptOption = Annotated[
    str | None, typer.Option("--prompt", help="Text to tokenize on the instance at --instance-url.")
]
InstanceUrlOption = Annotated[str, typer.Option("--instance-url", help="An instance that tokenizes --prompt.")]
InstanceOption = Annotated[str, typer.Option("--instance-id", help="Which instance.")]
LocationOption = Annotated[str, typer.Option("--location", help="Which tier, e.g. LocalCPUBackend.")]
MethodOption = Annotated[str, typer.Option("--method", help="Compression method.")]
OwnerOption = Annotated[str, typer.Option("--owner", help="Who pins.")]
WaitOption = Annotated[bool, typer.Option("--wait/--no-wait", help="Follow the job to its end.")]

DEFAULT_URL = "http://localhost:9000"
DEFAULT_INSTANCE_URL = "http://localhost:8000"
DEFAULT_TIMEOUT = 30.0
_TOKEN_LIMIT = 2**63

Answer = dict[str, Any]


def register(app: typer.Typer) -> None:
    """Add the commands to the application."""
    for command in (lookup, compress, decompress, pin, unpin, clear, move, check_finish, status, health):
        app.command(command.__name__.replace("_", "-"))(command)


def lookup(
    tokens: TokensOption = None,
    prompt: PromptOption = None,
    instance_url: InstanceUrlOption = DEFAULT_INSTANCE_URL,
    explain: Annotated[bool, typer.Option("--explain", help="Say chunk by chunk why the prefix ends.")] = False,
    url: UrlOption = DEFAULT_URL,
    token: TokenOption = None,
    timeout: TimeoutOption = DEFAULT_TIMEOUT,
    format: FormatOption = Format.TABLE,  # noqa: A002  (the option's name)
) -> None:
    """Show which instances and tiers hold how much of a prefix."""

    async def call(controller: ControllerClient) -> Answer:
        ids = await _required_tokens(tokens, prompt, instance_url, timeout)
        return await controller.lookup(ids, explain=explain)

    answer = _ask(call, url, token, timeout)
    if format is Format.JSON:
        print_json(answer)
        return
    print_lookup(answer)


def _coding_command(
    start: Callable[[ControllerClient, str, str, str, list[int] | None], Awaitable[Answer]], summary: str
) -> Callable[..., None]:
    """The command of ``start``, which takes instance, method, location and tokens."""

    def command(
        instance_id: InstanceOption,
        method: MethodOption,
        location: LocationOption,
        tokens: TokensOption = None,
        prompt: PromptOption = None,
        instance_url: InstanceUrlOption = DEFAULT_INSTANCE_URL,
        wait: WaitOption = True,
        url: UrlOption = DEFAULT_URL,
        token: TokenOption = None,
        timeout: TimeoutOption = DEFAULT_TIMEOUT,
        format: FormatOption = Format.TABLE,  # noqa: A002
    ) -> None:
        async def call(controller: ControllerClient) -> Answer:
            ids = await _tokens(tokens, prompt, instance_url, timeout)
            return await _follow(controller, await start(controller, instance_id, method, location, ids), wait, timeout)

        _print_facts(_ask(call, url, token, timeout), format)

    command.__name__, command.__doc__ = start.__name__, summary
    return command


compress = _coding_command(
    ControllerClient.compress, "Compress the chunks of a prefix, or of a whole tier without --tokens and --prompt."
)
decompress = _coding_command(ControllerClient.decompress, "Decompress what a method compressed.")


def pin(
    instance_id: InstanceOption,
    location: LocationOption,
    tokens: TokensOption = None,
    prompt: PromptOption = None,
    instance_url: InstanceUrlOption = DEFAULT_INSTANCE_URL,
    owner: OwnerOption = "",
    ttl: Annotated[float | None, typer.Option("--ttl", help="Seconds until the pin ends by itself.")] = None,
    url: UrlOption = DEFAULT_URL,
    token: TokenOption = None,
    timeout: TimeoutOption = DEFAULT_TIMEOUT,
    format: FormatOption = Format.TABLE,  # noqa: A002
) -> None:
    """Keep the chunks of a prefix from eviction."""

    async def call(controller: ControllerClient) -> Answer:
        ids = await _required_tokens(tokens, prompt, instance_url, timeout)
        return await controller.pin(instance_id, location, ids, owner=owner, ttl=ttl)

    _print_facts(_ask(call, url, token, timeout), format)


def unpin(
    instance_id: InstanceOption,
    location: LocationOption,
    tokens: TokensOption = None,
    prompt: PromptOption = None,
    instance_url: InstanceUrlOption = DEFAULT_INSTANCE_URL,
    owner: OwnerOption = "",
    url: UrlOption = DEFAULT_URL,
    token: TokenOption = None,
    timeout: TimeoutOption = DEFAULT_TIMEOUT,
    format: FormatOption = Format.TABLE,  # noqa: A002
) -> None:
    """Release an owner's pins; all of them in the tier without --tokens and --prompt."""

    async def call(controller: ControllerClient) -> Answer:
        ids = await _tokens(tokens, prompt, instance_url, timeout)
        return await controller.unpin(instance_id, location, ids, owner=owner)

    _print_facts(_ask(call, url, token, timeout), format)


def clear(
    instance_id: InstanceOption,
    location: LocationOption,
    url: UrlOption = DEFAULT_URL,
    token: TokenOption = None,
    timeout: TimeoutOption = DEFAULT_TIMEOUT,
    format: FormatOption = Format.TABLE,  # noqa: A002
) -> None:
    """Drop everything unpinned from a tier."""
    _print_facts(_ask(lambda controller: controller.clear(instance_id, location), url, token, timeout), format)


def move(
    source: Annotated[str, typer.Option("--from", help="INSTANCE/LOCATION that holds the chunks.")],
    target: Annotated[str, typer.Option("--to", help="INSTANCE/LOCATION that takes them.")],
    tokens: TokensOption = None,
    prompt: PromptOption = None,
    instance_url: InstanceUrlOption = DEFAULT_INSTANCE_URL,
    copy: Annotated[bool, typer.Option("--copy", help="Keep the chunks at the source.")] = False,
    wait: WaitOption = True,
    url: UrlOption = DEFAULT_URL,
    token: TokenOption = None,
    timeout: TimeoutOption = DEFAULT_TIMEOUT,
    format: FormatOption = Format.TABLE,  # noqa: A002
) -> None:
    """Move or copy the chunks of a prefix to another instance or tier."""

    async def call(controller: ControllerClient) -> Answer:
        ids = await _tokens(tokens, prompt, instance_url, timeout)
        answer = await controller.move(_position(source), _position(target), ids, copy=copy)
        return await _follow(controller, answer, wait, timeout)

    _print_facts(_ask(call, url, token, timeout), format)


def check_finish(
    event_id: Annotated[str, typer.Argument(help="The event_id that an operation answered with.")],
    url: UrlOption = DEFAULT_URL,
    token: TokenOption = None,
    timeout: TimeoutOption = DEFAULT_TIMEOUT,
    format: FormatOption = Format.TABLE,  # noqa: A002
) -> None:
    """Show the state of a job."""
    _print_facts(_ask(lambda controller: controller.check_finish(event_id), url, token, timeout), format)


def status(
    url: UrlOption = DEFAULT_URL,
    token: TokenOption = None,
    timeout: TimeoutOption = DEFAULT_TIMEOUT,
    format: FormatOption = Format.TABLE,  # noqa: A002
) -> None:
    """Show the registered workers and what the controller knows of their contents."""

    async def call(controller: ControllerClient) -> Answer:
        workers, keys = await asyncio.gather(controller.workers(), controller.key_stats())
        return {"workers": workers["worker_infos"], "keys": keys}

    answer = _ask(call, url, token, timeout)
    if format is Format.JSON:
        print_json(answer)
        return
    print_status(answer)


def health(
    instance_id: InstanceOption,
    url: UrlOption = DEFAULT_URL,
    token: TokenOption = None,
    timeout: TimeoutOption = DEFAULT_TIMEOUT,
    format: FormatOption = Format.TABLE,  # noqa: A002
) -> None:
    """Ask every worker of an instance whether it is healthy; exit status 1 when one is not."""
    answer = _ask(lambda controller: controller.health(instance_id), url, token, timeout)
    if format is Format.JSON:
        print_json(answer)
    else:
        print_health(answer)
    if any(answer["error_codes"].values()):
        raise typer.Exit(1)


def _ask(call: Callable[[ControllerClient], Awaitable[Answer]], url: str, token: str | None, timeout: float) -> Answer:
    async def session() -> Answer:
        async with ControllerClient(url, token=token, timeout=timeout) as controller:
            return await call(controller)

    return asyncio.run(session())


async def _follow(controller: ControllerClient, answer: Answer, wait: bool, timeout: float) -> Answer:
    if not wait:
        return answer
    state = await controller.wait_finished(answer["event_id"], timeout=timeout)
    if state["status"] == "failed":
        raise LMCacheKitError(f"job {answer['event_id']} failed: {state.get('error')}")
    return {**answer, **state}


async def _tokens(tokens: str | None, prompt: str | None, instance_url: str, timeout: float) -> list[int] | None:
    if tokens is not None and prompt is not None:
        raise ConfigError("--tokens and --prompt exclude each other", hint="leave one of them out")
    if prompt is not None:
        async with InstanceClient(instance_url, timeout=timeout) as instance:
            return await instance.tokenize(prompt)
    if tokens is None:
        return None
    return _parse_tokens(tokens)


def _parse_tokens(tokens: str) -> list[int]:
    try:
        text = Path(tokens[1:]).read_text() if tokens.startswith("@") else tokens
    except OSError as error:
        raise ConfigError(f"cannot read {tokens[1:]}: {error.strerror}") from None
    except UnicodeDecodeError:
        raise ConfigError(f"{tokens[1:]} is not a text file") from None
    parts = text.strip(" \n[]").replace(",", " ").split()
    if not parts:
        raise ConfigError("--tokens holds no token ids", hint="write them like 1,2,3")
    for part in parts:
        # The length first: int() refuses very long texts with an error of its own.
        if not (part.isascii() and part.isdecimal() and len(part) < 20 and int(part) < _TOKEN_LIMIT):
            raise ConfigError(
                f"--tokens holds {part[:40]!r}, which is not a token id", hint="a token id is a whole number from 0 up"
            )
    return [int(part) for part in parts]


async def _required_tokens(tokens: str | None, prompt: str | None, instance_url: str, timeout: float) -> list[int]:
    ids = await _tokens(tokens, prompt, instance_url, timeout)
    if ids is None:
        raise ConfigError("this command needs tokens", hint="give --tokens 1,2,3 or --prompt TEXT")
    return ids


def _position(text: str) -> tuple[str, str]:
    instance, slash, location = text.rpartition("/")
    if not slash or not instance or not location:
        raise ConfigError(f"{text!r} is not INSTANCE/LOCATION", hint="write it like a/LocalCPUBackend")
    return instance, location


def _print_facts(answer: Answer, format: Format) -> None:  # noqa: A002
    if format is Format.JSON:
        print_json(answer)
    else:
        print_facts({key: value for key, value in answer.items() if key != "workers"})
