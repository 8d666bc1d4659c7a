"""Any number of images for files that take a fixed one."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]
Call = Callable[[Array], Array]
"""From a batch of the input's own dtype to the output as the runtime returns it."""


class Parts:
    """A batch of any size for calls that take exactly ``size`` images; the last part is filled up with its last row.

    Args:
        calls: One for each thread, so that each may hold what must not be shared.
        size: Images a call.
    """

    def __init__(self, calls: Sequence[Call], size: int) -> None:
        self._calls, self._size = calls, size
        self._pool = ThreadPoolExecutor(len(calls)) if len(calls) > 1 else None

    @property
    def description(self) -> str:
        """For ``settings["batch"]``."""
        each = "one image" if self._size == 1 else f"{self._size} images (the last part filled up)"
        return f"{each} a call" + (f", {len(self._calls)} calls at a time" if self._pool else "")

    def __call__(self, x: Array) -> Array:
        missing = -len(x) % self._size
        padded = np.concatenate([x, np.repeat(x[-1:], missing, axis=0)]) if missing else x
        parts = padded.reshape(-1, self._size, *x.shape[1:])
        workers = len(self._calls)

        def share(worker: int) -> list[Array]:
            return [np.array(self._calls[worker](part)) for part in parts[worker::workers]]

        out: list[Any] = [None] * len(parts)
        shares = map(share, range(workers)) if self._pool is None else self._pool.map(share, range(workers))
        for worker, done in enumerate(shares):
            out[worker::workers] = done
        return np.concatenate(out)[: len(x)]


def agree(together: Array, alone: Array) -> bool:
    """Whether a batch gives each image the scores that it has alone, up to rounding."""
    if together.shape != alone.shape or not np.isfinite(alone).all():
        return False
    together, alone = together.astype(np.float64), alone.astype(np.float64)
    return bool(np.abs(together - alone).max() <= 1e-2 * max(1e-6, float(np.ptp(alone))))


def usable_cpus() -> int:
    """The number of CPUs that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
