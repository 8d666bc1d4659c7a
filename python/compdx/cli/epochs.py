"""Live progress of a training: two live lines and the epochs above them on a terminal, a plain line an epoch elsewhere.

Everything goes to stderr.
"""

from __future__ import annotations

import sys
import time
from types import TracebackType
from typing import Any, TextIO

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from compdx.screen import clock

DRAW_SECONDS = 0.2


class Epochs:
    """A listener for a training that shows its epochs; use it as a context manager.

    Args:
        total: Epochs of the whole training.
        quiet: Show nothing.
        stream: Where to; default stderr.
    """

    def __init__(self, total: int, *, quiet: bool = False, stream: TextIO | None = None) -> None:
        self._total, self._quiet = total, quiet
        self._stream = sys.stderr if stream is None else stream
        self._live: Live | None = None
        self._began = self._next_draw = time.monotonic()
        self._first_step: int | None = None
        self._last = ""

    def __enter__(self) -> Epochs:
        if not self._quiet and self._stream.isatty():
            console = Console(file=self._stream)
            if console.is_terminal and not console.is_dumb_terminal:
                self._live = Live(console=console, auto_refresh=False)
                self._live.start()
        self._began = time.monotonic()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._live is not None:
            self._live.stop()
            self._live = None

    def __call__(self, epoch: Any) -> None:
        """Show a finished epoch: a `training.Epoch`, with ``test_accuracy`` or ``holdout`` where it has one."""
        self._last = line(epoch, self._total)
        if self._live is not None:
            self._live.console.print(self._last, highlight=False)
        elif not self._quiet:
            self._stream.write(f"compdx: {self._last}\n")
            self._stream.flush()

    def tick(self, done: int, total: int) -> None:
        """Show how many steps of the whole training are done."""
        now = time.monotonic()
        if self._first_step is None:
            self._first_step = done - 1  # what a resumed training need not do again
        if self._live is not None and (now >= self._next_draw or done == total):
            self._live.update(self._render(done, total, now - self._began), refresh=True)
            self._next_draw = now + DRAW_SECONDS

    def _render(self, done: int, total: int, seconds: float) -> RenderableType:
        per_step = seconds / (done - (self._first_step or 0))
        row = Table.grid(padding=(0, 2))
        row.add_row(
            ProgressBar(total=total, completed=done, width=30, complete_style="cyan", finished_style="green"),
            Text(f"epoch {min(done * self._total // total + 1, self._total)}/{self._total}"),
            Text(clock(seconds)),
            Text("done" if done == total else f"about {clock(per_step * (total - done))} left", style="dim"),
        )
        return Group(row)


def line(epoch: Any, total: int) -> str:
    """One epoch as plain text."""
    parts = [f"epoch {epoch.epoch}/{total}", f"loss {epoch.loss:.4f}", f"accuracy {epoch.accuracy:.1%}"]
    for name, label in (("test_accuracy", "test"), ("holdout", "holdout")):
        if hasattr(epoch, name):
            parts.append(f"{label} {getattr(epoch, name):.2%}")
    return ", ".join([*parts, f"{epoch.seconds:.1f} s"])
