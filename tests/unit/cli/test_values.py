from __future__ import annotations

import pytest

from lmcache_kit.cli.values import key_values
from lmcache_kit.errors import ConfigError


def test_values_are_read_as_yaml() -> None:
    texts = ["a=1", "b=0.5", "c=true", "d=x=y", "e={f: [1, 2]}", "g=", "h=1e3 m", " i =redis://h:1/0", "a=2"]
    assert key_values(texts, "--set") == {
        "a": 2,
        "b": 0.5,
        "c": True,
        "d": "x=y",
        "e": {"f": [1, 2]},
        "g": None,
        "h": "1e3 m",
        "i": "redis://h:1/0",
    }
    assert key_values([], "--set") == {}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("size", "--set 'size' is not KEY=VALUE"),
        ("=3", "--set '=3' is not KEY=VALUE"),
        (" =3", "--set ' =3' is not KEY=VALUE"),
        ("a=[1", r"--set a: the value '\[1' cannot be read"),
        ("a=2001-99-99", "--set a: the value '2001-99-99' cannot be read"),
        ("a=!!python/object/apply:os.getcwd []", "--set a: the value .* cannot be read"),
        ("a=\0", "--set a: the value .* cannot be read"),
    ],
)
def test_what_cannot_be_read_names_the_flag(text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        key_values([text], "--set")
