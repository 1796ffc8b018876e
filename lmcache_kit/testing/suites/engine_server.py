"""What every engine that is a server of its own must do: say with what command line it is served."""

from __future__ import annotations

from pathlib import Path

import pytest

from lmcache_kit.contracts.engine import ServerCommand, ServerSpec
from lmcache_kit.contracts.records import EnginePlugin, Options
from lmcache_kit.testing.suites.base import PluginTests, made

__all__ = ["EngineServerTests"]


class EngineServerTests(PluginTests):
    """The tests of ``server``; nothing is started. They are skipped for engines that are made by a ``factory``."""

    @pytest.fixture
    def spec(self, record: EnginePlugin, model: str, tmp_path: Path) -> ServerSpec:
        """What is to be served; skips other engines."""
        if record.server is None:
            pytest.skip(f"not offered: {record.name} is no server of its own")
        config = tmp_path / "a configuration.yaml"
        config.write_text("chunk_size: 256\n")
        return ServerSpec(
            model=model, host="127.0.0.3", port=18123, config=config, served_models=(model,), max_num_seqs=7
        )

    def test_a_command_is_text_and_says_it_every_time(
        self, record: EnginePlugin, made_options: Options, spec: ServerSpec
    ) -> None:
        command = _command(record, made_options, spec)
        assert isinstance(command, ServerCommand), f"server() made a {type(command).__name__}, not a ServerCommand"
        words = [*command.argv, *command.env, *command.env.values()]
        strange = [word for word in words if not isinstance(word, str) or "\0" in word]
        assert not strange, f"{strange[0]!r} cannot be part of a command line"
        assert command.argv, "the command line is empty"
        assert _command(record, made_options, spec) == command, "asked again, it says another command"

    def test_a_server_is_told_where_to_listen_and_what_to_serve(
        self, record: EnginePlugin, made_options: Options, spec: ServerSpec
    ) -> None:
        command = _command(record, made_options, spec)
        said = "\n".join([*map(str, command.argv), *map(str, command.env.values())])
        missing = [str(value) for value in (spec.host, spec.port, spec.config, spec.model) if str(value) not in said]
        assert not missing, f"{missing[0]} is neither in the command line nor in the environment"

    def test_arguments_go_to_the_server_as_they_are(
        self, record: EnginePlugin, made_options: Options, spec: ServerSpec
    ) -> None:
        args = ("--lmcache-kit-check", "two words", "", "--lmcache-kit-check")
        more = ServerSpec(
            model=spec.model,
            host=spec.host,
            port=spec.port,
            config=spec.config,
            served_models=spec.served_models,
            max_num_seqs=spec.max_num_seqs,
            args=args,
        )
        argv = tuple(_command(record, made_options, more).argv)
        assert any(argv[start : start + len(args)] == args for start in range(len(argv))), f"{args} became {argv}"


def _command(record: EnginePlugin, options: Options, spec: ServerSpec) -> ServerCommand:
    server = record.server
    assert server is not None
    return made(lambda: server(options, spec))
