"""Costs that need no calibration: accelerators by their roofline, and tiers and codecs as measured once.

An accelerator's figures are computed, not measured, from the model's size and the card's data sheet at the given
efficiency: prefill is bound by arithmetic (2 floating-point operations a parameter and token, attention 4 a layer,
channel and pair of tokens), a decoding step by reading the weights once and every sequence's KV.
"""

from __future__ import annotations

from typing import Any

__all__ = ["DEFAULT_CODECS", "DEFAULT_TIERS", "PROFILES"]


def _accelerator(
    *, parameters: float, layers: int, hidden: int, kv_bytes_per_token: float, tflops: float, gbps: float, step: float
) -> dict[str, Any]:
    """Costs of a dense model in 16 bits.

    Args:
        parameters: of the model.
        layers, hidden: of the model; hidden is query heads times head dimension.
        kv_bytes_per_token: of all layers.
        tflops: 10^12 operations a second that prefill reaches.
        gbps: 10^9 bytes a second that decoding reaches.
        step: seconds of a step besides.
    """
    return {
        "prefill_base": step,
        "prefill_token": 2 * parameters / (tflops * 1e12),
        "prefill_attention": 4 * layers * hidden / (tflops * 1e12),
        "decode_base": step + 2 * parameters / (gbps * 1e9),
        "decode_sequence": 2 * parameters / (tflops * 1e12),
        "decode_context": kv_bytes_per_token / (gbps * 1e9),
        "batched": True,
    }


# H100 SXM: 989 TFLOP/s dense in bfloat16 and 3,350 GB/s; A100 SXM 80 GB: 312 and 2,039. Prefill at 60 % of the former,
# decoding at 80 % of the latter.
PROFILES: dict[str, dict[str, Any]] = {
    "h100-llama-3.1-8b": _accelerator(
        parameters=8.03e9, layers=32, hidden=4096, kv_bytes_per_token=131_072, tflops=593, gbps=2680, step=0.002
    ),
    "a100-llama-3.1-8b": _accelerator(
        parameters=8.03e9, layers=32, hidden=4096, kv_bytes_per_token=131_072, tflops=187, gbps=1631, step=0.002
    ),
    "8xh100-llama-3.1-70b": _accelerator(
        parameters=70.6e9, layers=80, hidden=8192, kv_bytes_per_token=327_680, tflops=3800, gbps=17_000, step=0.004
    ),
}

# Measured on two cores of a shared machine (docs/benchmarks), rounded: to see orders of magnitude. Calibrate for more.
DEFAULT_TIERS: dict[str, dict[str, Any]] = {
    "LocalCPUBackend": {"read_gbps": 8.0, "write_gbps": 8.0, "read_seconds": 2e-5, "write_seconds": 2e-5},
    "LocalDiskBackend": {"read_gbps": 1.5, "write_gbps": 0.8, "read_seconds": 2e-4, "write_seconds": 4e-4},
}
DEFAULT_CODECS: dict[str, dict[str, Any]] = {
    "naive": {"ratio": 1.0, "encode_gbps": 1.5, "decode_gbps": 1.5},
    "zstd": {"ratio": 1.4, "encode_gbps": 0.2, "decode_gbps": 0.3},
    "fp8": {"ratio": 1.98, "encode_gbps": 0.16, "decode_gbps": 0.4},
    "cachegen": {"ratio": 5.3, "encode_gbps": 0.5, "decode_gbps": 0.5},
}
