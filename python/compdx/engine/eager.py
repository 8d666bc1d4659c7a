"""The eager engine: one iteration after the other, called from the host."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from compdx.methods.base import Loop, is_stepping

if TYPE_CHECKING:
    from types import TracebackType

    from compdx.model import Pair

Scores = tuple[Any, Any]


class Eager:
    """Runs the iterations of a loop one at a time: any method, any models, any device.

    Attributes:
        begun: Iterations that were begun, one that raised included.
        cut: True when an exception came while the loop took in scores: its state is worth nothing then.
        fallback: Why this is not the engine that the device would have; None when it is, or when it was asked for.
    """

    description = "eager"

    def __init__(self, pair: Pair, loop: Loop, *, fallback: str | None = None) -> None:
        self.begun, self.cut, self.fallback = 0, False, fallback
        self._pair, self._loop = pair, loop
        self._parts: tuple[Callable[[], Scores], Callable[[Any, Any], None]] | None = None

    def __enter__(self) -> Eager:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        return

    def advance(self) -> None:
        """Run one iteration."""
        self.begun += 1
        if self._parts is None:
            self._parts = self._start()
        score, tell = self._parts
        a, b = score()
        self.cut = True
        tell(a, b)
        self.cut = False

    def _start(self) -> tuple[Callable[[], Scores], Callable[[Any, Any], None]]:
        """How to score what the loop asks, and how to tell it."""
        pair, loop = self._pair, self._loop
        if not is_stepping(loop):
            forward = pair if pair.inputs is None else pair.forward
            return lambda: forward(loop.ask()), loop.tell
        original, compressed = pair.bind(loop.ask())
        return lambda: pair.agree(original(), compressed()), loop.step
