"""``lmcache-kit codec``: measure compression methods, fit them to a model, and take samples of a model's KV."""

from __future__ import annotations

import enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from lmcache_kit.cli.output import Format, FormatOption, print_facts, print_json
from lmcache_kit.cli.values import key_values
from lmcache_kit.errors import ConfigError, LMCacheKitError

if TYPE_CHECKING:
    from lmcache_kit.codec_tools import Choice
    from lmcache_kit.kv.layout import KVTensor

__all__ = ["register"]

app = typer.Typer(help="Compression methods on KV of a file, of a model, or made up.", no_args_is_help=True)

DEFAULT_SHAPE = "32,2,256,8,128"


class Dtype(enum.StrEnum):
    """``--dtype``: :data:`lmcache_kit.kv.layout.DType`, which takes numpy to import."""

    BFLOAT16 = "bfloat16"
    FLOAT16 = "float16"
    FLOAT32 = "float32"


class Device(enum.StrEnum):
    """``--device``."""

    CPU = "cpu"
    GPU = "gpu"


def register(parent: typer.Typer) -> None:
    """Add the commands to the application."""
    parent.add_typer(app, name="codec")


SetOption = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="OPTION=VALUE", help="Option of the method; may be given several times."),
]


@app.command()
def bench(
    method: Annotated[
        list[str] | None,
        typer.Option("--method", help="Compression method; may be given several times. Default: all installed."),
    ] = None,
    shape: Annotated[
        str | None,
        typer.Option("--shape", metavar="L,2,T,H,D", help=f"Shape of random KV. Default: {DEFAULT_SHAPE}."),
    ] = None,
    input: Annotated[  # noqa: A002  (the option's name)
        Path | None,
        typer.Option("--input", metavar="FILE", help="safetensors file with KV as one tensor named kv."),
    ] = None,
    dtype: Annotated[
        Dtype | None,
        typer.Option("--dtype", help="Element type. Default: bfloat16; of a file: its own."),
    ] = None,
    level: Annotated[
        list[int] | None,
        typer.Option("--level", help="The same as --set level=N; given several times, each is measured."),
    ] = None,
    settings: SetOption = None,
    device: Annotated[Device | None, typer.Option("--device", help="The same as --set device=...")] = None,
    seconds: Annotated[float, typer.Option("--seconds", min=0, max=3600, help="Time for each speed.")] = 1.0,
    seed: Annotated[int | None, typer.Option("--seed", min=0, help="Of random KV. Default: 0.")] = None,
    format: FormatOption = Format.TABLE,  # noqa: A002
) -> None:
    """Measure size, error and speed of compression methods on one KV tensor."""
    from lmcache_kit.codec_tools import bench_document, measure_method
    from lmcache_kit.plugins import registry

    values = _settings(settings, device=device)
    choices = [choice for each in _levels(level, values) for choice in _chosen(method or [], each)]
    kv, source = _bench_kv(shape, input, dtype, seed)
    results, given, gpu = [], [], None
    for choice in choices:
        try:
            made = choice.make()
            results.append(measure_method(choice, made, kv, seconds))
        except LMCacheKitError as error:
            # What is asked for by name must work; of all that happen to be installed, one may not fit this KV.
            if method:
                raise
            typer.echo(f"left out: {choice.name}: {error.detail}", err=True)
            continue
        given.append(choice.given)
        gpu = gpu or _gpu(made)
    if not results:
        raise ConfigError("no compression method could be measured")
    if format is Format.JSON:
        names = {choice.name for choice in choices}
        distributions = {each.distribution for each in registry().all("compression") if each.record.name in names}
        print_json(bench_document(results, kv=source, seconds=seconds, gpu=gpu, distributions=sorted(distributions)))
        return
    from lmcache_kit.cli.codec_table import bench_table, heading, notes

    typer.echo(heading(results, source))
    typer.echo(bench_table(results, given), nl=False)
    typer.echo("\n".join(notes(results)))


@app.command()
def fit(
    method: Annotated[str, typer.Option("--method", help="Compression method.")],
    input: Annotated[  # noqa: A002
        list[Path],
        typer.Option("--input", metavar="FILE", help="safetensors file with KV; may be given several times."),
    ],
    output: Annotated[Path, typer.Option("--output", metavar="PROFILE", help="The file to write.")],
    settings: SetOption = None,
) -> None:
    """Fit a compression method to a model's KV and write what it learned to a file."""
    from lmcache_kit.codec_tools import read_samples
    from lmcache_kit.contracts.compression import SupportsFitting

    [choice] = _chosen([method], _settings(settings))
    made = choice.make()
    if not isinstance(made, SupportsFitting):
        raise ConfigError(f"compression method {method!r} has nothing that could be fitted")
    profile = made.fit(read_samples(input))
    try:
        output.write_bytes(profile)
    except OSError as error:
        raise ConfigError(f"{output} cannot be written: {error.strerror}") from None
    typer.echo(f"{output}: {len(profile):,} bytes", err=True)


@app.command()
def sample(
    text: Annotated[Path, typer.Option("--text", metavar="FILE", help="UTF-8 text, the prompt.")],
    output: Annotated[Path, typer.Option("--output", metavar="FILE", help="The safetensors file to write.")],
    engine: Annotated[
        str, typer.Option("--engine", help="Engine plugin; see `plugins list --kind engine`.")
    ] = "transformers",
    model: Annotated[
        str | None, typer.Option("--model", help="Model that the engine loads. Default: the engine's own.")
    ] = None,
    tokens: Annotated[
        int | None, typer.Option("--tokens", min=1, help="Only the text's first tokens. Default: all.")
    ] = None,
    settings: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="OPTION=VALUE", help="Option of the engine; may be given several times."),
    ] = None,
) -> None:
    """Write the KV that a model computes for a text to a safetensors file."""
    from lmcache_kit.cli.serve import make_engine
    from lmcache_kit.codec_tools import sample_kv, write_kv

    try:
        prompt = text.read_text(encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"{text} cannot be read: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise ConfigError(f"{text} is not UTF-8: {error.reason} at byte {error.start}") from None
    made = make_engine(engine, model, key_values(settings or [], "--set"), max_model_len=None)
    try:
        kv = sample_kv(made, prompt, tokens)
        write_kv(output, kv, {"model": made.info.model, "fingerprint": made.info.fingerprint, "text": text.name})
    finally:
        made.close()
    print_facts({"file": str(output), "shape": ",".join(map(str, kv.data.shape)), "dtype": kv.layout.dtype})


def _settings(texts: list[str] | None, *, device: Device | None = None) -> dict[str, Any]:
    values = key_values(texts or [], "--set")
    if device is not None and values.setdefault("device", device.value) != device.value:
        raise ConfigError("--device and --set device differ", hint="give one")
    return values


def _levels(levels: list[int] | None, values: dict[str, Any]) -> list[dict[str, Any]]:
    """The options for each level that was asked for."""
    if not levels:
        return [values]
    if "level" in values:
        raise ConfigError("--level and --set level are both given", hint="give one")
    return [{"level": level, **values} for level in dict.fromkeys(levels)]


def _chosen(names: list[str], values: dict[str, Any]) -> list[Choice]:
    from lmcache_kit.codec_tools import choose_methods
    from lmcache_kit.plugins import registry

    choices, left_out = choose_methods(registry(), names, values)
    for name, reason in left_out.items():
        typer.echo(f"left out: {name}: {reason}", err=True)
    return choices


def _bench_kv(
    shape: str | None, path: Path | None, dtype: Dtype | None, seed: int | None
) -> tuple[KVTensor, dict[str, Any]]:
    """The KV, and what the document says of it."""
    from lmcache_kit.codec_tools import convert_kv, random_kv, read_kv
    from lmcache_kit.kv.layout import KVLayout

    if path is not None:
        for flag, value in (("--shape", shape), ("--seed", seed)):
            if value is not None:
                raise ConfigError(f"--input and {flag} are both given", hint=f"{flag} is for random KV")
        kv = read_kv(path)
        if dtype is not None and dtype.value != kv.layout.dtype:
            kv = convert_kv(kv, dtype.value)
        return kv, {"input": str(path), "seed": None}
    layers, planes, num_tokens, heads, dim = _shape(shape or DEFAULT_SHAPE)
    layout = KVLayout(layers, heads, dim, (dtype or Dtype.BFLOAT16).value, planes)
    return random_kv(layout, num_tokens, seed or 0), {"input": None, "seed": seed or 0}


def _shape(text: str) -> list[int]:
    parts = text.split(",")
    if len(parts) != 5 or not all(part.strip().isdecimal() and 0 < int(part) < 2**16 for part in parts):
        raise ConfigError(
            f"--shape {text!r} is not five numbers from 1 to 65,535",
            hint=f"layers, 2 (or 1 for latent attention), tokens, KV heads, head dimension: {DEFAULT_SHAPE}",
        )
    shape = [int(part) for part in parts]
    if shape[1] > 2:
        raise ConfigError(f"--shape {text!r} has {shape[1]} planes", hint="2 (K and V), or 1 for latent attention")
    return shape


def _gpu(method: object) -> str | None:
    """The name of the GPU that a method works on, if it does."""
    device = str(getattr(method, "device", "cpu"))
    return None if device.startswith("cpu") else str(getattr(method, "device_name", device))
