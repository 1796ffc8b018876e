"""Runs whose costs are known: made on the virtual clock, and given out as wall runs."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import yaml

from lmcache_kit.plugins import registry
from lmcache_kit.scenario.loader import scenario_from_data
from lmcache_kit.sim.runner import VirtualRun

DATA = Path(__file__).parents[3] / "scenarios" / "data"
CPU, DISK = "LocalCPUBackend", "LocalDiskBackend"
ENGINE = {
    "kind": "synthetic",
    "model": "m",
    "options": {"num_layers": 4, "num_kv_heads": 4, "head_dim": 64, "dtype": "float32"},
}
COSTS: dict[str, Any] = {
    "engines": {
        "synthetic/m": {
            "prefill_base": 0.005,
            "prefill_pass": 0.004,
            "prefill_token": 6e-5,
            "prefill_attention": 8e-8,
            "decode_base": 0.003,
            "decode_context": 1e-6,
            "copy_token": 8e-7,
            "start_token": 1e-6,
            "tokenize_token": 2e-6,
            "handoff": 0.0003,
        }
    },
    "codecs": {
        "naive": {"ratio": 1.0, "encode_gbps": 1.5, "decode_gbps": 0.7},
        "zstd": {"ratio": 1.2, "encode_gbps": 0.2, "decode_gbps": 0.35, "chunk_seconds": 0.003},
    },
    "tiers": {
        CPU: {"read_gbps": 8.0, "write_gbps": 8.0, "read_seconds": 2e-5, "write_seconds": 2e-5},
        DISK: {"read_gbps": 0.9, "write_gbps": 0.4, "read_seconds": 5e-4, "write_seconds": 1e-3},
    },
    "request_seconds": 0.004,
    "request_token": 4e-7,
    "lookup_seconds": 0.002,
    "call_seconds": 0.003,
    "load_seconds": 0.0002,
    "save_seconds": 0.002,
    "recode_seconds": 0.001,
    "transfer_gbps": 0.2,
}


def traffic(name: str, **more: Any) -> dict[str, Any]:
    return {
        "name": name,
        "kind": "traffic",
        "contents": {
            "kind": "shared_prefix",
            "groups": 5,
            "prefix_tokens": {"kind": "uniform", "at_least": 64, "at_most": 900},
            "suffix_tokens": {"kind": "uniform", "at_least": 1, "at_most": 500},
            "output_tokens": {"kind": "uniform", "at_least": 2, "at_most": 12},
        },
        "arrivals": {"kind": "closed", "concurrency": 1},
        "requests": 60,
        **more,
    }


def position(instance: str, location: str = DISK) -> dict[str, str]:
    return {"instance": instance, "location": location}


def everything() -> dict[str, Any]:
    """A scenario with all that costs can be fitted to."""
    return {
        "name": "known",
        "seed": 3,
        "base_dir": str(DATA.parent),
        "instance_defaults": {
            "engine": ENGINE,
            "chunk_size": 64,
            "tiers": [{"kind": "memory", "capacity": "48MiB"}, {"kind": "disk", "capacity": "1GiB"}],
        },
        "instances": [{"id": "a"}, {"id": "b"}, {"id": "wide", "chunk_size": 160}],
        "links": [{"between": ["a", "b"], "bandwidth": "1Gbps", "latency": "2ms"}],
        "workloads": [
            traffic("alone", instances=["a", "wide"], requests=120),
            {
                "name": "serve",
                "kind": "completions",
                "generate": {
                    "text_file": "data/handbook.txt",
                    "questions_file": "data/questions.txt",
                    "groups": 6,
                    "per_group": 2,
                    "passage_words": 120,
                },
                "instances": ["a", "wide"],
                "max_tokens": 4,
            },
            {"name": "lookup", "kind": "lookup", "of": "serve"},
            {"name": "compress", "kind": "compress", "of": "serve", "method": "zstd"},
            {"name": "read", "kind": "completions", "prompts_of": "serve", "max_tokens": 4},
            {"name": "decompress", "kind": "decompress", "of": "serve", "method": "zstd"},
            {
                "name": "move",
                "kind": "move",
                "of": "serve",
                "prompts": [0, 4],
                "from": position("a"),
                "to": position("b"),
                "copy": True,
            },
        ],
    }


@pytest.fixture(scope="session")
def as_wall():
    """Plays scenario data with known costs into a folder, which then looks like the output of a wall run."""

    def play(data: dict[str, Any], made_by: dict[str, Any], folder: Path, **changes: Any) -> Path:
        scenario = scenario_from_data({**data, "clock": "virtual", "costs": made_by})
        VirtualRun(scenario, registry(), folder, progress=lambda line: None).run()
        document = yaml.safe_load((folder / "scenario.yaml").read_text())
        document = {**document, "clock": "wall", "costs": None, **changes}
        (folder / "scenario.yaml").write_text(yaml.safe_dump(document))
        return folder

    return play


@pytest.fixture
def whole():
    """The data of ``everything`` and its costs, to be changed."""
    return everything(), copy.deepcopy(COSTS)


@pytest.fixture(scope="session")
def known(as_wall, tmp_path_factory):
    """The output folder of ``everything`` with ``COSTS``."""
    return as_wall(everything(), COSTS, tmp_path_factory.mktemp("known") / "wall")
