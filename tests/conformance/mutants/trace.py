"""Broken trace readers."""

from __future__ import annotations

import functools
import itertools
import random
import re
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import msgspec
from mutants.mutant import Mutant

from lmcache_kit.builtin.traces.csv_lengths import AzureReader
from lmcache_kit.builtin.traces.mooncake import MooncakeReader
from lmcache_kit.builtin.traces.qwen_bailian import QwenBailianReader
from lmcache_kit.contracts.records import Options, TracePlugin
from lmcache_kit.contracts.trace import TraceReader, TraceRecord
from lmcache_kit.errors import InvalidRequestError

__all__ = ["MUTANTS", "SOUND"]

_SAMPLES = Path(__file__).with_name("samples")
_PLACE = re.compile(r":(\d+):")


class SwallowsABadRow(MooncakeReader):
    """Leaves out what it cannot read."""

    def read(self, path: Path) -> Iterator[TraceRecord]:
        with tempfile.TemporaryDirectory() as folder:
            good = Path(folder) / path.name
            lines = path.read_bytes().splitlines(keepends=True)
            good.write_bytes(b"".join(line for line in lines if self._readable(line)))
            yield from super().read(good)

    @staticmethod
    def _readable(line: bytes) -> bool:
        try:
            msgspec.json.decode(line)
        except (msgspec.DecodeError, UnicodeDecodeError):
            return False
        return True


class StopsAtABadRow(MooncakeReader):
    """What follows a bad row is not there."""

    def read(self, path: Path) -> Iterator[TraceRecord]:
        try:
            yield from super().read(path)
        except InvalidRequestError as error:
            if not _PLACE.search(error.message):
                raise


class CountsLinesFromZero(MooncakeReader):
    def read(self, path: Path) -> Iterator[TraceRecord]:
        try:
            yield from super().read(path)
        except InvalidRequestError as error:
            message = _PLACE.sub(lambda match: f":{int(match[1]) - 1}:", error.message, count=1)
            raise InvalidRequestError(message) from None


class NamesNoLine(MooncakeReader):
    def read(self, path: Path) -> Iterator[TraceRecord]:
        try:
            yield from super().read(path)
        except InvalidRequestError:
            raise InvalidRequestError(f"{path} has a bad row") from None


class NamesNoFile(MooncakeReader):
    def read(self, path: Path) -> Iterator[TraceRecord]:
        try:
            yield from super().read(path)
        except InvalidRequestError as error:
            found = _PLACE.search(error.message)
            raise InvalidRequestError(f"line {found[1]} is bad" if found else "a file is bad") from None


class BadRowsAreValueErrors(MooncakeReader):
    def read(self, path: Path) -> Iterator[TraceRecord]:
        try:
            yield from super().read(path)
        except InvalidRequestError as error:
            raise ValueError(error.message) from None


class MissingIsFileNotFound(MooncakeReader):
    def read(self, path: Path) -> Iterator[TraceRecord]:
        path.stat()
        yield from super().read(path)


class EmptyIsAnIndexError(MooncakeReader):
    def read(self, path: Path) -> Iterator[TraceRecord]:
        if path.is_file():
            path.read_bytes().splitlines()[0]
        yield from super().read(path)


class NotChained(QwenBailianReader):
    """Gives out the file's own ids, which stand for their own tokens only."""

    def read(self, path: Path) -> Iterator[TraceRecord]:
        for record, line in zip(super().read(path), path.read_bytes().splitlines(), strict=False):
            ids = msgspec.json.decode(line)["hash_ids"]
            tail = ids[len(record.block_ids)] if record.tail_id is not None else None
            yield replace(record, block_ids=tuple(ids[: len(record.block_ids)]), tail_id=tail)


class NumbersEveryBlockAnew(QwenBailianReader):
    """No two blocks are ever equal, also where the same prompt comes again."""

    def read(self, path: Path) -> Iterator[TraceRecord]:
        numbers = itertools.count(random.SystemRandom().getrandbits(40))
        for record in super().read(path):
            yield replace(record, block_ids=tuple(next(numbers) for _ in record.block_ids))


class CountsOnFromTheLastFile(QwenBailianReader):
    """A second read of the same file goes on with the numbers of the first."""

    def __init__(self) -> None:
        self._base = 0

    def read(self, path: Path) -> Iterator[TraceRecord]:
        base = self._base
        for record in super().read(path):
            ids = tuple(each + base for each in record.block_ids)
            self._base = max(self._base, *(each + 1 for each in ids), 0)
            yield replace(record, block_ids=ids, tail_id=None if record.tail_id is None else record.tail_id + base)


class ReadsOnce(AzureReader):
    """A second read finds nothing."""

    _done = False

    def read(self, path: Path) -> Iterator[TraceRecord]:
        if not self._done:
            self._done = True
            yield from super().read(path)


class FirstOfTheFirstFile(AzureReader):
    """Arrivals count from the first request that it ever read."""

    _offset: float | None = None

    def read(self, path: Path) -> Iterator[TraceRecord]:
        self._reads = getattr(self, "_reads", -1) + 1
        for record in super().read(path):
            yield replace(record, arrival=record.arrival + self._reads)


class AbsoluteTimes(MooncakeReader):
    """Arrivals as the file has them."""

    def read(self, path: Path) -> Iterator[TraceRecord]:
        for record in super().read(path):
            yield replace(record, arrival=record.arrival + 1.0)


class BackInTime(MooncakeReader):
    """Arrivals as the time that is left until the end."""

    def read(self, path: Path) -> Iterator[TraceRecord]:
        for record in super().read(path):
            yield replace(record, arrival=-record.arrival)


class NoInput(AzureReader):
    """Columns one off: lengths of answers for those of prompts, and nothing for answers."""

    def read(self, path: Path) -> Iterator[TraceRecord]:
        for record in super().read(path):
            yield replace(record, input_tokens=0, tail_tokens=0)


class NegativeOutput(AzureReader):
    def read(self, path: Path) -> Iterator[TraceRecord]:
        for record in super().read(path):
            yield replace(record, output_tokens=record.output_tokens - 100)


class TailIsABlock(MooncakeReader):
    """The id of the partial last block is one of the full ones."""

    def read(self, path: Path) -> Iterator[TraceRecord]:
        for record in super().read(path):
            more = () if record.tail_id is None else (record.tail_id,)
            yield replace(record, block_ids=record.block_ids + more, tail_id=None)


class NoTail(MooncakeReader):
    """The tokens after the last full block are forgotten."""

    def read(self, path: Path) -> Iterator[TraceRecord]:
        for record in super().read(path):
            yield replace(record, tail_tokens=0, tail_id=None)


class IdsAsList(MooncakeReader):
    def read(self, path: Path) -> Iterator[TraceRecord]:
        for record in super().read(path):
            yield replace(record, block_ids=list(record.block_ids))  # type: ignore[arg-type]


class NeedsALastNewline(MooncakeReader):
    """A last line that does not end is not a line."""

    def read(self, path: Path) -> Iterator[TraceRecord]:
        with tempfile.TemporaryDirectory() as folder:
            cut = Path(folder) / path.name
            whole = path.read_bytes()
            cut.write_bytes(whole[: whole.rfind(b"\n") + 1])
            yield from super().read(cut)


class NoCarriageReturns(MooncakeReader):
    """Lines that end as they do on Windows are bad rows."""

    def read(self, path: Path) -> Iterator[TraceRecord]:
        if path.is_file():
            for number, line in enumerate(path.read_bytes().splitlines(keepends=True), start=1):
                if line.endswith(b"\r\n"):
                    raise InvalidRequestError(f"{path}:{number}: carriage return")
        yield from super().read(path)


class LeavesTheFileOpen(MooncakeReader):
    """Works on, and keeps a file open for every read."""

    files: ClassVar[list[Any]] = []

    def read(self, path: Path) -> Iterator[TraceRecord]:
        if path.is_file():
            self.files.append(open(path, "rb"))  # noqa: SIM115
        yield from super().read(path)


def _make(made: Any, options: Options) -> TraceReader:
    reader: TraceReader = made()
    return reader


def _mutant(name: str, made: type[TraceReader], wrong: str, *caught_by: str, errors: str = "") -> Mutant:
    record = TracePlugin(name=name, summary=wrong, factory=functools.partial(_make, made))
    file = {MooncakeReader: "mooncake.jsonl", QwenBailianReader: "qwen_bailian.jsonl", AzureReader: "azure.csv"}
    sample = next(_SAMPLES / name for base, name in file.items() if issubclass(made, base))
    fixtures = {"sample": sample}
    return Mutant(record=record, wrong=wrong, caught_by=caught_by, errors=tuple(errors.split()), fixtures=fixtures)


SOUND: tuple[Mutant, ...] = (
    _mutant("sound_mooncake", MooncakeReader, "nothing"),
    _mutant("sound_qwen_bailian", QwenBailianReader, "nothing"),
    _mutant("sound_azure", AzureReader, "nothing"),
)

MUTANTS: tuple[Mutant, ...] = (
    _mutant(
        "swallows_a_bad_row",
        SwallowsABadRow,
        "leaves out rows that it cannot read",
        "test_a_bad_line_is_refused_by_file_and_line",
    ),
    _mutant(
        "stops_at_a_bad_row", StopsAtABadRow, "a bad row ends the trace", "test_a_bad_line_is_refused_by_file_and_line"
    ),
    _mutant(
        "counts_lines_from_zero",
        CountsLinesFromZero,
        "names the line before the bad one",
        "test_a_bad_line_is_refused_by_file_and_line",
    ),
    _mutant(
        "names_no_line", NamesNoLine, "does not say which row is bad", "test_a_bad_line_is_refused_by_file_and_line"
    ),
    _mutant(
        "names_no_file",
        NamesNoFile,
        "does not say in which file a row is bad",
        "test_a_file_of_another_format_is_refused_by_name",
    ),
    _mutant(
        "bad_rows_are_value_errors",
        BadRowsAreValueErrors,
        "a bad row is a ValueError",
        "test_a_bad_line_is_refused_by_file_and_line",
    ),
    _mutant(
        "missing_is_file_not_found",
        MissingIsFileNotFound,
        "a file that is not there is a FileNotFoundError",
        "test_a_file_that_is_not_there_is_refused_by_name",
    ),
    _mutant(
        "empty_is_an_index_error",
        EmptyIsAnIndexError,
        "an empty file is an IndexError",
        "test_an_empty_file_holds_nothing",
        errors="IndexError",
    ),
    _mutant("not_chained", NotChained, "one id stands for different prefixes", "test_ids_stand_for_all_before_them"),
    _mutant(
        "numbers_every_block_anew",
        NumbersEveryBlockAnew,
        "equal prefixes have different ids",
        "test_reading_twice_gives_the_same",
    ),
    _mutant(
        "counts_on_from_the_last_file",
        CountsOnFromTheLastFile,
        "a second read gives other ids",
        "test_reading_twice_gives_the_same",
    ),
    _mutant("reads_once", ReadsOnce, "a second read finds nothing", "test_reading_twice_gives_the_same"),
    _mutant(
        "first_of_the_first_file",
        FirstOfTheFirstFile,
        "a second read gives later arrivals",
        "test_reading_twice_gives_the_same",
    ),
    _mutant(
        "absolute_times",
        AbsoluteTimes,
        "the first arrival is not 0",
        "test_arrivals_are_seconds_since_the_first_request",
    ),
    _mutant(
        "back_in_time",
        BackInTime,
        "arrivals are before the first one",
        "test_arrivals_are_seconds_since_the_first_request",
    ),
    _mutant("no_input", NoInput, "prompts of 0 tokens", "test_tokens_are_those_of_ids_and_tail"),
    _mutant(
        "negative_output", NegativeOutput, "answers of less than 0 tokens", "test_tokens_are_those_of_ids_and_tail"
    ),
    _mutant(
        "tail_is_a_block", TailIsABlock, "a partial block counts as a full one", "test_tokens_are_those_of_ids_and_tail"
    ),
    _mutant(
        "no_tail", NoTail, "tokens after the last full block are not counted", "test_tokens_are_those_of_ids_and_tail"
    ),
    _mutant("ids_as_list", IdsAsList, "block ids that cannot be hashed", "test_ids_stand_for_all_before_them"),
    _mutant(
        "needs_a_last_newline",
        NeedsALastNewline,
        "a last line without an end is not read",
        "test_line_ends_do_not_matter",
    ),
    _mutant(
        "no_carriage_returns",
        NoCarriageReturns,
        "lines that end in CR LF are bad rows",
        "test_line_ends_do_not_matter",
        errors="InvalidRequestError",
    ),
    _mutant("leaves_the_file_open", LeavesTheFileOpen, "every read leaves a file open", "test_files_are_closed"),
)
