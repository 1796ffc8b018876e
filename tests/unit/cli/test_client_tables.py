"""Answers of the controller as a person sees them."""

from __future__ import annotations

from typing import Any

import pytest

from lmcache_kit.cli.client_tables import print_health, print_lookup, print_status


def lines(capsys: pytest.CaptureFixture[str]) -> list[list[str]]:
    """The cells of every line printed, without rules and empty lines."""
    texts = [line.strip() for line in capsys.readouterr().out.splitlines()]
    return [text.split("   ") for text in texts if text.strip(" ─")]


def cells(printed: list[list[str]]) -> list[list[str]]:
    return [[cell.strip() for cell in line if cell.strip()] for line in printed]


EXPLAIN: dict[str, Any] = {
    "num_tokens": 6,
    "specs": [
        {
            "chunk_size": 4,
            "hash_algorithm": "blake3",
            "none_hash": "-7",
            "instances": ["a", "b"],
            "num_chunks": 3,
            "truncated": True,
            "chunks": [
                {"index": 0, "tokens": [0, 4], "key": "11", "holders": {"a": ["LocalCPUBackend", "LocalDiskBackend"]}},
                {"index": 1, "tokens": [4, 6], "key": "12", "holders": {}},
            ],
        }
    ],
    "instances": {"a": {"prefix": 4, "why": "chunk 1 is not held"}, "b": {"prefix": 0, "why": "nothing is held"}},
    "hints": ["start another one"],
}


def test_a_lookup_marks_the_best_location(capsys) -> None:
    holders = {"a": {"LocalCPUBackend": 4, "LocalDiskBackend": 6}, "b": {"LocalCPUBackend": 2}}
    best = {"a": ["LocalDiskBackend", 6], "b": ["LocalCPUBackend", 2]}
    print_lookup({"layout_info": best, "holders": holders})
    assert cells(lines(capsys)) == [
        ["instance", "location", "prefix tokens"],
        ["a", "LocalCPUBackend", "4"],
        ["a", "LocalDiskBackend", "6", "best"],
        ["b", "LocalCPUBackend", "2", "best"],
    ]


def test_a_lookup_that_finds_nothing_is_an_empty_table(capsys) -> None:
    print_lookup({"layout_info": {}, "holders": {}})
    assert cells(lines(capsys)) == [["instance", "location", "prefix tokens"]]


def test_answers_of_lmcaches_controller_are_shown_as_far_as_they_go(capsys) -> None:
    print_lookup({"event_id": "Lookup1", "layout_info": {"a": ["LocalCPUBackend", 512]}})
    assert cells(lines(capsys))[1:] == [["a", "LocalCPUBackend", "512", "best"]]
    print_lookup({"event_id": "Lookup2", "layout_info": {}})
    assert len(lines(capsys)) == 1
    worker = {"instance_id": "a", "worker_id": 0, "ip": "127.0.0.1", "port": 1, "peer_init_url": None}
    keys = {"total_key_count": 2, "instances": [{"instance_id": "a", "key_count": 2, "worker_count": 1}]}
    print_status({"workers": [worker], "keys": keys})
    assert cells(lines(capsys))[-1] == ["a", "2"]


def test_an_explanation_is_for_people_too(capsys) -> None:
    print_lookup({"layout_info": {}, "holders": {}, "explain": EXPLAIN})
    assert cells(lines(capsys)) == [
        ["instance", "prefix tokens", "why"],
        ["a", "4", "chunk 1 is not held"],
        ["b", "0", "nothing is held"],
        ["Instances a, b: chunks of 4 tokens, hash blake3, NONE_HASH -7"],
        ["chunk", "tokens", "key", "held by"],
        ["0", "0 to 3", "11", "a/LocalCPUBackend, a/LocalDiskBackend"],
        ["1", "4 to 5", "12"],
        ["and 1 more chunks"],
        ["hint: start another one"],
    ]


def test_status_shows_workers_their_state_and_what_they_hold(capsys) -> None:
    worker = {"instance_id": "a", "worker_id": 0, "ip": "127.0.0.1", "port": 8001, "peer_init_url": None, "more": 1}
    ours = worker | {"peer_init_url": "tcp://127.0.0.1:8200", "alive": True, "syncing": False, "sync_reason": None}
    workers = [
        worker,
        ours | {"instance_id": "b"},
        ours | {"instance_id": "c", "syncing": True},
        ours | {"instance_id": "d", "sync_reason": "operations_missed"},
        ours | {"instance_id": "e", "alive": False, "sync_reason": "worker_was_dead"},
    ]
    held = {"instance_id": "a", "key_count": 5, "worker_count": 1, "locations": {"LocalCPUBackend": 3, "Remote": 4}}
    print_status({"workers": workers, "keys": {"total_key_count": 5, "instances": [held]}})
    peer = ["0", "127.0.0.1", "8001", "tcp://127.0.0.1:8200"]
    assert cells(lines(capsys)) == [
        ["instance_id", "worker_id", "ip", "port", "peer_init_url", "state"],
        ["a", "0", "127.0.0.1", "8001"],
        ["b", *peer, "ready"],
        ["c", *peer, "syncing"],
        ["d", *peer, "syncing"],
        ["e", *peer, "dead"],
        ["instance_id", "location", "chunks"],
        ["a", "LocalCPUBackend", "3"],
        ["a", "Remote", "4"],
    ]


def test_health_says_in_words_what_a_code_means(capsys) -> None:
    print_health({"error_codes": {"0": 0, "1": -3}})
    assert cells(lines(capsys)) == [
        ["worker", "error code"],
        ["0", "0", "healthy"],
        ["1", "-3", "not healthy"],
    ]
