"""The tutorial, run as a newcomer would: every block in order, in one shell, in an empty folder."""

from __future__ import annotations

import json
import os
import re
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
TUTORIAL = ROOT / "docs" / "tutorial" / "lookup-and-compress.md"
SEEDS = ROOT.parent / "shared" / "seeds"
PORTS = [8000, 8001, 8200, 9000, 9001, 9002, 9003]
BLOCK = re.compile(r"^```(bash|json|text)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def blocks() -> list[tuple[str, str]]:
    """``(language, text)`` of every code block of the tutorial."""
    return [(match[1], match[2]) for match in BLOCK.finditer(TUTORIAL.read_text())]


def busy(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def json_values(text: str) -> list[object]:
    """Every JSON value in a text, one after another."""
    values, decoder, at = [], json.JSONDecoder(), 0
    while (start := text.find("{", at)) >= 0:
        try:
            value, at = decoder.raw_decode(text, start)
            values.append(value)
        except json.JSONDecodeError:
            at = start + 1
    return values


def matches(shown: object, real: object) -> bool:
    """Whether an answer is the documented one, where ``"..."`` stands for anything and more keys may appear."""
    if shown == "...":
        return True
    if isinstance(shown, dict):
        return isinstance(real, dict) and all(key in real and matches(shown[key], real[key]) for key in shown)
    if isinstance(shown, list):
        return isinstance(real, list) and len(shown) == len(real) and all(map(matches, shown, real))
    return shown == real


def words(text: str) -> list[str]:
    """The words of a table without its rules."""
    return [word for word in text.split() if word.strip("─")]


@pytest.fixture(scope="module")
def session(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """What each bash block printed."""
    if shutil.which("curl") is None:
        pytest.skip("the tutorial is about curl commands and curl is not installed")
    if taken := [port for port in PORTS if busy(port)]:
        pytest.skip(f"the tutorial uses fixed ports and {taken} are in use on this machine")
    folder = tmp_path_factory.mktemp("tutorial")
    marker = "----- end of block -----"
    commands = "\n".join(f"{text}\necho; echo '{marker}'" for language, text in blocks() if language == "bash")
    # Job control gives each server its own process group, as in a terminal; whatever is left at the end is stopped.
    script = f"set -m -o pipefail\ntrap 'kill $(jobs -p) 2>/dev/null || true; wait' EXIT\nset -e\n{commands}"
    inherited = {name: value for name, value in os.environ.items() if name != "PYTHONHASHSEED"}
    environment = {**inherited, "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}
    done = subprocess.run(
        ["bash", "-c", script], cwd=folder, env=environment, capture_output=True, text=True, timeout=110
    )
    logs = "".join(path.read_text() for path in sorted(folder.glob("*.log")))
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}\n{logs}"
    assert "Traceback" not in logs, logs
    return done.stdout.split(marker)


def test_every_block_runs(session: list[str]) -> None:
    assert len(session) == 1 + sum(language == "bash" for language, _ in blocks())


def test_the_answers_are_those_in_the_text(session: list[str]) -> None:
    printed = [value for text in session for value in json_values(text)]
    shown = [json.loads(text) for language, text in blocks() if language == "json"]
    assert len(shown) >= 7
    for value in shown:
        assert any(matches(value, real) for real in printed), f"no command answered {value}, only {printed}"


def test_the_tables_are_those_in_the_text(session: list[str]) -> None:
    # Word by word, since the text is narrower than the output; a row that is broken over lines there has one column.
    printed = " ".join(words("\n".join(session)))
    tables = [text for language, text in blocks() if language == "text"]
    assert len(tables) >= 2
    for table in tables:
        assert " ".join(words(table)) in printed


def test_the_job_ends_and_the_second_completion_reads_the_compressed_chunk(session: list[str]) -> None:
    printed = [value for text in session for value in json_values(text) if isinstance(value, dict)]
    [job] = [value for value in printed if "bytes_before" in value]
    assert job["status"] == "done"
    assert 0 < job["bytes_after"] < job["bytes_before"]
    completions = [value for value in printed if value.get("object") == "text_completion"]
    cached = [value["usage"]["prompt_tokens_details"]["cached_tokens"] for value in completions]
    assert cached == [0, 11]
    assert completions[1]["lmcache_kit"]["codecs"] == {"cachegen": 1}


def test_the_commands_are_those_of_the_documents() -> None:
    if not SEEDS.is_dir():
        pytest.skip("the documents that the tutorial follows are kept beside the project, not in it")
    tutorial = TUTORIAL.read_text()
    for document in sorted(SEEDS.iterdir()):
        text = document.read_text()
        curls = re.findall(r"^curl .*?\}'$", text, re.MULTILINE | re.DOTALL)
        assert len(curls) >= 3
        for curl in curls:
            assert curl in tutorial, f"the tutorial lacks a command of {document.name}:\n{curl}"
