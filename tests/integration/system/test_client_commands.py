"""Every client command against real processes: what it prints, and its exit status."""

from __future__ import annotations

import json
from typing import Any

import pytest

from lmcache_kit.cli import main

CPU, DISK = "LocalCPUBackend", "LocalDiskBackend"
PROMPT = [(17 * n) % 256 for n in range(100)]
TOKENS = ",".join(map(str, PROMPT))


def test_every_operation(make_fleet: Any, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    fleet = make_fleet("--token", "secret")
    fleet.http.headers["Authorization"] = "Bearer secret"
    a = fleet.start("a", local_disk="disk", max_local_disk_size=1)
    a.complete(PROMPT)
    fleet.until_held(PROMPT, {"a": {CPU: 100, DISK: 100}})
    monkeypatch.setenv("LMCACHE_KIT_CONTROLLER_URL", str(fleet.http.base_url))
    monkeypatch.setenv("LMCACHE_KIT_TOKEN", "secret")

    def run(*arguments: str) -> Any:
        """The command's JSON."""
        assert main([*arguments, "--format", "json"]) == 0, capsys.readouterr().err
        return json.loads(capsys.readouterr().out)

    where = ["--instance-id", "a", "--location", CPU]
    assert run("lookup", "--tokens", TOKENS)["layout_info"] == {"a": [CPU, 100]}
    prompt = ["--prompt", "one two three", "--instance-url", str(a.http.base_url)]
    assert run("lookup", *prompt)["layout_info"] == {}
    packed = run("compress", *where, "--method", "zstd", "--tokens", TOKENS)
    assert (packed["status"], packed["num_tokens"], packed["tokens_done"]) == ("done", 100, 100)
    assert run("check-finish", packed["event_id"])["status"] == "done"
    started = run("decompress", *where, "--method", "zstd", "--no-wait")
    assert set(started) == {"event_id", "num_tokens"}
    assert fleet.finished(started)["tokens_done"] == 100
    assert run("pin", *where, "--tokens", TOKENS, "--owner", "me", "--ttl", "600")["num_tokens"] == 100
    assert run("clear", *where)["num_tokens"] == 0
    assert run("unpin", *where, "--owner", "me")["num_tokens"] == 100
    moved = run("move", "--from", f"a/{CPU}", "--to", f"a/{DISK}", "--tokens", TOKENS)
    assert (moved["status"], moved["note"]) == ("done", "7 of 7 chunks were at the destination already")
    fleet.until_held(PROMPT, {"a": {DISK: 100}})
    assert run("move", "--from", f"a/{DISK}", "--to", f"a/{CPU}", "--copy")["status"] == "done"
    fleet.until_held(PROMPT, {"a": {CPU: 100, DISK: 100}})
    assert run("clear", *where)["num_tokens"] == 100
    facts = run("status")
    assert ([worker["instance_id"] for worker in facts["workers"]], facts["keys"]["total_key_count"]) == (["a"], 7)
    assert run("health", "--instance-id", "a")["error_codes"] == {"0": 0}

    for arguments, word in (
        (["lookup", "--tokens", TOKENS, "--explain"], DISK),
        (["status"], CPU),
        (["health", "--instance-id", "a"], "healthy"),
    ):
        assert main(arguments) == 0
        assert word in capsys.readouterr().out, "a table"

    # Failures: the controller's words on stderr, nothing on stdout.
    for arguments, status, words in (
        (["health", "--instance-id", "b"], 1, "known: a"),
        (["compress", *where, "--method", "zsdt"], 1, "zstd"),
        (["check-finish", "nobody"], 1, "'nobody'"),
        (["lookup", "--tokens", "1", "--token", "wrong"], 1, "token"),
        (["status", "--url", "http://127.0.0.1:9"], 1, "127.0.0.1:9"),
        (["lookup"], 2, "--tokens"),
        (["move", "--from", "a", "--to", "b/c"], 2, "INSTANCE/LOCATION"),
    ):
        assert main(arguments) == status
        shown = capsys.readouterr()
        assert words in shown.err
        assert shown.out == ""
