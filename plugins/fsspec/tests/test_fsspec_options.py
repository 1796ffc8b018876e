"""Urls, options and credentials."""

from __future__ import annotations

import subprocess
import sys

import pytest
from lmcache_kit_fsspec import FsspecOptions, lmcache_kit_storage_backends
from lmcache_kit_fsspec.credentials import Credentials
from lmcache_kit_fsspec.place import Place

from lmcache_kit.cli import main
from lmcache_kit.errors import ConfigError
from lmcache_kit.plugins import PluginRegistry


def record(name):
    return next(record for record in lmcache_kit_storage_backends() if record.name == name)


def test_what_is_declared_holds_for_every_url_that_is_taken():
    assert {record.name: set(record.capabilities) for record in lmcache_kit_storage_backends()} == {
        "fsspec": {"persistent", "shared"},
        "fsspec_private": {"persistent"},
        "fsspec_memory": set(),
    }


@pytest.mark.parametrize("name", ["fsspec", "fsspec_private"])
def test_memory_is_not_taken_for_a_store_that_lasts(make, name):
    with pytest.raises(ConfigError, match="gone when the process ends") as caught:
        make(name, url="memory://x")
    assert "fsspec_memory" in caught.value.hint


def test_the_memory_plugin_takes_no_other_place(make, tmp_path):
    with pytest.raises(ConfigError, match="memory:// urls only"):
        make("fsspec_memory", url=f"file://{tmp_path}")


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("/a/folder", "no protocol"),
        ("://x", "no protocol"),
        ("", "no protocol"),
        ("file://relative", "not absolute"),
        ("file:///", "no folder"),
        ("simplecache::file:///x", "chain"),
        ("file:///x/*", "may not hold"),
        ("file:///x/[a]?", "may not hold"),
        ("fil:///x", "knows no protocol 'fil'"),
        ("ftp://somebody:hunter2@host/x", "holds a password"),
    ],
)
def test_an_unusable_url_is_refused_at_once_and_not_repeated(make, url, words):
    with pytest.raises(ConfigError, match=words) as caught:
        make(url=url)
    assert "hunter2" not in caught.value.detail


def test_a_protocol_whose_package_is_missing_says_what_to_install(make, monkeypatch):
    monkeypatch.setitem(sys.modules, "webdav4", None)
    monkeypatch.setitem(sys.modules, "webdav4.fsspec", None)
    with pytest.raises(ConfigError, match="'webdav' needs another package") as caught:
        make(url="webdav://host/x")
    assert "nstall webdav4" in caught.value.hint


def test_a_protocol_that_promises_nothing_is_refused_until_the_user_says_how(store):
    with pytest.raises(ConfigError, match="brittle is not known to replace an object at once"):
        Place.of("brittle://bucket/x")
    assert Place.of("brittle://bucket/x", replace="put").replace == "put"


@pytest.mark.parametrize(
    "values",
    [
        {},
        {"url": 5},
        {"url": "file:///x", "timeout": 0},
        {"url": "file:///x", "pause": -1},
        {"url": "file:///x", "replace": "maybe"},
        {"url": "file:///x", "uri": "y"},
    ],
)
def test_options_are_checked(values):
    with pytest.raises(ConfigError):
        PluginRegistry.options(record("fsspec"), values)


def test_the_defaults_of_one_record_do_not_leak_into_the_next():
    first = PluginRegistry.options(record("fsspec"), {"url": "file:///x"})
    assert isinstance(first, FsspecOptions)
    first.storage_options["anon"] = True
    assert PluginRegistry.options(record("fsspec"), {"url": "file:///x"}).storage_options == {}


@pytest.mark.parametrize(
    "options",
    [
        {"key": "AKIA"},
        {"secret": "s"},
        {"token": "s"},
        {"password": "s"},
        {"sas_token": "s"},
        {"account_key": "s"},
        {"connection_string": "s"},
        {"client_kwargs": {"aws_secret_access_key": "s"}},
        {"a": {"b": {"Passphrase": "s"}}},
    ],
)
def test_credentials_among_the_options_are_refused(options):
    with pytest.raises(ConfigError, match="looks like a credential") as caught:
        FsspecOptions(url="s3://b", storage_options=options)
    assert "secrets: {" in caught.value.hint


@pytest.mark.parametrize(
    "options",
    [{"token": "anon"}, {"token": None}, {"key_filename": "/home/me/id"}, {"endpoint_url": "http://h"}, {"anon": True}],
)
def test_what_only_says_where_credentials_are_is_taken(options):
    assert FsspecOptions(url="s3://b", storage_options=options).storage_options == options


def test_secrets_come_from_the_environment_into_copies(monkeypatch):
    monkeypatch.setenv("MY_SECRET", "hunter2")
    monkeypatch.setenv("MY_KEY", "hunter2-and-more")
    options = {"client_kwargs": {"region_name": "r"}}
    found = Credentials(options, {"client_kwargs.secret": "MY_SECRET", "key": "MY_KEY"})
    assert found.arguments == {
        "client_kwargs": {"region_name": "r", "secret": "hunter2"},
        "key": "hunter2-and-more",
    }
    assert options == {"client_kwargs": {"region_name": "r"}}
    # The longer one first: no rest of it may stay.
    assert found.hide("hunter2-and-more, hunter2; http://me:x@host/") == "***, ***; http://***@host/"


def test_a_scenario_with_a_credential_is_refused_before_anything_is_written(tmp_path, capsys):
    tier = "instance_defaults.tiers.1"
    values = {"kind": "fsspec", "options.url": "s3://b", "options.storage_options.secret": "hunter2"}
    settings = [part for key, value in values.items() for part in ("--set", f"{tier}.{key}={value}")]
    assert main(["run", "synthetic", "--output-dir", str(tmp_path / "out"), *settings]) == 2
    shown = capsys.readouterr()
    assert "tiers.1: storage_options.secret looks like a credential" in shown.err
    assert "hunter2" not in shown.out + shown.err
    assert not (tmp_path / "out").exists()


def test_a_variable_that_is_not_set_is_named(monkeypatch):
    monkeypatch.delenv("NO_SUCH_VARIABLE", raising=False)
    with pytest.raises(ConfigError, match="NO_SUCH_VARIABLE is not set"):
        Credentials({}, {"key": "NO_SUCH_VARIABLE"})


def test_a_secret_inside_something_else_than_a_mapping_is_refused(monkeypatch):
    monkeypatch.setenv("MY_SECRET", "hunter2")
    with pytest.raises(ConfigError, match=r"storage_options\.a is not a mapping"):
        Credentials({"a": 1}, {"a.b": "MY_SECRET"})


def test_arguments_that_the_file_system_does_not_know_are_a_configuration_error(make, store):
    with pytest.raises(ConfigError, match="cannot be made"):
        make(url="brittle://bucket/x", replace="put", storage_options={"url": "another"})


def test_listing_plugins_does_not_import_fsspec():
    code = "import sys, lmcache_kit.plugins as p; print(p.registry().names('storage'), 'fsspec' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "'fsspec_private'" in done.stdout
    assert done.stdout.split()[-1] == "False"
