"""How benches measure: the sides of a comparison take turns in short slices of one process.

A machine that changes its speed then changes it for all sides; figures are medians over slices, with their quartiles.
"""

from __future__ import annotations

import statistics
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from typing import Any

Run = Callable[[], Any]


def seconds_of(run: Run, device: str = "cpu") -> float:
    """Seconds until all that ``run`` asked of the device is done; events of the device itself on CUDA."""
    if device == "cpu":
        start = time.perf_counter()
        run()
        return time.perf_counter() - start
    import torch

    torch.cuda.synchronize()
    first, last = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    first.record()
    run()
    last.record()
    last.synchronize()
    return float(first.elapsed_time(last)) / 1e3


def take_turns(
    sides: Mapping[str, Run], *, slices: int, seconds: float, device: str = "cpu", most: int = 1 << 30
) -> dict[str, list[float]]:
    """Seconds a call of every side, one number a slice; a slice lasts about ``seconds`` or ``most`` calls."""
    repeats = {}
    for name, run in sides.items():
        run()
        once = min(seconds_of(run, device) for _ in range(2))
        repeats[name] = max(1, min(most, round(seconds / max(once, 1e-9))))
    found: dict[str, list[float]] = {name: [] for name in sides}
    for _ in range(slices):
        for name, run in sides.items():
            count = repeats[name]
            found[name].append(seconds_of(lambda run=run, count=count: [run() for _ in range(count)], device) / count)
    return found


def spread(name: str, values: Iterable[float]) -> dict[str, Any]:
    """The median of ``values`` under ``name``, and their quartiles beside it."""
    values = list(values)
    quartiles = statistics.quantiles(values, n=4) if len(values) > 1 else values * 3
    return {name: statistics.median(values), f"{name}_quartiles": quartiles}


def captured(run: Run) -> Run:
    """What ``run`` launches, as a CUDA graph: replaying it costs the host one call."""
    import torch

    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):  # workspaces are allocated and kernels chosen before the capture
            run()
    torch.cuda.current_stream().wait_stream(side)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        run()
    return graph.replay


class Laps:
    """Where the time of a sequence of steps goes: seconds by name, added up over rounds."""

    def __init__(self, device: str) -> None:
        self._on_cuda = device != "cpu"
        self._marks: list[tuple[str | None, Any]] = []

    def start(self) -> None:
        """Begin a round."""
        self._mark(None)

    def lap(self, name: str) -> None:
        """The time since the mark before this one belongs to ``name``."""
        self._mark(name)

    def totals(self) -> dict[str, float]:
        """Seconds by name; waits for the device."""
        if self._on_cuda and self._marks:
            self._marks[-1][1].synchronize()
        sums: dict[str, float] = defaultdict(float)
        for (_, before), (name, after) in zip(self._marks, self._marks[1:], strict=False):
            if name is not None:
                sums[name] += before.elapsed_time(after) / 1e3 if self._on_cuda else after - before
        return dict(sums)

    def _mark(self, name: str | None) -> None:
        if not self._on_cuda:
            self._marks.append((name, time.perf_counter()))
            return
        import torch

        event = torch.cuda.Event(enable_timing=True)
        event.record()
        self._marks.append((name, event))


def bar(share: float, width: int = 30) -> str:
    """A share of a limit as a bar of text; what is beyond the limit is marked."""
    filled = round(min(max(share, 0.0), 1.0) * width)
    return "█" * filled + "·" * (width - filled) + ("▸" if share > 1 else " ")
