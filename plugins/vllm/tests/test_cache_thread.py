"""The thread that the cache lives in: how it starts, fails to start, and ends."""

from __future__ import annotations

import asyncio
import socket
import threading

import pytest
from lmcache_kit_vllm.cache_thread import CacheThread

from lmcache_kit.contracts.engine import EngineInfo
from lmcache_kit.errors import ConfigError, UnavailableError
from lmcache_kit.instance.config.loading import instance_config
from lmcache_kit.kv.layout import KVLayout

INFO = EngineInfo(
    model="m", fingerprint="f", layout=KVLayout(1, 1, 4), max_model_len=9, eos_token_ids=frozenset(), vocab_size=9
)


def alive():
    return [thread for thread in threading.enumerate() if thread.name == "lmcache-kit cache"]


def test_it_ends_with_what_it_was_given_done(settings):
    cache = CacheThread(instance_config(settings), INFO)
    done = []

    async def work():
        await asyncio.sleep(0.2)
        done.append(1)

    cache.submit(work())
    cache.close()
    cache.close()
    assert done == [1]
    assert not alive()
    with pytest.raises(UnavailableError, match="closed"):
        cache.submit(work())


def test_a_cache_that_cannot_start_says_why(settings):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        own = settings["extra_config"]["lmcache_kit"]
        own["transport"] = {"kind": "zmq", "address": f"tcp://127.0.0.1:{port}"}
        with pytest.raises(ConfigError, match="cannot listen"):
            CacheThread(instance_config({**settings, "enable_p2p": True}), INFO)
    assert not alive()


def test_an_absent_controller_holds_nothing_up(settings):
    away = {"enable_controller": True, "lmcache_instance_id": "v", "controller_url": "127.0.0.1:1"}
    cache = CacheThread(instance_config({**settings, **away}), INFO)
    assert cache.submit(cache.store.load_prefix([1, 2, 3])).result(5).num_tokens == 0
    assert cache.stats["worker"]["registered"] is False
    cache.close()
    assert not alive()
