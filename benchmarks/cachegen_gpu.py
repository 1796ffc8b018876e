"""Our cachegen on a GPU beside LMCache's CUDA kernels, nvCOMP's ANS, an fp8 cast and plain copies, in one run.

All take the same tensors: random bfloat16 KV (`lmcache_kit.codec_tools.random_kv`) on the device. A shape with a
number of chunks in front codes that many chunks in one go. Figures are seconds per call:

- encode, decode: batches of calls over several tensors in turn, more than the second-level cache holds together;
- encode_same, decode_same: the same over one tensor;
- encode_single, decode_single: one call at a time, the device idle before and after;
- to_bytes, from_bytes: between the tensor on the device and bytes in host memory, coding included.

Speeds in the table are GB/s of the bfloat16 tensor. What cannot be measured is in the result file with its reason.
LMCache needs only the extension of its wheel (`pip install --no-deps lmcache`, or --lmcache-ops), built for the
PyTorch at hand; nvCOMP needs nvidia-nvcomp-cu13 and nvidia-libnvcomp-cu13. A method that fails ends the run with
status 1, after the others.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

# jax would take most of the memory at its start, and PyTorch has the tensors.
os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")

from harness import Report, argument_parser

try:
    import torch
    from gpu_checks import check
    from gpu_contenders import Case, Contender, DeviceCopy, Fp8Cast, HostLink, UnavailableError
    from gpu_run import Run
    from gpu_timing import device_facts
    from lmcache_cuda import LMCacheCuda, find_ops, load_ops
    from nvcomp_ans import NvcompAns, load_nvcomp
    from ours_gpu import Ours
except ModuleNotFoundError as error:
    if error.name not in ("torch", "lmcache_kit_kernels"):
        raise
    sys.exit(f"error: this benchmark needs {error.name}, which is not installed")

from gpu_tables import add_comparisons, print_results

from lmcache_kit.codec_tools import random_kv
from lmcache_kit.kv.layout import KVLayout

SHAPES = ("32,2,256,8,128", "8*32,2,256,8,128", "32,2,2048,8,128", "61,1,256,1,576")
QUICK_SHAPES = ("12,2,64,2,64", "2*3,1,300,1,192")
LEVELS = (3, 4, 5)
DISTRIBUTIONS = (
    "torch", "jax", "jaxlib", "jax-cuda13-plugin", "triton", "ml-dtypes", "lmcache", "nvidia-nvcomp-cu13",
    "lmcache-kit-kernels", "lmcache-kit-cachegen",
)  # fmt: skip


def contenders(case: Case, device: str, ops: Callable[[], Any]) -> Iterator[tuple[str, Callable[[], Contender]]]:
    """The name of each, and what makes it."""
    yield "lmcache", lambda: LMCacheCuda(case, ops(), device)
    if case.chunks > 1:
        yield "lmcache, chunks as layers", lambda: LMCacheCuda(case, ops(), device, chunks_as_layers=True)
    yield "ours, lmcache", lambda: Ours(case, device, "lmcache")
    for level in LEVELS:
        yield f"ours, uniform {level}", partial(Ours, case, device, "uniform", level)
    yield "nvcomp ans, symbols", lambda: NvcompAns(case, load_nvcomp(), device, "symbols")
    yield "nvcomp ans, bfloat16", lambda: NvcompAns(case, load_nvcomp(), device, "bfloat16")
    yield "fp8 cast", Fp8Cast
    yield "device copy", DeviceCopy
    yield "host link", HostLink


def make_tensor(case: Case, seed: int, device: str) -> torch.Tensor:
    """Random KV bfloat16 ``[chunks, L, P, T, H, D]``."""
    layers, planes, tokens, heads, dim = case.shape
    layout = KVLayout(layers, heads, dim, "bfloat16", planes)
    chunks = [random_kv(layout, tokens, seed + number).data.view("int16") for number in range(case.chunks)]
    return torch.stack([torch.from_numpy(chunk) for chunk in chunks]).view(torch.bfloat16).to(device)


def once(path: Path | None, device: str) -> Callable[[], Any]:
    """Gives LMCache's extension, loaded when first asked for; why it is not there is said each time."""
    loaded: list[Any] = []

    def load() -> Any:
        if device != "cuda":
            raise UnavailableError("its kernels need a CUDA GPU")
        if not loaded:
            loaded.append(load_ops(path or find_ops()))
        return loaded[0]

    return load


def main() -> None:
    parser = argument_parser(__doc__, seconds=0.2, each="figure")
    parser.add_argument("--shape", action="append", metavar="[N*]L,P,T,H,D", help=f"default: {', '.join(SHAPES)}")
    parser.add_argument("--only", action="append", metavar="NAME", help="methods whose name begins so; default: all")
    parser.add_argument("--lmcache-ops", type=Path, metavar="FILE", help="LMCache's c_ops*.so; default: as installed")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda", help="cpu: to see that the script works")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    try:
        cases = [Case.parse(text) for text in arguments.shape or (QUICK_SHAPES if arguments.quick else SHAPES)]
    except ValueError as error:
        parser.error(str(error))
    if arguments.device == "cuda" and not torch.cuda.is_available():
        sys.exit("error: this benchmark needs a CUDA GPU and PyTorch for CUDA; --device cpu runs what needs neither")
    seconds = 0.0 if arguments.quick else arguments.seconds
    parameters = {"seconds": seconds, "seed": arguments.seed, "device": arguments.device}
    report = Report("cachegen_gpu", arguments, parameters, DISTRIBUTIONS)
    run = Run(report, arguments.device, seconds, arguments.only or ())
    ops, checks = once(arguments.lmcache_ops, arguments.device), []
    gpu = device_facts() if arguments.device == "cuda" else None

    def measure(case: Case) -> None:
        kv = make_tensor(case, arguments.seed, arguments.device)
        found = run.attempt(case, "lmcache", "check", partial(check, case, kv, ops))
        if found is not None:
            checks.append({"shape": str(case), **found})
        run.run(case, kv, contenders(case, arguments.device, ops))

    for case in cases:
        run.attempt(case, "all", "everything", partial(measure, case))
        # Written after every shape: a run that is cut short keeps what it had.
        add_comparisons(report.results)
        report.write(gpu=gpu, checks=checks, absent=run.absent)
    print_results(report.results, checks, run.absent)
    if run.failures:
        sys.exit(f"error: {run.failures} measurements failed")


if __name__ == "__main__":
    main()
