"""What ``lmcache-kit codec bench`` shows to people."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from lmcache_kit.units import format_size

if TYPE_CHECKING:
    from lmcache_kit.codec_tools import CodecResult

__all__ = ["bench_table", "heading", "notes"]


def heading(results: Sequence[CodecResult], kv: Mapping[str, Any]) -> str:
    """What was encoded, in one line, and where, if all did it in the same place."""
    result = results[0]
    shape = ",".join(map(str, result.shape))
    source = f"{kv['input']}" if kv["input"] is not None else f"random KV, seed {kv['seed']}"
    where = f", on {result.device}" if _one_device(results) else ""
    return f"{shape} {result.dtype}, {format_size(result.raw_bytes)}: {source}{where}"


def bench_table(results: Sequence[CodecResult], given: Sequence[Mapping[str, Any]]) -> str:
    """The figures; ``given`` are the options that the user set for each result."""
    from lmcache_kit.text_table import terminal_width, text_table

    apart, one_device = any(map(_apart, results)), _one_device(results)
    columns = ["method", "bits", "ratio", "nmse", "max error", "encode", "decode"]
    columns += ["to bytes", "from bytes"] if apart else []
    numeric = columns[1:]
    columns += [] if one_device else ["device"]
    rows = []
    for result, options in zip(results, given, strict=True):
        speeds = [result.encode_gbps, result.decode_gbps]
        speeds += [result.to_bytes_gbps, result.from_bytes_gbps] if apart else []
        rows.append(
            [
                " ".join([result.method, *(f"{key}={value}" for key, value in options.items() if key != "device")]),
                f"{result.bits_per_element:.2f}",
                f"{result.ratio:.2f}",
                "-" if result.nmse is None else f"{result.nmse:.2g}",
                f"{result.max_abs_error:.2g}",
                *(f"{speed:.3g}" for speed in speeds),
                *([] if one_device else [result.device]),
            ]
        )
    return text_table(columns, rows, width=terminal_width(), numeric=numeric)


def notes(results: Sequence[CodecResult]) -> list[str]:
    """What the figures mean, as far as they are there."""
    lines = ["bits: per element. nmse: squared error over squared value. Speeds: GB/s of uncompressed KV."]
    if any(map(_apart, results)):
        lines.append("encode, decode: tensor on the GPU to buffers there and back. to, from bytes: to host memory.")
    lines += [
        f"{result.method}: {result.non_finite_mismatches:,} infinities or NaN did not come back as they were."
        for result in results
        if result.non_finite_mismatches
    ]
    return lines


def _one_device(results: Sequence[CodecResult]) -> bool:
    return len({result.device for result in results}) == 1


def _apart(result: CodecResult) -> bool:
    """Whether coding on the device and coding to host memory are two things."""
    return (result.encode_gbps, result.decode_gbps) != (result.to_bytes_gbps, result.from_bytes_gbps)
