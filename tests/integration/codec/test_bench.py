"""`lmcache-kit codec` with every method that is installed, and KV of a small model."""

from __future__ import annotations

import contextlib
import importlib.util
import io
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from lmcache_kit.cli import main
from lmcache_kit.contracts import CompressionPlugin, SupportsFitting
from lmcache_kit.plugins import registry

SHAPES = ["3,2,40,2,16", "2,1,33,1,24"]
KEYS = {
    "method": str,
    "version": int,
    "shape": list,
    "dtype": str,
    "options": dict,
    "device": str,
    "raw_bytes": int,
    "encoded_bytes": int,
    "ratio": float,
    "bits_per_element": float,
    "nmse": float,
    "max_abs_error": float,
    "non_finite_mismatches": int,
    "encode_gbps": float,
    "decode_gbps": float,
    "to_bytes_gbps": float,
    "from_bytes_gbps": float,
    "first_encode_seconds": float,
    "first_decode_seconds": float,
}


def codec(*arguments: object) -> str:
    """What a command prints. In this process: starting one for each takes longer than the work."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        status = main(["codec", *map(str, arguments)])
    assert status == 0, err.getvalue()
    return out.getvalue()


def bench(*arguments: object) -> list[dict[str, Any]]:
    results: list[dict[str, Any]] = json.loads(codec("bench", "--seconds", "0", "--format", "json", *arguments))[
        "results"
    ]
    return results


def test_as_a_process() -> None:
    command = [sys.executable, "-m", "lmcache_kit", "codec", "bench", "--method", "zstd", "--seconds", "0"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=110, check=False)
    assert done.returncode == 0, done.stderr
    assert "zstd" in done.stdout


@pytest.mark.parametrize(("shape", "dtype"), [(SHAPES[0], "bfloat16"), (SHAPES[1], "float32"), (SHAPES[0], "float16")])
def test_every_method(shape: str, dtype: str) -> None:
    results = bench("--shape", shape, "--dtype", dtype, "--seed", "3")
    records = {entry.record.name: entry.record for entry in registry().all("compression")}
    assert [result["method"] for result in results] == sorted(records)
    sizes = [int(part) for part in shape.split(",")]
    elements = sizes[0] * sizes[1] * sizes[2] * sizes[3] * sizes[4]
    for result in results:
        assert set(result) == set(KEYS)
        for key, kind in KEYS.items():
            assert isinstance(result[key], kind), key
        assert (result["shape"], result["dtype"]) == (sizes, dtype)
        assert result["raw_bytes"] == elements * (4 if dtype == "float32" else 2)
        assert result["ratio"] == pytest.approx(result["raw_bytes"] / result["encoded_bytes"])
        assert result["bits_per_element"] == pytest.approx(8 * result["encoded_bytes"] / elements)
        assert result["non_finite_mismatches"] == 0
        assert 0 <= result["nmse"] < 0.2
        lossless = "lossless" in records[result["method"]].capabilities
        assert (result["nmse"] == result["max_abs_error"] == 0) or not lossless
        for speed in ("encode", "decode", "to_bytes", "from_bytes"):
            assert result[f"{speed}_gbps"] > 0
        if result["device"] == "cpu":
            assert result["encode_gbps"] == result["to_bytes_gbps"]
            assert result["decode_gbps"] == result["from_bytes_gbps"]


@pytest.fixture(scope="module")
def sample(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """KV of a small Llama."""
    if importlib.util.find_spec("lmcache_kit_transformers") is None:
        pytest.skip("real KV needs the plugin lmcache-kit-transformers")
    folder = tmp_path_factory.mktemp("sample")
    (folder / "text").write_text("The tower is forty metres high, and the lens turns on a bath of oil. " * 8)
    file = folder / "kv.safetensors"
    arguments = ("--model", "tiny-llama", "--tokens", 200, "--output", file)
    assert str(file) in codec("sample", "--text", folder / "text", *arguments)
    return file


def test_kv_of_a_model(sample: Path) -> None:
    results = {result["method"]: result for result in bench("--input", sample)}
    for result in results.values():
        assert (result["shape"], result["dtype"]) == ([4, 2, 200, 4, 32], "float32")
        assert result["nmse"] < 0.1
    assert results["zstd"]["nmse"] == 0
    assert results["fp8"]["ratio"] > 3
    [half] = bench("--input", sample, "--dtype", "bfloat16", "--method", "zstd")
    assert half["raw_bytes"] == results["zstd"]["raw_bytes"] // 2


def test_the_library_that_others_use_reads_the_sample(sample: Path) -> None:
    torch = pytest.importorskip("torch", reason="another reader of the format")
    from safetensors.torch import load_file

    tensors = load_file(sample)
    assert list(tensors) == ["kv"]
    assert tensors["kv"].shape == (4, 2, 200, 4, 32)
    assert tensors["kv"].dtype == torch.float32


def test_a_profile_fitted_to_the_kv_is_used(sample: Path, tmp_path: Path) -> None:
    pytest.importorskip("lmcache_kit_cachegen", reason="profiles need the plugin lmcache-kit-cachegen")
    record = registry().get(CompressionPlugin, "cachegen")
    assert isinstance(record.factory(record.options()), SupportsFitting)
    profile = tmp_path / "profile"
    codec("fit", "--method", "cachegen", "--input", sample, "--output", profile)
    [plain] = bench("--input", sample, "--method", "cachegen")
    [fitted] = bench("--input", sample, "--method", "cachegen", "--set", f"profile={profile}")
    assert fitted["options"]["profile"] == str(profile)
    assert fitted["nmse"] < 2 * plain["nmse"] + 1e-3
    assert fitted["encoded_bytes"] < 1.2 * plain["encoded_bytes"]
