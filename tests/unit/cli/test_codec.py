"""`lmcache-kit codec`: what is accepted, what is refused and how, and what is shown."""

from __future__ import annotations

import json
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Literal, get_args

import numpy as np
import pytest

from lmcache_kit import hookimpl
from lmcache_kit.builtin.compression.naive import NaiveMethod
from lmcache_kit.cli import main
from lmcache_kit.cli.codec import Dtype
from lmcache_kit.codec_tools import random_kv, read_kv, write_kv
from lmcache_kit.contracts import CompressionMethod, CompressionPlugin, Options
from lmcache_kit.kv import KVLayout, KVTensor
from lmcache_kit.kv.layout import DType
from lmcache_kit.plugins import PluginRegistry

SMALL = ["--shape", "2,2,4,2,8", "--seconds", "0"]


class DialOptions(Options, frozen=True):
    level: int = 2
    device: Literal["auto", "cpu", "gpu"] = "cpu"
    broken: bool = False


class Dial(NaiveMethod):
    """Bytes as they are, on a device of one's choice; its profile is the number of tokens it saw."""

    device_name = "Test GPU"

    def __init__(self, options: DialOptions) -> None:
        if options.broken:
            raise ModuleNotFoundError("no such library")
        self.device = "gpu:0" if options.device == "gpu" else "cpu"

    def fit(self, samples) -> bytes:
        return str(sum(sample.num_tokens for sample in samples)).encode()


class Gpu(Dial):
    """It codes on its device, too."""

    def device_tensor(self, kv: KVTensor) -> KVTensor:
        return kv

    encode_device = decode_device = device_tensor

    def encode_tensor(self, tensor: KVTensor):
        return tensor.tobytes_view()

    def decode_tensor(self, payload: memoryview, layout: KVLayout, num_tokens: int, version: int) -> KVTensor:
        return KVTensor.from_bytes(payload, layout, num_tokens)


def dial(options: Options) -> CompressionMethod:
    assert isinstance(options, DialOptions)
    return Gpu(options) if options.device == "gpu" else Dial(options)


@pytest.fixture(autouse=True)
def plugins(monkeypatch: pytest.MonkeyPatch) -> None:
    """The built-in methods, and one that can do everything."""

    class Module(ModuleType):
        @hookimpl
        def lmcache_kit_compression_methods(self=None):
            yield CompressionPlugin(name="dial", summary="for tests", factory=dial, options=DialOptions)

    point = SimpleNamespace(name="dial", value="tests:dial", dist=None, load=lambda: Module("dial"))
    found = PluginRegistry(entry_points=[point])
    assert not found.broken
    monkeypatch.setattr("lmcache_kit.plugins.registry", lambda: found)


def test_dtypes_are_those_of_kv() -> None:
    assert tuple(Dtype) == get_args(DType)


def bench(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[dict, str]:
    """The JSON document, and what was said beside it."""
    assert main(["codec", "bench", *arguments, "--format", "json"]) == 0, capsys.readouterr().err
    shown = capsys.readouterr()
    return json.loads(shown.out), shown.err


def refused(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    assert main(["codec", *arguments]) == 2
    shown = capsys.readouterr()
    assert shown.out == ""
    assert "Traceback" not in shown.err
    return shown.err


def test_every_method_by_default_on_the_same_kv(capsys) -> None:
    document, said = bench(capsys, *SMALL)
    assert said == ""
    assert [result["method"] for result in document["results"]] == ["dial", "fp8", "naive", "zstd"]
    assert document["schema_version"] == 1
    assert document["kv"] == {"input": None, "seed": 0}
    assert {"cpu", "cores", "gpu"} <= set(document["host"])
    assert document["host"]["gpu"] is None
    for result in document["results"]:
        assert (result["shape"], result["dtype"], result["raw_bytes"]) == ([2, 2, 4, 2, 8], "bfloat16", 512)


def test_options_reach_the_method_and_are_recorded(capsys) -> None:
    document, _ = bench(capsys, *SMALL, "--method", "zstd", "--set", "shuffle=false", "--level", "7")
    [result] = document["results"]
    assert result["options"] == {"level": 7, "shuffle": False}
    assert main(["codec", "bench", *SMALL, "--method", "zstd", "--level", "7"]) == 0
    assert "zstd level=7 " in capsys.readouterr().out


def test_several_levels_are_several_results(capsys) -> None:
    document, _ = bench(capsys, *SMALL, "--method", "zstd", "--level", "1", "--level", "9", "--level", "1")
    assert [result["options"]["level"] for result in document["results"]] == [1, 9]


def test_without_names_only_methods_with_the_option_are_measured(capsys) -> None:
    document, said = bench(capsys, *SMALL, "--level", "3")
    assert [result["method"] for result in document["results"]] == ["dial", "zstd"]
    assert said.splitlines() == ["left out: fp8: no option level", "left out: naive: no option level"]


def test_without_names_a_value_that_a_method_does_not_take_leaves_it_out(capsys) -> None:
    document, said = bench(capsys, *SMALL, "--level", "99")
    assert [result["method"] for result in document["results"]] == ["dial"]
    assert "left out: zstd: options of compression plugin 'zstd': Expected `int` <= 22" in said


def test_a_method_may_choose_its_device(capsys) -> None:
    document, _ = bench(capsys, *SMALL, "--method", "dial", "--set", "device=auto")
    assert document["results"][0]["device"] == "cpu"


@pytest.mark.parametrize("arguments", [["--method", "zstd"], ["--method", "zstd", "--method", "dial"]])
def test_a_cpu_needs_no_option(capsys, arguments: list[str]) -> None:
    document, _ = bench(capsys, *SMALL, *arguments, "--device", "cpu")
    assert {result["device"] for result in document["results"]} == {"cpu"}


def test_a_gpu(capsys) -> None:
    document, said = bench(capsys, *SMALL, "--device", "gpu")
    [result] = document["results"]
    assert (result["method"], result["device"], result["options"]["device"]) == ("dial", "gpu:0", "gpu")
    assert document["host"]["gpu"] == "Test GPU"
    assert "left out: zstd: no option device" in said


def test_the_table_of_a_gpu_fits_a_terminal(capsys) -> None:
    arguments = ["--shape", "32,2,256,8,8", "--seconds", "0", "--method", "dial", "--level", "3", "--device", "gpu"]
    assert main(["codec", "bench", *arguments]) == 0
    out = capsys.readouterr().out
    assert "to bytes   from bytes" in out
    assert "seed 0, on gpu:0\n" in out
    assert "dial level=3  " in out
    assert max(map(len, out.splitlines())) <= 100


def test_the_table(capsys) -> None:
    assert main(["codec", "bench", *SMALL, "--seed", "4"]) == 0
    out = capsys.readouterr().out
    assert out.startswith("2,2,4,2,8 bfloat16, 512 B: random KV, seed 4, on cpu\n")
    assert "to bytes" not in out
    assert max(map(len, out.splitlines())) <= 100
    assert [line.split()[0] for line in out.splitlines()[4:8]] == ["dial", "fp8", "naive", "zstd"]


def test_what_does_not_fit_a_method_leaves_it_out_unless_it_was_named(capsys, tmp_path: Path) -> None:
    kv = random_kv(KVLayout(1, 1, 4, "float16"), 3, seed=0)
    kv.data[0, 0, 0, 0, 0] = np.nan
    write_kv(file := tmp_path / "nan.safetensors", kv)
    document, said = bench(capsys, "--input", str(file), "--seconds", "0")
    assert [result["method"] for result in document["results"]] == ["dial", "naive", "zstd"]
    assert {result["nmse"] for result in document["results"]} == {0}
    assert "left out: fp8: fp8 cannot represent infinities and NaN" in said
    assert main(["codec", "bench", "--input", str(file), "--method", "fp8"]) == 1
    assert "fp8 cannot represent infinities and NaN" in capsys.readouterr().err


def test_a_broken_method_leaves_it_out_unless_it_was_named(capsys) -> None:
    assert main(["codec", "bench", *SMALL, "--set", "broken=true"]) == 2
    shown = capsys.readouterr().err
    assert "left out: dial: dial cannot be made: ModuleNotFoundError: no such library" in shown
    assert "error: no compression method could be measured" in shown
    assert main(["codec", "bench", *SMALL, "--method", "dial", "--set", "broken=true"]) == 1
    assert "error: dial cannot be made: ModuleNotFoundError: no such library" in capsys.readouterr().err


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32"])
def test_a_file(capsys, tmp_path: Path, dtype: str) -> None:
    write_kv(file := tmp_path / "a.safetensors", random_kv(KVLayout(3, 2, 5, dtype, 1), 7, seed=0))
    document, _ = bench(capsys, "--input", str(file), "--method", "naive", "--seconds", "0")
    [result] = document["results"]
    assert (result["shape"], result["dtype"], result["nmse"]) == ([3, 1, 7, 2, 5], dtype, 0)
    assert document["kv"] == {"input": str(file), "seed": None}
    document, _ = bench(capsys, "--input", str(file), "--method", "naive", "--seconds", "0", "--dtype", "bfloat16")
    assert document["results"][0]["dtype"] == "bfloat16"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--method", "zsdt"], "unknown compression plugin 'zsdt'"),
        (["--method", "fp8", "--level", "3"], "compression plugin 'fp8' has no option 'level'"),
        (["--method", "zstd", "--set", "levle=3"], "compression plugin 'zstd' has no option 'levle'"),
        (["--set", "levle=3"], "no compression method that is installed takes levle=3"),
        (["--method", "zstd", "--level", "99"], "options of compression plugin 'zstd': Expected `int` <= 22"),
        (["--method", "zstd", "--device", "gpu"], "'zstd' runs on the CPU only: it has no option 'device'"),
        (["--method", "zstd", "--set", "device=gpu"], "'zstd' runs on the CPU only: it has no option 'device'"),
        (["--method", "dial", "--set", "device=tpu"], "options of compression plugin 'dial'"),
        (["--device", "tpu"], "'tpu' is not one of"),
        (["--device", "gpu", "--set", "device=cpu"], "--device and --set device differ"),
        (["--level", "3", "--set", "level=3"], "--level and --set level are both given"),
        (["--level", "high"], "Invalid value for '--level'"),
        (["--set", "level"], "--set 'level' is not KEY=VALUE"),
        (["--shape", "2,2,4,2"], "--shape '2,2,4,2' is not five numbers"),
        (["--shape", "2,2,4,2,x"], "is not five numbers"),
        (["--shape", "2,2,0,2,8"], "is not five numbers"),
        (["--shape", "2,2,-4,2,8"], "is not five numbers"),
        (["--shape", "2,2,65536,2,8"], "is not five numbers"),
        (["--shape", "2,3,4,2,8"], "--shape '2,3,4,2,8' has 3 planes"),
        (["--dtype", "float64"], "'float64' is not one of"),
        (["--seconds", "-1"], "Invalid value for '--seconds'"),
        (["--input", "nowhere.safetensors"], "nowhere.safetensors cannot be read"),
        (["--input", "x", "--shape", "1,2,1,1,1"], "--input and --shape are both given"),
        (["--input", "x", "--seed", "0"], "--input and --seed are both given"),
        (["x.safetensors"], "unexpected extra argument"),
    ],
)
def test_bench_refuses(capsys, arguments: list[str], message: str) -> None:
    assert message in refused(capsys, "bench", *arguments)


def test_fit_gives_the_method_every_file(capsys, tmp_path: Path) -> None:
    files = []
    for tokens in (3, 4):
        files += ["--input", str(tmp_path / str(tokens))]
        write_kv(tmp_path / str(tokens), random_kv(KVLayout(1, 1, 4), tokens, seed=0))
    assert main(["codec", "fit", "--method", "dial", *files, "--output", str(tmp_path / "profile")]) == 0
    assert (tmp_path / "profile").read_bytes() == b"7"


def test_fit_refuses(capsys, tmp_path: Path) -> None:
    write_kv(tmp_path / "kv", random_kv(KVLayout(1, 1, 4), 2, seed=0))
    to = ["--input", str(tmp_path / "kv"), "--output", str(tmp_path / "profile")]
    assert "compression method 'zstd' has nothing that could be fitted" in refused(
        capsys, "fit", "--method", "zstd", *to
    )
    assert "unknown compression plugin 'dail'" in refused(capsys, "fit", "--method", "dail", *to)
    assert "has no option 'levle'" in refused(capsys, "fit", "--method", "dial", "--set", "levle=1", *to)
    assert "Missing option '--input'" in refused(capsys, "fit", "--method", "dial", *to[2:])
    assert not (tmp_path / "profile").exists()
    to[3] = str(tmp_path / "no" / "folder")
    assert "cannot be written" in refused(capsys, "fit", "--method", "dial", *to)


def test_sample_writes_what_an_engine_computes(capsys, tmp_path: Path) -> None:
    (text := tmp_path / "text").write_text("the lamp turns on a bath of oil")
    output = tmp_path / "kv.safetensors"
    common = ["--engine", "synthetic", "--model", "m", "--text", str(text), "--output", str(output)]
    options = ["--set", "num_layers=3", "--set", "dtype=bfloat16"]
    assert main(["codec", "sample", *common, *options, "--tokens", "12"]) == 0
    assert "bfloat16" in capsys.readouterr().out
    kv = read_kv(output)
    assert (kv.layout.num_layers, kv.layout.dtype, kv.num_tokens) == (3, "bfloat16", 12)
    document, _ = bench(capsys, "--input", str(output), "--method", "zstd", "--seconds", "0")
    assert document["results"][0]["nmse"] == 0


def test_sample_refuses(capsys, tmp_path: Path) -> None:
    (text := tmp_path / "text").write_text("short")
    (binary := tmp_path / "binary").write_bytes(b"\xff\xfe")
    to = ["--output", str(tmp_path / "kv"), "--engine", "synthetic"]
    assert "no model is named" in refused(capsys, "sample", "--text", str(text), *to)
    to += ["--model", "m"]
    assert "6 tokens, 70 are asked for" in refused(capsys, "sample", "--text", str(text), "--tokens", "70", *to)
    assert "is not UTF-8" in refused(capsys, "sample", "--text", str(binary), *to)
    assert "cannot be read" in refused(capsys, "sample", "--text", str(tmp_path / "none"), *to)
    assert "has no option 'layers'" in refused(capsys, "sample", "--text", str(text), "--set", "layers=2", *to)
    assert "unknown engine plugin 'synthetik'" in refused(
        capsys, "sample", "--text", str(text), *to[:2], "--engine", "synthetik"
    )
    assert not (tmp_path / "kv").exists()
