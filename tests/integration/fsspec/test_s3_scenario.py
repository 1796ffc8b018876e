"""Instances whose tier is an S3 bucket: a scenario of the how-to page, and a server that goes away under them."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
import yaml

from .conftest import KEY, SECRET

PAGE = Path(__file__).parents[3] / "docs" / "how-to" / "use-an-fsspec-file-system.md"


def environment() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if not name.startswith("LMCACHE_")}


def test_the_scenario_of_the_page_runs_on_a_bucket_and_shows_no_credentials(s3_server, tmp_path: Path):
    (text,) = [
        block for block in re.findall(r"^```yaml\n(.*?)^```$", PAGE.read_text(), re.M | re.S) if "s3://" in block
    ]
    text = text.replace("http://127.0.0.1:9000", s3_server.url)
    (tmp_path / "bucket.yaml").write_text(text)
    done = subprocess.run(
        [sys.executable, "-m", "lmcache_kit", "run", "bucket.yaml", "--output-dir", "out", "--format", "json"],
        cwd=tmp_path,
        env={**environment(), "MY_S3_KEY": KEY, "MY_S3_SECRET": SECRET},
        capture_output=True,
        text=True,
        timeout=110,
    )
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
    results = {result["name"]: result for result in json.loads(done.stdout)["results"]}
    assert results["read_back"]["hit_rate"] >= 0.99
    status, listed = s3_server.ask("GET", "/bucket?list-type=2")
    assert status == 200
    assert b"chunks/" in listed, "nothing is in the bucket"
    written = [path for path in (tmp_path / "out").rglob("*") if path.is_file()]
    shown = [path.name for path in written if re.search(f"{KEY}|{SECRET}", path.read_text(errors="replace"))]
    assert written
    assert shown == [], "credentials in what the run wrote"
    assert KEY not in done.stdout + done.stderr


@pytest.fixture
def instance(s3_server, tmp_path: Path) -> Iterator[httpx.Client]:
    """A serving instance whose only tier is the bucket."""
    tier = {
        "kind": "fsspec",
        "options": {**s3_server.options, "url": "s3://bucket/serve", "timeout": 1.0, "pause": 0.5},
    }
    own = {"data_dir": str(tmp_path / "data"), "tiers": [tier]}
    config = tmp_path / "instance.yaml"
    config.write_text(yaml.safe_dump({"chunk_size": 16, "extra_config": {"lmcache_kit": own}}))
    log = tmp_path / "instance.log"
    arguments = ["serve", "--engine", "synthetic", "--port", "0", "--model", "m", "--config", str(config)]
    with log.open("wb") as file:
        process = subprocess.Popen(
            [sys.executable, "-m", "lmcache_kit", *arguments], stdout=file, stderr=file, env=environment()
        )
    try:
        deadline = time.monotonic() + 60
        while not (match := re.search(r"^instance \S+ ready http=(\S+)$", log.read_text(), re.M)):
            assert process.poll() is None, log.read_text()
            assert time.monotonic() < deadline, log.read_text()
            time.sleep(0.05)
        with httpx.Client(base_url=f"http://{match[1]}", timeout=60, trust_env=False) as client:
            yield client
        assert SECRET not in log.read_text()
    finally:
        process.terminate()
        try:
            process.wait(30)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
    assert "Traceback" not in log.read_text(), log.read_text()


def complete(client: httpx.Client, tokens: list[int]) -> tuple[str, int]:
    body = {"prompt": tokens, "max_tokens": 6, "temperature": 0}
    answer = client.post("/v1/completions", json=body)
    assert answer.status_code == 200, answer.text
    value = answer.json()
    return value["choices"][0]["text"], value["usage"]["prompt_tokens_details"]["cached_tokens"]


def test_completions_go_on_without_the_server_and_hit_again_when_it_is_back(s3_server, instance: httpx.Client):
    tokens = [number * 7 % 250 for number in range(64)]
    text, cached = complete(instance, tokens)
    assert cached == 0

    def hits() -> bool:
        again, cached = complete(instance, tokens)
        assert again == text, "a hit changed the text"
        return cached > 0

    def eventually(condition) -> None:
        deadline = time.monotonic() + 60
        while not condition():
            assert time.monotonic() < deadline
            time.sleep(0.1)

    eventually(hits)
    tier = instance.get("/health").json()["tiers"]["RemoteBackend"]
    assert tier["available"] is True
    assert KEY not in str(tier)
    answers: list[object] = []
    stop = threading.Event()

    def ask() -> None:
        number = 0
        while not stop.is_set():
            number += 1
            try:
                answers.append(complete(instance, [*tokens[:32], number % 250]))
            except BaseException as error:
                answers.append(error)

    thread = threading.Thread(target=ask)
    thread.start()
    try:
        eventually(lambda: len(answers) >= 3)
        s3_server.kill()  # while completions are under way
        counted = len(answers)
        eventually(lambda: len(answers) >= counted + 3)
    finally:
        stop.set()
        thread.join()
    assert not [answer for answer in answers if isinstance(answer, BaseException)]
    assert complete(instance, tokens) == (text, 0), "reads of a store that is away are misses"
    tier = instance.get("/health").json()["tiers"]["RemoteBackend"]
    assert tier["available"] is False
    assert "s3://bucket/serve" in tier["error"]
    s3_server.start()
    eventually(hits)
