"""Run by the Python of vLLM's environment: one engine in this process, what it is asked, and what it did.

    python in_process.py JOB.json RESULT.json

A job is ``{"engine": arguments of vllm.LLM, "block_multiple": N or null, "store": folder or null, "chunk_size": N,
"steps": [step]}``. Steps:

* ``{"do": "generate", "prompts": [[token]], "max_tokens": N}`` -> for each prompt ``tokens``, ``cached`` tokens and
  what the connector said;
* ``{"do": "await_blobs", "count": N}``: until so many blobs are in the folder ``store``, a disk tier's;
* ``{"do": "wipe"}``: overwrite the whole paged KV cache;
* ``{"do": "compare_store", "prompt": [token]}``: what the store holds of a prompt with what the model computed;
* ``{"do": "compare_blocks", "prompt": [token], "tokens": N}``: what the last request's blocks hold of its first tokens
  with the same;
* ``{"do": "metrics"}`` -> numbers by name.

What the model computed is taken from the one call that writes K and V into blocks, and how they lie in a block is found
out by that call: nothing of lmcache-kit's connector is used for it.
"""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path
from typing import Any

os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"

import torch
from vllm import LLM, SamplingParams
from vllm import _custom_ops as ops
from vllm.v1.attention.backend import MultipleOf
from vllm.v1.attention.backends.cpu_attn import CPUAttentionBackend

from lmcache_kit.instance.store.codecs import CodecSet
from lmcache_kit.kv import ChunkHasher, HashSpec, unpack_blob

Json = dict[str, Any]
INTEGERS = {torch.float32: torch.int32, torch.bfloat16: torch.int16}
WAIT_SECONDS = 30.0


class Recorder:
    """What the model computes: bits of K and V by layer and token position, and the blocks they were written to."""

    def __init__(self) -> None:
        self.write, self.read = ops.cpu_attn_reshape_and_cache, ops.cpu_attention_with_kv_cache
        ops.cpu_attn_reshape_and_cache = self.on_write
        ops.cpu_attention_with_kv_cache = self.on_read
        self.forget()
        self.layers: dict[int, torch.Tensor] = {}
        self.isa = ""

    def forget(self) -> None:
        """Begin anew with the next request."""
        self.keys: dict[int, dict[int, torch.Tensor]] = {}
        self.values: dict[int, dict[int, torch.Tensor]] = {}
        self.pending: dict[int, tuple[torch.Tensor, torch.Tensor, torch.Tensor, str]] = {}
        self.table: list[int] = []

    def on_write(self, key: torch.Tensor, value: torch.Tensor, key_cache: torch.Tensor, *args: Any, **more: Any) -> Any:
        self.pending[key_cache.data_ptr()] = (key.clone(), value.clone(), key_cache, args[2])
        return self.write(key, value, key_cache, *args, **more)

    def on_read(self, *args: Any, **more: Any) -> Any:
        """Attention over one request's tokens: the newest ones are those written just before."""
        layer = more["key_cache"].data_ptr()
        table, length = more["block_table"], int(more["seq_lens"][0])
        if len(more["seq_lens"]) == 1 and layer in self.pending:
            key, value, self.layers[layer], self.isa = self.pending.pop(layer)
            computed = int(more["query_start_loc"][1])
            for index in range(computed):
                position = length - computed + index
                self.keys.setdefault(layer, {})[position] = key[index]
                self.values.setdefault(layer, {})[position] = value[index]
            self.table = table[0].tolist()
        return self.read(*args, **more)


def places(isa: str, dtype: torch.dtype, block_size: int, head_dim: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Where K and V of each token and dimension lie in a block of one head, ``[block_size, head_dim]`` each.

    Found by having vLLM write K and V that are all different. Patterns count from 1: a block begins with zeros.
    """
    integer, size = INTEGERS[dtype], block_size * head_dim
    parts = []
    for count in range(0, size, 8192):  # few enough for the bits of a positive bfloat16
        pattern = torch.arange(1 - count, size + 1 - count)
        pattern = torch.where((pattern > 0) & (pattern <= 8192), pattern, 0)
        rows = pattern.to(integer).view(dtype).reshape(block_size, 1, head_dim)
        block = torch.zeros(1, 1, 2 * block_size, head_dim, dtype=dtype)
        keys, values = block.chunk(2, dim=2)
        slots = torch.arange(block_size)
        recorder.write(rows, rows, keys, values, slots, isa, k_scale=1.0, v_scale=1.0, kv_cache_dtype="auto")
        parts.append(torch.where(block.view(integer) > 0, block.view(integer).to(torch.int64) + count, 0))
    number = torch.stack(parts).sum(0).reshape(2, size)
    assert torch.equal(number.sort(dim=1).values, torch.arange(1, size + 1).expand(2, size)), "not a permutation"
    where = number.argsort(dim=1).reshape(2, block_size, head_dim)
    return where[0], where[1]


recorder = Recorder()


def computed(prompt: list[int]) -> torch.Tensor:
    """The bits that the model computed for a prompt, ``[layers, 2, tokens, heads, head_dim]``."""
    every = []
    for layer in sorted(recorder.layers):
        rows = [
            torch.stack([part[layer][at] for at in range(len(prompt))]) for part in (recorder.keys, recorder.values)
        ]
        every.append(torch.stack(rows))
    bits = torch.stack(every)
    return bits.view(INTEGERS[bits.dtype])


def in_blocks(prompt: list[int]) -> torch.Tensor:
    """The bits that the blocks of the last request hold, in the same shape."""
    every = []
    for layer in sorted(recorder.layers):
        cache = recorder.layers[layer]
        heads, block_size, head_dim = cache.shape[1], cache.shape[2], cache.shape[3]
        key_at, value_at = places(recorder.isa, cache.dtype, block_size, head_dim)
        integer = INTEGERS[cache.dtype]
        # K and V of a block and head lie behind each other, K first.
        whole = torch.as_strided(
            cache, (cache.shape[0], heads, 2 * block_size * head_dim), (*cache.stride()[:2], 1), cache.storage_offset()
        ).view(integer)
        keys, values = [], []
        for position in range(len(prompt)):
            block, slot = recorder.table[position // block_size], position % block_size
            keys.append(whole[block][:, key_at[slot]])
            values.append(whole[block][:, block_size * head_dim + value_at[slot]])
        every.append(torch.stack([torch.stack(keys), torch.stack(values)]))
    return torch.stack(every)


def in_store(prompt: list[int], folder: Path, chunk_size: int) -> tuple[torch.Tensor, list[str]]:
    """The bits that the blobs of a prompt's chunks decode to, and the codecs they are in."""
    blobs = {}
    for path in folder.glob("*/*.blob"):
        blob = unpack_blob(path.read_bytes())
        blobs[blob.header.key.hash] = blob
    codecs = CodecSet()
    parts, names = [], []
    for start, stop, digest in ChunkHasher(HashSpec(chunk_size=chunk_size)).chunks(prompt):
        blob = blobs[digest]
        assert blob.header.num_tokens == stop - start
        names.append(blob.header.codec)
        data = codecs.decode_blob(blob).data
        parts.append(torch.from_numpy(data.view(f"i{data.itemsize}").copy()))
    return torch.cat(parts, dim=2), names


def difference(one: torch.Tensor, other: torch.Tensor) -> Json:
    """How much was compared, and how many elements differ, by layer."""
    assert one.shape == other.shape, (one.shape, other.shape)
    return {
        "shape": list(one.shape),
        "distinct": int(one.unique().numel()),
        "differing": [int((one[layer] != other[layer]).sum()) for layer in range(one.shape[0])],
    }


class Engine:
    """The engine and its steps."""

    def __init__(self, job: Json) -> None:
        if (multiple := job.get("block_multiple")) is not None:
            CPUAttentionBackend.get_supported_kernel_block_sizes = staticmethod(
                lambda spec=None: [MultipleOf(multiple)]
            )
        self.llm = LLM(disable_log_stats=False, **job["engine"])
        self.store = Path(job["store"]) if job.get("store") else None
        self.chunk_size = job.get("chunk_size", 256)
        self.truth: dict[tuple[int, ...], torch.Tensor] = {}

    def generate(self, prompts: list[list[int]], max_tokens: int) -> Any:
        recorder.forget()
        sampling = SamplingParams(temperature=0, max_tokens=max_tokens, ignore_eos=True)
        answers = self.llm.generate([{"prompt_token_ids": each} for each in prompts], sampling, use_tqdm=False)
        if len(prompts) == 1 and len(next(iter(recorder.keys.values()), {})) >= len(prompts[0]):
            self.truth.setdefault(tuple(prompts[0]), computed(prompts[0]))
        return [
            {
                "tokens": list(answer.outputs[0].token_ids),
                "cached": answer.num_cached_tokens,
                "said": (answer.kv_transfer_params or {}).get("lmcache_kit"),
            }
            for answer in answers
        ]

    def await_blobs(self, count: int) -> Any:
        assert self.store is not None
        deadline = time.monotonic() + WAIT_SECONDS
        while (found := len(list(self.store.glob("*/*.blob")))) < count:
            assert time.monotonic() < deadline, f"{found} of {count} blobs"
            time.sleep(0.05)
        return found

    def wipe(self) -> Any:
        """Every bit of the paged KV cache."""
        for cache in recorder.layers.values():
            cache.untyped_storage().fill_(0x55)

    def compare_store(self, prompt: list[int]) -> Any:
        assert self.store is not None
        bits, codecs = in_store(prompt, self.store, self.chunk_size)
        return {**difference(self.truth[tuple(prompt)], bits), "codecs": codecs, "isa": recorder.isa}

    def compare_blocks(self, prompt: list[int], tokens: int) -> Any:
        first = min(min(positions) for positions in recorder.keys.values())
        truth = self.truth[tuple(prompt)][:, :, :tokens]
        return {**difference(truth, in_blocks(prompt[:tokens])), "first_computed": first}

    def metrics(self) -> Any:
        found: dict[str, float] = {}
        for metric in self.llm.get_metrics():
            if hasattr(metric, "value"):
                found[metric.name] = found.get(metric.name, 0) + metric.value
        return found


def main(job_path: str, result_path: str) -> None:
    job = json.loads(Path(job_path).read_text())
    engine = Engine(job)
    results = []
    for step in job["steps"]:
        arguments = {name: value for name, value in step.items() if name != "do"}
        results.append(getattr(engine, step["do"])(**arguments))
    Path(result_path).write_text(json.dumps(results))


if __name__ == "__main__":
    main(*sys.argv[1:])
