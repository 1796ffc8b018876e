"""Whatever a YAML file holds, loading it gives a configuration or a ConfigError."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from lmcache_kit.errors import ConfigError
from lmcache_kit.instance.config.extension import Extension, LinkOptions, TierOptions, TransportOptions
from lmcache_kit.instance.config.keys import ALIASES, ENGINE_KEYS, OLD_KEYS
from lmcache_kit.instance.config.loading import InstanceConfig, instance_config, load_config

KEYS = sorted([*ENGINE_KEYS, *ALIASES, *OLD_KEYS, "ec"])
OURS = sorted(
    {name for struct in (Extension, TierOptions, TransportOptions, LinkOptions) for name in struct.__struct_fields__}
)

texts = st.one_of(
    st.text(max_size=20),
    st.sampled_from(
        ["localhost:9001", "*:1", "tcp://h:2", "file:///x/", "redis://h:1", "zstd", "LRU", "64MiB", "1Gbps", "5ms"]
    ),
)
scalars = st.one_of(
    st.none(), st.booleans(), st.integers(), st.integers(0, 70_000), st.floats(), texts, st.dates(), st.datetimes(),
    st.binary(max_size=8),
)  # fmt: skip
values = st.recursive(
    scalars,
    lambda inner: st.one_of(
        st.lists(inner, max_size=4),
        st.dictionaries(st.one_of(st.sampled_from(OURS), texts, st.integers()), inner, max_size=4),
    ),
    max_leaves=8,
)
extensions = st.fixed_dictionaries({"lmcache_kit": st.dictionaries(st.sampled_from(OURS), values, max_size=3)})
mappings = st.dictionaries(
    st.one_of(st.sampled_from(KEYS), st.sampled_from(KEYS), st.text(max_size=12), st.integers(), st.none()),
    st.one_of(values, extensions),
    max_size=6,
)


def checked(config: Any) -> None:
    assert isinstance(config, InstanceConfig)
    assert config.hash_spec.chunk_size >= 1
    assert all(isinstance(warning, str) and warning for warning in config.warnings)
    assert all(tier.capacity_bytes is None or tier.capacity_bytes >= 0 for tier in config.tiers)
    if config.controller is not None:
        assert 1 <= config.controller.pull.port <= 65535
        assert config.controller.pull.host not in ("", "*", "localhost")


def refusal(load: Callable[[], Any]) -> str | None:
    """The message of the ConfigError, or None when a sound configuration was made."""
    try:
        config = load()
    except ConfigError as error:
        return error.message
    checked(config)
    return None


@settings(max_examples=400, deadline=None)
@given(mappings)
def test_any_mapping(mapping: dict[Any, Any]) -> None:
    message = refusal(lambda: instance_config(mapping))
    assert message is None or (message and "\n" not in message)


@settings(max_examples=150, deadline=None)
@given(extensions)
def test_any_section_of_ours(mapping: dict[Any, Any]) -> None:
    message = refusal(lambda: instance_config({"extra_config": mapping}))
    assert message is None or "extra_config" in message


@settings(max_examples=150, deadline=None)
@given(st.one_of(mappings.map(lambda mapping: yaml.safe_dump(mapping).encode()), st.binary(max_size=200)))
def test_any_file(text: bytes) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "c.yaml"
        path.write_bytes(text)
        message = refusal(lambda: load_config(path, env={}))
        assert message is None or "c.yaml" in message


@settings(deadline=None)
@given(st.dictionaries(st.sampled_from([f"LMCACHE_{key.upper()}" for key in KEYS]), texts, max_size=5))
def test_any_environment(env: dict[str, str]) -> None:
    assert refusal(lambda: load_config(env=env)) != ""
