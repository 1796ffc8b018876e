"""Shared memory segments: names, places, permissions, and what is left behind."""

import asyncio
import errno
import os
import subprocess
import sys

import msgspec
import pytest

from lmcache_kit.builtin.transports import segments
from lmcache_kit.builtin.transports.options import ShmOptions
from lmcache_kit.builtin.transports.segments import SegmentFolder, default_folder, lock_file
from lmcache_kit.builtin.transports.shared_memory import ShmTransport
from lmcache_kit.errors import ConfigError, TransportError

LONG = 30.0


@pytest.fixture
def folder(segment_folder):
    folder = SegmentFolder(segment_folder)
    yield folder
    folder.close()


def files(path, suffix=".seg"):
    return sorted(entry.name for entry in path.iterdir() if entry.name.endswith(suffix))


def test_what_was_written_is_fetched_once_and_the_name_is_gone(folder):
    frames = [b"a", os.urandom(5000), bytearray(b"xyz")]
    name, offsets = folder.write(frames)
    assert (folder.path / name).stat().st_mode & 0o777 == 0o600
    assert all(offset % 64 == 0 for offset in offsets)
    places = [(offset, len(frame)) for offset, frame in zip(offsets, frames, strict=True)]
    views = folder.fetch(name, places)
    assert files(folder.path) == []
    assert [bytes(view) for view in views] == [bytes(frame) for frame in frames]
    assert all(view.readonly for view in views)
    with pytest.raises(TransportError, match="cannot be opened"):
        folder.fetch(name, places)


def test_more_frames_than_one_system_call_takes(folder):
    frames = [bytes([number % 256]) * (number % 130 + 1) for number in range(3000)]
    name, offsets = folder.write(frames)
    views = folder.fetch(name, [(offset, len(frame)) for offset, frame in zip(offsets, frames, strict=True)])
    assert [bytes(view) for view in views] == frames


def test_writing_goes_on_after_the_kernel_took_only_a_part(folder, monkeypatch):
    real = os.writev
    monkeypatch.setattr(segments.os, "writev", lambda fd, pieces: real(fd, [memoryview(pieces[0])[:1000]]))
    data = os.urandom(10_500)
    name, offsets = folder.write([data, data])
    assert [bytes(view) for view in folder.fetch(name, [(offset, len(data)) for offset in offsets])] == [data, data]


@pytest.mark.parametrize(
    "name",
    [
        "",
        "../x.seg",
        "/etc/passwd",
        "0123456789abcdef-1.seg/..",
        "0123456789ABCDEF-1.seg",
        "0123456789abcdef-.seg",
        "\0",
    ],
)
def test_a_peer_cannot_name_any_other_file(folder, name):
    with pytest.raises(TransportError, match="not the name"):
        folder.fetch(name, [(0, 1)])
    folder.discard(name)


def test_a_peer_cannot_have_a_link_followed_or_a_pipe_opened(folder, tmp_path):
    secret = tmp_path / "secret"
    secret.write_bytes(b"secret")
    link = folder.path / "0123456789abcdef-1.seg"
    link.symlink_to(secret)
    with pytest.raises(TransportError, match="cannot be opened"):
        folder.fetch(link.name, [(0, 6)])
    link.unlink()
    os.mkfifo(link)
    with pytest.raises(TransportError):
        folder.fetch(link.name, [(0, 6)])
    assert secret.read_bytes() == b"secret"
    assert files(folder.path) == []


@pytest.mark.parametrize("places", [[(0, 6)], [(5, 1)], [(2**62, 1)], [(0, 2**62)], [(0, 0)], []])
def test_places_outside_the_segment_are_refused_and_the_segment_freed(folder, places):
    name, _ = folder.write([b"12345"])
    with pytest.raises(TransportError, match="does not hold"):
        folder.fetch(name, places)
    assert files(folder.path) == []


def test_a_full_memory_file_system_is_an_error_that_leaves_nothing(folder, monkeypatch):
    def full(descriptor, pieces):
        os.write(descriptor, bytes(pieces[0])[:10])
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(segments.os, "writev", full)
    with pytest.raises(OSError, match="No space left"):
        folder.write([bytes(10_000)])
    monkeypatch.setattr(segments.os, "writev", lambda descriptor, pieces: 0)
    with pytest.raises(OSError, match="No space left"):
        folder.write([bytes(10_000)])
    assert files(folder.path) == []


def test_a_folder_that_others_may_use_is_refused(tmp_path):
    (tmp_path / "open").mkdir(mode=0o755)
    (tmp_path / "open").chmod(0o755)
    (tmp_path / "link").symlink_to(tmp_path / "open")
    (tmp_path / "file").write_bytes(b"")
    for name in ("open", "link", "file"):
        with pytest.raises(ConfigError, match=name):
            SegmentFolder(tmp_path / name)


def test_the_default_folder_is_made_for_this_user_alone():
    folder = SegmentFolder(default_folder())
    assert str(os.getuid()) in folder.path.name
    assert folder.path.stat().st_mode & 0o777 == 0o700
    folder.close()


def test_closing_removes_own_segments_only_and_twice_is_fine(segment_folder):
    one, other = SegmentFolder(segment_folder), SegmentFolder(segment_folder)
    one.write([b"one"])
    name, offsets = other.write([b"other"])
    one.close()
    one.close()
    assert files(segment_folder) == [name]
    assert bytes(other.fetch(name, [(offsets[0], 5)])[0]) == b"other"
    other.close()
    assert list(segment_folder.iterdir()) == []


CRASH = """
import os, signal, sys
from pathlib import Path
from lmcache_kit.builtin.transports.segments import SegmentFolder, lock_file
folder = SegmentFolder(Path(sys.argv[1]))
for _ in range(3):
    folder.write([bytes(100_000)])
lock_file(folder.path / "dead.lock")
(folder.path / "dead.sock").write_bytes(b"")
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_what_a_killed_process_left_is_swept_and_what_a_living_one_has_is_not(segment_folder):
    living = SegmentFolder(segment_folder)
    kept, _ = living.write([b"kept"])
    lock = lock_file(segment_folder / "alive.lock")
    (segment_folder / "alive.sock").write_bytes(b"")
    done = subprocess.run([sys.executable, "-c", CRASH, str(segment_folder)], capture_output=True, check=False)
    assert done.returncode == -9, done.stderr
    assert len(files(segment_folder)) == 4
    assert files(segment_folder, ".sock") == ["alive.sock", "dead.sock"]
    other = SegmentFolder(segment_folder)  # sweeps when it opens
    assert files(segment_folder) == [kept]
    assert files(segment_folder, ".sock") == ["alive.sock"]
    assert len(files(segment_folder, ".owner")) == 2
    other.close()
    segments.release_name(segment_folder, "alive", lock)
    living.close()
    assert list(segment_folder.iterdir()) == []


def test_files_of_others_in_the_folder_are_left_alone(segment_folder):
    foreign = segment_folder / "notes.txt"
    foreign.write_bytes(b"mine")
    folder = SegmentFolder(segment_folder)
    assert folder.sweep() == 0
    folder.close()
    assert foreign.read_bytes() == b"mine"


def test_a_lock_is_held_by_one_only(segment_folder):
    first = lock_file(segment_folder / "x.lock")
    assert lock_file(segment_folder / "x.lock") is None
    os.close(first)
    second = lock_file(segment_folder / "x.lock")
    assert second is not None
    os.close(second)


# --- the transport over them -----------------------------------------------------------------------------------------


async def gone(path):
    """Return when no segment is left."""
    for _ in range(3000):
        if not files(path):
            return
        await asyncio.sleep(0.01)
    raise AssertionError(files(path))


async def echo(frames):
    return frames


@pytest.fixture
async def pair(segment_folder):
    options = ShmOptions(directory=str(segment_folder), threshold_bytes=1000)
    listener = await ShmTransport(options).listen("shm://pair", echo)
    channel = await ShmTransport(options).connect(listener.address)
    yield listener, channel
    await channel.close()
    await listener.close()
    assert list(segment_folder.iterdir()) == []


async def test_no_segment_stays_while_answers_are_held_or_after_they_are_dropped(pair, segment_folder):
    _, channel = pair
    held = [await channel.request([bytes(5000), b"small"], timeout=LONG) for _ in range(20)]
    assert files(segment_folder) == []
    assert all(bytes(answer[0]) == bytes(5000) for answer in held)


async def test_a_full_memory_file_system_sends_frames_through_the_socket_and_warns_once(
    pair, segment_folder, monkeypatch, caplog
):
    def full(descriptor, pieces):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(segments.os, "writev", full)
    _, channel = pair
    for size in (2000, 5_000_000, 2000):
        answer = await channel.request([b"x" * size, b"small"], timeout=LONG)
        assert [bytes(frame) for frame in answer] == [b"x" * size, b"small"]
    warned = [record for record in caplog.records if "no shared memory" in record.message]
    assert len(warned) == 2  # the channel and the listener, once each
    assert files(segment_folder) == []


@pytest.mark.parametrize(
    "message",
    [
        [],
        [b""],
        [b"\xc1"],
        [msgspec.msgpack.encode((None, [None]))],  # one frame too few
        [msgspec.msgpack.encode((None, [])), b"one too many"],
        [msgspec.msgpack.encode((None, [(0, 5)]))],  # in which segment?
        [msgspec.msgpack.encode(("../../etc/passwd", [(0, 5)]))],
        [msgspec.msgpack.encode(("0123456789abcdef-1.seg", [(0, 5)]))],
        [msgspec.msgpack.encode(("0123456789abcdef-1.seg", [(-1, 5)]))],
        [msgspec.msgpack.encode(("0123456789abcdef-1.seg", [(5, -1)]))],
        [msgspec.msgpack.encode(("0123456789abcdef-1.seg", [(0, 2**63)]))],
        [msgspec.msgpack.encode(("0123456789abcdef-1.seg", [(0, 2**40)] * 3))],
        [b"\x91" * 5000],
    ],
)
async def test_malformed_messages_are_refused_with_a_reason(pair, message):
    _, channel = pair
    with pytest.raises(TransportError, match="refused"):
        await channel._inner.request(message, timeout=LONG)
    assert [bytes(frame) for frame in await channel.request([b"y" * 2000], timeout=LONG)] == [b"y" * 2000]


async def test_an_answer_that_comes_too_late_gives_its_memory_back(segment_folder):
    gate, answered = asyncio.Event(), asyncio.Event()

    async def handler(frames):
        await gate.wait()
        answered.set()
        return [bytes(500_000)]

    transport = ShmTransport(ShmOptions(directory=str(segment_folder)))
    listener = await transport.listen("shm://late", handler)
    channel = await transport.connect(listener.address)
    with pytest.raises(Exception, match="did not answer"):
        await channel.request([bytes(500_000)], timeout=0.1)
    assert files(segment_folder) == []  # the request's memory was freed when its handler fetched it
    gate.set()
    await answered.wait()
    await asyncio.sleep(0.05)
    await gone(segment_folder)
    await channel.close()
    await listener.close()


async def test_an_answer_that_nobody_fetches_gives_its_memory_back_after_a_while(segment_folder):
    transport = ShmTransport(ShmOptions(directory=str(segment_folder), answer_seconds=0.05))
    listener = await transport.listen("shm://abandoned", echo)
    channel = await transport.connect(listener.address)
    name, message = await channel._packer.pack([bytes(200_000)])
    await channel._inner.request(message, timeout=LONG)  # and the answer's segment is never opened
    await gone(segment_folder)
    assert name is not None
    await channel.close()
    await listener.close()


async def test_a_socket_path_that_is_too_long_is_a_configuration_error(tmp_path):
    deep = tmp_path / ("d" * 100)
    transport = ShmTransport(ShmOptions(directory=str(deep)))
    for attempt in (transport.connect("shm://name"), transport.listen("shm://name", echo)):
        with pytest.raises(ConfigError, match="longer than 107 bytes"):
            await attempt
    assert list(deep.iterdir()) == []


CLEAN_EXIT = """
import asyncio, sys
from lmcache_kit.builtin.transports.options import ShmOptions
from lmcache_kit.builtin.transports.shared_memory import ShmTransport

async def main():
    async def echo(frames):
        return frames
    transport = ShmTransport(ShmOptions(directory=sys.argv[1]))
    listener = await transport.listen("shm://x", echo)
    channel = await transport.connect("shm://x")
    kept = await channel.request([bytes(2**20)], timeout=30)
    await channel.close()
    await listener.close()
    return kept

kept = asyncio.run(main())
"""


def test_a_process_that_used_shared_memory_ends_without_any_warning(segment_folder):
    done = subprocess.run(
        [sys.executable, "-X", "dev", "-W", "error", "-c", CLEAN_EXIT, str(segment_folder)],
        capture_output=True,
        check=False,
        text=True,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert list(segment_folder.iterdir()) == []
