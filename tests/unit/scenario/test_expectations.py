from __future__ import annotations

from typing import Any

import pytest

from lmcache_kit.errors import ConfigError
from lmcache_kit.scenario import evaluate, parse_expectations

RESULTS: dict[str, dict[str, Any]] = {
    "serve": {"name": "serve", "tokens": 100, "ratio": 1.5, "text_equal": True, "method": "zstd", "none": None},
    "read_back": {"ttft_seconds": {"p50": 0.01}, "counts": {"requests": 3}, "list": [4, 5]},
}


def outcome(path: str, wanted: Any) -> Any:
    (found,) = evaluate(parse_expectations({path: wanted}, list(RESULTS)), RESULTS)
    return found


@pytest.mark.parametrize(
    ("path", "wanted", "met"),
    [
        ("serve.text_equal", True, True),
        ("serve.text_equal", False, False),
        ("serve.text_equal", 1, False),
        ("serve.tokens", 100, True),
        ("serve.tokens", 100.0, True),
        ("serve.tokens", "== 100", True),
        ("serve.tokens", "!= 100", False),
        ("serve.ratio", ">= 1.5", True),
        ("serve.ratio", ">1.5", False),
        ("serve.ratio", "< 1.6e0", True),
        ("serve.ratio", "<= -1", False),
        ("serve.method", "zstd", True),
        ("serve.method", "== 'zstd'", True),
        ("serve.method", '!= "fp8"', True),
        ("serve.none", None, True),
        ("serve.none", "== null", True),
        ("serve.text_equal", "== true", True),
        ("read_back.ttft_seconds.p50", "< serve.ratio", True),
        ("read_back.ttft_seconds.p50", "> serve.ratio", False),
        ("read_back.counts.requests", 3, True),
        ("read_back.list.1", 5, True),
    ],
)
def test_comparisons(path: str, wanted: Any, met: bool) -> None:
    found = outcome(path, wanted)
    assert found.met is met
    assert found.problem is None


@pytest.mark.parametrize(
    ("path", "wanted", "problem"),
    [
        ("serve.gone", 1, "serve has no 'gone'"),
        ("read_back.ttft_seconds.p75", "< 1", "it has p50"),
        ("serve.tokens.deeper", 1, "has no 'deeper'"),
        ("serve.text_equal", "> 0", "True is not a number"),
        ("serve.none", "> 0", "None is not a number"),
        ("serve.ratio", "< read_back.gone", "no 'gone'"),
        ("read_back.list.2", 5, "has no '2'"),
    ],
)
def test_what_cannot_be_compared_is_a_miss_with_a_reason(path: str, wanted: Any, problem: str) -> None:
    found = outcome(path, wanted)
    assert not found.met
    assert problem in found.problem


@pytest.mark.parametrize(
    ("path", "wanted", "message"),
    [
        ("serve", True, "not RESULT.PATH"),
        ("serve.", True, "not RESULT.PATH"),
        ("serve..x", True, "not RESULT.PATH"),
        ("serv.tokens", 1, "no workload is called 'serv'"),
        ("serve.tokens", "> many", "cannot be compared"),
        ("serve.tokens", "> true", "needs a number"),
        ("serve.tokens", ">", "cannot be compared"),
        ("serve.tokens", "> 1 + 1", "cannot be compared"),
        ("serve.tokens", "> __import__('os')", "cannot be compared"),
        ("serve.tokens", "== serv.tokens", "cannot be compared"),
    ],
)
def test_what_is_wrong_is_refused_before_the_run(path: str, wanted: Any, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_expectations({path: wanted}, list(RESULTS))
    assert message in caught.value.message


def test_the_value_of_another_result_is_kept_beside_the_outcome() -> None:
    assert outcome("read_back.ttft_seconds.p50", "< serve.ratio").against == 1.5
    assert outcome("serve.ratio", "> 1").against is None
    assert outcome("serve.ratio", "> read_back.gone").against is None
