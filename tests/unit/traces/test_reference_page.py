"""docs/reference/traces.md names every reader, every option and every value, and shows the figures that tests hold."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

from lmcache_kit.builtin.traces import RECORDS
from lmcache_kit.builtin.workloads.reuse_options import ReuseOptions
from lmcache_kit.contracts.trace import TraceRecord
from lmcache_kit.traces import replay

PAGE = (Path(__file__).parents[3] / "docs" / "reference" / "traces.md").read_text()


@pytest.mark.parametrize("record", RECORDS, ids=lambda record: record.name)
def test_every_reader_and_its_options(record: object) -> None:
    assert f"`{record.name}`" in PAGE  # type: ignore[attr-defined]
    for field in msgspec.structs.fields(record.options):  # type: ignore[attr-defined]
        assert f"| `{field.encode_name}` |" in PAGE


def test_every_field_option_and_value() -> None:
    names = [field.encode_name for field in msgspec.structs.fields(ReuseOptions)]
    names += TraceRecord.__dataclass_fields__
    facts = replay([], 1).facts()
    names += [*facts, *facts["first_admission"]]
    assert [name for name in names if f"`{name}`" not in PAGE] == []


def test_the_reference_table_is_the_tested_one() -> None:
    for capacity, rate in ((1_000, 0.0445), (10_000, 0.2112), (30_000, 0.3257), (50_000, 0.3546), (100_000, 0.3637)):
        assert f"| {capacity:,} | {rate} |" in PAGE
    assert "| endless | 0.3664 | 0.3736 |" in PAGE
