from __future__ import annotations

from typing import Any

import pytest

from lmcache_kit.analysis.metrics import check_metric, default_metrics, metric
from lmcache_kit.errors import ConfigError

REPORT: dict[str, Any] = {
    "results": [
        {
            "name": "play",
            "hit_rate": 0.5,
            "block_hit_rate": None,
            "hit_rates": {"cpu": 0.25, "note": "x"},
            "ttft_seconds": {"p50": 1.0, "p90": 2.0, "p99": 3.0},
            "tpot_seconds": None,
            "seconds": 9.0,
            "ratio": None,
            "windows": [{"hit_rate": 0.1}, {"hit_rate": 0.2}],
        },
        {"name": "look", "seconds": 1.0},
    ]
}


def test_a_sensible_few() -> None:
    assert default_metrics([REPORT, {"results": [{"name": "look", "ratio": 2.0}]}]) == [
        "play.hit_rate",
        "play.hit_rates.cpu",
        "play.ttft_seconds.p50",
        "play.ttft_seconds.p99",
        "play.seconds",
        "look.seconds",
        "look.ratio",
    ]


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("play.hit_rate", 0.5),
        ("play.windows.1.hit_rate", 0.2),
        ("play.windows.2.hit_rate", None),
        ("play.windows.-1.hit_rate", None),
        ("play.hit_rate.more", None),
        ("play.nothing", None),
        ("gone.hit_rate", None),
    ],
)
def test_values_by_path(path: str, value: object) -> None:
    assert metric(REPORT, path) == value


@pytest.mark.parametrize("path", ["play", "play.", "play..x", ".x", "plya.hit_rate"])
def test_what_cannot_be_a_metric(path: str) -> None:
    with pytest.raises(ConfigError, match="--metric") as caught:
        check_metric(path, ["play", "look"])
    assert caught.value.hint
