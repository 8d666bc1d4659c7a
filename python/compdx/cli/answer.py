"""What a command has to say, where it says it, and the exit code it ends with."""

from __future__ import annotations

import json
import os
import shlex
import sys
import traceback
from pathlib import Path
from types import TracebackType
from typing import Any, NoReturn

import typer
from rich.console import Console, RenderableType

NOTHING, FOUND, NOT_MEASURED, INTERRUPTED = 0, 1, 2, 130


class Answer:
    """What a command has to say and the exit code it ends with; use it as a context manager.

    Inside, stdout is kept for the answer: what models and their runtimes print, C code's included, goes to stderr.
    Whatever is raised becomes one line on stderr and the exit code for it.

    Args:
        command: Its name.
        as_json: Answer with one JSON object instead of text.
        debug: Print the traceback of an error.
        resumes: The file that says, once it is there, that the command can be continued with ``--resume``.
        kept: What is in the directory of that file by then.
    """

    def __init__(
        self,
        command: str,
        *,
        as_json: bool = False,
        debug: bool = False,
        resumes: Path | None = None,
        kept: str = "what was found",
    ) -> None:
        self._command, self._as_json, self._debug = command, as_json, debug
        self._resumes, self._kept = resumes, kept

    def __enter__(self) -> Answer:
        sys.stdout.flush()
        self._stdout = os.fdopen(os.dup(1), "w", encoding="utf-8")
        # Where nobody reads on a screen of a certain width, nothing is cut to fit one.
        width = None if self._stdout.isatty() else 200
        self._console = Console(file=self._stdout, highlight=False, width=width)
        os.dup2(2, 1)
        self.give(NOTHING)
        return self

    def give(self, code: int, *, data: dict[str, Any] | None = None, text: RenderableType = "") -> None:
        """Set the exit code, and the answer as JSON and as text for people."""
        self._code, self._data, self._text = code, data or {}, text

    def say(self, text: RenderableType) -> None:
        """Say something to people at once."""
        if isinstance(text, str):
            self._console.print(text, soft_wrap=True, markup=False)
        else:
            self._console.print(text)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> NoReturn:
        with self._stdout:
            self._end(kind, error, trace)
        raise typer.Exit(self._code) from None

    def _end(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if isinstance(error, KeyboardInterrupt):
            typer.echo(f"compdx {self._command}: interrupted{self._how_to_resume()}", err=True)
            self._code = INTERRUPTED
            return
        if error is not None:
            if self._debug:
                traceback.print_exception(kind, error, trace)
            typer.echo(f"compdx {self._command}: error: {one_line(error)}", err=True)
            self.give(NOT_MEASURED, data={"error": one_line(error)})
        if self._as_json:
            document = {"command": self._command, "exit_code": self._code} | self._data
            self._stdout.write(json.dumps(document, allow_nan=False) + "\n")
        elif self._text:
            self.say(self._text)

    def _how_to_resume(self) -> str:
        if self._resumes is None or not self._resumes.exists():
            return ""
        again = shlex.join(["compdx", *(arg for arg in sys.argv[1:] if arg != "--resume"), "--resume"])
        return f"; {self._kept} is in {self._resumes.parent}. Resume with\n  {again}"


def one_line(error: BaseException) -> str:
    """An error as one line, with its notes."""
    text = " ".join(str(error).split()) or "no message"
    if not isinstance(error, (ValueError, TypeError, OSError, ModuleNotFoundError)):
        text = f"{type(error).__name__}: {text}"
    return "; ".join([text, *getattr(error, "__notes__", ())])
