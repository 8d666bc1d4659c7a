"""Live progress of a search: two live lines on a terminal, plain lines elsewhere. Everything goes to stderr."""

from __future__ import annotations

import sys
import time
from importlib.util import find_spec
from typing import TYPE_CHECKING, TextIO

if TYPE_CHECKING:
    from types import TracebackType

    from rich.console import RenderableType
    from rich.live import Live

    from compdx.driver import Event

PLAIN_SECONDS = 5.0


class Screen:
    """A listener for `driver.run` that shows where the search stands; use it as a context manager.

    Live lines need a terminal and rich; without either, a plain line is printed every few seconds and one at the end.
    What is shown never changes what is searched.
    """

    def __init__(self, stream: TextIO | None = None, *, every: float = PLAIN_SECONDS) -> None:
        self._stream = sys.stderr if stream is None else stream
        self._every = every
        self._next_line = 0.0
        self._last: Event | None = None
        self._noted: str | None = None
        self._live: Live | None = None

    def __enter__(self) -> Screen:
        if self._stream.isatty() and find_spec("rich") is not None:
            from rich.console import Console
            from rich.live import Live

            console = Console(file=self._stream)
            if console.is_terminal and not console.is_dumb_terminal:
                self._live = Live(console=console, auto_refresh=False)
                self._live.start()
        self._next_line = time.monotonic() + self._every
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._live is not None:
            self._live.stop()
            self._live = None
        elif self._last is not None and not self._last.finished:
            self._print(self._last)

    def __call__(self, event: Event) -> None:
        """Show one event, and once why the search does not run as it might."""
        if event.fallback is not None and event.fallback != self._noted:
            self._noted = event.fallback
            self._note(f"compdx: iterations run one by one: {event.fallback}")
        if self._live is not None:
            self._live.update(render(event), refresh=True)
            return
        self._last = event
        now = time.monotonic()
        if event.finished or now >= self._next_line:
            self._print(event)
            self._next_line = now + self._every

    def _note(self, text: str) -> None:
        if self._live is not None:
            self._live.console.print(text, markup=False, highlight=False)
        else:
            print(text, file=self._stream, flush=True)

    def _print(self, event: Event) -> None:
        print(f"compdx: {line(event)}", file=self._stream, flush=True)


class Ticker:
    """A listener for work that tells how much of how much is done: a plain line on stderr every few seconds."""

    def __init__(self, what: str, *, every: float = PLAIN_SECONDS) -> None:
        self._what, self._every = what, every
        self._next_line = time.monotonic() + every

    def __call__(self, done: int, total: int) -> None:
        """Show ``done`` of ``total``, unless a line was printed just now."""
        now = time.monotonic()
        if now >= self._next_line:
            print(f"compdx: {done:,}/{total:,} {self._what}", file=sys.stderr, flush=True)
            self._next_line = now + self._every


def line(event: Event) -> str:
    """One event as plain text."""
    parts = [f"{event.ended:,}/{event.seeds:,} seeds", *_counts(event), f"{clock(event.seconds)} elapsed"]
    if not event.finished:
        parts.append(_left(event))
    return ", ".join(parts)


def render(event: Event) -> RenderableType:
    """One event as two live lines: how far, and what came of it."""
    from rich.console import Group
    from rich.progress_bar import ProgressBar
    from rich.table import Table
    from rich.text import Text

    how_far = Table.grid(padding=(0, 2))
    how_far.add_row(
        ProgressBar(
            total=max(event.seeds, 1), completed=event.ended, width=30, complete_style="cyan", finished_style="green"
        ),
        Text(f"{event.ended:,}/{event.seeds:,} seeds"),
        Text(clock(event.seconds)),
        Text("done" if event.finished else _left(event), style="dim"),
    )
    found, *rest = _counts(event)
    what = Text.assemble((found, "bold red" if event.found else ""), *((f" · {part}", "dim") for part in rest))
    return Group(how_far, what)


def clock(seconds: float) -> str:
    """``m:ss`` or ``h:mm:ss``."""
    minutes, second = divmod(int(seconds + 0.5), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{second:02}" if hours else f"{minutes}:{second:02}"


def _counts(event: Event) -> list[str]:
    return [
        f"{event.found:,} found",
        f"{event.already_deviating:,} already deviating",
        f"{event.exhausted:,} exhausted",
        *([f"{event.non_finite:,} non-finite"] if event.non_finite else []),
        f"{event.queries_per_second:,.0f} queries/s",
        f"{event.occupancy:.0%} occupied",
    ]


def _left(event: Event) -> str:
    return "time left unknown" if event.seconds_left is None else f"about {clock(event.seconds_left)} left"
