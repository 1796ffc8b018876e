"""Copies between blocks on a GPU and the host, in the stand-in engine, with work that is really under way."""

from __future__ import annotations

import pytest
import torch

from lmcache_kit.kv.layout import KVLayout

pytestmark = [
    pytest.mark.skipif(not torch.cuda.is_available(), reason="these copies need an NVIDIA GPU"),
    pytest.mark.timeout(300),
]

PROMPT = list(range(1000, 1600))


@pytest.fixture
def gpu_engine(engine):
    def make(layout, **more):
        from lmcache_kit_vllm.cuda_copier import CudaCopier

        more = {"num_blocks": 200, "block_size": 16, "batch": 256, "staging": 2**26, **more}
        settings = {"chunk_size": 256, **more.pop("settings", {})}
        return engine(layout, make_copier=CudaCopier, device="cuda", settings=settings, **more)

    return make


def served(engine, prompt, max_tokens=1):
    request = engine.add(prompt, max_tokens)
    engine.run()
    engine.settle()
    return request


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32"])
@pytest.mark.parametrize("layerwise", [False, True])
@pytest.mark.parametrize("pause", [0, 2_000_000])
def test_the_second_time_all_but_the_last_token_is_loaded(gpu_engine, dtype, layerwise, pause):
    made = gpu_engine(KVLayout(4, 2, 64, dtype), layerwise=layerwise, pause=pause)
    served(made, PROMPT)
    assert served(made, PROMPT).loaded == 599
    assert served(made, [*PROMPT[:300], *PROMPT]).loaded == 256


@pytest.mark.parametrize("ranks", [2, 4])
def test_ranks_share_one_instance(gpu_engine, ranks):
    made = gpu_engine(KVLayout(3, 2, 64, "bfloat16"), ranks=ranks, pause=1_000_000)
    served(made, PROMPT)
    assert served(made, PROMPT).loaded == 599


def test_latent_attention(gpu_engine):
    made = gpu_engine(KVLayout(3, 1, 576, "bfloat16", planes=1))
    served(made, PROMPT)
    assert served(made, PROMPT).loaded == 599


def test_many_requests_with_preemptions(gpu_engine):
    made = gpu_engine(KVLayout(2, 2, 64, "float16"), num_blocks=70, pause=500_000, settings={"save_decode_cache": True})
    for _ in range(3):
        for first in range(6):
            made.add(PROMPT[first * 50 :], max_tokens=40)
        made.run()
    made.settle()
    assert sum(made.hits.values()) > 6000


def test_the_staging_memory_is_page_locked(gpu_engine):
    made = gpu_engine(KVLayout(2, 2, 64, "float16"))
    served(made, PROMPT)
    [rank] = made.parts
    address = rank.half._staging.address
    assert torch.from_numpy(address[:4096]).is_pinned()
