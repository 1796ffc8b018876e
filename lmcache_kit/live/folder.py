"""The output directory of a run."""

from __future__ import annotations

import shutil
from pathlib import Path

from lmcache_kit.errors import ConfigError

__all__ = ["OutputFolder"]

_MARK = ".lmcache-kit-run"
_OURS = ("scenario.yaml", "report.json", "events.jsonl", "report.html", "machine.json", "logs", "config", "data")


class OutputFolder:
    """A folder with ``scenario.yaml``, ``report.json``, ``events.jsonl``, ``report.html``, ``logs/`` and ``config/``.

    An earlier run's files are replaced. A folder that no run made is refused unless it is empty, so a wrong path loses
    nothing, whatever its files are called; the hidden file ``.lmcache-kit-run`` tells them apart.

    Args:
        path: made with its parents when it does not exist.
    """

    def __init__(self, path: Path) -> None:
        self.path = path.resolve()
        self.scenario = self.path / "scenario.yaml"
        self.report = self.path / "report.json"
        self.events = self.path / "events.jsonl"
        self.logs = self.path / "logs"
        self.config = self.path / "config"
        self.data = self.path / "data"

    def cache_events(self, instance_id: str) -> Path:
        """Where an instance writes its cache events during the run; they end up in ``events.jsonl``."""
        return self.data / f"{instance_id}.events.jsonl"

    def prepare(self) -> None:
        """Make the folder and empty it of an earlier run. Raises ConfigError when it is not ours to empty."""
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            held = {entry.name for entry in self.path.iterdir()}
        except OSError as error:
            raise self._unusable(error) from None
        if held and _MARK not in held:
            raise ConfigError(
                f"{self.path} holds something else than a run's output", hint="name an empty or new --output-dir"
            )
        try:
            self._empty()
        except OSError as error:
            raise self._unusable(error) from None

    def drop_data(self) -> None:
        """Remove what the instances stored; a run's result is its report."""
        shutil.rmtree(self.data, ignore_errors=True)

    def _empty(self) -> None:
        # First of all: a run that is killed at any later point leaves a folder that the next one may use.
        (self.path / _MARK).write_text("Made by `lmcache-kit run`, which replaces the files of an earlier run here.\n")
        for name in _OURS:
            entry = self.path / name
            if entry.is_dir() and not entry.is_symlink():
                shutil.rmtree(entry)
            else:
                entry.unlink(missing_ok=True)
        for folder in (self.logs, self.config, self.data):
            folder.mkdir()

    def _unusable(self, error: OSError) -> ConfigError:
        return ConfigError(
            f"{self.path} cannot be the output directory: {error.strerror}",
            hint="name a folder that can be written with --output-dir",
        )
