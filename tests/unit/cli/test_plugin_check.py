"""`plugins check`: what it prints, its options, and what it needs."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from lmcache_kit.cli import main


def test_the_report_as_json_with_options(capsys, tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    store = tmp_path / "here"
    assert main(["plugins", "check", "disk", "--quick", "--set", f"path={store}", "--format", "json"]) == 0
    (report,) = json.loads(capsys.readouterr().out)
    assert (report["kind"], report["name"], report["capabilities"]) == ("storage", "disk", ["persistent"])
    assert report["abilities"] == ["SupportsHealth"]
    assert report["comparison"] is None
    details = {result["check"]: result["detail"] for result in report["results"]}
    assert str(store) in details["test_health_tells_facts"]
    assert [path.name for path in tmp_path.iterdir()] == ["here"]


def test_the_report_for_people(capsys) -> None:
    assert main(["plugins", "check", "lru"]) == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert "kind eviction name lru from lmcache-kit" in shown
    assert "the record is well formed passed options: none" in shown
    assert "0 failed" in shown
    assert "beside the built-ins" in shown


def test_several_options_with_types(capsys) -> None:
    arguments = ["plugins", "check", "zstd", "--quick", "--set", "level=1", "--set", "shuffle=false"]
    assert main([*arguments, "--format", "json"]) == 0
    (report,) = json.loads(capsys.readouterr().out)
    assert all(result["outcome"] != "failed" for result in report["results"])


@pytest.mark.parametrize("optimised", ["", "1"])
def test_a_plugin_that_fails_is_exit_code_1_and_says_what_differs(tmp_path, optimised: str) -> None:
    (tmp_path / "forgets_all.py").write_text("""if True:
        from lmcache_kit.builtin.storage.memory import MemoryBackend
        from lmcache_kit.contracts import StoragePlugin
        from lmcache_kit.hookspecs import hookimpl

        class Forgets(MemoryBackend):
            def put(self, name, blob):
                print("to stdout")

            def get(self, name):
                return b"?"

        @hookimpl
        def lmcache_kit_storage_backends():
            yield StoragePlugin(
                name="forgets_all", summary="x", location="X", factory=lambda options, context: Forgets()
            )
    """)
    done = subprocess.run(
        [sys.executable, "-m", "lmcache_kit", "-p", "forgets_all", "plugins", "check", "forgets_all", "--quick"],
        env={"PYTHONPATH": str(tmp_path), "PATH": "", "PYTHONOPTIMIZE": optimised},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1, done.stderr
    assert "what was put comes back" in done.stdout
    assert "assert b'?' is None" in done.stdout
    assert "to stdout" not in done.stdout
    assert "Traceback" not in done.stdout + done.stderr


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("levl=3", "did you mean 'level'?"),
        ("level=high", "options of compression plugin 'zstd'"),
        ("level", "--set 'level' is not KEY=VALUE"),
    ],
)
def test_wrong_options_are_wrong_usage(capsys, text: str, message: str) -> None:
    assert main(["plugins", "check", "zstd", "--set", text]) == 2
    shown = capsys.readouterr()
    assert shown.out == ""
    assert message in shown.err


@pytest.mark.parametrize("missing", ["pytest", "hypothesis"])
def test_what_the_suites_need_is_named(missing: str) -> None:
    code = f"""if True:
        import sys
        sys.modules[{missing!r}] = None
        from lmcache_kit.cli import main
        sys.exit(main(["plugins", "check", "lru"]))
    """
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert f"error: the conformance suites need {missing}, which is not installed" in done.stderr
    assert "pip install 'lmcache-kit[testing]'" in done.stderr


def test_help_loads_neither_pytest_nor_hypothesis() -> None:
    code = """if True:
        import sys
        from lmcache_kit.cli import main
        main(["plugins", "check", "--help"])
        assert not {"pytest", "hypothesis"} & set(sys.modules), "too much"
    """
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "--sample" in done.stdout
