"""How many chains: a short measurement of the pair at growing batch sizes."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from compdx.model import Pair, normalize
from compdx.seeds import Seeds

SECONDS = {"cpu": 2.0, "cuda": 10.0}
SMALLEST = 32
MOST = {"cpu": 2048, "cuda": 65536}
# More images a second, by this factor, are worth a larger batch; the best is shared by all that come as close.
GAIN = 1.05
# Slots without a seed are computed all the same. With fewer seeds a slot, most of a search would be its end, in which
# the last chains spend their budget and the others' slots are empty.
SEEDS_A_SLOT = 4
_CALLS = 3


@dataclass(frozen=True, kw_only=True)
class Calibration:
    """What was measured, and the number of chains that follows from it.

    Attributes:
        chains: The smallest batch within 5 % of the most images a second.
        most: The largest batch that was considered: a quarter of the seeds, but 32 where there are as many, and at most
            2,048 on the CPU and 65,536 on CUDA.
        batches: Batch sizes that were measured.
        images_per_second: Images that both models scored a second, for each of them.
        stopped: Why no larger batch was measured: ``"most"``, ``"gain"`` (less than 5 %), ``"time"`` or ``"memory"``.
    """

    chains: int
    most: int
    batches: tuple[int, ...]
    images_per_second: tuple[float, ...]
    stopped: str

    def to_json(self) -> dict[str, Any]:
        """All attributes as JSON values."""
        return {name: list(v) if isinstance(v, tuple) else v for name, v in asdict(self).items()}


def calibrate(
    pair: Pair, seeds: Seeds, *, seconds: float | None = None, clock: Callable[[], float] = time.perf_counter
) -> Calibration:
    """Measure the forward passes of ``pair`` at batches of 32, 64, ... images and choose the number of chains.

    Args:
        pair: Both models score the seeds, repeated where there are fewer.
        seeds: At least one.
        seconds: No measurement is begun that would end later, as far as the one before tells; the first always is.
            None: 2 on the CPU; 10 on CUDA, where the first call of a model takes seconds.
        clock: Seconds.

    Nothing is random, but a measured time is never twice the same: another run may choose another number. What a search
    finds depends on it no more than the models' scores depend on the batch they are in.
    """
    kind = pair.device.partition(":")[0]
    most = min(MOST[kind], max(min(len(seeds), SMALLEST), len(seeds) // SEEDS_A_SLOT))
    if most <= SMALLEST:  # nothing to choose from
        return Calibration(chains=most, most=most, batches=(), images_per_second=(), stopped="most")
    ends = clock() + (SECONDS[kind] if seconds is None else seconds)
    batch, rates = SMALLEST, dict[int, float]()
    while True:
        try:
            took, whole = _time(pair, seeds, batch, ends, clock)
        except _out_of_memory(kind):
            if not rates:
                raise
            stopped = "memory"
            break
        best = max(rates.values(), default=0.0)
        rates[batch] = batch / took
        if rates[batch] < GAIN * best:
            stopped = "gain"
        elif batch == most:
            stopped = "most"
        elif clock() + 2 * whole > ends:
            stopped = "time"
        elif kind == "cuda" and _is_half_full(pair.device):
            stopped = "memory"
        else:
            batch = min(2 * batch, most)
            continue
        break
    enough = max(rates.values()) / GAIN
    return Calibration(
        chains=min(size for size, rate in rates.items() if rate >= enough),
        most=most,
        batches=tuple(rates),
        images_per_second=tuple(round(rate, 1) for rate in rates.values()),
        stopped=stopped,
    )


def _time(pair: Pair, seeds: Seeds, batch: int, ends: float, clock: Callable[[], float]) -> tuple[float, float]:
    """Seconds of both forward passes, the best of as many as there is time for, and of the whole measurement."""
    began = clock()
    images = np.resize(seeds.images[:batch], (batch, *seeds.shape))
    score = [model.bind(normalize(images, model.inputs, pair.device)) for model in (pair.original, pair.compressed)]

    def once() -> float:
        start = clock()
        pair.agree(score[0](), score[1]())
        if pair.device != "cpu":
            sys.modules["torch"].cuda.synchronize(pair.device)
        return clock() - start

    took = once()  # what is done once for a batch size is not of its speed, unless there is no time for more
    for _ in range(_CALLS):
        if clock() + took <= ends:
            took = min(took, once())
    return took, clock() - began


def _out_of_memory(kind: str) -> tuple[type[BaseException], ...]:
    return (MemoryError, sys.modules["torch"].cuda.OutOfMemoryError) if kind == "cuda" else (MemoryError,)


def _is_half_full(device: str) -> bool:
    """Whether twice the batch might leave too little of the device for the chains and for a graph."""
    free, total = sys.modules["torch"].cuda.mem_get_info(device)
    return bool(free < total / 2)
