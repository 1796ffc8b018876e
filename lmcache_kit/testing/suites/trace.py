"""Trace readers: every row becomes a record that agrees with itself, or is refused by file and line."""

from __future__ import annotations

import gc
import math
import os
import re
import warnings
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import ClassVar

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lmcache_kit.contracts.records import Options, TracePlugin
from lmcache_kit.contracts.trace import TraceFormat, TraceReader, TraceRecord
from lmcache_kit.errors import InvalidRequestError, LMCacheKitError
from lmcache_kit.testing.suites.base import PluginTests, examples, refusal
from lmcache_kit.traces import load_trace, replay
from lmcache_kit.traces.loading import normalise

__all__ = ["TraceReaderTests"]

_GARBAGE = (b"\x00 not, a {trace", b"\xff\xfe\xff", b"{}")
_MOST_LINES = 30
_LONGEST_CHANGED = 3000
# Pieces that mean something to many formats, put where they do not belong.
_PIECES = st.binary(max_size=6) | st.sampled_from(
    [
        *(b"-1", b"0", b"1e999", b"NaN", b"9" * 5000, b"null", b'"', b"\n", b"\r", b",", b"{}", b"\x00", b"\xff"),
        *(b"[" * 3000, b'{"requests": [' * 400),
    ]
)


class TraceReaderTests(PluginTests):
    """What :class:`lmcache_kit.contracts.TraceReader` promises.

    Fixtures: ``sample``, the path of a well-formed file (some ten to a hundred rows are best), or of a folder where
    the format has folders; optional: ``damaged``, paths of files that must be refused.
    """

    record_type = TracePlugin
    contract = TraceReader

    rows_are_lines: ClassVar[bool] = True
    """Whether each row is a line of its own, so that a bad one is named by its line; False for whole documents."""

    @pytest.fixture
    def sample(self) -> Path:
        """A well-formed file."""
        pytest.skip("not given: a fixture `sample`, the path of a well-formed file")

    @pytest.fixture
    def damaged(self) -> Iterable[Path]:
        """Files that must be refused, beside those that the suite makes of the sample."""
        pytest.skip("not given: a fixture `damaged` with paths of files that must be refused")

    @pytest.fixture
    def make(self, record: TracePlugin, made_options: Options) -> Callable[[], TraceReader]:
        """Makes another reader."""
        return lambda: record.factory(made_options)

    @pytest.fixture
    def records(self, subject: TraceReader, sample: Path) -> list[TraceRecord]:
        """The records of the sample."""
        return list(subject.read(Path(sample)))

    @pytest.fixture
    def lines(self, sample: Path) -> list[bytes]:
        """The lines of the sample, with their ends."""
        if not self.rows_are_lines:
            pytest.skip("rows of this format are not lines (`rows_are_lines` is False)")
        return self.content(sample).splitlines(keepends=True)

    @staticmethod
    def content(sample: Path) -> bytes:
        if Path(sample).is_dir():
            pytest.skip("the sample is a folder: give a file to have it changed")
        return Path(sample).read_bytes()

    # -- what a row becomes ----------------------------------------------------------------------------------------

    def test_a_sample_becomes_records(
        self, records: list[TraceRecord], record_property: Callable[[str, object], None]
    ) -> None:
        assert records, "the sample holds no request"
        assert all(isinstance(each, TraceRecord) for each in records)
        record_property("detail", f"{len(records)} requests of {sum(each.input_tokens for each in records)} tokens")

    def test_the_format_says_what_ids_mean(self, subject: TraceReader, records: list[TraceRecord]) -> None:
        form = subject.format_read()
        assert isinstance(form, TraceFormat)
        assert isinstance(subject.format, TraceFormat)
        assert form.block_size >= 0
        assert form.tail in ("ceil", "floor")
        assert form.id_scope in ("global", "session")
        assert form.time_unit > 0
        assert form.block_size or not any(each.block_ids for each in records), "ids, but a block size of 0"

    def test_arrivals_are_seconds_since_the_first_request(
        self, make: Callable[[], TraceReader], records: list[TraceRecord], sample: Path
    ) -> None:
        arrivals = [each.arrival for each in records]
        assert all(isinstance(arrival, float | int) and math.isfinite(arrival) for arrival in arrivals)
        assert min(arrivals) == 0, f"the earliest request arrives at {min(arrivals)} s, want 0"
        _, loaded = load_trace(sample, make())
        assert [each.arrival for each in loaded] == sorted(arrivals)

    def test_tokens_are_those_of_ids_and_tail(self, subject: TraceReader, records: list[TraceRecord]) -> None:
        form = subject.format_read()
        for number, each in enumerate(records):
            _agrees_with_itself(each, form, f"record {number}")

    def test_ids_stand_for_all_before_them(self, subject: TraceReader, records: list[TraceRecord]) -> None:
        """Equal ids have equal ids before them, so an id tells a whole prefix."""
        scoped = subject.format_read().id_scope == "session"
        before: dict[tuple[str | None, int], tuple[int, ...]] = {}
        for each in records:
            scope = each.session if scoped else None
            ids = each.block_ids if each.tail_id is None else (*each.block_ids, each.tail_id)
            for place, number in enumerate(ids):
                known = before.setdefault((scope, number), ids[:place])
                assert known == ids[:place], f"id {number} stands behind {known} and behind {ids[:place]}"

    def test_a_sample_can_be_replayed(self, make: Callable[[], TraceReader], sample: Path) -> None:
        form, loaded = load_trace(sample, make())
        found = replay(loaded, form.block_size)
        assert found.plain.requests == len(loaded)
        assert found.plain.tokens == sum(each.input_tokens for each in loaded)
        assert 0 <= found.plain.hit_tokens <= found.plain.tokens

    # -- the same every time ---------------------------------------------------------------------------------------

    def test_reading_twice_gives_the_same(
        self, make: Callable[[], TraceReader], subject: TraceReader, records: list[TraceRecord], sample: Path
    ) -> None:
        form = subject.format_read()
        assert list(subject.read(Path(sample))) == records, "the same reader reads the file to other records"
        assert subject.format_read() == form
        next(iter(subject.read(Path(sample))))  # a reading that stops early leaves nothing behind
        assert list(subject.read(Path(sample))) == records, "a reading that stopped early changes the next one"
        assert list(make().read(Path(sample))) == records, "another reader reads the file to other records"

    def test_a_refused_file_leaves_nothing_behind(
        self, subject: TraceReader, records: list[TraceRecord], sample: Path, tmp_path: Path
    ) -> None:
        bad = tmp_path / "bad"
        bad.write_bytes(self.content(sample) + b"\n" + _GARBAGE[0])
        refusal(lambda: list(subject.read(bad)), InvalidRequestError)
        assert list(subject.read(Path(sample))) == records, "a refused file changes what is read next"

    def test_the_beginning_of_a_file_gives_the_beginning_of_the_records(
        self, subject: TraceReader, records: list[TraceRecord], lines: list[bytes], tmp_path: Path
    ) -> None:
        path = tmp_path / "beginning"
        for count in _some(len(lines))[1:]:
            path.write_bytes(b"".join(lines[:count]))
            found = list(subject.read(path))
            assert found == records[: len(found)], f"the first {count} lines give records that the whole does not"
            assert len(found) >= len(records) - (len(lines) - count), f"a record of the first {count} lines is missing"

    def test_line_ends_do_not_matter(
        self, subject: TraceReader, records: list[TraceRecord], lines: list[bytes], tmp_path: Path
    ) -> None:
        path = tmp_path / "ends"
        bare = [line.rstrip(b"\r\n") for line in lines]
        for end in (b"\n", b"\r\n"):
            for last in (end, b""):
                path.write_bytes(end.join(bare) + last)
                found = list(subject.read(path))
                assert found == records, f"other records with lines that end in {end!r}, the last one in {last!r}"

    def test_files_are_closed(
        self, make: Callable[[], TraceReader], records: list[TraceRecord], sample: Path, tmp_path: Path
    ) -> None:
        bad = tmp_path / "bad"
        bad.write_bytes(_GARBAGE[0])
        reader = make()
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always", ResourceWarning)
            before = _open_files()
            for _ in range(5):
                assert len(list(reader.read(Path(sample)))) == len(records)
                refusal(lambda: list(reader.read(bad)), InvalidRequestError)
            after = _open_files()
            gc.collect()
        left = [
            str(each.message) for each in caught if str(sample) in str(each.message) or str(bad) in str(each.message)
        ]
        assert not left, f"a file is left to the garbage collector: {left[0]}"
        assert after < before + 5, f"{after - before} more files are open after 10 readings"

    # -- what is refused -------------------------------------------------------------------------------------------

    def test_a_bad_line_is_refused_by_file_and_line(
        self, make: Callable[[], TraceReader], lines: list[bytes], tmp_path: Path
    ) -> None:
        path = tmp_path / "damaged"
        for number in _some(len(lines) - 1):
            for garbage in _GARBAGE:
                path.write_bytes(b"".join([*lines[:number], garbage + b"\n", *lines[number + 1 :]]))
                error = refusal(lambda: list(make().read(path)), InvalidRequestError)
                named = re.match(re.escape(str(path)) + r":(\d+)", error.message)
                assert named, (
                    f"the refusal of line {number + 1} does not begin with file and line: {error.message:.200}"
                )
                assert int(named[1]) == number + 1, f"line {number + 1} is bad, the refusal names line {named[1]}"

    def test_a_file_of_another_format_is_refused_by_name(self, make: Callable[[], TraceReader], tmp_path: Path) -> None:
        path = tmp_path / "not-a-trace"
        for garbage in _GARBAGE:
            path.write_bytes(garbage + b"\n")
            error = refusal(lambda: list(make().read(path)), InvalidRequestError)
            assert str(path) in error.message, f"the refusal does not name the file: {error.message:.200}"

    def test_a_file_that_is_not_there_is_refused_by_name(self, make: Callable[[], TraceReader], tmp_path: Path) -> None:
        gone = tmp_path / "gone"
        error = refusal(lambda: list(make().read(gone)), InvalidRequestError)
        assert str(gone) in error.message, f"the refusal does not name the file: {error.message:.200}"
        folder = tmp_path / "folder"
        folder.mkdir()
        assert _read_or_refusal(make(), folder, str(folder)) in ([], None)

    def test_an_empty_file_holds_nothing(self, make: Callable[[], TraceReader], tmp_path: Path) -> None:
        path = tmp_path / "empty"
        path.write_bytes(b"")
        assert _read_or_refusal(make(), path, str(path)) in ([], None), "an empty file holds requests"

    def test_damaged_files_are_refused_by_name(self, make: Callable[[], TraceReader], damaged: Iterable[Path]) -> None:
        for path in damaged:
            error = refusal(lambda path=path: list(make().read(Path(path))), InvalidRequestError)  # type: ignore[misc]
            assert Path(path).name in error.message, f"the refusal does not name the file: {error.message:.200}"

    def test_any_change_is_read_or_refused_by_name(
        self, make: Callable[[], TraceReader], sample: Path, tmp_path: Path
    ) -> None:
        whole = self.content(sample)[:_LONGEST_CHANGED]
        path = tmp_path / "changed"

        @examples(60)
        @given(st.integers(0, len(whole)), st.integers(0, 30), _PIECES)
        def check(cut: int, dropped: int, piece: bytes) -> None:
            path.write_bytes(whole[:cut] + piece + whole[cut + dropped :])
            reader = make()
            found = _read_or_refusal(reader, path, str(path))
            if found is None:
                return
            form = reader.format_read()
            for number, each in enumerate(found):
                _agrees_with_itself(each, form, f"record {number}")
            assert replay(normalise(found, form), form.block_size).plain.requests == len(found)

        check()


def _open_files() -> int:
    """How many files this process has open; 0 where that cannot be told."""
    return len(os.listdir("/proc/self/fd")) if os.path.isdir("/proc/self/fd") else 0


def _read_or_refusal(reader: TraceReader, path: Path, name: str) -> list[TraceRecord] | None:
    """The records, or None where the reader refuses the file by its name; anything else fails the test."""
    try:
        return list(reader.read(path))
    except InvalidRequestError as error:
        refused: LMCacheKitError = error
    except Exception as error:
        raise AssertionError(f"{type(error).__name__} instead of InvalidRequestError: {error}") from error
    assert name in refused.message, f"the refusal does not name the file: {refused.message:.200}"
    return None


def _agrees_with_itself(record: TraceRecord, form: TraceFormat, where: str) -> None:
    size, ids, tail = form.block_size, record.block_ids, record.tail_tokens
    assert math.isfinite(record.arrival), f"{where} arrives at {record.arrival}"
    assert record.input_tokens >= 1, f"{where} has a prompt of {record.input_tokens} tokens"
    assert record.output_tokens >= 0, f"{where} has {record.output_tokens} output tokens"
    assert tail >= 0, f"{where} has {tail} tokens after its last block"
    counted = len(ids) * size + tail
    assert record.input_tokens == counted, (
        f"{where} has {record.input_tokens} tokens, but {len(ids)} blocks of {size} and {tail} more"
    )
    assert record.tail_id is None or (form.tail == "ceil" and 0 < tail < size), (
        f"{where} has an id for no partial block"
    )
    assert all(isinstance(each, int) for each in ids), f"{where} has ids that are not integers"


def _some(count: int) -> list[int]:
    """0 to ``count``, at most some thirty of them, with both ends."""
    step = max(1, count // _MOST_LINES)
    return sorted({*range(0, count + 1, step), count}) if count >= 0 else []
