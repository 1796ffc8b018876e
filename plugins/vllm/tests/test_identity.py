"""The layout and the fingerprint of what vLLM serves, read off configurations like vLLM's."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
from lmcache_kit_vllm.identity import engine_info, kv_layout, layer_names
from lmcache_kit_vllm.options import read_options

from lmcache_kit.errors import ConfigError
from lmcache_kit.kv.layout import KVLayout


class FullAttentionSpec(SimpleNamespace):
    pass


class MLAAttentionSpec(SimpleNamespace):
    pass


class SlidingWindowSpec(SimpleNamespace):
    pass


def caches(spec=None, names=None, groups=1):
    spec = spec or FullAttentionSpec(head_size=64, head_size_v=64, dtype="torch.bfloat16")
    names = names or [f"model.layers.{index}.self_attn.attn" for index in range(12)]
    return SimpleNamespace(kv_cache_groups=[SimpleNamespace(layer_names=names, kv_cache_spec=spec)] * groups)


def config(folder="", *, heads=4, kv="auto", values=None, **parallel):
    model = SimpleNamespace(
        model=str(folder),
        served_model_name="m",
        revision=None,
        dtype="torch.bfloat16",
        quantization=None,
        max_model_len=4096,
        hf_config=SimpleNamespace(to_dict=lambda: {"hidden_size": 8, "id2label": {0: "a"}, **(values or {})}),
        get_total_num_kv_heads=lambda: heads,
        get_vocab_size=lambda: 100,
    )
    return SimpleNamespace(
        model_config=model,
        parallel_config=SimpleNamespace(**parallel),
        cache_config=SimpleNamespace(cache_dtype=kv),
        load_config=SimpleNamespace(download_dir=None),
    )


def test_layers_come_by_number():
    names = ["model.layers.10.attn", "model.layers.9.attn", "model.layers.0.attn"]
    assert layer_names(caches(names=names)) == names[::-1]


def test_the_layout_is_the_whole_models():
    assert kv_layout(config(tensor_parallel_size=2), caches()) == KVLayout(12, 4, 64, "bfloat16")
    latent = MLAAttentionSpec(head_size=576, head_size_v=0, dtype="torch.float16")
    assert kv_layout(config(heads=16), caches(latent)) == KVLayout(12, 1, 576, "float16", planes=1)


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"pipeline_parallel_size": 2}, "pipeline_parallel_size 2"),
        ({"data_parallel_size": 2}, "data_parallel_size 2"),
        ({"kv": "fp8"}, "fp8"),
    ],
)
def test_what_cannot_be_stored_is_refused(changed, said):
    with pytest.raises(ConfigError, match=said):
        kv_layout(config(**changed), caches())


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (caches(SlidingWindowSpec(head_size=64, dtype="torch.bfloat16")), "SlidingWindowSpec"),
        (caches(FullAttentionSpec(head_size=64, head_size_v=32, dtype="torch.bfloat16")), "must be equal"),
        (caches(FullAttentionSpec(head_size=64, head_size_v=64, dtype="torch.uint8")), "uint8"),
        (caches(groups=2), "2 groups"),
    ],
)
def test_kv_of_another_kind_is_refused(given, said):
    with pytest.raises(ConfigError, match=said):
        kv_layout(config(), given)


LAYOUT = KVLayout(12, 4, 64)


def fingerprint(folder, **more):
    return engine_info(config(folder, **more), LAYOUT).fingerprint


def test_equal_weights_have_one_fingerprint_wherever_they_lie(tmp_path):
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "model.safetensors").write_bytes(bytes(range(256)) * 1000)
    one = fingerprint(tmp_path / "a")
    assert one == fingerprint(tmp_path / "b", values={"_name_or_path": "elsewhere", "transformers_version": "9"})
    assert one != fingerprint(tmp_path / "a", values={"hidden_size": 9})
    assert one != engine_info(config(tmp_path / "a"), KVLayout(12, 4, 64, "float16")).fingerprint
    (tmp_path / "b" / "model.safetensors").write_bytes(bytes(range(255, -1, -1)) * 1000)
    assert one != fingerprint(tmp_path / "b")
    (tmp_path / "a" / "more.safetensors").write_bytes(b"")
    assert one != fingerprint(tmp_path / "a")
    assert len(one) == 32


def test_weights_that_are_not_here_are_known_by_their_name():
    assert fingerprint("someone/model") == fingerprint("someone/model")
    assert fingerprint("someone/model") != fingerprint("someone/other")


def test_options_of_the_connector():
    assert read_options({}).staging_bytes(7) == 7
    assert read_options({"staging": "1MiB"}).staging_bytes(7) == 2**20
    assert read_options({"staging": 5, "layerwise": True}).layerwise is True


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"stagin": 1}, "unknown key 'stagin'"),
        ({"staging": "much"}, "much"),
        ({"staging": 0}, "at least one byte"),
        ({"layerwise": "yes"}, "layerwise"),
        ({"lookup_timeout": 0}, "lookup_timeout"),
        ({"patience": 2}, "patience"),
    ],
)
def test_options_that_cannot_be_used_are_refused(values, said):
    with pytest.raises(ConfigError, match=said):
        read_options(values)
