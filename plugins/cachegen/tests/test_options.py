"""Options: what goes together, and what is refused in words that say what to do."""

from __future__ import annotations

import pytest
from lmcache_kit_cachegen import lmcache_kit_compression_methods
from lmcache_kit_cachegen.method import CacheGen
from lmcache_kit_cachegen.options import CacheGenOptions

from lmcache_kit.errors import ConfigError
from lmcache_kit.plugins import PluginRegistry, registry


def given(**values):
    (record,) = lmcache_kit_compression_methods()
    return PluginRegistry.options(record, values)


def test_installed_plugin_is_found():
    assert "cachegen" in registry().names("compression")


def test_defaults():
    options = given()
    assert (options.quantizer, options.effective_level, options.device, options.backend) == (
        "uniform",
        4,
        "auto",
        "auto",
    )
    assert given(level=4, quantizer="uniform", profile=None).effective_level == 4


REFUSED = [
    ({"quantizer": "lmcache", "level": 4}, "LMCache has one level", "leave level out"),
    ({"quantizer": "lmcache", "sink_tokens": 0}, "quantizes all tokens alike", "leave sink_tokens out"),
    ({"quantizer": "lmcache", "profile": "p.json"}, "takes no profile", "leave profile out"),
    ({"level": 1, "sink_tokens": 4}, "keeps every token finer", "a level from 3 to 6"),
    ({"level": 2, "sink_tokens": 0}, "keeps every token finer", "leave sink_tokens out"),
    ({"device": "cpu", "backend": "pallas"}, "on a GPU only", "numba"),
    ({"device": "gpu", "backend": "numba"}, "on the CPU only", "auto"),
    ({"device": "gpu", "backend": "numpy"}, "on the CPU only", "auto"),
]


@pytest.mark.parametrize(("values", "message", "hint"), REFUSED)
@pytest.mark.parametrize("make", [given, lambda **values: CacheGenOptions(**values)], ids=["converted", "constructed"])
def test_contradictions_are_refused_with_a_hint(make, values, message, hint):
    with pytest.raises(ConfigError, match=message) as refusal:
        make(**values)
    assert hint in refusal.value.hint


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"level": 0}, "level"),
        ({"level": 7}, "level"),
        ({"level": "high"}, "level"),
        ({"sink_tokens": -1}, "sink_tokens"),
        ({"sink_tokens": 32769}, "sink_tokens"),
        ({"quantizer": "kmeans"}, "quantizer"),
        ({"backend": "abacus"}, "backend"),
        ({"anchor_delta": 10}, "anchor_delta"),
        ({"levels": 3}, "no option 'levels'"),
    ],
)
def test_values_out_of_range_are_refused(values, message):
    with pytest.raises(ConfigError, match=message):
        given(**values)


@pytest.mark.parametrize("values", [{"level": 9}, {"sink_tokens": -3}, {"sink_tokens": 40000}])
def test_values_out_of_range_are_refused_in_python_too(values):
    with pytest.raises(ConfigError):
        CacheGenOptions(**values)


def test_a_profile_that_is_not_there():
    with pytest.raises(ConfigError, match=r"'nowhere\.json' cannot be read") as refusal:
        CacheGen(CacheGenOptions(profile="nowhere.json"))
    assert "codec fit" in refusal.value.hint
