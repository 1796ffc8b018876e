"""Agentic coding conversations of kv-cache-tester: one JSON object per file, in one file or a folder of them.

.. code-block:: json

    {"id": "trace_0001", "block_size": 64, "hash_id_scope": "local", "requests": [
      {"t": 0.0, "type": "s", "in": 130, "out": 7, "hash_ids": [1, 2]},
      {"t": 1.5, "type": "subagent", "agent_id": "a1", "requests": [
        {"t": 0.0, "type": "n", "in": 64, "out": 3, "hash_ids": [9]}]}]}

``t`` is in seconds since the conversation's start. An id stands for 64 tokens (``block_size``); a partial last block
has none, and a request may have no ids at all. Ids mean something within their file only, unless ``hash_id_scope`` is
``global``. They are chained anew, which changes nothing where they are chained already.

Requests of a subagent are a conversation of their own. Their times count from the subagent's marker in the traces that
kv-cache-tester ships and from the file's start in others; a time that is before its marker's tells which. A request
of type ``n`` with the prompt of the request of type ``s`` right before it is the same request, asked for again.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import ClassVar, Literal

import msgspec

from lmcache_kit.builtin.traces.fields import Count, Id, Length, Time
from lmcache_kit.builtin.traces.options import KVCacheTesterOptions
from lmcache_kit.contracts.trace import TraceFormat, TraceReader, TraceRecord
from lmcache_kit.errors import InvalidRequestError
from lmcache_kit.traces.chaining import Chainer

__all__ = ["KVCacheTesterReader"]

# Seconds by which a request may seem to come before the marker of its subagent.
_ROUNDING = 1.0


class _Request(msgspec.Struct):
    t: Time
    type: str = "s"
    input_tokens: Length | None = msgspec.field(name="in", default=None)
    output_tokens: Count = msgspec.field(name="out", default=0)
    hash_ids: list[Id] = []
    agent_id: str = ""
    requests: list[_Request] = []


class _Conversation(msgspec.Struct):
    requests: list[_Request]
    id: str = ""
    block_size: Length = 64
    hash_id_scope: Literal["local", "global"] = "local"


class KVCacheTesterReader(TraceReader):
    """See the module's description. A wrong row is named by its file and its place in ``requests``."""

    format: ClassVar[TraceFormat] = TraceFormat(
        block_size=64, tail="floor", id_scope="session", chained=False, time_unit=1.0
    )

    def __init__(self, options: KVCacheTesterOptions) -> None:
        self._gap = options.start_gap_seconds
        self._read = self.format

    def format_read(self) -> TraceFormat:
        return self._read

    def read(self, path: Path) -> Iterator[TraceRecord]:
        files = sorted(path.glob("*.json")) if path.is_dir() else [path]
        if not files:
            raise InvalidRequestError(f"{path} has no *.json")
        chainer = Chainer()
        for number, file in enumerate(files):
            conversation = _decode(file)
            if not number:
                # The chainer has numbered the ids of all files in one scope.
                self._read = dataclasses.replace(self.format, block_size=conversation.block_size, id_scope="global")
            elif conversation.block_size != self._read.block_size:
                raise InvalidRequestError(
                    f"{file}: blocks of {conversation.block_size} tokens, files before have {self._read.block_size}"
                )
            session = conversation.id or file.stem
            scope = str(file) if conversation.hash_id_scope == "local" else None
            walk = _Walk(file, chainer, scope, conversation.block_size)
            yield from walk.records(conversation.requests, session, "$.requests", number * self._gap)


def _decode(file: Path) -> _Conversation:
    try:
        return msgspec.json.decode(file.read_bytes(), type=_Conversation)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise InvalidRequestError(
            f"{file}: {error}", hint="one JSON object per file, as in the traces of kv-cache-tester"
        ) from None
    except OSError as error:
        raise InvalidRequestError(f"{file} cannot be read: {error.strerror}") from None


@dataclasses.dataclass(frozen=True, slots=True)
class _Walk:
    """Through the requests of one file."""

    file: Path
    chainer: Chainer
    scope: str | None
    block_size: int

    def records(self, requests: list[_Request], session: str, place: str, start: float) -> Iterator[TraceRecord]:
        relative = any(inner.t < each.t - _ROUNDING for each in requests for inner in each.requests)
        before: _Request | None = None
        name = ""
        for position, each in enumerate(requests):
            here = f"{place}[{position}]"
            if each.type == "subagent":
                inside = f"{session}/{each.agent_id or position}"
                offset = start + each.t if relative else start
                yield from self.records(each.requests, inside, f"{here}.requests", offset)
                continue
            if before is None or not _asks_again(each, before):
                name = f"{session}:{position}"
            yield self._record(each, session, name, here, start)
            before = each

    def _record(self, each: _Request, session: str, name: str, place: str, start: float) -> TraceRecord:
        if each.input_tokens is None:
            raise InvalidRequestError(f"{self.file}: Object missing required field `in` - at `{place}`")
        full = each.input_tokens // self.block_size
        if len(each.hash_ids) not in (0, full):
            raise InvalidRequestError(
                f"{self.file}: {len(each.hash_ids)} hash_ids for {each.input_tokens} tokens, "
                f"want {full} of {self.block_size} tokens - at `{place}`"
            )
        return TraceRecord(
            arrival=start + each.t,
            input_tokens=each.input_tokens,
            output_tokens=each.output_tokens,
            block_ids=tuple(self.chainer.chain(each.hash_ids, scope=self.scope)),
            tail_tokens=each.input_tokens - len(each.hash_ids) * self.block_size,
            session=session,
            request_id=name,
        )


def _asks_again(each: _Request, before: _Request) -> bool:
    same = each.input_tokens == before.input_tokens and each.hash_ids == before.hash_ids
    return same and (before.type, each.type) == ("s", "n")
