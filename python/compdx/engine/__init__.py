"""What runs the iterations of a search: one by one, or on CUDA as a graph of many."""

from __future__ import annotations

from compdx.engine.calibration import Calibration, calibrate
from compdx.engine.eager import Eager
from compdx.engine.graph import Graph
from compdx.engine.numerics import Numerics
from compdx.methods.base import Loop, Method, is_stepping
from compdx.model import Pair
from compdx.ops.checks import one_of

ENGINES = ("auto", "graph", "eager")

Engine = Eager | Graph

__all__ = ["ENGINES", "Calibration", "Eager", "Engine", "Graph", "Numerics", "calibrate", "check", "start"]


def check(engine: str, pair: Pair, method: Method) -> None:
    """Raise ``ValueError`` for an engine that is unknown, or that this search cannot have."""
    one_of("engine", engine, ENGINES)
    if engine == "graph" and pair.device == "cpu":
        msg = "engine: 'graph' needs a pair on CUDA, got one on 'cpu'"
        raise ValueError(msg)
    if engine == "graph" and getattr(method, "white_box", False):
        msg = f"engine: 'graph' is for methods whose steps need nothing of the host, which {method.name!r} do"
        raise ValueError(msg)


def start(engine: str, pair: Pair, loop: Loop) -> Engine:
    """The engine for a loop: ``"auto"`` is a graph where there can be one, ``"graph"`` raises where there cannot.

    Raises:
        ValueError: ``engine`` is unknown, or ``"graph"`` for a loop without ``step``.
    """
    one_of("engine", engine, ENGINES)
    if engine == "eager" or (engine == "auto" and pair.device == "cpu"):
        return Eager(pair, loop)
    if not is_stepping(loop):
        if engine == "graph":
            msg = "engine: 'graph' is for methods whose loops have step()"
            raise ValueError(msg)
        return Eager(pair, loop, fallback="no CUDA graph: the method takes its steps on the host")
    return Graph(pair, loop, strict=engine == "graph")
