"""Real vLLM with our connector: models made on the spot, servers, and what vLLM says without us."""

from __future__ import annotations

import contextlib
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

CHECKOUT = Path(__file__).parents[3]
# Large enough that a prompt of 2,000 tokens takes much longer to compute than to load.
SMALL = {
    "hidden_size": 512,
    "intermediate_size": 1536,
    "num_hidden_layers": 6,
    "num_attention_heads": 8,
    "num_key_value_heads": 2,
    "max_position_embeddings": 8192,
}
# The tokenizer of LMCache's documents; heads of 64, which vLLM's attention on CPUs takes.
DOCUMENTS = {"num_attention_heads": 2, "num_key_value_heads": 1, "max_position_embeddings": 8192}
OUTPUT, LONG_OUTPUT = 24, 120


@pytest.fixture(scope="session")
def servers(load_module: Callable[[str], ModuleType]) -> Any:
    """The module servers.py."""
    return load_module("vllm/servers")


@pytest.fixture(scope="session")
def prompts(load_module: Callable[[str], ModuleType]) -> Any:
    """The module prompts.py."""
    return load_module("vllm/prompts")


@pytest.fixture(scope="session")
def models(vllm_env: Any, tmp_path_factory: pytest.TempPathFactory, prompts: Any) -> dict[str, Path]:
    """Folders of two Llamas: ``small`` with a tokenizer trained on our pages, and ``documents``."""
    folder = tmp_path_factory.mktemp("models")
    text = folder / "text"
    text.write_text("".join(path.read_text() for path in sorted((CHECKOUT / "docs").rglob("*.md"))))
    options = {
        "small": [f"tokenizer_text={text}", f"vocab_size={prompts.VOCABULARY}", f"cache_dir={folder}"],
        "documents": [],
    }
    makers = []
    for name, preset, config in (("small", "tiny-llama", SMALL), ("documents", "tiny-llama-3.1", DOCUMENTS)):
        command = [vllm_env.python, "-m", "lmcache_kit_transformers.folder", preset, str(folder / name)]
        for option in ("seed=1", f"config={config}".replace("'", '"'), *options[name]):
            command += ["--option", option]
        makers.append(subprocess.Popen(command, stdout=subprocess.DEVNULL))
    assert [maker.wait(120) for maker in makers] == [0, 0]
    return {name: folder / name for name in options}


@pytest.fixture(scope="session")
def in_process(vllm_env: Any, models: dict[str, Path], servers: Any, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Runs engines in a process of vLLM's environment."""
    return servers.InProcess(vllm_env, models["small"], tmp_path_factory.mktemp("engines"))


@pytest.fixture(scope="session")
def expected(in_process: Any, prompts: Any) -> dict[str, list[int]]:
    """What vLLM, without a connector, answers to the prompts of the catalog: greedy output tokens by name."""
    steps = [
        {"do": "generate", "prompts": list(prompts.CATALOG.values()), "max_tokens": OUTPUT},
        {"do": "generate", "prompts": list(prompts.LONG.values()), "max_tokens": LONG_OUTPUT},
    ]
    answers, long_answers = in_process.run("expected", steps, configuration=None, engine={"max_model_len": 4096})
    return {
        **{name: answer["tokens"] for name, answer in zip(prompts.CATALOG, answers, strict=True)},
        **{name: answer["tokens"] for name, answer in zip(prompts.LONG, long_answers, strict=True)},
    }


@pytest.fixture
def start(
    vllm_env: Any, models: dict[str, Path], processes: Any, servers: Any, load_module: Callable[[str], ModuleType]
) -> Any:
    """Starts servers for one test."""
    with contextlib.closing(servers.Starter(vllm_env, models, processes, load_module("processes"))) as starter:
        yield starter


@pytest.fixture(scope="module")
def module_start(
    vllm_env: Any,
    models: dict[str, Path],
    module_processes: Any,
    servers: Any,
    load_module: Callable[[str], ModuleType],
) -> Iterator[Any]:
    """Starts servers for a file of tests."""
    with contextlib.closing(servers.Starter(vllm_env, models, module_processes, load_module("processes"))) as starter:
        yield starter
