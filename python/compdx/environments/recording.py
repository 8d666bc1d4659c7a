"""Scores on disk: what a comparison has measured so far, committed chunk by chunk, so that it can be continued."""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

SETTINGS = "settings.json"
PROGRESS = "progress.jsonl"
SCORES = "scores"

Scores = npt.NDArray[np.float32]


class Recording:
    """A directory of scores, one file ``[N, K]`` of float32 a pass of one environment, and the log of what is in them.

    A chunk is on the disk before the log says so; what a killed process left half done is done again.

    Args:
        directory: Where; made when it does not exist.
        settings: JSON values that decide what is measured. Those of a continued recording must be the same.
        resume: Continue what is there.

    Raises:
        FileExistsError: There is a comparison already, and ``resume`` is false.
        ValueError: It was made with other settings, or another process is writing it.
    """

    def __init__(self, directory: Path, settings: dict[str, Any], *, resume: bool) -> None:
        self.directory = directory
        header = directory / SETTINGS
        if header.is_file():
            if not resume:
                msg = f"{directory} holds a comparison already; continue it with resume=True, or choose another"
                raise FileExistsError(msg)
            before = json.loads(header.read_text(encoding="utf-8"))
            changed = sorted(key for key in before.keys() | settings.keys() if before.get(key) != settings.get(key))
            if changed:
                msg = f"{directory} holds a comparison with other settings: {', '.join(changed)}"
                raise ValueError(msg)
        (directory / SCORES).mkdir(parents=True, exist_ok=True)
        self._log = (directory / PROGRESS).open("a+", encoding="utf-8")
        try:
            fcntl.flock(self._log, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            self._log.close()
            msg = f"{directory} is being written by another process"
            raise ValueError(msg) from None
        write_json(header, settings)
        self._done: dict[str, _Pass] = {}
        self._identities: dict[str, str] = {}
        self._read()

    def close(self) -> None:
        """Let others write."""
        self._log.close()

    def identify(self, name: str, identity: str) -> None:
        """Note who it is that a name stands for; ``ValueError`` when it stood for another one before."""
        before = self._identities.setdefault(name, identity)
        if before != identity:
            msg = f"{self.directory} holds scores of another {name!r}: its weights, versions or settings have changed"
            raise ValueError(msg)
        self._note({"name": name, "identity": identity})

    def measured(self, name: str) -> int:
        """How many rows of a pass are there."""
        return self._pass(name).rows

    def seconds(self, name: str) -> list[float]:
        """What was noted with `time`, in its order."""
        return list(self._pass(name).seconds)

    def commit(self, name: str, total: int, start: int, scores: Scores) -> None:
        """Write the scores of rows ``start`` on, of ``total`` in the pass."""
        path = self.path(name)
        if start == 0 and self._pass(name).rows == 0:
            table = np.lib.format.open_memmap(path, "w+", np.float32, (total, scores.shape[1]))
        else:
            table = np.lib.format.open_memmap(path, "r+")
        if table.shape != (total, scores.shape[1]):
            msg = f"scores must be {list(table.shape)} in all as before, got {scores.shape[1]} columns of {total} rows"
            raise ValueError(msg)
        table[start : start + len(scores)] = scores
        table.flush()
        self._note({"pass": name, "rows": start + len(scores)})
        self._pass(name).rows = start + len(scores)

    def time(self, name: str, seconds: float) -> None:
        """Note what one call took."""
        self._note({"time": name, "seconds": seconds})
        self._pass(name).seconds.append(seconds)

    def scores(self, name: str) -> Scores:
        """The rows of a pass that are there, read only and from the disk as they are used."""
        table: Scores = np.load(self.path(name), mmap_mode="r", allow_pickle=False)
        return table[: self.measured(name)]

    def path(self, name: str) -> Path:
        """The file of a pass."""
        return self.directory / SCORES / f"{name}.npy"

    def _pass(self, name: str) -> _Pass:
        return self._done.setdefault(name, _Pass())

    def _read(self) -> None:
        self._log.seek(0)
        whole = 0
        for line in self._log.read().splitlines(keepends=True):
            if not line.endswith("\n"):
                break  # the process was killed while it wrote this
            whole += len(line.encode())
            entry = json.loads(line)
            if "identity" in entry:
                self._identities[entry["name"]] = entry["identity"]
            elif "time" in entry:
                self._pass(entry["time"]).seconds.append(entry["seconds"])
            elif self.path(entry["pass"]).is_file():
                self._pass(entry["pass"]).rows = entry["rows"]
        os.ftruncate(self._log.fileno(), whole)
        self._log.seek(0, os.SEEK_END)

    def _note(self, entry: dict[str, Any]) -> None:
        self._log.write(json.dumps(entry) + "\n")
        self._log.flush()


@dataclass
class _Pass:
    rows: int = 0
    seconds: list[float] = field(default_factory=list)


def write_json(path: Path, value: Any) -> None:
    """Write a JSON file, which is replaced in one step."""
    temporary = path.with_name(f"{path.name}.tmp")
    temporary.write_text(json.dumps(value, allow_nan=False, indent=1) + "\n", encoding="utf-8")
    temporary.replace(path)


def slug(index: int, names: Sequence[str]) -> str:
    """The name of an environment's files."""
    letters = "".join(letter if letter.isalnum() else "-" for letter in names[index])
    return f"{index:02}-{letters[:60]}"
