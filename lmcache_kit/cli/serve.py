"""``lmcache-kit serve``: one instance, an engine behind OpenAI-style HTTP with its KV in tiers.

Takes the place of ``vllm serve`` in LMCache's documents, with the same flags as far as they mean something here. With
an engine that is a server of its own, the process becomes that server.
"""

from __future__ import annotations

import contextlib
import gc
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from lmcache_kit.cli.engine_server import WithServerArguments, become, server_arguments
from lmcache_kit.cli.values import key_values
from lmcache_kit.errors import ConfigError, UnknownNameError

if TYPE_CHECKING:
    from lmcache_kit.contracts.engine import Engine
    from lmcache_kit.contracts.records import EnginePlugin, Options

__all__ = ["make_engine", "register", "serve"]

log = logging.getLogger(__name__)


def register(app: typer.Typer) -> None:
    """Add the command to the application."""
    app.command(cls=WithServerArguments)(serve)


def serve(
    ctx: typer.Context,
    model_argument: Annotated[
        str | None, typer.Argument(metavar="[MODEL]", help="The model, as for `vllm serve`; the same as --model.")
    ] = None,
    engine: Annotated[
        str | None,
        typer.Option("--engine", help="Engine plugin; see `plugins list --kind engine`. Default: synthetic."),
    ] = None,
    model: Annotated[
        str | None,
        typer.Option(
            "--model", help="Name of the model, or what the engine loads; the engine's default model when left out."
        ),
    ] = None,
    config: Annotated[
        Path | None, typer.Option("--config", help="LMCache YAML file.", envvar="LMCACHE_CONFIG_FILE")
    ] = None,
    host: Annotated[str, typer.Option("--host", help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option("--port", min=0, max=65535, help="Port to listen on; 0: a free one.")] = 8000,
    served_model_name: Annotated[
        list[str] | None,
        typer.Option("--served-model-name", help="Name that requests use for the model; may be given several times."),
    ] = None,
    max_model_len: Annotated[
        int | None, typer.Option("--max-model-len", min=2, help="Most tokens of prompt and output together.")
    ] = None,
    engine_option: Annotated[
        list[str] | None,
        typer.Option("--engine-option", metavar="KEY=VALUE", help="Option of the engine; may be given several times."),
    ] = None,
    max_num_seqs: Annotated[
        int, typer.Option("--max-num-seqs", min=1, help="Most requests worked on at the same time.")
    ] = 16,
    kv_transfer_config: Annotated[
        str | None, typer.Option("--kv-transfer-config", help="Taken for vLLM's sake; the cache is always on.")
    ] = None,
    gpu_memory_utilization: Annotated[
        float | None,
        typer.Option(
            "--gpu-memory-utilization", help="Share of the GPU's memory that the engine takes, if it can be told."
        ),
    ] = None,
) -> None:
    """Serve a model, keeping its KV cache in the tiers of an LMCache configuration.

    ARGS go as they are to an engine that is a server of its own, such as vllm.
    """
    if engine is None:
        engine = "synthetic"
        log.warning(
            "no --engine is named, so the synthetic one makes up text and KV whatever the model is called; "
            "--engine transformers computes real ones"
        )
    if kv_transfer_config is not None:
        log.warning("--kv-transfer-config has no effect: this instance always saves and loads KV itself")
    if model is not None and model_argument is not None and model != model_argument:
        raise ConfigError(f"two models are named, {model_argument!r} and {model!r}", hint="name one")
    name = model or model_argument

    from lmcache_kit.instance.config.loading import load_config
    from lmcache_kit.instance.server import bind, run

    instance = load_config(config)
    record = _record(engine)
    values = key_values(engine_option or [], "--engine-option")
    if gpu_memory_utilization is not None:
        if "gpu_memory_utilization" in record.options.__struct_fields__:
            _set(values, "gpu_memory_utilization", gpu_memory_utilization)
        else:
            log.warning("--gpu-memory-utilization has no effect: the engine takes the memory it needs")
    arguments = server_arguments(ctx)
    if record.server is not None:
        from lmcache_kit.contracts.engine import ServerSpec

        served = _model(record, name)
        options = _options(record, values, max_model_len)
        # A server of its own may take long until it looks at its port; one that is in use should be told at once.
        bind(host, port).close()
        become(
            record,
            options,
            ServerSpec(
                model=served,
                host=host,
                port=port,
                config=None if config is None else config.resolve(),
                served_models=tuple(served_model_name or [served]),
                max_num_seqs=max_num_seqs,
                args=arguments,
            ),
        )
    if arguments:
        raise ConfigError(
            f"engine {engine!r} takes no arguments of its own, got {arguments[0]!r}",
            hint="they are for engines that are servers of their own, such as vllm",
        )
    # Before the engine, which may take a while to load: a port in use should be told at once.
    with bind(host, port) as http_socket:
        with _lasting_objects():
            made = make_engine(engine, name, values, max_model_len=max_model_len)
        run(
            instance,
            made,
            http_socket,
            served_models=served_model_name or [name or made.info.model],
            max_num_seqs=max_num_seqs,
        )


@contextlib.contextmanager
def _lasting_objects() -> Iterator[None]:
    """What is made in here lasts as long as the process, so the garbage collector need not look at it.

    An engine's libraries make hundreds of thousands of such objects. Looking through them again and again while they
    are imported takes half a second, and afterwards each full collection would hold up requests for tenths of a second.
    """
    gc.disable()
    try:
        yield
        gc.freeze()
    finally:
        gc.enable()


def make_engine(name: str, model: str | None, values: dict[str, Any], *, max_model_len: int | None) -> Engine:
    """The engine plugin ``name`` with its options, serving ``model`` or its default one.

    Raises ConfigError for an unknown plugin, for wrong options, when no model is named and there is no default, and for
    an engine that is a server of its own.
    """
    record = _record(name)
    model = _model(record, model)
    return record.make(_options(record, values, max_model_len), model)


def _record(name: str) -> EnginePlugin:
    from lmcache_kit.contracts.records import EnginePlugin
    from lmcache_kit.plugins import registry

    try:
        return registry().get(EnginePlugin, name)
    except UnknownNameError as error:
        raise ConfigError(f"--engine: {error.message}", hint=error.hint) from None


def _model(record: EnginePlugin, name: str | None) -> str:
    model = name or record.default_model
    if not model:
        raise ConfigError("no model is named", hint=f"lmcache-kit serve --engine {record.name} --model NAME")
    return model


def _options(record: EnginePlugin, values: dict[str, Any], max_model_len: int | None) -> Options:
    from lmcache_kit.plugins import registry

    if max_model_len is not None:
        if "max_model_len" not in record.options.__struct_fields__:
            raise ConfigError(f"the engine {record.name!r} has no --max-model-len")
        _set(values, "max_model_len", max_model_len)
    return registry().options(record, values)


def _set(values: dict[str, Any], option: str, value: Any) -> None:
    """Let a flag of its own give an option."""
    if values.setdefault(option, value) != value:
        flag = f"--{option.replace('_', '-')}"
        raise ConfigError(f"{flag} and --engine-option {option} differ", hint="give one")
