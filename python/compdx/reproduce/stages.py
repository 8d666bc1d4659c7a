"""Stages of a study: each is done once and leaves one JSON file, so that a study that was stopped goes on."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

SETTINGS = "study.json"


@dataclass(frozen=True, kw_only=True)
class Stages:
    """The stages of a study in one directory.

    Attributes:
        directory: Where the files are.
        say: Called with one line before and after each stage that is run.
    """

    directory: Path
    say: Callable[[str], object] | None

    @classmethod
    def open(cls, directory: Path, settings: dict[str, Any], say: Callable[[str], object] | None) -> Stages:
        """Start a study, or continue the one that is there.

        Raises:
            ValueError: The directory holds a study with other settings, or something else.
        """
        path = directory / SETTINGS
        directory.mkdir(parents=True, exist_ok=True)
        settings = json.loads(json.dumps(settings))
        if path.exists():
            there = json.loads(path.read_text(encoding="utf-8"))
            names = sorted(name for name in {*there, *settings} if there.get(name) != settings.get(name))
            if names:
                changes = "; ".join(
                    f"{name} is {there.get(name)} there and {settings.get(name)} here" for name in names
                )
                msg = f"the study in {directory} has other settings: {changes}"
                raise ValueError(msg)
        elif any(directory.iterdir()):
            msg = f"out must be a new directory or one of a study, but {directory} holds something else"
            raise ValueError(msg)
        else:
            _write(path, settings)
        return cls(directory=directory, say=say)

    def run(self, name: str, work: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        """What a stage found: read from its file, or worked out now. ``seconds`` is added."""
        path = self.directory / f"{name}.json"
        if path.exists():
            found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
            return found
        self._tell(f"{name} ...")
        began = time.perf_counter()
        found = work()
        found = {**found, "seconds": round(time.perf_counter() - began, 1)}
        _write(path, found)
        self._tell(f"{name}: {found['seconds']:.0f} s")
        return json.loads(path.read_text(encoding="utf-8"))  # type: ignore[no-any-return]

    def _tell(self, line: str) -> None:
        if self.say is not None:
            self.say(line)

    def done(self, name: str) -> bool:
        """Whether a stage has its file."""
        return (self.directory / f"{name}.json").exists()


def _write(path: Path, document: dict[str, Any]) -> None:
    temporary = path.with_suffix(".tmp")
    temporary.write_text(json.dumps(document, indent=1, allow_nan=False) + "\n", encoding="utf-8")
    temporary.replace(path)
