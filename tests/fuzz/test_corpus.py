"""Inputs that fuzzing found, and real ones, and cuts of both: no target raises, and none holds much memory."""

from __future__ import annotations

import contextlib
import tracemalloc
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import ModuleType

import pytest

from lmcache_kit.errors import LMCacheKitError

CORPUS = Path(__file__).parent / "corpus"
NAMES = ["blob", "bodies", "cachegen", "controller", "messages", "peer", "traces", "transport"]
MOST_BYTES = 24 * 2**20
"""A target's own copies and the traced allocator's overhead; an input has 4 KiB at most."""


def test_every_target_has_a_corpus_that_stays_small(fuzz: ModuleType, seeds: dict[str, list[bytes]]) -> None:
    assert sorted(fuzz.TARGETS) == sorted(seeds) == NAMES == sorted(each.name for each in CORPUS.iterdir())
    files = [path for path in CORPUS.rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) < 300_000
    assert max(path.stat().st_size for path in files) <= fuzz.LARGEST_INPUT


@pytest.mark.parametrize("name", NAMES)
def test_no_known_input_does_harm(fuzz: ModuleType, seeds: dict[str, list[bytes]], name: str) -> None:
    run = fuzz.TARGETS[name]
    found = [path.read_bytes() for path in sorted((CORPUS / name).iterdir())]
    assert found
    with fuzz.main_guard():
        for data in (b"", *seeds[name], *found):
            run(data)
            run(data[: len(data) // 2])
        tracemalloc.start()
        try:
            for data in found:
                run(data)
            peak = tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()
    assert peak < MOST_BYTES


@pytest.mark.parametrize("name", NAMES)
def test_real_inputs_are_read_to_their_end(fuzz: ModuleType, seeds: dict[str, list[bytes]], name: str) -> None:
    """A target whose inputs are refused at the door would find nothing behind it."""

    def reads(data: bytes) -> bool:
        match name:
            case "messages":
                return any(decode(data) for decode in fuzz._DECODERS if _accepts(decode, data))
            case "blob":
                header, payload = fuzz.unpack_blob(data).header, fuzz.unpack_blob(data).payload
                return fuzz._METHODS[header.codec].decode(payload, header.layout, header.num_tokens, 1).num_tokens == 2
            case "cachegen":
                method, tokens = fuzz.CACHEGEN[data[0]]
                assert fuzz.sealed_payload(data[1:]) == data[1:]
                return method.decode(memoryview(data[1:]), fuzz.LAYOUT, tokens, 1).num_tokens == tokens
            case "traces":
                path = fuzz.folder() / "trace.json"
                path.write_bytes(data[1:])
                return len(fuzz.load_trace(path, fuzz.READERS[data[0]])[1]) > 1
            case "bodies":
                kinds = (fuzz.CompletionBody, fuzz.TokenizeBody, fuzz.DetokenizeBody)
                decoders = [*(partial(fuzz.decode_body, kind=kind) for kind in kinds), fuzz.decode_faults]
                return any(_accepts(decode, data) for decode in decoders)
            case _:
                return fuzz.join(fuzz.split(data)) == data

    assert all(reads(data) for data in seeds[name])
    if name == "blob":
        assert all(fuzz.sealed_blob(data) == data for data in seeds[name])


def _accepts(decode: Callable[[bytes], object], data: bytes) -> bool:
    with contextlib.suppress(LMCacheKitError):
        return decode(data) is not None
    return False


def test_a_piece_is_split_as_it_was_joined(fuzz: ModuleType) -> None:
    pieces = [(0, b""), (3, b"abc"), (255, bytes(300))]
    assert fuzz.split(fuzz.join(pieces)) == pieces
    assert fuzz.split(fuzz.join(pieces)[:-10])[:2] == pieces[:2]
    assert fuzz.split(b"\0\xff\xffabc") == [(0, b"abc")]


def test_an_error_that_is_only_logged_counts_as_found(fuzz: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(self: object, message: object) -> object:
        raise ZeroDivisionError

    monkeypatch.setattr("lmcache_kit.controller.inbound.Inbound.on_pushed", broken)
    seed = fuzz.join([(0, fuzz.wire.encode(fuzz.wire.KVAdmitMsg(instance_id="a", worker_id=0, key=1, location="c")))])
    with fuzz.main_guard(), pytest.raises(ZeroDivisionError):
        fuzz.TARGETS["controller"](seed)
