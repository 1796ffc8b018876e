"""The golden frames against LMCache itself: its decoder reads ours, and a new capture says what the kept one says."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import msgspec
import pytest

from lmcache_kit import messages as m

GOLDEN = Path(__file__).parents[2] / "golden"
READ = """
import json, sys
import msgspec
from lmcache.v1.cache_controller.message import Msg

read = [msgspec.msgpack.decode(bytes.fromhex(each), type=Msg) for each in json.load(open(sys.argv[1]))]
print(json.dumps([msgspec.msgpack.encode(each).hex() for each in read]))
"""


def frames() -> list[dict[str, Any]]:
    return [each for each in json.loads((GOLDEN / "frames.json").read_text()) if each["source"] != "documented"]


@pytest.mark.exercises("golden frames: LMCache reads every message of ours, and understands the same fields")
def test_lmcache_reads_ours(lmcache_env: Any, tmp_path: Path) -> None:
    kept = frames()
    ours = [m.encode(msgspec.convert(each["fields"], getattr(m, each["fields"]["type"]))) for each in kept]
    (tmp_path / "ours.json").write_text(json.dumps([each.hex() for each in ours]))
    again = json.loads(lmcache_env.run(READ, str(tmp_path / "ours.json")).splitlines()[-1])
    # What it encodes again has its own keys alone, so this is byte for byte what it would have sent.
    assert again == [each["hex"] for each in kept]


@pytest.mark.exercises("golden frames and chunk keys: captured anew from LMCache and vLLM, they are as they were kept")
def test_a_new_capture_says_the_same(lmcache_env: Any, vllm_env: Any, processes: Any) -> None:
    folder = processes.folder
    command = [lmcache_env.python, GOLDEN / "capture.py", "--vllm-python", vllm_env.python, "--output-dir", folder]
    capture = processes.start("capture", *command)
    assert capture.child.wait(600) == 0, capture.text()[-3000:]
    kept = {each["name"]: each for each in json.loads((GOLDEN / "frames.json").read_text())}
    new = {each["name"]: each for each in json.loads((folder / "frames.json").read_text())}
    assert kept.keys() <= new.keys()
    for name, each in kept.items():
        assert shape(new[name]["fields"]) == shape(each["fields"]), name
        if name != "DeRegisterMsg, worker pushes":  # a worker's goodbye arrives, and is captured, by chance
            assert new[name]["source"] == each["source"], name
    keys = [json.loads((where / "chunk_keys.json").read_text()) for where in (GOLDEN, folder)]
    for was, now in zip(*keys, strict=True):
        if was["vllm"] and was["PYTHONHASHSEED"] is None and was["algorithm"] == "builtin":
            continue  # this one starts from a text's hash, which is another one in every process
        assert now == was


def shape(value: Any) -> Any:
    """Names and types: ids, ports and times differ from capture to capture."""
    if isinstance(value, dict):
        return {name: shape(each) for name, each in value.items()}
    if isinstance(value, list):
        return [shape(value[0])] if value else []
    return type(value).__name__
