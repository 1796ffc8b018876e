"""Our trace readers keep the contract, with the samples of our scenarios."""

from __future__ import annotations

from pathlib import Path

import pytest

from lmcache_kit.testing import TraceReaderTests

DATA = Path(__file__).parents[2] / "scenarios" / "data" / "traces"


class TestMooncake(TraceReaderTests):
    @pytest.fixture
    def plugin(self):
        return "mooncake"

    @pytest.fixture
    def sample(self):
        return DATA / "conversations.jsonl"


class TestQwenBailian(TraceReaderTests):
    @pytest.fixture
    def plugin(self):
        return "qwen_bailian"

    @pytest.fixture
    def sample(self):
        return DATA / "chats.jsonl"


class TestLMCacheLookup(TraceReaderTests):
    @pytest.fixture
    def plugin(self):
        return "lmcache_lookup"

    @pytest.fixture
    def sample(self):
        return DATA / "lookups" / "lookup_hashes_20260101_000000_000000.jsonl"


class TestAzure(TraceReaderTests):
    @pytest.fixture
    def plugin(self):
        return "azure"

    @pytest.fixture
    def sample(self):
        return DATA / "azure.csv"


class TestBurstGPT(TraceReaderTests):
    @pytest.fixture
    def plugin(self):
        return "burstgpt"

    @pytest.fixture
    def sample(self):
        return DATA / "burstgpt.csv"


class TestKVCacheTester(TraceReaderTests):
    rows_are_lines = False

    @pytest.fixture
    def plugin(self):
        return "kv_cache_tester"

    @pytest.fixture
    def sample(self):
        return DATA / "agents" / "trace_0001.json"


class TestKVCacheTesterFolder(TestKVCacheTester):
    @pytest.fixture
    def sample(self):
        return DATA / "agents"
