"""A deployed file that runs in a process of its own, as a function."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import weakref
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

Scores = npt.NDArray[np.float32]
LAST_WORDS = 2000  # characters of what a process said before it died


class ChildError(RuntimeError):
    """The process of a model has died, or cannot do what it is asked."""


class Child:
    """A model file in a process of its own: float32 ``[N, ...]`` in, float32 scores ``[N, K]`` out.

    What a process reads only once, when it starts, can be set for it alone: instruction sets, thread pools. A model
    that takes its process with it does not take this one.

    Args:
        path: The model file.
        variables: Variables of the process, in addition to those of this one.
        settings: Keywords of `compdx.runtimes.open`.

    Attributes:
        settings: What the runtime really uses, as JSON values, with the ``variables``.
        seconds: What the last call took there, without the way of the arrays.

    Raises:
        ChildError: The file cannot be opened there, or the process has died; the message has its last words.
    """

    def __init__(self, path: Path, variables: Mapping[str, str], settings: Mapping[str, Any]) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="compdx-")
        self._log = Path(self._folder.name) / "log"
        # What this process imports, that one does: also a package that is not installed but on the path.
        path_of = os.pathsep.join(entry or str(Path.cwd()) for entry in sys.path)
        environment = {**os.environ, **variables, "PYTHONPATH": path_of}
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "compdx.environments.worker"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                env=environment,
                text=True,
            )
        self._finalizer = weakref.finalize(self, _end, self._process, self._folder)
        self.seconds = 0.0
        answer = self._ask({"path": str(path), **settings})
        self.settings: dict[str, Any] = {**answer["settings"], "variables": dict(variables)}

    def __call__(self, x: Scores) -> Scores:
        """The scores of a batch."""
        given, returned = (Path(self._folder.name) / name for name in ("x.npy", "scores.npy"))
        np.save(given, np.ascontiguousarray(x), allow_pickle=False)
        self.seconds = self._ask({"x": str(given), "scores": str(returned)})["seconds"]
        scores: Scores = np.load(returned, allow_pickle=False)
        return scores

    def close(self) -> None:
        """End the process."""
        self._finalizer()

    def _ask(self, question: dict[str, Any]) -> dict[str, Any]:
        stdin, stdout = self._process.stdin, self._process.stdout
        line = ""
        if stdin is not None and stdout is not None and self._finalizer.alive:
            try:
                stdin.write(json.dumps(question) + "\n")
                stdin.flush()
                line = stdout.readline()
            except OSError:
                pass  # it has died; what it said says why
        if not line:
            raise ChildError(self._obituary())
        answer: dict[str, Any] = json.loads(line)
        if "error" in answer:
            raise ChildError(answer["error"])
        return answer

    def _obituary(self) -> str:
        if not self._finalizer.alive:
            return "the process of the model was closed"
        code = self._process.wait()
        words = " ".join(self._log.read_text(encoding="utf-8", errors="replace").split())[-LAST_WORDS:]
        how = f"signal {-code}" if code < 0 else f"exit code {code}"
        return f"the process of the model ended with {how}{': ' if words else ''}{words}"


def _end(process: subprocess.Popen[str], folder: tempfile.TemporaryDirectory[str]) -> None:
    """Close what it listens to, wait, and remove its files."""
    for stream in (process.stdin, process.stdout):
        if stream is not None:
            with suppress(OSError):  # what was still on its way to a dead process
                stream.close()
    try:
        process.wait(timeout=5)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
    folder.cleanup()
