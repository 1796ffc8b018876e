"""The fsspec plugin against a real S3 server."""

from __future__ import annotations

import os
import re
import threading
import time

import pytest

from lmcache_kit.contracts import StorageContext, StoragePlugin
from lmcache_kit.errors import UnavailableError
from lmcache_kit.plugins import registry
from lmcache_kit.testing import StorageBackendTests
from lmcache_kit.testing.effort import EXAMPLES

from .conftest import PAGE


class TestBucket(StorageBackendTests):
    @pytest.fixture(autouse=True)
    def few_examples(self):
        """Each exchange takes some ten milliseconds here, and the same code runs on folders with more of them."""
        token = EXAMPLES.set(3)
        yield
        EXAMPLES.reset(token)

    @pytest.fixture
    def plugin(self):
        return "fsspec"

    @pytest.fixture
    def options(self, s3_server):
        return s3_server.options

    @pytest.fixture
    def unreachable(self, s3_server):
        more = {"storage_options": {"endpoint_url": "http://127.0.0.1:1"}, "timeout": 0.5}
        return {**s3_server.options, **more}


@pytest.fixture
def make(s3_server, tmp_path):
    made = []

    def make(name="fsspec", **more):
        record = registry().get(StoragePlugin, name)
        context = StorageContext(instance_id="i", location="RemoteBackend", capacity_bytes=None, data_dir=tmp_path)
        made.append(record.factory(registry().options(record, {**s3_server.options, **more}), context))
        return made[-1]

    yield make
    for backend in made:
        backend.close()


def test_an_object_is_one_plain_object_of_the_bucket(make, s3_server):
    backend = make()
    blob = os.urandom(300_000)
    backend.put("a.1", blob)
    assert s3_server.ask("GET", "/bucket/pre/fix/a.1.blob") == (200, blob)
    assert s3_server.ask("PUT", "/bucket/pre/fix/b.blob", b"by hand")[0] == 200
    assert backend.get("b") == b"by hand"
    assert backend.size("b") == 7
    s3_server.ask("DELETE", "/bucket/pre/fix/a.1.blob")
    assert (backend.get("a.1"), backend.size("a.1"), backend.delete("a.1")) == (None, None, False)
    assert dict(backend.entries()) == {"b": 7}
    backend.delete("b")


def test_one_read_is_one_exchange(make, s3_server):
    backend = make()
    backend.put("a", b"1")
    told = len(s3_server.log())
    assert backend.get("a") == b"1"
    assert backend.get_many(["a", "no"]) == [b"1", None]
    asked = sorted(re.findall(r"(GET|HEAD) /bucket/pre/fix/(\S+)", s3_server.log()[told:]))
    # A size that is asked first would let a replacement come between.
    assert asked == [("GET", "a.blob"), ("GET", "a.blob"), ("GET", "no.blob")]
    backend.delete("a")


def test_more_objects_than_one_page_of_a_list(make):
    backend = make(url="s3://bucket/many")
    names = [f"m.{number}" for number in range(2 * PAGE + 1)]
    for name in names:
        backend.put(name, b"x")
    assert dict(backend.entries()) == dict.fromkeys(names, 1)


def test_private_stores_in_one_bucket_do_not_see_each_other(make):
    one, shared = make("fsspec_private"), make()
    one.put("a", b"1")
    assert dict(one.entries()) == {"a": 1}
    assert (shared.get("a"), dict(shared.entries())) == (None, {})
    assert dict(make("fsspec_private").entries()) == {"a": 1}
    assert one.delete("a")


def test_a_killed_server_is_an_error_within_the_timeout_and_one_that_came_back_is_used(make, s3_server):
    backend, patient = make(timeout=1.0, pause=0), make(pause=0)
    patient.put("a", b"1")
    s3_server.kill()
    for call in (
        lambda: backend.get("a"),
        lambda: backend.put("a", b"2"),
        backend.health,
        lambda: patient.get("a"),
    ):
        with pytest.raises(UnavailableError, match="s3://bucket/pre/fix"):
            call()
    s3_server.start()
    assert patient.get("a") is None  # this server keeps nothing on disk
    patient.put("a", b"3")
    assert patient.get("a") == b"3"


def test_a_server_that_hangs_costs_the_timeout(make, s3_server):
    backend, patient = make(timeout=0.5, pause=0), make()
    patient.put("a", b"A")
    s3_server.freeze()
    try:
        with pytest.raises(UnavailableError, match=r"no answer within 0\.5 s"):
            backend.get("a")
    finally:
        s3_server.thaw()
    assert patient.get("a") == b"A"


def test_threads_survive_a_server_that_is_killed_and_comes_back(make, s3_server):
    backend = make(timeout=1.0, pause=0.2)
    wrong, stop = [], threading.Event()

    def work(number):
        step = 0
        while not stop.is_set():
            step += 1
            name, blob = f"t{number}", b"%d" % step * 1000
            try:
                backend.put(name, blob)
                if backend.get(name) not in (blob, None):
                    wrong.append(name)
            except UnavailableError:
                time.sleep(0.05)
            except BaseException as error:
                wrong.append(repr(error))

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    s3_server.kill()
    s3_server.start()
    stop.set()
    for thread in threads:
        thread.join()
    assert wrong == []
    make().put("after", b"ok")
    assert make().get("after") == b"ok"


@pytest.mark.parametrize("call", ["put", "health", "entries"])
def test_a_missing_bucket_is_told(make, call):
    backend = make(url="s3://no-such-bucket/x")
    with pytest.raises(UnavailableError, match="no-such-bucket") as caught:
        {"put": lambda: backend.put("a", b"1"), "health": backend.health, "entries": lambda: list(backend.entries())}[
            call
        ]()
    assert "bucket" in caught.value.hint
