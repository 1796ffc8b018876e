"""docs/reference/protocol.md and peer.md name every message and every field, and no other."""

from __future__ import annotations

import re
from pathlib import Path

import msgspec

from lmcache_kit import messages
from lmcache_kit.builtin.transports.records import RECORDS
from lmcache_kit.instance.peer import messages as peer_messages

FOLDER = Path(__file__).parents[2] / "docs" / "reference"
PROTOCOL = (FOLDER / "protocol.md").read_text()
PEER = (FOLDER / "peer.md").read_text()
QUOTED = re.compile(r"`([^`]+)`")


def rows(text: str) -> list[list[str]]:
    """Cells of every table row but the headings."""
    lines = [line for line in text.splitlines() if line.startswith("| ") and not line.startswith("| ---")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]


def fields_of(kind: type) -> list[str]:
    return [field.encode_name for field in msgspec.structs.fields(kind)]


def documented_messages() -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for cells in rows(PROTOCOL):
        for name in QUOTED.findall(cells[0]):
            if name.endswith("Msg"):
                assert name not in found, name
                found[name] = QUOTED.findall(cells[1])
    return found


def test_every_message_and_its_fields_in_order() -> None:
    unions = {"PushedMsg", "WorkerRequestMsg", "WorkerReplyMsg", "ControlMsg", "ControlRetMsg"}
    wanted = {
        name: fields_of(getattr(messages, name))
        for name in messages.__all__
        if name.endswith("Msg") and name not in unions
    }
    assert documented_messages() == wanted


def test_every_answer_is_named_beside_its_request() -> None:
    for cells in rows(PROTOCOL):
        if len(cells) == 3 and cells[0].startswith("`") and cells[0].endswith("Msg`") and "Ret" not in cells[0]:
            assert QUOTED.findall(cells[2]) == [cells[0].strip("`").removesuffix("Msg") + "RetMsg"]


def test_the_fields_of_a_job() -> None:
    section = PROTOCOL.split("Fields of `job`:", 1)[1].split("\n## ", 1)[0]
    assert [QUOTED.findall(cells[0])[0] for cells in rows(section)[1:]] == fields_of(messages.JobInfo)


def test_the_operations_of_a_batch() -> None:
    assert "`{" + ", ".join(fields_of(messages.KVOpEvent)) + "}`" in PROTOCOL


def test_the_requests_of_peers() -> None:
    section = PEER.split("## Requests", 1)[1].split("## Answers", 1)[0]
    table = {QUOTED.findall(cells[0])[0]: QUOTED.findall(cells[1]) for cells in rows(section)[1:]}
    kinds = msgspec.inspect.type_info(peer_messages.PeerRequest).types
    real = {kind.tag: [name for name in fields_of(kind.cls) if name not in ("v", "seconds")] for kind in kinds}
    assert table == real


def test_the_answers_of_peers() -> None:
    section = PEER.split("## Answers", 1)[1].split("| status | when |", 1)[0]
    assert [QUOTED.findall(cells[0])[0] for cells in rows(section)[1:]] == fields_of(peer_messages.Answer)


def test_the_schemes_of_the_transports() -> None:
    section = PEER.split("## Transports", 1)[1].split("**zmq.**", 1)[0]
    table = {cells[0].strip("`").partition("://")[0]: cells[1].strip("`") for cells in rows(section)[1:]}
    assert table == {record.scheme: record.name for record in RECORDS}


def test_the_numbers_on_the_peer_page() -> None:
    options = {field.name: field.default for record in RECORDS for field in msgspec.structs.fields(record.options)}
    assert f"{peer_messages.MAX_PAGE:,}" in PEER
    assert f"{int(peer_messages.MAX_SECONDS):,}" in PEER
    assert f"`connect_seconds` ({options['connect_seconds']:g})" in PEER
    assert f"`threshold_bytes` ({options['threshold_bytes'] // 1024} KiB)" in PEER
    assert peer_messages.MAX_HEADER_BYTES == 4 * 2**20
