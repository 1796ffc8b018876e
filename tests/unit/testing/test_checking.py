"""``check_plugin``: every kind has a suite, and whatever a plugin does becomes a line."""

from __future__ import annotations

import dataclasses
import functools
import socket
import tempfile
from pathlib import Path

import pytest

from lmcache_kit.builtin.eviction.lru import LRU
from lmcache_kit.builtin.storage.memory import MemoryBackend
from lmcache_kit.builtin.traces.mooncake import MooncakeReader
from lmcache_kit.contracts import (
    PLUGIN_KINDS,
    CompressionPlugin,
    EnginePlugin,
    EvictionPlugin,
    LauncherPlugin,
    NoOptions,
    Options,
    PlacementPlugin,
    Reporter,
    ReporterPlugin,
    StoragePlugin,
    TracePlugin,
    TransportPlugin,
    WorkloadPlugin,
)
from lmcache_kit.errors import NotFoundError, UnavailableError
from lmcache_kit.plugins import PluginRegistry
from lmcache_kit.testing import checking
from lmcache_kit.testing.checking import SUITES, CheckReport, suite_of

DATA = Path(__file__).parents[3] / "scenarios" / "data" / "traces"


check_plugin = functools.partial(checking.check_plugin, seconds=0.01)


def failed(report: CheckReport) -> dict[str, str]:
    return {result.check: result.detail for result in report.results if result.outcome == "failed"}


def storage(backend: type = MemoryBackend, **facts) -> StoragePlugin:
    return StoragePlugin(name="x", summary="x", location="X", factory=lambda options, context: backend(), **facts)


def test_every_kind_has_a_suite():
    assert set(SUITES) == set(PLUGIN_KINDS)
    for kind in PLUGIN_KINDS:
        assert suite_of(kind).record_type is PLUGIN_KINDS[kind]


@pytest.mark.parametrize(
    "record_type", [*(each for each in PLUGIN_KINDS.values() if each not in (StoragePlugin, TransportPlugin))]
)
def test_a_factory_that_raises_anything_is_a_line(record_type):
    def broken(*arguments):
        raise ZeroDivisionError("oops")

    report = check_plugin(record_type(name="x", summary="x", factory=broken), quick=True)
    assert report.kind == record_type.kind
    assert failed(report)["test_the_factory_makes_what_its_kind_promises"] == "ZeroDivisionError: oops"


def test_what_cannot_be_used_here_is_skipped_once():
    class Unreachable(MemoryBackend):
        def size(self, name):
            raise UnavailableError("the server at h:1 is not there", hint="start it")

    report = check_plugin(storage(Unreachable))
    skipped = [result.detail for result in report.results if result.outcome == "skipped"]
    unusable = [detail for detail in skipped if "cannot be used here" in detail]
    assert unusable == ["it cannot be used here: the server at h:1 is not there (start it)"]
    assert report.comparison is None

    def no_model(options, model):
        raise NotFoundError(f"no model {model!r}")

    report = check_plugin(EnginePlugin(name="x", summary="x", factory=no_model))
    assert not report.failed
    assert sum("no model" in result.detail for result in report.results) == 1


class NeedsUrl(Options, frozen=True):
    url: str
    tries: int = 1


def test_required_options_are_named_and_may_be_given():
    record = storage(options=NeedsUrl)
    report = check_plugin(record, quick=True)
    assert not report.failed
    (reason,) = {result.detail for result in report.results if "without a default" in result.detail}
    assert reason == "needs options without a default: url"
    report = check_plugin(record, options={"url": "there"}, quick=True)
    assert sum(result.outcome == "passed" for result in report.results) > 12
    assert "options" in failed(check_plugin(record, options={"url": 5}))
    assert "tires" in failed(check_plugin(record, options={"url": "there", "tires": 2}))["options"]


@pytest.mark.parametrize("change", [{"name": "Not-OK"}, {"summary": "two\nlines"}, {"summary": ""}])
def test_a_malformed_record(change):
    record = dataclasses.replace(storage(), **change)
    assert "test_the_record_is_well_formed" in failed(check_plugin(record, quick=True))


def test_options_that_are_no_options_are_a_line():
    assert "options" in failed(check_plugin(dataclasses.replace(storage(), options=dict)))


def test_nothing_is_left_behind(tmp_path, monkeypatch):
    temporary, current = tmp_path / "temporary", tmp_path / "current"
    temporary.mkdir()
    current.mkdir()
    monkeypatch.setenv("TMPDIR", str(temporary))
    monkeypatch.setattr(tempfile, "tempdir", None)
    monkeypatch.chdir(current)
    for name in ("memory", "disk"):
        report = check_plugin(PluginRegistry(allow=[]).get(StoragePlugin, name), quick=name == "disk")
        assert not failed(report)
    assert list(temporary.iterdir()) == []
    assert list(current.iterdir()) == []


def test_objects_of_others_survive():
    shared = MemoryBackend()
    shared.close = lambda: None
    shared.put("m.1", b"theirs")
    shared.put(".", b"also theirs")
    record = StoragePlugin(
        name="x", summary="x", location="X", factory=lambda options, context: shared, capabilities=frozenset({"shared"})
    )
    assert not failed(check_plugin(record))
    assert dict(shared.entries()) == {"m.1": 6, ".": 11}


def test_valkey_without_a_server_is_skipped():
    plugin = pytest.importorskip("lmcache_kit_valkey", reason="the valkey plugin is not installed")
    (record,) = plugin.lmcache_kit_storage_backends()
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        report = check_plugin(record, options={"url": f"valkey://127.0.0.1:{taken.getsockname()[1]}"})
    assert not report.failed
    assert sum("cannot be used here: valkey server" in result.detail for result in report.results) == 1


def test_default_options_are_used():
    seen = []
    record = EvictionPlugin(name="x", summary="x", factory=lambda options, capacity: (seen.append(options), LRU())[1])
    assert not failed(check_plugin(record, quick=True))
    assert seen
    assert all(type(options) is NoOptions for options in seen)


def test_a_comparison_has_the_plugin_first_and_the_built_ins_after_it():
    report = check_plugin(storage())
    assert report.comparison is not None
    assert [(row.plugin, row.builtin) for row in report.comparison.rows] == [
        ("x", False),
        ("disk", True),
        ("memory", True),
    ]
    columns = report.comparison.columns()
    assert all(list(row.figures) == columns for row in report.comparison.rows)
    assert all(value > 0 for row in report.comparison.rows for value in row.figures.values())
    assert check_plugin(storage(), quick=True).comparison is None


def test_a_plugin_that_breaks_while_it_is_measured_is_a_row_without_figures():
    class Tires(MemoryBackend):
        largest = 0

        def put(self, name, blob):
            super().put(name, blob)
            if name.count(".") == 2 and name.endswith(".3") and len(blob) == 1 << 16:
                raise OSError("tired")

    report = check_plugin(storage(Tires))
    assert report.comparison is not None
    assert report.comparison.rows[0].problem == "OSError: tired"
    assert report.comparison.rows[1].figures


def test_a_failing_plugin_is_not_compared():
    class Forgets(MemoryBackend):
        def put(self, name, blob):
            pass

    report = check_plugin(storage(Forgets))
    assert "test_what_was_put_comes_back" in failed(report)
    assert report.failed
    assert report.comparison is None


def test_a_trace_reader_with_a_sample():
    record = TracePlugin(name="x", summary="x", factory=lambda options: MooncakeReader())
    without = check_plugin(record)
    assert any("fixture `sample`" in result.detail for result in without.results)
    assert without.comparison is not None
    assert "--sample" in (without.comparison.rows[0].problem or "")
    report = check_plugin(record, sample=DATA / "conversations.jsonl")
    assert not failed(report)
    assert report.comparison is not None
    (row,) = report.comparison.rows
    assert row.figures["requests"] > 0
    assert "test_a_sample_becomes_records" in failed(check_plugin(record, sample=DATA / "azure.csv"))


class Grows(Reporter):
    def render(self, report):
        report["results"].append({})
        return str(len(report["results"]))


def test_kinds_without_a_fleet():
    grows = ReporterPlugin(name="x", summary="x", factory=lambda options: Grows())
    assert "render changed the report" in failed(check_plugin(grows))["test_it_renders_a_report"]
    for record_type in (WorkloadPlugin, LauncherPlugin, ReporterPlugin, PlacementPlugin, CompressionPlugin):
        report = check_plugin(record_type(name="x", summary="x", factory=lambda options: "a text"), quick=True)
        assert "made a str" in failed(report)["test_the_factory_makes_what_its_kind_promises"]
    strange = dataclasses.replace(PluginRegistry(allow=[]).get(WorkloadPlugin, "lookup"), clocks=frozenset({"sand"}))
    assert "sand" in failed(check_plugin(strange))["test_it_names_the_clocks_that_it_runs_under"]


@pytest.mark.parametrize("kind", ["workload", "launcher", "reporter"])
def test_our_own_of_these_kinds_pass(kind):
    for entry in PluginRegistry(allow=[]).all(kind):
        assert failed(check_plugin(entry.record)) == {}, entry.record.name
